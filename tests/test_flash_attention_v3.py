"""Lesson 11's attention: descriptors and what does not fit them, gradients, FP8, refusals, warp specialization."""
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings, strategies as st
from torch.autograd import forward_ad

from helpers import device, lessons, reference
from helpers.check.core import poisoned, unwritten

lesson = lessons.fp8
v3 = lesson.flash_attention_v3
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
CAUSAL = pytest.mark.parametrize("is_causal", [False, True])
TUNED = device.capability(torch.empty(0, device=device.DEVICE)) in lesson.TUNED
hopper = pytest.mark.skipif(not TUNED, reason="needs compute capability 9.0 or 10.0")
GLUON = not device.INTERPRETED and torch.cuda.get_device_capability() == (9, 0)
gluon = pytest.mark.skipif(not GLUON, reason="needs a GPU of compute capability 9.0")
quietly = pytest.mark.filterwarnings("ignore::RuntimeWarning")    # NumPy, inside the interpreter, announces NaN
# what rounding p and o may cost, as a share of p |v|; for bfloat16 the interpreter keeps p in float32 and cuts o
ROUNDING = {torch.float32: 0, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def inputs(B, heads, kv_heads, N_q, N_k, D, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, h, N, D, generator=generator).to(device.DEVICE, dtype)
            for h, N in ((heads, N_q), (kv_heads, N_k), (kv_heads, N_k))]


def array(x):
    return x.detach().double().cpu().numpy()


def allowed(tensors, scale=None, **options):
    """The error that each element of o may have: from rounding p and o to the type of the inputs, and from float32."""
    q, k, v = tensors
    spread = reference.attention(q, k, v.abs(), scale=scale, **options)                # p |v|, at least |o|
    scale = q.shape[3]**-0.5 if scale is None else scale
    norms = [x.float().norm(dim=-1).amax().item() if x.numel() else 0 for x in (q, k)]
    floor = 2**-24 * (1 + array(v.abs()).sum(2).max(initial=0)) if q.dtype == torch.float16 else 0     # its steps end there
    return 1.01 * ROUNDING[q.dtype] * spread + floor + (2e-6 + 1e-6 * abs(scale) * norms[0] * norms[1]) * np.maximum(1, spread)


def close(tensors, o, lse, lse_bound=1e-5, **options):
    want, want_lse = reference.attention(*tensors, return_lse=True, **options)
    assert o.shape == tensors[0].shape and o.dtype == tensors[0].dtype and lse.dtype == torch.float32
    assert (np.abs(array(o) - want) <= allowed(tensors, **options)).all()
    np.testing.assert_allclose(array(lse), want_lse, rtol=lse_bound, atol=lse_bound)


def check(tensors, lse_bound=1e-5, **options):
    close(tensors, *v3(*tensors, enable_gqa=True, return_lse=True, **options), lse_bound, **options)


@contextmanager
def path_taken():
    """A list that names the launches within the block: "v2", "v3", "ws"."""
    names, launches = [], {name: getattr(lesson, name) for name in ("launch_v2", "launch_v3", "launch_ws")}

    def named(name):
        return lambda *args, **options: (names.append(name[-2:]), launches[name](*args, **options))[1]
    with mock.patch.multiple(lesson, **{name: named(name) for name in launches}):
        yield names


# ---------------------------------------------------------------- agreement with float64

@DTYPES
@CAUSAL
@pytest.mark.parametrize("N_q,N_k", [(1, 1), (17, 17), (128, 128), (200, 200), (1, 113), (50, 130), (130, 50), (256, 128),
                                     (70, 0), (0, 70)])
@pytest.mark.parametrize("D", [16, 64])
def test_agrees_with_float64(N_q, N_k, D, is_causal, dtype):
    check(inputs(1, 2, 2, N_q, N_k, D, dtype), is_causal=is_causal)


@DTYPES
@CAUSAL
@pytest.mark.parametrize("D", [1, 3, 7, 8, 40, 128, 200, 256])
def test_any_head_dimension(D, is_causal, dtype):
    tensors = inputs(1, 1, 1, 70, 70, D, dtype)
    with path_taken() as path:
        check(tensors, is_causal=is_causal)
    assert path == ["v3" if D % 8 == 0 and dtype != torch.float32 and TUNED else "v2"]


@HALF
@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (3, 3), (4, 2), (6, 2), (8, 1)])
def test_batches_and_groups(heads, kv_heads, dtype):
    check(inputs(2, heads, kv_heads, 40, 50, 16, dtype), is_causal=True)


@settings(max_examples=40, deadline=None)
@given(N_q=st.integers(0, 150), N_k=st.integers(0, 150), D=st.one_of(st.sampled_from([8, 16, 24, 32]), st.integers(1, 40)),
       is_causal=st.booleans(), scale=st.one_of(st.floats(0, 2), st.floats(-2, 2)),
       BLOCK_M=st.sampled_from([16, 32, 64, 128] if device.INTERPRETED else [64, 128]),
       BLOCK_N=st.sampled_from([16, 32, 64, 128]), groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
       dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), seed=st.integers(0, 99))
def test_any_call(N_q, N_k, D, is_causal, scale, BLOCK_M, BLOCK_N, groups, dtype, seed):
    with mock.patch.object(lesson, "tiles_v3", lambda *arguments: dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N)):
        check(inputs(1, *groups, N_q, N_k, D, dtype, seed), 1e-4, is_causal=is_causal, scale=scale)


@pytest.mark.parametrize("shape", [(0, 2, 2, 5, 5, 8), (1, 0, 0, 5, 5, 8), (1, 2, 2, 0, 5, 8), (1, 2, 2, 5, 0, 8),
                                   (1, 2, 1, 0, 0, 8)])
@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp8", marks=hopper)])
def test_nothing_to_do(shape, precision):
    tensors = inputs(*shape)
    close(tensors, *v3(*tensors, enable_gqa=True, return_lse=True, precision=precision))


@pytest.mark.parametrize("scale", [-0.7, 0.0, -5e-324, 5e-324, 1e-38, 1.5e-38])
def test_negative_zero_and_tiny_scale(scale):
    with path_taken() as path:
        check(inputs(1, 2, 1, 40, 50, 16), is_causal=True, scale=scale)
    assert path == ["v3" if scale >= torch.finfo(torch.float32).tiny and TUNED else "v2"]


@HALF
@CAUSAL
@pytest.mark.parametrize("scale", [100, 1e4])
def test_large_logits(scale, is_causal, dtype):
    tensors = [(4 * x).round() / 4 for x in inputs(1, 1, 1, 100, 100, 64, dtype)]      # float32 holds these scores exactly
    o, lse = v3(*tensors, scale=scale, is_causal=is_causal, return_lse=True)
    want, want_lse = reference.attention(*tensors, scale=scale, is_causal=is_causal, return_lse=True)
    assert np.abs(array(o) - want).max() < {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    np.testing.assert_allclose(array(lse), want_lse, rtol=1e-6)


@DTYPES
@CAUSAL
def test_no_worse_than_twice_pytorch(is_causal, dtype):
    tensors = inputs(1, 2, 2, 200, 200, 64, dtype)
    exact = reference.attention(*tensors, is_causal=is_causal)
    distance = lambda o: np.abs(array(o) - exact).max()
    theirs = reference.torch_attention(*tensors, is_causal=is_causal)
    assert distance(v3(*tensors, is_causal=is_causal)) <= 2 * distance(theirs)


@quietly
@HALF
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_come_out_as_from_the_reference(which, value, dtype):
    tensors = inputs(1, 1, 1, 100, 100, 16, dtype)
    tensors[which][0, 0, 70, 3] = value
    o, lse = v3(*tensors, return_lse=True)
    want, want_lse = reference.attention(*tensors, return_lse=True)
    np.testing.assert_allclose(array(o), want, atol=2e-2)                   # NaN only where there is one, inf too
    np.testing.assert_allclose(array(lse), want_lse, rtol=1e-5)


@quietly
def test_the_future_does_not_leak_across_tiles():
    q, k, v = inputs(1, 1, 1, 256, 256, 16)
    k[:, :, 128:] = v[:, :, 128:] = float("nan")         # rows of the first tiles must not even look there
    o, lse = lesson.launch_v3(q, k, v, True, 0.25, tiles=dict(BLOCK_M=64, BLOCK_N=64))
    assert torch.isfinite(o[:, :, :128]).all() and torch.isfinite(lse[:, :, :128]).all()
    assert not torch.isfinite(o[:, :, 128:]).any()


# ---------------------------------------------------------------- descriptors

def misaligned(x):
    """A copy of x that begins 2 bytes behind a multiple of 16."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return memory[1:].view(x.shape).copy_(x)


VIEWS = {                                                # how a tensor may lie in memory, and which kernel takes it
    "contiguous": (lambda x: x, "v3"),
    "[B, N, heads, D]": (lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), "v3"),
    "heads first": (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), "v3"),
    "every second row": (lambda x: x.repeat_interleave(2, 2)[:, :, ::2], "v3"),
    "wider rows": (lambda x: torch.cat((x, x[..., :8]), -1)[..., :x.shape[3]], "v3"),
    "rows of 27 elements": (lambda x: torch.cat((x, x[..., :3]), -1)[..., :x.shape[3]], "v2"),
    "features apart": (lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), "v2"),
    "every second feature": (lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2], "v2"),
    "misaligned": (misaligned, "v2"),
}


@HALF
@pytest.mark.parametrize("which", [(0, 1, 2), (0,), (1,), (2,)], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_any_layout(view, which, dtype):
    tensors = inputs(2, 2, 2, 50, 60, 24, dtype)
    change, path = VIEWS[view]
    views = [change(x) if i in which else x for i, x in enumerate(tensors)]
    with path_taken() as taken:
        o, lse = v3(*views, is_causal=True, return_lse=True)
    assert taken == [path if TUNED else "v2"]
    close(tensors, o, lse, is_causal=True)
    if path == "v3":
        assert torch.equal(o, v3(*tensors, is_causal=True))


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)], ids=str)
def test_steps_of_zero(axes):
    tensors = [x[tuple(slice(1) if i in axes else slice(None) for i in range(2))] for x in inputs(2, 3, 3, 50, 60, 24)]
    expanded = [x.expand(2, 3, -1, -1) for x in tensors]
    with path_taken() as path:
        check(expanded, is_causal=True)
    assert path == ["v2"]


def test_all_tiles_give_the_same():
    tensors = inputs(1, 2, 1, 130, 170, 64)
    for is_causal in (False, True):
        small = [(16, 32), (32, 16)] if device.INTERPRETED else []
        for BLOCK_M, BLOCK_N in ((64, 16), (64, 64), (64, 128), (128, 64), (128, 128), *small):
            close(tensors, *lesson.launch_v3(*tensors, is_causal, 0.125, tiles=dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N)),
                  is_causal=is_causal)


@pytest.mark.parametrize("N_k", [128, 256, 384, 100, 192])
def test_without_a_masked_stage(N_k):
    for BLOCK_N in (32, 64, 128):
        tensors = inputs(1, 1, 1, 70, N_k, 32)
        close(tensors, *lesson.launch_v3(*tensors, False, 32**-0.5, tiles=dict(BLOCK_M=64, BLOCK_N=BLOCK_N)))


@CAUSAL
@pytest.mark.parametrize("D", [20, 64, 128])
def test_the_tuned_kernel(D, is_causal):
    tensors = inputs(1, 2, 2, 150, 200, D if D != 20 else 24)
    scale = tensors[0].shape[3]**-0.5
    close(tensors, *lesson.launch_v3(*tensors, is_causal, scale, kernel=lesson.tuned_v3_kernel), is_causal=is_causal)


@pytest.mark.parametrize("fp8", [False, pytest.param(True, marks=hopper)])
@pytest.mark.parametrize("BLOCK_M,BLOCK_N", [(64, 128), (128, 64), (64, 32)])
def test_a_tuner_sets_the_tiles_of_the_descriptors(BLOCK_M, BLOCK_N, fp8):
    tuned = triton.autotune(key=["N_q"], configs=[lesson.option(BLOCK_M, BLOCK_N, 4, 2)])(lesson.flash_attention_v3_kernel)
    tensors = inputs(1, 2, 1, 150, 200, 40)
    arguments = tensors, True, 0.1
    if fp8:
        x8, scales = lesson.quantize(*tensors)
        arguments = x8, True, 0.1, scales, 40, torch.float16
    want = lesson.launch_v3(*arguments[0], *arguments[1:], tiles=dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N))
    assert all(map(torch.equal, lesson.launch_v3(*arguments[0], *arguments[1:], kernel=tuned), want))


def test_what_a_tuner_tries_fits():
    """Tiles divide 128: `EVEN` and the blocks of FP8's scales rely on that."""
    for config in lesson.tuned_v3_kernel.configs:
        assert 128 % config.kwargs["BLOCK_M"] == 0 and 128 % config.kwargs["BLOCK_N"] == 0 and config.pre_hook
    for D, N_k, is_causal, fp8, capability in np.ndindex(257, 2, 2, 2, 2):
        sizes = lesson.tiles_v3(D or 1, (4096, 10_000)[N_k], bool(is_causal), bool(fp8), (90, 100)[capability])
        assert 128 % sizes["BLOCK_M"] == 0 and 128 % sizes["BLOCK_N"] == 0


@contextmanager
def nan_in_new_memory():
    """helpers.check.core.poisoned is for float32; here torch.empty gives NaN in every floating-point type."""
    empty = torch.empty

    def filled(*size, **options):
        out = empty(*size, **options)
        return out.fill_(float("nan")) if out.is_floating_point() else out
    with mock.patch.object(torch, "empty", filled):
        yield


@CAUSAL
@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp8", marks=hopper)])
@pytest.mark.parametrize("N_q,N_k,D", [(70, 50, 24), (50, 70, 40), (130, 130, 16), (1, 1, 8)])
def test_every_element_is_written(N_q, N_k, D, precision, is_causal):
    tensors = inputs(2, 2, 1, N_q, N_k, D)
    want = v3(*tensors, is_causal=is_causal, enable_gqa=True, return_lse=True, precision=precision)
    for memory in (nan_in_new_memory, poisoned):         # the second has guards, and undefined lanes that are NaN
        with memory():
            o, lse = v3(*tensors, is_causal=is_causal, enable_gqa=True, return_lse=True, precision=precision)
            assert torch.equal(o, want[0]) and torch.equal(lse, want[1]) and not unwritten(lse)


@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp8", marks=hopper)])
@HALF
def test_is_deterministic(dtype, precision):
    tensors = inputs(1, 4, 2, 200, 200, 64, dtype)
    options = dict(is_causal=True, enable_gqa=True, return_lse=True, precision=precision)
    assert all(map(torch.equal, v3(*tensors, **options), v3(*tensors, **options)))


# ---------------------------------------------------------------- gradients and dropout

GRADIENT_BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}   # as a share of the largest element


@DTYPES
@CAUSAL
@pytest.mark.parametrize("shape", [(1, 4, 2, 50, 70, 40), (1, 2, 1, 130, 70, 64), (2, 1, 1, 40, 40, 7), (1, 2, 2, 5, 0, 16)])
def test_gradients(shape, is_causal, dtype):
    tensors = [x.requires_grad_() for x in inputs(*shape, dtype)]
    do = inputs(*shape, dtype, seed=1)[0]
    got = torch.autograd.grad(v3(*tensors, is_causal=is_causal, enable_gqa=True), tensors, do)
    for name, dx, x, want in zip("qkv", got, tensors, reference.attention_grads(*tensors, do, is_causal=is_causal)):
        assert dx.dtype == x.dtype and dx.shape == x.shape
        assert np.abs(array(dx) - want).max(initial=0) <= GRADIENT_BOUNDS[dtype] * max(1, np.abs(want).max(initial=0)), name


@pytest.mark.parametrize("dtype,dropout_p", [(torch.float32, 0.0), (torch.float32, 0.3), (torch.float16, 0.3),
                                             (torch.bfloat16, 0.6)])
def test_what_descriptors_do_not_serve_is_lesson_10_bit_for_bit(dtype, dropout_p):
    tensors = [x.requires_grad_() for x in inputs(1, 4, 2, 40, 50, 24, dtype)]
    options = dict(is_causal=True, dropout_p=dropout_p, seed=5, enable_gqa=True, return_lse=True)
    results = []
    for attention in (v3, lesson.backward.flash_attention):
        o, lse = attention(*tensors, **options)
        loss = o.float().square().sum() + lse.square().sum()
        results.append([o, lse, *torch.autograd.grad(loss, tensors)])
    assert all(map(torch.equal, *results))


def test_a_seed_is_drawn_from_torch():
    tensors = inputs(1, 1, 1, 40, 40, 16)
    torch.manual_seed(5)
    first, second = (v3(*tensors, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(v3(*tensors, dropout_p=0.5), first) and not torch.equal(first, second)


def test_no_second_derivative():
    tensors = [x.requires_grad_() for x in inputs(1, 1, 1, 16, 16, 16)]
    dq, = torch.autograd.grad(v3(*tensors).sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        dq.sum().backward()


# ---------------------------------------------------------------- FP8

@contextmanager
def true_casts():
    """PyTorch's casts to and from float8_e4m3fn in the interpreter.

    Its own round to the nearest, but lose the carry where the mantissa overflows (1.99 becomes 1), cut what is below
    2^-6, and make a number of NaN. Nothing of that is the kernels' fault; on a GPU this changes nothing.
    """
    if not device.INTERPRETED:
        yield
        return
    from triton.runtime import interpreter
    usual = interpreter._convert_float

    def convert(x, source, target, rounding_mode):
        if target == tl.float8e4nv:
            x = torch.from_numpy(np.array(x)).float().clamp(-448, 448)
            return x.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        if source == tl.float8e4nv and target == tl.float16:
            return torch.from_numpy(np.array(x).view(np.uint8)).view(torch.float8_e4m3fn).half().numpy().view(np.uint16)
        return usual(x, source, target, rounding_mode)
    with mock.patch.object(interpreter, "_convert_float", convert):
        yield


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


@hopper
@HALF
@pytest.mark.parametrize("N_q,N_k,D", [(1, 1, 1), (64, 64, 8), (128, 128, 32), (200, 300, 40), (129, 127, 64), (30, 257, 200)])
def test_quantize(N_q, N_k, D, dtype):
    tensors = inputs(2, 4, 2, N_q, N_k, D, dtype)
    with true_casts():
        leave_nan_behind()
        x8, scales = lesson.quantize(*tensors)
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


@hopper
def test_quantize_rounds_as_pytorch_does():
    q, k, v = inputs(1, 2, 1, 200, 200, 64)
    with true_casts():
        (q8, k8, v8), (q_scales, k_scales, v_scales) = lesson.quantize(q, k, v)
    for x, y, scale in ((q, q8, q_scales.repeat_interleave(128, 2)[:, :, :200, None]),
                        (k, k8, k_scales.repeat_interleave(128, 2)[:, :, :200, None]), (v, v8.mT, v_scales[:, :, None])):
        exact = (x.float() / scale).clamp(-448, 448)
        same = y.float() == exact.to(torch.float8_e4m3fn).float()
        assert same.float().mean() > 0.999               # a GPU's division may differ in the last bit
        assert ((y.float() - exact).abs() <= exact.abs() / 15 + 2**-10).all()


@hopper
def test_casts_of_the_interpreter():
    """With its own casts too, nearly all elements are right, and none is off by more than a factor of two."""
    q, k, v = inputs(1, 2, 1, 200, 200, 64)
    x8, scales = lesson.quantize(q, k, v)
    for x, y in zip((q, k, v), dequantized(x8, scales, 64)):
        x = array(x)
        error = np.abs(y - x) - np.abs(x) / 15
        assert (error <= np.abs(x).max() / 448 * 2**-8).mean() > 0.95 and (np.abs(y - x) <= 0.51 * np.abs(x) + 2e-3).all()


@hopper
def test_zeros_have_the_scale_one():
    q, k, v = inputs(1, 1, 1, 200, 200, 16)
    q[:, :, :128], k[:, :, 128:], v[..., 3] = 0, 0, 0
    x8, (q_scales, k_scales, v_scales) = lesson.quantize(q, k, v)
    assert q_scales[0, 0, 0] == 1 and k_scales[0, 0, 1] == 1 and v_scales[0, 0, 3] == 1
    assert q_scales[0, 0, 1] != 1 and k_scales[0, 0, 0] != 1 and (v_scales[0, 0, :3] != 1).all()
    assert not x8[0][:, :, :128].float().any() and not x8[1][:, :, 128:].float().any() and not x8[2][:, :, 3].float().any()
    o, lse = v3(*(torch.zeros_like(x) for x in (q, k, v)), precision="fp8", return_lse=True)
    assert (o == 0).all() and torch.allclose(lse, torch.full_like(lse, np.log(200)))


@hopper
def test_an_outlier_stays_in_its_block():
    tensors = inputs(1, 2, 2, 300, 300, 64)
    x8, scales = lesson.quantize(*tensors)
    for i in range(3):
        spoilt = [x.clone() for x in tensors]
        spoilt[i][0, 1, 200, 5] = 3e4
        y8, other = lesson.quantize(*spoilt)
        assert (other[i] != scales[i]).nonzero().tolist() == [[0, 1, 1 if i < 2 else 5]]
        changed = (y8[i].float() != x8[i].float()).nonzero()
        assert (changed[:, 1] == 1).all() and len(changed) > 1
        assert ((changed[:, 2] >= 128) & (changed[:, 2] < 256)).all() if i < 2 else (changed[:, 2] == 5).all()


@hopper
def test_quantize_reads_any_layout():
    tensors = inputs(2, 2, 2, 130, 140, 24)
    want = v3(*tensors, is_causal=True, precision="fp8")
    for change, _ in VIEWS.values():
        assert torch.equal(v3(*map(change, tensors), is_causal=True, precision="fp8"), want)
    expanded = [x[:1].expand(2, -1, -1, -1) for x in tensors]
    assert torch.equal(v3(*expanded, is_causal=True, precision="fp8")[1], want[0])


def check_fp8_kernel(tensors, is_causal, scale, tiles=None, launch=lesson.launch_v3):
    """Against attention of the eight-bit inputs in float64: then only p and o are rounded."""
    D, dtype = tensors[0].shape[3], tensors[0].dtype
    with true_casts():
        leave_nan_behind()
        x8, scales = lesson.quantize(*tensors)
        leave_nan_behind()
        o, lse = launch(*x8, is_causal, scale, scales, D, dtype, tiles=tiles)
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


@hopper
@HALF
@CAUSAL
@pytest.mark.parametrize("shape", [(1, 1, 1, 128, 128, 64), (2, 4, 2, 130, 200, 40), (1, 2, 2, 300, 140, 128),
                                   (1, 1, 1, 65, 300, 256)])
def test_the_fp8_kernel_rounds_p_and_nothing_else(shape, is_causal, dtype):
    assert check_fp8_kernel(inputs(*shape, dtype), is_causal, shape[5]**-0.5) < 0.04


@hopper
@settings(max_examples=20, deadline=None)
@given(N_q=st.integers(1, 270), N_k=st.integers(1, 270), D=st.integers(1, 40), is_causal=st.booleans(),
       scale=st.floats(1e-3, 2), BLOCK_M=st.sampled_from([64, 128]), BLOCK_N=st.sampled_from([32, 64, 128]),
       groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]), seed=st.integers(0, 99))
def test_any_fp8_call(N_q, N_k, D, is_causal, scale, BLOCK_M, BLOCK_N, groups, seed):
    check_fp8_kernel(inputs(1, *groups, N_q, N_k, D, seed=seed), is_causal, scale, dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N))


@hopper
@HALF
@CAUSAL
@pytest.mark.parametrize("shape", [(1, 2, 2, 200, 200, 64), (2, 2, 1, 150, 200, 40), (1, 1, 1, 256, 256, 128),
                                   (1, 1, 1, 70, 70, 1)])
def test_a_whole_call_in_fp8(shape, is_causal, dtype):
    tensors = inputs(*shape, dtype)
    exact, exact_lse = reference.attention(*tensors, is_causal=is_causal, return_lse=True)
    o, lse = v3(*tensors, is_causal=is_causal, precision="fp8", enable_gqa=True, return_lse=True)
    assert o.dtype == dtype and lse.dtype == torch.float32
    assert relative(o, exact) < (0.15 if device.INTERPRETED else 0.08)
    seen = np.isfinite(exact_lse)
    assert np.abs(array(lse) - exact_lse)[seen].max() < 0.5 and (array(lse)[~seen] == -np.inf).all()
    with true_casts():
        assert relative(v3(*tensors, is_causal=is_causal, precision="fp8", enable_gqa=True), exact) < 0.08


@hopper
def test_rows_that_see_nothing_in_fp8():
    tensors = inputs(1, 2, 1, 70, 40, 16)
    o, lse = v3(*tensors, is_causal=True, precision="fp8", enable_gqa=True, return_lse=True)
    assert (o[:, :, :30] == 0).all() and (lse[:, :, :30] == -torch.inf).all() and torch.isfinite(lse[:, :, 30:]).all()


@hopper
@quietly
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_fp8_loses_no_nan_and_no_inf(which, value):
    """A block or feature with an infinite scale may be NaN altogether, but nothing that should not be finite is."""
    tensors = inputs(1, 1, 1, 100, 100, 16)
    tensors[which][0, 0, 70, 3] = value
    with true_casts():
        got = array(v3(*tensors, precision="fp8"))
    exact = reference.attention(*tensors)
    assert not np.isfinite(got[~np.isfinite(exact)]).any()
    both = np.isfinite(got) & np.isfinite(exact)
    assert np.abs(got - exact)[both].max(initial=0) < 0.3


@hopper
@quietly
@CAUSAL
@pytest.mark.parametrize("size", [1e-15, 1e-22, 1e-30])
def test_tiny_inputs_in_fp8(size, is_causal):
    q, k, v = inputs(1, 1, 1, 100, 100, 16, torch.bfloat16)
    q, k = q * size, k * size
    o = v3(q, k, v, is_causal=is_causal, precision="fp8")
    assert relative(o, reference.attention(q, k, v, is_causal=is_causal)) < 0.15


# ---------------------------------------------------------------- refusals

@pytest.mark.parametrize("change,options,error_type,message", [
    (lambda q, k, v: (q, k, v), dict(precision="fp4"), ValueError, "precision is 'fp4': expected 'fp16' or 'fp8'"),
    (lambda q, k, v: (q, k, v), dict(precision=None), ValueError, "precision is None"),
    (lambda q, k, v: (q.float(), k.float(), v.float()), dict(precision="fp8"), TypeError, "q is torch.float32: FP8 is for"),
    (lambda q, k, v: (q, k, v), dict(precision="fp8", dropout_p=0.1, seed=1), ValueError, "dropout_p is 0.1"),
    (lambda q, k, v: (q, k, v), dict(precision="fp8", scale=-1.0), ValueError, "scale is -1.0"),
    (lambda q, k, v: (q, k, v), dict(precision="fp8", scale=0.0), ValueError, "scale is 0.0"),
    (lambda q, k, v: (q[0], k, v), {}, ValueError, r"q has 3 dimensions, shape \[8, 10, 16\]"),
    (lambda q, k, v: (q, k, v[:, :, :5]), {}, ValueError, r"v has shape \[1, 2, 5, 16\], k has \[1, 2, 10, 16\]"),
    (lambda q, k, v: (q[:, :3], k, v), dict(precision="fp8"), ValueError, "k has 2 heads, which does not divide the 3"),
    (lambda q, k, v: (q, k.float(), v), {}, TypeError, "k is torch.float32, q is torch.float16"),
    (lambda q, k, v: (q.double(), k.double(), v.double()), {}, TypeError, "no kernel for torch.float64"),
    (lambda q, k, v: [x.new_zeros(1, 1, 4, 257) for x in (q, k, v)], dict(precision="fp8"), ValueError, "D = 257"),
    (lambda q, k, v: (q, k, v), dict(dropout_p=1.0), ValueError, "dropout_p is 1.0"),
    (lambda q, k, v: (q, k, v), dict(dropout_p=0.5, seed=-1), ValueError, "seed is -1"),
])
def test_refuses_in_a_sentence(change, options, error_type, message):
    with pytest.raises(error_type, match=message):
        v3(*change(*inputs(1, 8, 2, 10, 10, 16)), enable_gqa=True, **options)


def test_groups_are_asked_for():
    with pytest.raises(ValueError, match="pass enable_gqa=True"):
        v3(*inputs(1, 8, 2, 10, 10, 16))


@pytest.mark.parametrize("N", [0, 10])
@pytest.mark.parametrize("which", range(3))
def test_no_gradient_is_lost_in_fp8(which, N):
    tensors = [x.requires_grad_(i == which) for i, x in enumerate(inputs(1, 2, 2, N, N, 16))]
    with pytest.raises(ValueError, match=f"{'qkv'[which]} requires a gradient"):
        v3(*tensors, precision="fp8")
    if TUNED:
        with torch.no_grad():
            assert v3(*tensors, precision="fp8").shape == tensors[0].shape


def test_autograd_is_asked_where_a_derivative_is_wanted():
    tensors = inputs(1, 2, 2, 10, 10, 16)
    with mock.patch.object(lesson.backward.TritonAttention, "apply", side_effect=RuntimeError("autograd")):
        v3(*tensors)
        for i in range(3):
            with pytest.raises(RuntimeError, match="autograd"):
                v3(*(x.clone().requires_grad_(i == j) for j, x in enumerate(tensors)))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        v3(forward_ad.make_dual(tensors[0], tensors[0]), *tensors[1:])


def test_fp8_needs_hopper():
    older = mock.patch.object(device, "capability", lambda x: 80)
    with older, pytest.raises(ValueError, match="compute capability 8.0: FP8 needs 9.0 or 10.0"):
        v3(*inputs(1, 1, 1, 10, 10, 16), precision="fp8")


def test_older_gpus_take_plain_pointers():
    with mock.patch.object(device, "capability", lambda x: 80), path_taken() as path:
        check(inputs(1, 1, 1, 70, 70, 64), is_causal=True)
    assert path == ["v2"]


# ---------------------------------------------------------------- warp specialization

def specialized(q, k, v, is_causal, scale, scales=None, D=None, dtype=None, tiles=None):
    """o and lse of launch_ws, with the tiles for a long sequence."""
    tiles = tiles or lesson.tiles_ws(max(D or q.shape[3], 64), 2048, 2048, False, scales is not None)
    return lesson.launch_ws(q, k, v, is_causal, scale, scales, D, dtype, tiles=tiles)


SHAPES = [(1, 1, 1, 1, 1), (1, 2, 1, 17, 17), (2, 4, 2, 300, 256), (1, 3, 3, 129, 384), (1, 2, 1, 50, 630), (1, 2, 1, 630, 50),
          (1, 2, 2, 777, 1300), (1, 2, 2, 1300, 777)]


@gluon
@HALF
@CAUSAL
@pytest.mark.parametrize("D", [8, 64, 72, 128, 200, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_specialized_agrees_with_float64(shape, D, is_causal, dtype):
    tensors = inputs(*shape, D, dtype)
    close(tensors, *specialized(*tensors, is_causal, 0.1), is_causal=is_causal, scale=0.1)


@gluon
@CAUSAL
@pytest.mark.parametrize("B,heads,kv_heads,N,D", [(40, 8, 2, 300, 64), (40, 8, 2, 300, 128), (3, 64, 64, 500, 256)])
def test_more_blocks_than_multiprocessors(B, heads, kv_heads, N, D, is_causal):
    tensors = inputs(B, heads, kv_heads, N, N, D)
    close(tensors, *specialized(*tensors, is_causal, 0.1), is_causal=is_causal, scale=0.1)


@gluon
@HALF
@CAUSAL
@pytest.mark.parametrize("D", [72, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_specialized_in_fp8_rounds_p_and_nothing_else(shape, D, is_causal, dtype):
    check_fp8_kernel(inputs(*shape, D, dtype), is_causal, D**-0.5, launch=specialized)


@gluon
@CAUSAL
@pytest.mark.parametrize("D", [64, 128, 256])
def test_specialized_with_large_logits(D, is_causal):
    tensors = [(4 * x).round() / 4 for x in inputs(1, 1, 1, 300, 300, D)]
    o, lse = specialized(*tensors, is_causal, 1e4)
    want, want_lse = reference.attention(*tensors, scale=1e4, is_causal=is_causal, return_lse=True)
    assert np.abs(array(o) - want).max() < 2e-3
    np.testing.assert_allclose(array(lse), want_lse, rtol=1e-6)


@gluon
@pytest.mark.parametrize("D", [64, 128, 256])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_specialized_hands_nan_and_inf_on(which, value, D):
    tensors = inputs(1, 1, 1, 200, 200, D)
    tensors[which][0, 0, 170, 3] = value
    o, lse = specialized(*tensors, False, 0.1)
    want, want_lse = reference.attention(*tensors, scale=0.1, return_lse=True)
    np.testing.assert_allclose(array(o), want, atol=2e-2)
    np.testing.assert_allclose(array(lse), want_lse, rtol=1e-5)


@gluon
@CAUSAL
@pytest.mark.parametrize("D", [64, 128, 256])
def test_specialized_writes_every_element_and_is_deterministic(D, is_causal):
    tensors = inputs(20, 4, 2, 300, 200, D)
    want = specialized(*tensors, is_causal, 0.1)
    for _ in range(20):                                  # another program takes another block each time
        with nan_in_new_memory():
            assert all(map(torch.equal, specialized(*tensors, is_causal, 0.1), want))


@gluon
@pytest.mark.parametrize("view", [view for view, path in VIEWS.items() if path[1] == "v3"])
def test_specialized_takes_any_layout_of_descriptors(view):
    tensors = inputs(2, 2, 2, 150, 160, 128)
    want = specialized(*tensors, True, 0.1)
    assert all(map(torch.equal, specialized(*map(VIEWS[view][0], tensors), True, 0.1), want))


@gluon
@CAUSAL
@pytest.mark.parametrize("precision", ["fp16", "fp8"])
@pytest.mark.parametrize("N_q,N_k", [(2048, 2047), (2047, 2048), (2048, 2048), (4096, 4095), (4096, 4096)])
@pytest.mark.parametrize("D", [32, 64, 128, 136])
def test_long_sequences_are_specialized(D, N_q, N_k, precision, is_causal):
    with path_taken() as path:
        v3(*inputs(1, 1, 1, N_q, N_k, D), is_causal=is_causal, precision=precision)
    ours = D == 128 or (D > 32 and precision == "fp16")
    assert path == ["ws" if ours and min(N_q, N_k) >= (4096 if D == 64 and is_causal else 2048) else "v3"]
