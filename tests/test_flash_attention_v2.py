"""Lesson 09's kernel: heads, groups, masks, lengths, edges, refusals, and what it compiles to."""
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from helpers import compiled, device, lessons, reference
from helpers.check.core import poisoned, unwritten

lesson = lessons.causal_and_multihead
v2 = lesson.flash_attention_v2
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


def inputs(B, heads, kv_heads, N_q, N_k, D, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, h, N, D, generator=generator).to(device.DEVICE, dtype)
            for h, N in ((heads, N_q), (kv_heads, N_k), (kv_heads, N_k))]


def check(tensors, bound, lse_bound=1e-5, **options):
    tiles = options.pop("tiles", None)
    o, lse = v2(*tensors, enable_gqa=True, return_lse=True, tiles=tiles, **options)
    want_o, want_lse = reference.attention(*tensors, return_lse=True, **options)
    assert o.shape == tensors[0].shape and o.dtype == tensors[0].dtype
    assert np.abs(o.double().cpu().numpy() - want_o).max(initial=0) < bound
    np.testing.assert_allclose(lse.cpu().numpy(), want_lse, rtol=lse_bound, atol=lse_bound)


@DTYPES
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("N_q,N_k", [(1, 1), (17, 17), (128, 128), (200, 200), (1, 113), (50, 130), (130, 50), (70, 0)])
@pytest.mark.parametrize("D", [16, 64])
def test_agrees_with_float64(N_q, N_k, D, is_causal, dtype):
    check(inputs(1, 2, 2, N_q, N_k, D, dtype), BOUNDS[dtype], is_causal=is_causal)


@DTYPES
@pytest.mark.parametrize("D", [1, 7, 40, 128, 200, 256])
def test_any_head_dimension(D, dtype):
    check(inputs(1, 1, 1, 70, 70, D, dtype), BOUNDS[dtype], is_causal=True)


@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (3, 3), (4, 2), (6, 2), (8, 1)])
def test_batches_and_groups(heads, kv_heads):
    check(inputs(2, heads, kv_heads, 40, 40, 16), 2e-6, is_causal=True)


@settings(max_examples=25, deadline=None)
@given(N_q=st.integers(0, 90), N_k=st.integers(0, 90), D=st.integers(1, 40), is_causal=st.booleans(),
       scale=st.floats(-2, 2), BLOCK_M=st.sampled_from([16, 32, 64]), BLOCK_N=st.sampled_from([16, 32, 64]),
       groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]), seed=st.integers(0, 99))
def test_any_call(N_q, N_k, D, is_causal, scale, BLOCK_M, BLOCK_N, groups, seed):
    q, k, v = inputs(1, *groups, N_q, N_k, D, seed=seed)
    largest = abs(scale) * (q.norm(dim=-1).amax() * k.norm(dim=-1).amax()).item() if q.numel() and k.numel() else 0
    check([q, k, v], 2e-6 + 1e-6 * largest, 1e-4, is_causal=is_causal, scale=scale,   # a score's rounding is a share of it
          tiles=dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N))


@pytest.mark.parametrize("shape", [(0, 2, 2, 5, 5, 8), (1, 0, 0, 5, 5, 8), (1, 2, 2, 0, 5, 8), (1, 2, 2, 0, 0, 8)])
def test_nothing_to_do(shape):
    q, k, v = inputs(*shape)
    o, lse = v2(q, k, v, return_lse=True)
    assert o.shape == q.shape and lse.shape == q.shape[:3]


@pytest.mark.parametrize("is_causal", [False, True])
def test_every_element_is_written(is_causal):
    with poisoned():
        o, lse = v2(*inputs(2, 2, 2, 70, 50, 24), is_causal=is_causal, return_lse=True)
        assert not unwritten(o) and not unwritten(lse)


def test_strided_views():
    q, k, v = inputs(2, 3, 3, 50, 50, 24)
    seq_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    features_slow = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    every_second = [torch.stack((x, x), -1).flatten(-2)[..., ::2] for x in (q, k, v)]
    expanded = [x[:1].expand(2, -1, -1, -1) for x in (q, k, v)]
    want = v2(q, k, v, is_causal=True)
    for views in (seq_first, features_slow, every_second):
        assert torch.equal(v2(*views, is_causal=True), want)
    assert torch.equal(v2(*expanded, is_causal=True)[1], want[0])


def test_the_other_layout():
    q, k, v = (x[0].transpose(0, 1) for x in inputs(1, 4, 4, 60, 60, 16))              # [seq, heads, D]
    o = lesson.call_flash_attention_v2(q, k, v, is_causal=True)
    want = reference.attention(*(x.transpose(0, 1) for x in (q, k, v)), is_causal=True)
    assert o.shape == q.shape and np.abs(o.transpose(0, 1).cpu().numpy() - want).max() < 2e-6


def test_large_logits():
    q, k, v = inputs(1, 1, 1, 100, 100, 64)
    got = v2(q, k, v, scale=1e4)
    assert torch.allclose(got[0, 0], v[0, 0][(q @ k.mT)[0, 0].argmax(1)], atol=1e-6)


@DTYPES
@pytest.mark.parametrize("is_causal", [False, True])
def test_no_worse_than_twice_pytorch(is_causal, dtype):
    tensors = inputs(1, 2, 2, 200, 200, 64, dtype)
    exact = reference.attention(*tensors, is_causal=is_causal)
    distance = lambda o: np.abs(o.double().cpu().numpy() - exact).max()
    assert distance(v2(*tensors, is_causal=is_causal)) <= 2 * distance(reference.torch_attention(*tensors, is_causal=is_causal))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")    # NumPy, inside the interpreter, announces what we ask for
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_come_out_as_from_the_reference(which, value):
    tensors = inputs(1, 1, 1, 100, 100, 16)
    tensors[which][0, 0, 70, 3] = value
    got, want = v2(*tensors).double().cpu().numpy(), reference.attention(*tensors)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_future_does_not_leak_across_tiles():
    q, k, v = inputs(1, 1, 1, 256, 256, 16)
    v[:, :, 128:] = float("nan")                         # rows of the first tiles must not even look there
    o = v2(q, k, v, is_causal=True, tiles=dict(BLOCK_M=64, BLOCK_N=64))
    assert torch.isfinite(o[:, :, :128]).all()


def test_is_deterministic():
    tensors = inputs(1, 2, 2, 200, 200, 64, torch.float16)
    assert torch.equal(v2(*tensors, is_causal=True), v2(*tensors, is_causal=True))


@pytest.mark.parametrize("change,error_type,message", [
    (lambda q, k, v: (q[0], k, v), ValueError, r"q has 3 dimensions, shape \[8, 10, 16\]"),
    (lambda q, k, v: (q, k, v[:, :, :5]), ValueError, r"v has shape \[1, 2, 5, 16\], k has \[1, 2, 10, 16\]"),
    (lambda q, k, v: (q.repeat(2, 1, 1, 1), k, v), ValueError, "k has 1 batches, q has 2"),
    (lambda q, k, v: (q[..., :8], k, v), ValueError, "k has 16 features a head, q has 8"),
    (lambda q, k, v: (q[:, :3], k, v), ValueError, "k has 2 heads, which does not divide the 3 heads of q"),
    (lambda q, k, v: (q, k[:, :0], v[:, :0]), ValueError, "k has 0 heads, which does not divide"),
    (lambda q, k, v: (q, k.half(), v), TypeError, "k is torch.float16, q is torch.float32"),
    (lambda q, k, v: (q.requires_grad_(), k, v), ValueError, "q requires a gradient"),
])
def test_refuses_in_a_sentence(change, error_type, message):
    with pytest.raises(error_type, match=message):
        v2(*change(*inputs(1, 8, 2, 10, 10, 16)), enable_gqa=True)


@pytest.mark.parametrize("axis,what", [(2, "rows"), (3, "features")])
def test_offsets_of_more_than_32_bits_are_refused(axis, what):
    q, k, v = inputs(1, 1, 1, 2, 2, 2, torch.float16)
    memory = torch.empty(2**23 + 2, dtype=torch.float16, device=device.DEVICE)
    strides = [1, 1, 1, 1]
    strides[axis] = 2**23
    with pytest.raises(ValueError, match=f"k has {what} that lie 8388608 elements apart"):
        v2(q, memory.as_strided(k.shape, strides), v)


def test_groups_are_asked_for():
    with pytest.raises(ValueError, match="pass enable_gqa=True"):
        v2(*inputs(1, 8, 2, 10, 10, 16))


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype,D", [("fp16", 64), ("fp16", 128), ("fp16", 256), ("bf16", 80), ("fp32", 64), ("fp32", 256)])
def test_compiles_without_spills(capability, dtype, D):
    sizes = lesson.tile_sizes(D, {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    launch = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    pointers = {f"{name}_ptr": "*" + dtype for name in "qkvo"} | dict(lse_ptr="*fp32")
    strides = {f"{name}_strides": [16 * 4096 * D, 4096 * D, D, 1] for name in "qkvo"}
    made = compiled.compile_kernel("causal_and_multihead", "flash_attention_v2_kernel", dict(
        **pointers, **strides, heads=16, group=1, N_q=4096, N_k=4096, scale=0.1, dropout=[0.0, 0], D=D, IS_CAUSAL=True, DROPOUT=False, DOT=dtype, **sizes),
        capability, **launch)
    assert made["stack"] == 0 and made["shared"] <= 99 * 1024
    assert bool(re.search(r"\b(HMMA|HGMMA|UTCHMMA)\b", made["sass"])) == (dtype != "fp32")
