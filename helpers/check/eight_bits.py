"""Checks of quantizing to 8-bit floating-point numbers, and of attention over such numbers and their scales, in NumPy."""
import functools
import math

import numpy as np
import torch

from helpers import reference
from helpers.check.core import difference, first, over, properties, untouched
from helpers.device import DEVICE


def quantize(fn):
    """fn(x, block) returns x8 [N, D], float8_e4m3fn, and a float32 scale a block of rows: scale * x8 is about x."""
    close, scale, zeros = (functools.partial(_blocks, look) for look in (_close, _scale, _zeros))
    properties("quantize", [
        ("the largest number of a block becomes 448", _on(scale, _positive(64))),
        ("every number comes back to within 1/16 of itself", _on(close, _positive(64, low=1e-3))),
        ("the largest may be negative", _on(close, -1000 * _positive(64))),
        ("an outlier spoils no other block", _on(close, _times(64, (20, 5), 1e7))),
        ("a last block that is short", _on(close, _times(50, slice(48, 50), 1e3), _positive(5))),
        ("a block of zeros has the scale 1", _on(zeros, torch.zeros(32, 32), _times(64, slice(32, 48), 0))),
        ("very large and very small blocks", _on(close, 1e30 * _positive(64), 1e-30 * _positive(64))),
        ("the inputs are left as they were", _on(untouched, _positive(64)))], fn)


_on = over("", lambda x: (x.to(DEVICE, copy=True), 16))


def _positive(N, low=1.0):
    """[N, 32] numbers from `low` to 2, many of each size; the first of every 16 rows begins with a 3."""
    x = low * (2 / low)**torch.rand(N, 32, generator=torch.Generator().manual_seed(N))
    x[::16, 0] = 3
    return x


def _times(N, place, factor):
    """The numbers of `_positive`, with what x[place] selects multiplied by a factor."""
    x = _positive(N)
    x[place] *= factor
    return x


def _blocks(look, fn, x, block):
    """A problem: look(x, x8, scale), in float64, of one block of rows after the other."""
    x, (x8, scales) = x.clone(), fn(x, block)
    for name, got, shape, dtype in (("x8", x8, [*x.shape], torch.float8_e4m3fn),
                                    ("scales", scales, [math.ceil(len(x) / block)], torch.float32)):
        if [*got.shape] != shape or got.dtype != dtype:
            return f"{name} is {[*got.shape]} of {got.dtype}, expected {shape} of {dtype}"
    parts = x.double().cpu().split(block), x8.float().double().cpu().split(block), scales.tolist()
    found = [look(*part) for part in zip(*parts)]
    return first(problem and f"{len(x)} rows, block {i}: {problem}" for i, problem in enumerate(found))


def _scale(x, x8, scale):
    want = x.abs().max().item() / 448 or 1.0             # 448 is the largest number of this type
    return "" if abs(scale - want) <= 1e-6 * want else f"the scale is {scale:.4g}, expected {want:.4g}"


def _close(x, x8, scale):
    """Rounding to 4 significant bits errs by 1/16 at most; the smallest numbers are 2^-9 apart, before scaling."""
    back, bound = scale * x8, torch.maximum(x.abs() / 16, x.abs().max() / 448 * 2**-9)
    wrong = ~((back - x).abs() <= 1.0001 * bound)        # a NaN is wrong
    if not wrong.any():
        return ""
    row, column = wrong.nonzero()[0].tolist()
    return f"row {row}, column {column} is {x[row, column]:.4g} and comes back as {back[row, column]:.4g}"


def _zeros(x, x8, scale):
    return (_scale(x, x8, scale) or _close(x, x8, scale)) if not x.any() else ""


# ---------------------------------------------------------------- attention over eight bits

def _bytes(generator, *shape, largest=448):
    """float32 numbers that float8_e4m3fn holds, up to `largest`."""
    x = torch.from_numpy(generator.uniform(-largest, largest, shape))
    return x.to(torch.float8_e4m3fn).float().numpy()


def _inputs(N_q, N_k, block, D=16, q_scale=None, k_scale=None, v_scale=None, largest=8, low=False):
    """q8, k8, v8, their scales and block. A scale that is not given differs from block to block, or feature to feature.

    With low, every score is far below 0.
    """
    generator = np.random.default_rng(N_q + N_k)

    def scales(number, given):
        return np.float32(generator.uniform(0.05, 0.5, number) if given is None else np.full(number, given))

    sizes = ((N_q, largest), (N_k, largest), (N_k, 448))
    q8, k8, v8 = (_bytes(generator, N, D, largest=size) for N, size in sizes)
    if low:
        q8, k8 = abs(q8), -abs(k8)
    return (q8, k8, v8, scales(-(-N_q // block), q_scale), scales(-(-N_k // block), k_scale), scales(D, v_scale), block)


def _exact(q8, k8, v8, q_scales, k_scales, v_scales, block, is_causal):
    """Attention of the numbers that the bytes stand for, in float64."""
    q, k = (x.astype(np.float64) * scales.astype(np.float64).repeat(block)[:len(x), None]
            for x, scales in ((q8, q_scales), (k8, k_scales)))
    return reference.attention(q, k, v8 * v_scales.astype(np.float64), is_causal=is_causal)


def _agrees(is_causal, *cases):
    def case(fn):
        for inputs in cases:
            with np.errstate(all="ignore"):              # a NaN is named below, with its place
                got = fn(*map(np.copy, inputs[:-1]), inputs[-1])
            problem = difference(got, _exact(*inputs, is_causal), 1e-3)
            if problem:
                return f"N_q = {len(inputs[0])}, N_k = {len(inputs[1])}: {problem}"
        return ""
    return case


class _Eight(np.ndarray):
    """Numbers of eight bits, which note what is done with them other than a product of matrices."""
    seen = []

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if ufunc not in (np.matmul, np.isnan):
            self.seen.append(ufunc.__name__)
        return getattr(ufunc, method)(*(np.asarray(x) for x in inputs), **options)


def _after(*inputs):
    """A case that fails if q8, k8 or v8 meets anything but a product of matrices."""
    def case(fn):
        _Eight.seen.clear()
        fn(*(x.view(_Eight) for x in inputs[:3]), *inputs[3:])
        return f"{_Eight.seen[0]} changed q8, k8 or v8 before their product: no longer bytes" if _Eight.seen else ""
    return case


def scaled_attention(fn):
    """fn(q8, k8, v8, q_scales, k_scales, v_scales, block) returns o [N_q, D], without a mask.

    q8 [N_q, D], k8 and v8 [N_k, D] hold numbers of eight bits; q_scales and k_scales one number for each block of rows,
    v_scales one for each feature.
    """
    properties("scaled_attention", [
        ("one scale for all", _agrees(False, _inputs(32, 32, 8, q_scale=0.2, k_scale=0.3, v_scale=0.5))),
        ("a scale for each block of queries", _agrees(False, _inputs(32, 32, 8, k_scale=0.3, v_scale=0.5))),
        ("a scale for each block of keys", _agrees(False, _inputs(32, 32, 8, q_scale=0.2, v_scale=0.5))),
        ("a scale for each feature of v", _agrees(False, _inputs(32, 32, 8, q_scale=0.2, k_scale=0.3))),
        ("a last block that is short", _agrees(False, _inputs(30, 30, 8), _inputs(5, 5, 8))),
        ("more or fewer keys than queries",
         _agrees(False, _inputs(8, 48, 8), _inputs(48, 8, 8), _inputs(20, 45, 16))),
        ("large scores", _agrees(False, _inputs(32, 32, 8, q_scale=30, k_scale=30))),
        ("the scales come after the products", _after(*_inputs(32, 32, 8))),
        ("the inputs are left as they were", over("", _inputs)(untouched, (32, 32, 8)))], fn)


def causal_scaled_attention(fn):
    """As scaled_attention, under a causal mask, for as many queries as keys."""
    properties("causal_attention", [
        ("random numbers", _agrees(True, _inputs(32, 32, 8))),
        ("a last block that is short", _agrees(True, _inputs(30, 30, 8), _inputs(5, 5, 8))),
        ("any block size", _agrees(True, _inputs(48, 48, 16), _inputs(40, 40, 64), _inputs(12, 12, 1))),
        ("very low scores", _agrees(True, _inputs(32, 32, 8, largest=448, low=True))),
        ("small queries and small keys", _agrees(True, _inputs(32, 32, 8, q_scale=1e-12, k_scale=1e-12))),
        ("queries and keys near 0", _agrees(True, _inputs(32, 32, 8, q_scale=1e-30, k_scale=1e-30))),
        ("the inputs are left as they were", over("", _inputs)(untouched, (32, 32, 8)))], fn)
