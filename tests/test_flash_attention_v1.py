"""Lesson 08's kernel: values, edges, refusals, and what it compiles to."""
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from helpers import compiled, device, lessons, reference

lesson = lessons.flash_attention_triton
v1 = lesson.flash_attention_v1
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


def inputs(N, D, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, D, generator=generator).to(device.DEVICE, dtype) for _ in range(3)]


def error(o, q, k, v, scale=None):
    return np.abs(o.double().cpu().numpy() - reference.attention(q, k, v, scale=scale)).max(initial=0)


@DTYPES
@pytest.mark.parametrize("N", [1, 17, 113, 128, 200])
@pytest.mark.parametrize("D", [1, 16, 40, 64, 128, 256])
def test_agrees_with_float64(N, D, dtype):
    q, k, v = inputs(N, D, dtype)
    o = v1(q, k, v)
    assert o.dtype == dtype and o.shape == q.shape and error(o, q, k, v) < BOUNDS[dtype]


@DTYPES
def test_no_worse_than_twice_pytorch(dtype):
    q, k, v = inputs(200, 64, dtype)
    theirs = np.abs(reference.torch_attention(q, k, v).double().cpu().numpy() - reference.attention(q, k, v)).max()
    assert error(v1(q, k, v), q, k, v) <= 2 * theirs


@settings(max_examples=25, deadline=None)
@given(N=st.integers(0, 150), D=st.integers(1, 80), scale=st.floats(-2, 2), BLOCK_M=st.sampled_from([16, 32, 64]),
       BLOCK_N=st.sampled_from([16, 32, 64]), BLOCK_V=st.sampled_from([16, 32]), seed=st.integers(0, 99))
def test_any_shape_scale_and_tile(N, D, scale, BLOCK_M, BLOCK_N, BLOCK_V, seed):
    q, k, v = inputs(N, D, seed=seed)
    o = v1(q, k, v, scale=scale, tiles=dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_V=BLOCK_V))
    largest = abs(scale) * (q @ k.T).abs().amax().item() if N else 0         # the rounding of a score is a share of it
    assert error(o, q, k, v, scale) < 2e-6 + 1e-6 * largest


def test_every_element_is_written():
    from helpers.check.core import poisoned, unwritten
    with poisoned():
        assert not unwritten(v1(*inputs(113, 40)))


def test_strided_views():
    q, k, v = inputs(100, 48)
    wide = torch.stack(inputs(100, 3 * 48), 1)           # [100, 3, 144]
    views = wide[:, :, ::3].unbind(1)                    # every third feature of an interleaved tensor
    assert torch.equal(v1(*views), v1(*(x.contiguous() for x in views)))
    turned = [x.T.contiguous().T for x in (q, k, v)]
    assert torch.equal(v1(*turned), v1(q, k, v))


def test_reversed_strides_are_not_mixed_up():
    q, k, v = inputs(64, 64)                             # square, so that swapped strides would go unnoticed elsewhere
    assert error(v1(q.T, k, v), q.T, k, v) < 2e-6
    assert error(v1(q, k.T, v), q, k.T, v) < 2e-6
    assert error(v1(q, k, v.T), q, k, v.T) < 2e-6


def test_large_logits():
    q, k, v = inputs(100, 64)
    assert torch.allclose(v1(q, k, v, scale=1e4), v[(q @ k.T).argmax(1)], atol=1e-6)


def test_the_largest_score_comes_last():
    q, k, v = inputs(200, 32)
    q[:, 0], k[:, 0] = 1, torch.linspace(0, 300, 200)    # the maximum grows with every tile
    assert error(v1(q, k, v), q, k, v) < 5e-5            # scores reach 53: their last bit alone changes p by 4e-6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")    # NumPy, inside the interpreter, announces what we ask for
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (70, 3), (99, 15)])
def test_nan_and_inf_come_out_as_from_the_reference(which, value, place):
    tensors = inputs(100, 16)
    tensors[which][place] = value
    got, want = v1(*tensors).double().cpu().numpy(), reference.attention(*tensors)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_first_tile_of_minus_infinity():
    q, k, v = inputs(130, 16)
    q[:, 0], k[:80, 0] = 1, -float("inf")                # more than a tile of keys that nobody may see
    assert error(v1(q, k, v), q, k, v) < 2e-6


def test_is_deterministic():
    tensors = inputs(200, 64, torch.float16)
    assert torch.equal(v1(*tensors), v1(*tensors))


def test_no_rows():
    assert v1(*inputs(0, 8)).shape == (0, 8)


@pytest.mark.parametrize("change,error_type,message", [
    (lambda q, k, v: (q[None], k, v), ValueError, r"q has 3 dimensions, shape \[1, 10, 8\]"),
    (lambda q, k, v: (q, k[:5], v), ValueError, r"k has shape \[5, 8\], q has \[10, 8\]"),
    (lambda q, k, v: (q, k, v[:, :4]), ValueError, r"v has shape \[10, 4\]"),
    (lambda q, k, v: (q, k.half(), v), TypeError, "k is torch.float16, q is torch.float32"),
    (lambda q, k, v: (q.double(), k, v), TypeError, "no kernel for torch.float64"),
    (lambda q, k, v: (q, k.cpu().numpy(), v), TypeError, "k is a ndarray"),
    (lambda q, k, v: (q, k, v.to("meta")), ValueError, "v is on meta"),
    (lambda q, k, v: (x.to("meta") for x in (q, k, v)), ValueError, "q is on meta, and kernels run on"),
    (lambda q, k, v: (torch.cat([x] * 40, 1) for x in (q, k, v)), ValueError, "D = 320: the kernel takes 1 to 256"),
    (lambda q, k, v: (x[:, :0] for x in (q, k, v)), ValueError, "D = 0"),
    (lambda q, k, v: (q, k.requires_grad_(), v), ValueError, "k requires a gradient"),
])
def test_refuses_in_a_sentence(change, error_type, message):
    with pytest.raises(error_type, match=message):
        v1(*change(*inputs(10, 8)))


def test_runs_without_gradients():
    q, k, v = (x.requires_grad_() for x in inputs(10, 8))
    with torch.no_grad():
        assert not v1(q, k, v).requires_grad


@pytest.mark.parametrize("capability,matrix_instruction", [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
@pytest.mark.parametrize("D", [64, 128, 256])
def test_compiles_without_a_gpu(capability, matrix_instruction, D):
    made = compiled("fp16", D, capability)
    assert matrix_instruction in made["sass"]
    assert made["stack"] <= (0 if capability < 100 else 32)   # on Blackwell a few values do not fit at D = 128
    assert made["shared"] <= 99 * 1024                   # what a block gets on the smallest of these GPUs


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype,D", [("bf16", 64), ("fp32", 64), ("fp32", 256)])
def test_compiles_every_type(capability, dtype, D):
    made = compiled(dtype, D, capability)
    assert made["stack"] == 0 and made["shared"] <= 99 * 1024
    tensor_cores = re.search(r"\b(HMMA|HGMMA|UTCHMMA)\b", made["sass"])
    assert dtype != "fp32" or not tensor_cores           # float32 products in full precision, not on the tensor cores


def test_a_kernel_that_does_not_compile_says_so():
    with pytest.raises(RuntimeError, match="add_kernel did not compile for sm_80"):
        compiled.compile_kernel("vector_add_triton", "add_kernel", dict(x_ptr="*fp32", y_ptr="*fp32", z_ptr="*fp32", n=5,
                                                                        BLOCK=1000), capability=80)


def compiled(dtype, D, capability):
    pointer, sizes = "*" + dtype, lesson.tile_sizes(D, {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    strides = {f"stride_{name}{axis}": D if axis == "n" else 1 for name in "qkvo" for axis in "nd"}
    return compiled.compile_kernel("flash_attention_triton", "flash_attention_v1_kernel", dict(
        q_ptr=pointer, k_ptr=pointer, v_ptr=pointer, o_ptr=pointer, N=4096, D=D, scale=D**-0.5, **strides, **sizes,
        DOT=dtype), capability, num_warps=4, num_stages=2)
