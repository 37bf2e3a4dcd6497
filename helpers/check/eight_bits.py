"""The checks for tiles in shared memory and for 8-bit numbers, part of helpers/check.py."""
import math

import torch

from helpers.device import DEVICE
from helpers.check.core import properties


# ---------------------------------------------------------------- shared memory

def _calls(name, *cases):
    """A case that calls fn with arguments (all but the last of each tuple) and compares the result with the last."""
    def case(fn):
        for *arguments, want in cases:
            got = fn(*arguments)
            if got != want:
                return f"{name}({', '.join(map(str, arguments))}) is {got}, expected {want}"
        return ""
    return case


def _bytes(*cases):
    return _calls("shared_bytes", *cases)


SHARED_BYTES = [("one tile each of q, k and v", _bytes((64, 64, 64, 1, 2, 24576), (128, 128, 64, 1, 2, 49152))),
                ("more stages hold more of k and v, and one q", _bytes((64, 64, 64, 2, 2, 40960), (64, 64, 64, 3, 2, 57344))),
                ("blocks of different size", _bytes((128, 64, 64, 1, 2, 32768), (64, 128, 64, 1, 2, 40960))),
                ("other sizes of a number", _bytes((64, 64, 64, 1, 1, 12288), (64, 64, 64, 1, 4, 49152))),
                ("other head dimensions", _bytes((64, 64, 128, 1, 2, 49152), (64, 64, 256, 1, 2, 98304)))]


def shared_bytes(fn):
    """fn(BLOCK_M, BLOCK_N, D, num_stages, element_bytes) returns the bytes of one tile of q and num_stages of k and of v."""
    properties("shared_bytes", SHARED_BYTES, fn)


def _stages(*cases):
    return _calls("stages_that_fit", *cases)


STAGES = [("as many as the limit has room for", _stages((100_000, 128, 64, 64, 2, 5), (232_448, 128, 128, 64, 2, 6))),
          ("numbers of one byte", _stages((100_000, 128, 64, 64, 1, 11))),
          ("stages that fit to the byte", _stages((81_920, 128, 64, 64, 2, 4), (81_919, 128, 64, 64, 2, 3))),
          ("no room for a single stage", _stages((32_767, 128, 64, 64, 2, 0), (20_000, 128, 64, 64, 2, 0))),
          ("no room for q", _stages((10_000, 128, 16, 64, 2, 0), (0, 128, 64, 64, 2, 0)))]


def stages_that_fit(fn):
    """fn(limit, BLOCK_M, BLOCK_N, D, element_bytes) returns the largest num_stages whose tiles fit into limit bytes, or 0."""
    properties("stages_that_fit", STAGES, fn)


# ---------------------------------------------------------------- 8-bit floating-point numbers

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


def _quantized(look, *inputs):
    """A case that calls fn(x, 16) and gives look(x, x8, scales), as float64, one block after the other."""
    def case(fn):
        for x in inputs:
            x8, scales = fn(x.to(DEVICE, copy=True), 16)
            for name, got, shape, dtype in (("x8", x8, [*x.shape], torch.float8_e4m3fn),
                                            ("scales", scales, [math.ceil(len(x) / 16)], torch.float32)):
                if [*got.shape] != shape or got.dtype != dtype:
                    return f"{name} is {[*got.shape]} of {got.dtype}, expected {shape} of {dtype}"
            for i, block in enumerate(zip(x.double().split(16), x8.float().double().cpu().split(16), scales.tolist())):
                problem = look(*block)
                if problem:
                    return f"{len(x)} rows, block {i}: {problem}"
        return ""
    return case


def _scale(x, x8, scale):
    want = x.abs().max().item() / 448 or 1.0             # 448 is the largest number of this type
    return "" if abs(scale - want) <= 1e-6 * want else f"the scale is {scale:.4g}, expected {want:.4g}"


def _close(x, x8, scale):
    """Rounding to 4 significant bits errs by 1/16 at most; the smallest numbers are 2^-9 apart, before they are scaled."""
    back, bound = scale * x8, torch.maximum(x.abs() / 16, x.abs().max() / 448 * 2**-9)
    wrong = ~((back - x).abs() <= 1.0001 * bound)        # a NaN is wrong
    if not wrong.any():
        return ""
    row, column = wrong.nonzero()[0].tolist()
    return f"row {row}, column {column} is {x[row, column]:.4g} and comes back as {back[row, column]:.4g}"


def _zeros(x, x8, scale):
    return (_scale(x, x8, scale) or _close(x, x8, scale)) if not x.any() else ""


def _untouched(fn):
    x = _positive(64).to(DEVICE)
    before = x.clone()
    fn(x, 16)
    return "" if x.equal(before) else "x was changed"


QUANTIZE = [("the largest number of a block becomes 448", _quantized(_scale, _positive(64))),
            ("every number comes back to within 1/16 of itself", _quantized(_close, _positive(64, low=1e-3))),
            ("the largest may be negative", _quantized(_close, -1000 * _positive(64))),
            ("an outlier spoils no other block", _quantized(_close, _times(64, (20, 5), 1e7))),
            ("a last block that is short", _quantized(_close, _times(50, slice(48, 50), 1e3), _positive(5))),
            ("a block of zeros has the scale 1", _quantized(_zeros, torch.zeros(32, 32), _times(64, slice(32, 48), 0))),
            ("very large and very small blocks", _quantized(_close, 1e30 * _positive(64), 1e-30 * _positive(64))),
            ("the inputs are left as they were", _untouched)]


def quantize(fn):
    """fn(x, block) returns x8 [N, D], float8_e4m3fn, and a float32 scale for every block of rows: x is about scale * x8."""
    properties("quantize", QUANTIZE, fn)
