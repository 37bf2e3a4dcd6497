"""Attention as the tests see it: who computes it and what each can do; inputs, bounds, layouts, spoilt values."""
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import device, launches, reference
from helpers.lessons import (backward_triton, causal_and_multihead, flash_attention_triton, fp8, prefetch,
                             warp_specialization)

TYPES = [torch.float32, torch.float16, torch.bfloat16]
BOUNDS = dict(zip(TYPES, (2e-6, 2e-3, 1.6e-2)))          # of a gradient, as a share of its largest element
# what rounding p and o may cost, as a share of p |v|
ROUNDING = dict(zip(TYPES, (0, 2**-10, 2**-7)))
TUNED = device.INTERPRETED or torch.cuda.get_device_capability()[0] in (9, 10)      # descriptors and FP8 serve here

each_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
half_types = pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
causal_or_not = pytest.mark.parametrize("is_causal", [False, True])
each_value = pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
each_default = pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64], ids=str)
each_empty_shape = pytest.mark.parametrize("shape", [(0, 2, 2, 5, 5, 8), (1, 0, 0, 5, 5, 8), (1, 2, 2, 0, 5, 8),
                                                     (1, 2, 2, 5, 0, 8), (1, 2, 1, 0, 0, 8)])
needs_fp8 = pytest.mark.skipif(not TUNED, reason="needs compute capability 9.0 or 10.0")
quietly = pytest.mark.filterwarnings("ignore::RuntimeWarning")    # NumPy, inside the interpreter, announces NaN


# ---------------------------------------------------------------- inputs

def inputs(B, heads, kv_heads, N_q, N_k, D, dtype=torch.float32, seed=0, more=0):
    """[q, k, v], and as many tensors like q behind them as `more` says."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, N_q), (kv_heads, N_k), (kv_heads, N_k)] + more * [(heads, N_q)]
    return [torch.randn(B, h, N, D, generator=generator).to(device.DEVICE, dtype) for h, N in shapes]


def leaves(*shape, dtype=torch.float32, seed=0):
    """[q, k, v], which require gradients, and do."""
    *tensors, do = inputs(*shape, dtype, seed, more=1)
    return [x.requires_grad_() for x in tensors], do


def quarters(tensors):
    """The tensors in steps of a quarter: float32 holds their scores exactly."""
    return [(4 * x).round() / 4 for x in tensors]


def spoilt(tensors, which, place, value):
    """The tensors, with one element of the last head that is `value`."""
    with torch.no_grad():
        tensors[which][-1, -1, place[0], place[1]] = value
    return tensors


def misaligned(x):
    """A copy of x that begins 2 bytes behind a multiple of 16."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return memory[1:].view(x.shape).copy_(x)


VIEWS = {                                              # how a tensor may lie in memory, and whether descriptors take it
    "contiguous": (lambda x: x, True),
    "[B, N, heads, D]": (lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), True),
    "heads first": (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), True),
    "every second row": (lambda x: x.repeat_interleave(2, 2)[:, :, ::2], True),
    "wider rows": (lambda x: torch.cat((x, x[..., :8]), -1)[..., :x.shape[3]], True),
    "rows of 27 elements": (lambda x: torch.cat((x, x[..., :3]), -1)[..., :x.shape[3]], False),
    "features apart": (lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), False),
    "every second feature": (lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2], False),
    "misaligned": (misaligned, False),
}


@contextmanager
def nan_in_new_memory():
    """torch.empty and torch.empty_like give NaN in every floating-point type, those of eight bits included."""
    def filling(make):
        def filled(*size, **options):
            out = make(*size, **options)
            return out.fill_(float("nan")) if out.is_floating_point() else out
        return filled
    with mock.patch.multiple(torch, empty=filling(torch.empty), empty_like=filling(torch.empty_like)):
        yield


@contextmanager
def default_type(dtype):
    """Floating-point tensors are of this type if nobody says another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def compiled(fn, **options):
    """torch.compile of a function as one graph, with nothing left of what was compiled before."""
    torch.compiler.reset()
    return torch.compile(fn, fullgraph=True, **dict(backend="aot_eager") | options)


# ---------------------------------------------------------------- who computes it

@dataclass(frozen=True)
class Implementation:
    """fn(q, k, v, **options) -> o, or (o, lse) with return_lse, for [B, heads, N, D].

    dtype float16: it has a kernel of its own for 16 bits, and leaves float32 to an older one's.
    """
    name: str
    fn: Callable
    many: bool = True                    # batches, heads, groups, N_q != N_k, is_causal, return_lse
    dtype: torch.dtype = torch.float32

    def __call__(self, *tensors, **options):
        return self.fn(*tensors, **options)

    def inputs(self, B, heads, kv_heads, N_q, N_k, D, dtype=None, seed=0):
        """`inputs`, or the most of them that this implementation can do: one head, as many keys as queries."""
        sizes = (B, heads, kv_heads, N_q, N_k) if self.many else (1, 1, 1, N_q, N_q)
        return inputs(*sizes, D, dtype or self.dtype, seed)

    @property
    def masks(self):
        """What is_causal may be."""
        return (False, True) if self.many else (False,)


def _v1(q, k, v, **options):
    return flash_attention_triton.flash_attention_v1(q[0, 0], k[0, 0], v[0, 0], **options)[None, None]


def _v3(q, k, v, *, tiles=None, **options):
    usual = prefetch.tiles_v3
    with (mock.patch.object(prefetch, "tiles_v3", lambda *sizes: tiles or usual(*sizes)),
          mock.patch.object(launches, "_kept", {})):     # whose kinds know nothing of other tiles
        return fp8.flash_attention_v3(q, k, v, **options)


def _v4(q, k, v, *, tiles=None, **options):
    """With the specialized kernel for short sequences too, so that it is the one that is tested; simulated on a CPU."""
    with mock.patch.object(warp_specialization, "tiles_ws", long_tiles):
        return warp_specialization.flash_attention_v4(q, k, v, **options)


def long_tiles(D, N_q, N_k, is_causal, fp8, usual=warp_specialization.tiles_ws):
    """tiles_ws, as if the sequence were long."""
    return usual(max(D, 128 if fp8 else 64), 8192, 8192, is_causal, fp8)


V1 = Implementation("v1", _v1, many=False)
V2 = Implementation("v2", causal_and_multihead.flash_attention_v2)
FLASH = Implementation("flash_attention", backward_triton.flash_attention)
V3 = Implementation("v3", _v3, dtype=torch.float16)
V4 = Implementation("v4", _v4, dtype=torch.float16)


def _parametrized(*chosen):
    return pytest.mark.parametrize("attention", [pytest.param(x, id=x.name) for x in chosen])


each_kernel = _parametrized(V1, V2, V3, V4)              # flash_attention's forward kernel is v2's, bit for bit
each_kernel_of_many = _parametrized(V2, V3, V4)
each_kernel_and_type = pytest.mark.parametrize("attention,dtype", [          # float32 is V2's in V3 and V4, bit for bit, too
    pytest.param(x, dtype, id=f"{x.name}-{dtype}") for x in (V1, V2, V3, V4) for dtype in TYPES[x.dtype == torch.float16:]])
each_function = pytest.mark.parametrize("attention", [V2, FLASH, V3, V4], ids=lambda x: x.name)       # on any machine
differentiable = pytest.mark.parametrize("attention", [FLASH, V3, V4], ids=lambda x: x.name)


# ---------------------------------------------------------------- what is right

def array(x):
    return x.detach().double().cpu().numpy()


def allowed(tensors, scale=None, **options):
    """The error that each element of o may have: from rounding p and o to the type of the inputs, and from float32."""
    q, k, v = tensors
    spread = reference.attention(q, k, v.abs(), scale=scale, **options)                # p |v|, at least |o|
    floor = 2**-24 * (1 + array(v.abs()).sum(2).max(initial=0)) if q.dtype == torch.float16 else 0     # its last steps
    norms = [x.detach().float().norm(dim=-1).amax().item() if x.numel() else 0 for x in (q, k)]
    score = 0 if scale is None else 1e-6 * abs(scale) * norms[0] * norms[1]        # a score's rounding is a share of it
    return 1.01 * ROUNDING[q.dtype] * spread + floor + (2e-6 + score) * np.maximum(1, spread)


def close(tensors, o, lse=None, lse_bound=1e-5, **options):
    """Assert that o, and lse if there is one, are attention of the tensors, by the reference in float64."""
    want, want_lse = reference.attention(*tensors, return_lse=True, **options)
    assert o.shape == tensors[0].shape and o.dtype == tensors[0].dtype
    assert (np.abs(array(o) - want) <= allowed(tensors, **options)).all(), options
    if lse is not None:
        assert lse.dtype == torch.float32
        np.testing.assert_allclose(array(lse), want_lse, rtol=lse_bound, atol=lse_bound)


def result(attention, tensors, **options):
    """(o, lse), lse None where there is none."""
    if attention.many:
        return attention(*tensors, enable_gqa=True, return_lse=True, **options)
    options.pop("is_causal", None)
    return attention(*tensors, **options), None


def check(attention, tensors, lse_bound=1e-5, tiles=None, **options):
    """Assert that an implementation is right on these tensors."""
    found = result(attention, tensors, **options, **({"tiles": tiles} if tiles else {}))
    close(tensors, *found, lse_bound, **options)


class Seen(TorchDispatchMode):
    """A mode that notes which operators it sees."""
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names = [*getattr(self, "names", []), str(function)]
        return function(*arguments, **options or {})


def grads(attention, tensors, do, **options):
    """o, lse, dq, dk, dv of a differentiable implementation as tensors."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    o, lse = attention(*leaves, enable_gqa=True, return_lse=True, **options)
    return [o.detach(), lse.detach(), *torch.autograd.grad(o, leaves, do)]


def wanted(tensors, do, **options):
    """What `grads` should be, by the reference in float64."""
    return [*reference.attention(*tensors, return_lse=True, **options),
            *reference.attention_grads(*tensors, do, **options)]


def close_grads(got, want, bound, lse_bound=1e-5):
    """Assert that `grads` are what is wanted, within a share of the largest element of each."""
    for name, x, exact in zip(("o", "lse", "dq", "dk", "dv"), got, want, strict=True):
        assert x.shape == exact.shape and x.dtype == (torch.float32 if name == "lse" else got[0].dtype), name
        if name == "lse":
            np.testing.assert_allclose(array(x), exact, rtol=lse_bound, atol=lse_bound)
        else:
            assert np.abs(array(x) - exact).max(initial=0) <= bound * max(1, np.abs(exact).max(initial=0)), name


def check_grads(attention, shape, bound=None, dtype=torch.float32, seed=0, **options):
    """Assert that output and gradients for inputs of this shape are right."""
    *tensors, do = inputs(*shape, dtype, seed, more=1)
    close_grads(grads(attention, tensors, do, **options), wanted(tensors, do, **options), bound or BOUNDS[dtype])


def backward_with(dkdv, dq):
    """Let the backward kernels run with these (BLOCK_M, BLOCK_N)."""
    usual = backward_triton.backward_tiles

    def tiles(*arguments, **options):
        return [dict(made, BLOCK_M=M, BLOCK_N=N) for made, (M, N) in zip(usual(*arguments, **options), (dkdv, dq))]
    return mock.patch.object(backward_triton, "backward_tiles", tiles)


def same(x, y):
    """Bit for bit in the interpreter. On a GPU other strides give other layouts, which add in another order."""
    torch.testing.assert_close(x, y, rtol=0, atol=0 if device.INTERPRETED else 2e-6)
