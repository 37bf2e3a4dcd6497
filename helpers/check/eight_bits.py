"""The check of quantizing to 8-bit floating-point numbers."""
import functools
import math

import torch

from helpers.check.core import first, over, properties, untouched
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
