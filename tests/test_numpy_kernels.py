"""The first kernel, and FlashAttention in NumPy."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from helpers import device, reference
from helpers.lessons import flash_attention_numpy
from helpers.lessons.flash_attention_numpy import flash_attention_numpy as flash
from helpers.lessons.vector_add_triton import add


@pytest.mark.parametrize("n", [0, 1, 2, 1023, 1024, 1025, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32], ids=str)
def test_add(n, dtype):
    x, y = (100 * torch.randn(2, n)).to(device.DEVICE, dtype)
    assert torch.equal(add(x, y), x + y)


@settings(max_examples=40, deadline=None)
@given(N_q=st.integers(0, 40), N_k=st.integers(1, 40), D=st.integers(1, 9), BLOCK_M=st.integers(1, 50),
       BLOCK_N=st.integers(1, 50), seed=st.integers(0, 99))
def test_flash_attention(N_q, N_k, D, BLOCK_M, BLOCK_N, seed):
    rng = np.random.default_rng(seed)
    q, k, v = 10 * rng.standard_normal((N_q, D)), rng.standard_normal((N_k, D)), rng.standard_normal((N_k, 5))
    o = flash(q, k, v, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N)
    np.testing.assert_allclose(o, reference.attention(q, k, v), rtol=1e-10, atol=1e-13)


def test_flash_attention_keeps_the_type():
    q, k, v = np.random.default_rng(0).standard_normal((3, 70, 8), dtype=np.float32)
    o = flash(q, k, v, scale=0.5)
    assert o.dtype == np.float32 and np.abs(o - reference.attention(q, k, v, scale=0.5)).max() < 1e-6


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint8])
def test_whole_numbers_are_not_cut(kind):
    q = np.array([[1, 0], [0, 2]], kind)
    want = reference.attention(q, q, q)                  # [[0.67, 0.66], [0.06, 1.89]]
    for o in (flash(q, q, q), flash(q, q, q.astype(float)), flash_attention_numpy.outer_over_queries(
            q, q, q, flash_attention_numpy.SRAM(10**6), 1, 1)):
        assert o.dtype == np.float64 and np.abs(o - want).max() < 1e-6
    assert np.abs(flash(q.astype(float), q, q) - want).max() < 1e-6


def test_flash_attention_at_the_edges():
    q, k, v = np.random.default_rng(0).standard_normal((3, 70, 8))
    q[:, 0], k[:66, 0] = 1, -np.inf                      # a first block that nobody may look at
    np.testing.assert_allclose(flash(q, k, v), reference.attention(q, k, v), atol=1e-14)
