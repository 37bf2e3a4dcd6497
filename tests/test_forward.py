"""Attention's forward pass: every property, for every kernel of the course that has it."""
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.autograd import forward_ad

from attention import (FLASH, TYPES, V1, V2, V3, V4, VIEWS, array, check, close, default_type, each_default, each_empty_shape,
                       each_function, each_kernel, each_kernel_and_type, each_kernel_of_many, each_value, inputs, quarters,
                       quietly, result, spoilt)
from helpers import device, reference
from helpers.check.core import poisoned, unwritten
from helpers.lessons import causal_and_multihead, flash_attention_triton


def equal(x, y):
    """Whether two (o, lse) are the same, bit for bit."""
    return torch.equal(x[0], y[0]) and (x[1] is None or torch.equal(x[1], y[1]))


# ---------------------------------------------------------------- agreement with float64

@each_kernel_and_type
@pytest.mark.parametrize("N_q,N_k", [(1, 1), (17, 17), (113, 113), (128, 128), (200, 200), (1, 113), (50, 130),
                                     (130, 50), (256, 128), (70, 0), (0, 70)])
def test_any_length(attention, N_q, N_k, dtype):
    for is_causal in attention.masks:
        check(attention, attention.inputs(1, 1, 1, N_q, N_k, 16, dtype), is_causal=is_causal)


@each_kernel_and_type
@pytest.mark.parametrize("D", [1, 3, 7, 8, 16, 40, 64, 128, 200, 256])
def test_any_head_dimension(attention, D, dtype):
    check(attention, attention.inputs(1, 1, 1, 70, 70, D, dtype), is_causal=attention.many)


@each_kernel_and_type
@pytest.mark.parametrize("D", [64, 256])
def test_several_tiles(attention, D, dtype):
    N = 70 if dtype == torch.float32 else 200             # whose tiles are smaller
    check(attention, attention.inputs(1, 1, 1, N, N, D, dtype), is_causal=attention.many)


@pytest.mark.parametrize("attention", [V3, V4], ids=lambda x: x.name)
def test_float32_is_for_v2(attention):
    tensors = inputs(2, 4, 2, 50, 70, 24)
    assert equal(result(attention, tensors, is_causal=True), result(V2, tensors, is_causal=True))


@each_kernel_of_many
@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (3, 3), (4, 2), (6, 2), (8, 1)])
def test_batches_and_groups(attention, heads, kv_heads):
    for dtype in {attention.dtype, torch.bfloat16}:
        check(attention, attention.inputs(2, heads, kv_heads, 20, 40, 16, dtype), is_causal=True)


@each_kernel
@settings(max_examples=25, deadline=None)
@given(N_q=st.integers(0, 120), N_k=st.integers(0, 120),
       D=st.one_of(st.sampled_from([8, 16, 24, 32]), st.integers(1, 70)), is_causal=st.booleans(),
       scale=st.one_of(st.none(), st.floats(0, 2), st.floats(-2, 2)), groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
       dtype=st.sampled_from(TYPES), BLOCK_M=st.sampled_from([16, 32, 64, 128]),
       BLOCK_N=st.sampled_from([16, 32, 64, 128]), BLOCK_V=st.sampled_from([16, 32]), seed=st.integers(0, 99))
def test_any_call(attention, N_q, N_k, D, is_causal, scale, groups, dtype, BLOCK_M, BLOCK_N, BLOCK_V, seed):
    least, most = (16 if device.INTERPRETED else 64, 128) if attention is V3 else (16, 64)
    tiles = dict(BLOCK_M=min(max(BLOCK_M, least), most), BLOCK_N=min(BLOCK_N, most))
    tiles |= dict(BLOCK_V=BLOCK_V) if attention is V1 else {}
    check(attention, attention.inputs(1, *groups, N_q, N_k, D, dtype, seed), 1e-4, tiles=tiles, scale=scale,
          is_causal=is_causal and attention.many)


@each_kernel_and_type
def test_no_worse_than_twice_pytorch(attention, dtype):
    tensors = attention.inputs(1, 1, 1, 200, 200, 64, dtype)
    for is_causal in attention.masks:
        exact = reference.attention(*tensors, is_causal=is_causal)
        theirs = reference.torch_attention(*tensors, is_causal=is_causal)
        ours = result(attention, tensors, is_causal=is_causal)[0]
        assert np.abs(array(ours) - exact).max() <= 2 * np.abs(array(theirs) - exact).max()


# ---------------------------------------------------------------- scales and sizes at the edges

@each_kernel
@pytest.mark.parametrize("scale", [-0.7, 0.0, -5e-324, 5e-324, 1e-38, 1.5e-38])
def test_negative_zero_and_tiny_scale(attention, scale):
    check(attention, attention.inputs(1, 2, 1, 40, 50, 16), is_causal=attention.many, scale=scale)


@each_kernel
@pytest.mark.parametrize("scale", [100, 1e4])
def test_large_logits(attention, scale):
    for dtype, is_causal in itertools.product({attention.dtype, torch.bfloat16}, attention.masks):
        tensors = quarters(attention.inputs(1, 1, 1, 100, 100, 64, dtype))
        o, lse = result(attention, tensors, scale=scale, is_causal=is_causal)
        want, want_lse = reference.attention(*tensors, scale=scale, is_causal=is_causal, return_lse=True)
        assert np.abs(array(o) - want).max() < {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
        if lse is not None:
            np.testing.assert_allclose(array(lse), want_lse, rtol=1e-6)


@each_kernel
def test_the_largest_score_comes_last(attention):
    q, k, v = attention.inputs(1, 1, 1, 200, 200, 32)
    q[..., 0], k[..., 0] = 1, torch.linspace(0, 300, 200)          # the maximum grows with every tile
    close([q, k, v], *result(attention, [q, k, v]), scale=32**-0.5)        # scores reach 53, and so does their rounding


@each_kernel
@quietly
def test_a_first_tile_of_minus_infinity(attention):
    q, k, v = attention.inputs(1, 1, 1, 130, 130, 16)
    q[..., 0], k[..., :80, 0] = 1, -float("inf")                   # more than a tile of keys that nobody may see
    check(attention, [q, k, v])


@each_kernel
@each_empty_shape
def test_nothing_to_do(attention, shape):
    check(attention, attention.inputs(*shape))


# ---------------------------------------------------------------- NaN and inf

@each_kernel
@quietly
@each_value
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_and_inf_come_out_as_from_the_reference(attention, which, value):
    for place, dtype in (((0, 0), attention.dtype), ((70, 3), attention.dtype), ((99, 15), attention.dtype),
                         ((70, 3), torch.bfloat16)):
        tensors = spoilt(attention.inputs(1, 1, 1, 100, 100, 16, dtype), which, place, value)
        o, lse = result(attention, tensors)
        want, want_lse = reference.attention(*tensors, return_lse=True)
        np.testing.assert_allclose(array(o), want, atol=1e-5 if dtype == torch.float32 else 2e-2)    # NaN there only
        if lse is not None:
            np.testing.assert_allclose(array(lse), want_lse, rtol=1e-5)


@each_kernel_of_many
@quietly
def test_the_future_does_not_leak_across_tiles(attention):
    q, k, v = attention.inputs(1, 1, 1, 256, 256, 16)
    k[:, :, 128:] = v[:, :, 128:] = float("nan")         # rows of the first tiles must not even look there
    o, lse = result(attention, [q, k, v], is_causal=True, tiles=dict(BLOCK_M=64, BLOCK_N=64))
    assert torch.isfinite(o[:, :, :128]).all() and torch.isfinite(lse[:, :, :128]).all()
    assert not torch.isfinite(o[:, :, 128:]).any()


# ---------------------------------------------------------------- memory

@each_kernel
@pytest.mark.parametrize("N_q,N_k,D", [(50, 70, 40), (130, 30, 16), (1, 1, 8)])
def test_every_element_is_written_and_nothing_else_is_read(attention, N_q, N_k, D):
    """The poison is in new memory, around it, and in lanes that a mask leaves undefined."""
    tensors = attention.inputs(1, 2, 1, N_q, N_k, D)
    before = [x.clone() for x in tensors]
    for is_causal in attention.masks:
        want = result(attention, tensors, is_causal=is_causal)
        with poisoned():
            found = result(attention, tensors, is_causal=is_causal)
            assert equal(found, want) and not any(unwritten(x) for x in found if x is not None)
    assert all(map(torch.equal, tensors, before))


@each_kernel
@pytest.mark.parametrize("view", VIEWS)
def test_any_layout(attention, view):
    tensors, change = attention.inputs(2, 2, 2, 20, 40, 24), VIEWS[view][0]
    want = result(attention, tensors, is_causal=attention.many)
    for chosen in ((0, 1, 2), (0,), (1,), (2,)):
        views = [change(x) if i in chosen else x for i, x in enumerate(tensors)]
        found = result(attention, views, is_causal=attention.many)
        close(tensors, *found, is_causal=attention.many)
        assert attention.dtype == torch.float16 or equal(found, want)


@each_kernel
def test_turned_matrices_are_not_mixed_up(attention):
    tensors = attention.inputs(1, 1, 1, 64, 64, 64)      # square, so that swapped strides go unnoticed by their shape
    for i in range(3):
        check(attention, [x.mT if i == j else x for j, x in enumerate(tensors)])


@each_kernel_of_many
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)], ids=str)
def test_steps_of_zero(attention, axes):
    tensors = [x[tuple(slice(1) if i in axes else slice(None) for i in range(2))]
               for x in attention.inputs(2, 3, 3, 50, 60, 24)]
    check(attention, [x.expand(2, 3, -1, -1) for x in tensors], is_causal=True)


@each_kernel_and_type
def test_is_deterministic(attention, dtype):
    tensors = attention.inputs(1, 2, 1, 130, 130, 32, dtype)
    assert equal(*(result(attention, tensors, is_causal=attention.many) for _ in range(2)))


def test_the_other_layout():
    q, k, v = (x[0].transpose(0, 1) for x in inputs(1, 4, 4, 60, 60, 16))              # [seq, heads, D]
    o = causal_and_multihead.call_flash_attention_v2(q, k, v, is_causal=True)
    want = reference.attention(*(x.transpose(0, 1) for x in (q, k, v)), is_causal=True)
    assert o.shape == q.shape and np.abs(array(o.transpose(0, 1)) - want).max() < 2e-6


# ---------------------------------------------------------------- refusals

@each_function
@pytest.mark.parametrize("change,error_type,message", [
    (lambda q, k, v: (q[0], k, v), ValueError, r"q has 3 dimensions, shape \[8, 10, 16\]"),
    (lambda q, k, v: (q, k, v[:, :, :5]), ValueError, r"v has shape \[1, 2, 5, 16\], k has \[1, 2, 10, 16\]"),
    (lambda q, k, v: (q.repeat(2, 1, 1, 1), k, v), ValueError, "k has 1 batches, q has 2"),
    (lambda q, k, v: (q[..., :8], k, v), ValueError, "k has 16 features a head, q has 8"),
    (lambda q, k, v: (q[:, :3], k, v), ValueError, "k has 2 heads, which does not divide the 3 heads of q"),
    (lambda q, k, v: (q, k[:, :0], v[:, :0]), ValueError, "k has 0 heads, which does not divide"),
    (lambda q, k, v: (q, k.half(), v), TypeError, "k is torch.float16, q is torch.float32"),
    (lambda q, k, v: (q.double(), k.double(), v.double()), TypeError, "no kernel for torch.float64"),
    (lambda q, k, v: (q, k, v.cpu().numpy()), TypeError, "v is a ndarray"),
    (lambda q, k, v: (q, k, v.to("meta")), ValueError, "v is on meta"),
    (lambda q, k, v: [x.new_zeros(1, 1, 4, 257) for x in (q, k, v)], ValueError, "D = 257"),
    (lambda q, k, v: [x[..., :0] for x in (q, k, v)], ValueError, "D = 0"),
    (lambda q, k, v: (q, k.to_sparse(), v), ValueError, "k has the layout torch.sparse_coo"),
    (lambda q, k, v: (q, torch.complex(k, k).conj().imag, v), ValueError, r"pass k.resolve_neg\(\)"),
])
def test_refuses_tensors(attention, change, error_type, message):
    with pytest.raises(error_type, match=message):
        attention(*change(*inputs(1, 8, 2, 10, 10, 16)), enable_gqa=True)


@each_function
def test_groups_are_asked_for(attention):
    with pytest.raises(ValueError, match="pass enable_gqa=True"):
        attention(*inputs(1, 8, 2, 10, 10, 16))


@each_function
@pytest.mark.parametrize("row,feature", [(2**23, 0), (0, 2**23), (2**22, 2**22)])
def test_offsets_of_more_than_32_bits_are_refused(attention, row, feature):
    q, k, v = inputs(1, 1, 1, 2, 2, 2, torch.float16)
    memory = torch.empty(2**23 + 2, dtype=torch.float16, device=device.DEVICE)
    with pytest.raises(ValueError, match=f"k has rows that lie {row} elements apart, and features that lie {feature}"):
        attention(q, memory.as_strided(k.shape, [1, 1, row, feature]), v)
    one = memory.as_strided((1, 1, 1, 2), [1, 1, row, 1])          # a single row lies apart from none
    assert torch.isfinite(attention(q, one.zero_(), one)).all()


each_of_all = pytest.mark.parametrize("attention", [V1, V2, FLASH, V3, V4], ids=lambda x: x.name)


@each_of_all
@pytest.mark.parametrize("scale,error_type,message", [
    (torch.tensor(0.3), TypeError, "scale is a Tensor: expected a number"),
    (torch.nn.Parameter(torch.tensor(0.3)), TypeError, "scale is a Parameter"),
    (np.ones(1), TypeError, "scale is a ndarray"), ("0.3", TypeError, "scale is '0.3'"),
    (True, TypeError, "scale is True"), (1j, TypeError, "scale is 1j"), (float("nan"), ValueError, "scale is nan"),
    (float("inf"), ValueError, "scale is inf"), (-10**400, ValueError, "scale is -1000"), (2.0**127, ValueError, "scale"),
])
def test_refuses_a_scale(attention, scale, error_type, message):
    with pytest.raises(error_type, match=message):
        attention(*attention.inputs(1, 1, 1, 10, 10, 8), scale=scale)


@each_of_all
@pytest.mark.parametrize("scale", [Fraction(1, 4), np.float32(0.25), np.float64(0.25)])
def test_a_scale_is_any_real_number(attention, scale):
    tensors = attention.inputs(1, 1, 1, 10, 10, 8)
    assert torch.equal(attention(*tensors, scale=scale), attention(*tensors, scale=0.25))


@each_function
@pytest.mark.parametrize("value", [1, "no", None, torch.tensor(True)], ids=str)
def test_a_flag_is_true_or_false(attention, value):
    for name in ("is_causal", "enable_gqa"):
        with pytest.raises(TypeError, match=f"{name} is .*: expected True or False"):
            attention(*inputs(1, 1, 1, 10, 10, 8), **{name: value})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")           # inside of PyTorch's forward mode
@each_of_all
@pytest.mark.parametrize("which", range(3))
def test_no_tangent_is_lost(attention, which):
    tensors = attention.inputs(1, 1, 1, 10, 10, 8)
    with forward_ad.dual_level(), pytest.raises(ValueError, match=f"{'qkv'[which]} carries a tangent"):
        attention(*(forward_ad.make_dual(x, x) if i == which else x for i, x in enumerate(tensors)))


@each_of_all
@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap,
                                       lambda fn: lambda x: torch.func.jvp(fn, (x,), (x,))], ids=["grad", "vmap", "jvp"])
def test_transforms_of_functions_are_refused(attention, transform):
    q, k, v = attention.inputs(1, 1, 1, 10, 10, 8)
    with pytest.raises(ValueError, match="q belongs to a transform of torch.func"):
        transform(lambda q: attention(q, k, v).sum())(q[None] if transform is torch.vmap else q)


@pytest.mark.parametrize("attention", [V1, V2], ids=lambda x: x.name)
@pytest.mark.parametrize("tiles,error_type,message", [
    (dict(BLOCK_M=48), ValueError, "BLOCK_M = 48: expected a power of two"),
    (dict(BLOCK_N=0), ValueError, "BLOCK_N = 0: expected a power of two"), (dict(BLOCK_N=-16), ValueError, "BLOCK_N = -16"),
    (dict(BLOCK_M=8), ValueError, "BLOCK_M = 8: expected a power of two from 16 to 256"),
    (dict(BLOCK_N=512), ValueError, "BLOCK_N = 512"), (dict(BLOCK_D=32), ValueError, "BLOCK_D = 32: .* from 40 to 256"),
    (dict(BLOCK_M="32"), TypeError, "BLOCK_M = '32': expected an int"), (dict(BLOCK_M=32.0), TypeError, "BLOCK_M = 32.0"),
    (dict(BLOCKM=32), ValueError, "tiles has 'BLOCKM', which is none of BLOCK_M, BLOCK_N"),
    ((64, 64), TypeError, "tiles is a tuple: expected a dictionary"),
])
def test_refuses_tiles(attention, tiles, error_type, message):
    with pytest.raises(error_type, match=message):
        attention(*attention.inputs(1, 1, 1, 10, 10, 40), tiles=tiles)
    check(attention, attention.inputs(1, 1, 1, 10, 10, 40), tiles=dict(BLOCK_M=16, BLOCK_D=128))


@each_kernel
@each_default
def test_the_default_type_changes_nothing(attention, default):
    tensors = attention.inputs(1, 2, 1, 20, 30, 16)
    want = result(attention, tensors, is_causal=attention.many)
    with default_type(default):
        assert equal(result(attention, tensors, is_causal=attention.many), want)


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
def test_one_head_refuses_tensors(change, error_type, message):
    matrices = (x[0, 0] for x in inputs(1, 1, 1, 10, 10, 8))
    with pytest.raises(error_type, match=message):
        flash_attention_triton.flash_attention_v1(*change(*matrices))


@pytest.mark.parametrize("attention", [V1, V2], ids=lambda x: x.name)
def test_a_kernel_without_gradients_refuses_to_lose_one(attention):
    tensors = [x.requires_grad_() for x in attention.inputs(1, 1, 1, 10, 10, 8)]
    with pytest.raises(ValueError, match="q requires a gradient"):
        attention(*tensors)
    with torch.no_grad():
        assert not attention(*tensors).requires_grad
