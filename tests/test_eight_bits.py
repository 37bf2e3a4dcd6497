"""FP8: what is quantized and how, the kernel on eight bits, whole calls, and what they refuse."""
from unittest import mock

import numpy as np
import pytest
import torch
import triton
from hypothesis import given, settings, strategies as st

from attention import (V3, V4, VIEWS, array, causal_or_not, close, default_type, each_default, each_empty_shape, each_value,
                       half_types, inputs, long_tiles, nan_in_new_memory, needs_fp8, quietly, spoilt)
from helpers import device, reference
from helpers.check.core import poisoned, unwritten
from helpers.lessons import fp8, warp_specialization
from helpers.lessons.fp8 import flash_attention_v3 as v3, quantize_qkv

pytestmark = needs_fp8


def quantized(*tensors):
    """(q8, k8, v8), and their three scales."""
    *x8, scales = quantize_qkv(*tensors)
    return x8, scales


def dequantized(x8, scales, D):
    """What the eight bits and the scales stand for, in float64: q, k, v as they were before."""
    q, k = (array(x)[..., :D] * np.repeat(array(scale), 128, axis=2)[:, :, :x.shape[2], None]
            for x, scale in zip(x8[:2], scales[:2]))
    return q, k, np.swapaxes(array(x8[2]) * array(scales[2])[..., None], 2, 3)[..., :D]


def relative(o, exact):
    return np.linalg.norm(array(o) - exact) / np.linalg.norm(exact)


def leave_nan_behind():
    """Fill registers and memory with the NaN of float8_e4m3fn: what is read and was never written shows."""
    torch.full((2**20,), 0x7f, dtype=torch.uint8, device=device.DEVICE)


# ---------------------------------------------------------------- quantizing

@half_types
@pytest.mark.parametrize("N_q,N_k,D", [(1, 1, 1), (64, 64, 8), (128, 128, 32), (200, 300, 40), (129, 127, 64),
                                       (30, 257, 200)])
def test_quantize(N_q, N_k, D, dtype):
    tensors = inputs(2, 4, 2, N_q, N_k, D, dtype)
    leave_nan_behind()
    x8, scales = quantized(*tensors)
    width = max(32, triton.next_power_of_2(D))
    assert [tuple(x.shape) for x in x8] == [(2, 4, N_q, width), (2, 2, N_k, width), (2, 2, width, N_k)]
    assert all(x.dtype == torch.float8_e4m3fn for x in x8) and all(s.dtype == torch.float32 for s in scales)
    assert [tuple(s.shape) for s in scales] == [(2, 4, -(-N_q // 128)), (2, 2, -(-N_k // 128)), (2, 2, width)]
    assert not any(x[..., D:].float().any() for x in x8[:2]) and not x8[2][:, :, D:].float().any()
    assert (scales[2][..., D:] == 1).all()
    for x, blocks in zip(tensors[:2], scales):
        for i, rows in enumerate(x.float().split(128, 2)):
            assert torch.allclose(blocks[..., i], rows.abs().amax((2, 3)) / 448, rtol=1e-6, atol=0)
    assert torch.allclose(scales[2][..., :D], tensors[2].float().abs().amax(2) / 448, rtol=1e-6, atol=0)
    steps = [np.repeat(array(s), 128, axis=2)[:, :, :x.shape[2], None] for x, s in zip(tensors, scales[:2])]
    steps.append(array(scales[2])[:, :, None, :D])
    for x, y, step in zip(tensors, dequantized(x8, scales, D), steps):
        assert (np.abs(y - array(x)) <= 1.001 * (np.abs(array(x)) / 16 + step * 2**-10)).all()


def test_quantize_rounds_as_pytorch_does():
    q, k, v = inputs(1, 2, 1, 200, 200, 64, torch.float16)
    (q8, k8, v8), (q_scales, k_scales, v_scales) = quantized(q, k, v)
    q_scales, k_scales = (x.repeat_interleave(128, 2)[:, :, :200, None] for x in (q_scales, k_scales))
    for x, y, scale in ((q, q8, q_scales), (k, k8, k_scales), (v, v8.mT, v_scales[:, :, None])):
        exact = (x.float() / scale).clamp(-448, 448)
        same = y.float() == exact.to(torch.float8_e4m3fn).float()
        assert same.float().mean() > 0.999               # a GPU's division may differ in the last bit
        assert ((y.float() - exact).abs() <= exact.abs() / 15 + 2**-10).all()


def test_casts_of_the_interpreter():
    """With its own casts too, nearly all elements are right, and none is off by more than a factor of two."""
    tensors = inputs(1, 2, 1, 200, 200, 64, torch.float16)
    for x, y in zip(tensors, dequantized(*quantized(*tensors), 64)):
        x = array(x)
        error = np.abs(y - x) - np.abs(x) / 15
        assert (error <= np.abs(x).max() / 448 * 2**-8).mean() > 0.95
        assert (np.abs(y - x) <= 0.51 * np.abs(x) + 2e-3).all()


def test_zeros_have_the_scale_one():
    q, k, v = inputs(1, 1, 1, 200, 200, 16, torch.float16)
    q[:, :, :128], k[:, :, 128:], v[..., 3] = 0, 0, 0
    x8, (q_scales, k_scales, v_scales) = quantized(q, k, v)
    assert q_scales[0, 0, 0] == 1 and k_scales[0, 0, 1] == 1 and v_scales[0, 0, 3] == 1
    assert q_scales[0, 0, 1] != 1 and k_scales[0, 0, 0] != 1 and (v_scales[0, 0, :3] != 1).all()
    assert not any(x.float().any() for x in (x8[0][:, :, :128], x8[1][:, :, 128:], x8[2][:, :, 3]))
    o, lse = v3(*(torch.zeros_like(x) for x in (q, k, v)), precision="fp8", return_lse=True)
    assert (o == 0).all() and torch.allclose(lse, torch.full_like(lse, np.log(200)))


def test_an_outlier_stays_in_its_block():
    tensors = inputs(1, 2, 2, 300, 300, 64, torch.float16)
    x8, scales = quantized(*tensors)
    for i in range(3):
        y8, other = quantized(*spoilt([x.clone() for x in tensors], i, (200, 5), 3e4))
        assert (other[i] != scales[i]).nonzero().tolist() == [[0, 1, 1 if i < 2 else 5]]
        changed = (y8[i].float() != x8[i].float()).nonzero()
        assert (changed[:, 1] == 1).all() and len(changed) > 1
        assert ((changed[:, 2] >= 128) & (changed[:, 2] < 256)).all() if i < 2 else (changed[:, 2] == 5).all()


def test_any_layout():
    tensors = inputs(2, 2, 2, 20, 130, 24, torch.float16)
    want = v3(*tensors, is_causal=True, precision="fp8")
    for change, _ in VIEWS.values():
        assert torch.equal(v3(*map(change, tensors), is_causal=True, precision="fp8"), want)
    expanded = [x[:1].expand(2, -1, -1, -1) for x in tensors]
    assert torch.equal(v3(*expanded, is_causal=True, precision="fp8")[1], want[0])


# ---------------------------------------------------------------- the kernel on eight bits

def specialized(*arguments):
    """launch_fp8 by the warp-specialized kernel, with the tiles for a long sequence."""
    with mock.patch.object(warp_specialization, "tiles_ws", long_tiles):
        return warp_specialization.launch_fp8_v4(*arguments)


each_launch = pytest.mark.parametrize("launch", [fp8.launch_fp8, pytest.param(specialized, marks=pytest.mark.gpu(9))],
                                      ids=["v3", "v4"])


def check_kernel(launch, tensors, is_causal, scale):
    """Against attention of the eight-bit inputs in float64: then only p and o are rounded."""
    D, dtype = tensors[0].shape[3], tensors[0].dtype
    leave_nan_behind()
    x8, scales = quantized(*tensors)
    leave_nan_behind()
    o, lse = launch(*x8, scales, is_causal, scale, D, dtype)
    q, k, v = dequantized(x8, scales, D)
    want, want_lse = reference.attention(q, k, v, is_causal=is_causal, scale=scale, return_lse=True)
    spread = reference.attention(q, k, np.abs(v), is_causal=is_causal, scale=scale)
    floor = 2**-18 * np.abs(v).sum(2).max() + 1e-5       # p is multiplied by 2^8, and the steps below 2^-6 are 2^-9
    assert o.dtype == dtype and o.shape == tensors[0].shape
    assert (np.abs(array(o) - want) <= (1 / 16 + 2**-7) * spread + floor).all()
    # the matrix unit of a Hopper GPU adds FP8 products with about 14 bits
    bound = 1e-4 if device.INTERPRETED else 1e-2
    np.testing.assert_allclose(array(lse), want_lse, rtol=bound, atol=bound)
    return relative(o, want)


@each_launch
@half_types
@causal_or_not
@pytest.mark.parametrize("shape", [(1, 1, 1, 128, 128, 64), (2, 4, 2, 130, 200, 40), (1, 2, 2, 300, 140, 128),
                                   (1, 1, 1, 65, 300, 256)])
def test_the_kernel_rounds_p_and_nothing_else(launch, shape, is_causal, dtype):
    assert check_kernel(launch, inputs(*shape, dtype), is_causal, shape[5]**-0.5) < 0.04


@settings(max_examples=20, deadline=None)
@given(N_q=st.integers(1, 270), N_k=st.integers(1, 270), D=st.integers(1, 40), is_causal=st.booleans(),
       scale=st.floats(1e-3, 2), BLOCK_M=st.sampled_from([64, 128]), BLOCK_N=st.sampled_from([32, 64, 128]),
       groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]), seed=st.integers(0, 99))
def test_any_call(N_q, N_k, D, is_causal, scale, BLOCK_M, BLOCK_N, groups, seed):
    with mock.patch.object(fp8, "tiles_fp8", lambda D, capability: dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N)):
        check_kernel(fp8.launch_fp8, inputs(1, *groups, N_q, N_k, D, torch.float16, seed), is_causal, scale)


# ---------------------------------------------------------------- whole calls

each_version = pytest.mark.parametrize("attention", [V3, pytest.param(V4, marks=pytest.mark.gpu(9))],
                                       ids=lambda x: x.name)


@each_version
@half_types
@causal_or_not
@pytest.mark.parametrize("shape", [(1, 1, 1, 200, 200, 64), (2, 2, 1, 20, 200, 40), (1, 1, 1, 256, 256, 128),
                                   (1, 1, 1, 70, 70, 1), (1, 2, 1, 70, 40, 16)])
def test_a_whole_call(attention, shape, is_causal, dtype):
    tensors = inputs(*shape, dtype)
    exact, exact_lse = reference.attention(*tensors, is_causal=is_causal, return_lse=True)
    o, lse = attention(*tensors, is_causal=is_causal, precision="fp8", enable_gqa=True, return_lse=True)
    assert o.dtype == dtype and lse.dtype == torch.float32
    assert relative(o, exact) < (0.15 if device.INTERPRETED else 0.08)
    seen = np.isfinite(exact_lse)
    assert np.abs(array(lse) - exact_lse)[seen].max() < 0.5
    assert (array(lse)[~seen] == -np.inf).all() and (array(o)[~seen] == 0).all()
    assert relative(attention(*tensors, is_causal=is_causal, precision="fp8", enable_gqa=True), exact) < 0.08


@each_empty_shape
def test_nothing_to_do(shape):
    tensors = inputs(*shape, torch.float16)
    close(tensors, *v3(*tensors, enable_gqa=True, return_lse=True, precision="fp8"))


@causal_or_not
@pytest.mark.parametrize("N_q,N_k,D", [(50, 70, 40), (130, 30, 16), (1, 1, 8)])
def test_every_element_is_written(N_q, N_k, D, is_causal):
    tensors = inputs(1, 2, 1, N_q, N_k, D, torch.float16)
    want = v3(*tensors, is_causal=is_causal, enable_gqa=True, return_lse=True, precision="fp8")
    for memory in (nan_in_new_memory, poisoned):         # the second has guards, and undefined lanes that are NaN
        with memory():
            o, lse = v3(*tensors, is_causal=is_causal, enable_gqa=True, return_lse=True, precision="fp8")
            assert torch.equal(o, want[0]) and torch.equal(lse, want[1]) and not unwritten(lse)


@each_version
@half_types
def test_is_deterministic(attention, dtype):
    tensors = inputs(1, 2, 1, 200, 200, 64, dtype)
    options = dict(is_causal=True, enable_gqa=True, return_lse=True, precision="fp8")
    assert all(map(torch.equal, attention(*tensors, **options), attention(*tensors, **options)))


@each_version
@quietly
@causal_or_not
@each_value
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_a_nan_or_an_infinity_spoils(attention, which, is_causal, value):
    """A query's row, what sees a key, a feature of v: an infinity counts as NaN. The rest is as without it."""
    tensors = inputs(1, 1, 1, 200, 200, 16, torch.float16)
    tensors[which][:, :, 70, 3] = 0
    usual = array(attention(*tensors, precision="fp8", is_causal=is_causal))
    spoilt(tensors, which, (70, 3), value)
    got, lse = map(array, attention(*tensors, precision="fp8", is_causal=is_causal, return_lse=True))
    lost = np.zeros((1, 1, 200, 16), bool)
    lost[[np.s_[:, :, 70], np.s_[:, :, 70 * is_causal:], np.s_[..., 3]][which]] = True
    np.testing.assert_array_equal(np.isnan(got), lost)
    assert np.abs(got - usual)[~lost].max(initial=0) < 0.3
    np.testing.assert_array_equal(np.isnan(lse), lost.all(3))


@each_default
def test_the_default_type_changes_nothing(default):
    tensors = inputs(1, 1, 1, 20, 30, 16, torch.float16)
    want = v3(*tensors, precision="fp8")
    with default_type(default):
        assert torch.equal(v3(*tensors, precision="fp8"), want)


@quietly
@causal_or_not
@pytest.mark.parametrize("size", [1e-15, 1e-22, 1e-30])
def test_tiny_inputs(size, is_causal):
    q, k, v = inputs(1, 1, 1, 100, 100, 16, torch.bfloat16)
    q, k = q * size, k * size
    o = v3(q, k, v, is_causal=is_causal, precision="fp8")
    assert relative(o, reference.attention(q, k, v, is_causal=is_causal)) < 0.15


# ---------------------------------------------------------------- refusals

@pytest.mark.parametrize("attention", [V3, V4], ids=lambda x: x.name)
@pytest.mark.parametrize("options,message", [
    (dict(dropout_p=0.1, seed=1), "dropout_p is 0.1"), (dict(dropout_p=0.5, seed=-1), "seed is -1"),
    (dict(scale=-1.0), "scale is -1.0"), (dict(scale=0.0), "scale is 0.0"), (dict(), "k has 2 heads"),
])
def test_refuses_in_a_sentence(attention, options, message):
    with pytest.raises(ValueError, match=message):
        attention(*inputs(1, 3, 2 if not options else 3, 10, 10, 16, torch.float16), precision="fp8", **options)
    with pytest.raises(TypeError, match="q is torch.float32: FP8 is for"):
        attention(*inputs(1, 3, 3, 10, 10, 16), precision="fp8")


@pytest.mark.parametrize("N", [0, 10])
@pytest.mark.parametrize("which", range(3))
def test_no_gradient_is_lost(which, N):
    tensors = [x.requires_grad_(i == which) for i, x in enumerate(inputs(1, 2, 2, N, N, 16, torch.float16))]
    for attention in (V3, V4):
        with pytest.raises(ValueError, match=f"{'qkv'[which]} requires a gradient"):
            attention(*tensors, precision="fp8")


def test_without_gradients_an_input_may_want_one():
    tensors = [x.requires_grad_() for x in inputs(1, 2, 2, 10, 10, 16, torch.float16)]
    with torch.no_grad():
        assert v3(*tensors, precision="fp8").shape == tensors[0].shape


def test_an_older_gpu_is_refused():
    older = mock.patch.object(device, "capability", lambda x: 80)
    with older, pytest.raises(ValueError, match="compute capability 8.0: FP8 needs 9.0 or 10.0"):
        v3(*inputs(1, 1, 1, 10, 10, 16, torch.float16), precision="fp8")
