"""The checks for attention over numbers of eight bits and their scales, in NumPy."""
import numpy as np
import torch

from helpers import reference
from helpers.check.core import difference, over, properties, untouched


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


SCALED = [("one scale for all", _agrees(False, _inputs(32, 32, 8, q_scale=0.2, k_scale=0.3, v_scale=0.5))),
          ("a scale for each block of queries", _agrees(False, _inputs(32, 32, 8, k_scale=0.3, v_scale=0.5))),
          ("a scale for each block of keys", _agrees(False, _inputs(32, 32, 8, q_scale=0.2, v_scale=0.5))),
          ("a scale for each feature of v", _agrees(False, _inputs(32, 32, 8, q_scale=0.2, k_scale=0.3))),
          ("a last block that is short", _agrees(False, _inputs(30, 30, 8), _inputs(5, 5, 8))),
          ("more or fewer keys than queries",
           _agrees(False, _inputs(8, 48, 8), _inputs(48, 8, 8), _inputs(20, 45, 16))),
          ("large scores", _agrees(False, _inputs(32, 32, 8, q_scale=30, k_scale=30))),
          ("the scales come after the products", _after(*_inputs(32, 32, 8))),
          ("the inputs are left as they were", over("", _inputs)(untouched, (32, 32, 8)))]


def scaled_attention(fn):
    """fn(q8, k8, v8, q_scales, k_scales, v_scales, block) returns o [N_q, D], without a mask.

    q8 [N_q, D], k8 and v8 [N_k, D] hold numbers of eight bits; q_scales and k_scales one number for each block of rows,
    v_scales one for each feature.
    """
    properties("scaled_attention", SCALED, fn)


CAUSAL = [("random numbers", _agrees(True, _inputs(32, 32, 8))),
          ("a last block that is short", _agrees(True, _inputs(30, 30, 8), _inputs(5, 5, 8))),
          ("any block size", _agrees(True, _inputs(48, 48, 16), _inputs(40, 40, 64), _inputs(12, 12, 1))),
          ("very low scores", _agrees(True, _inputs(32, 32, 8, largest=448, low=True))),
          ("small queries and small keys", _agrees(True, _inputs(32, 32, 8, q_scale=1e-12, k_scale=1e-12))),
          ("queries and keys near 0", _agrees(True, _inputs(32, 32, 8, q_scale=1e-30, k_scale=1e-30))),
          ("the inputs are left as they were", over("", _inputs)(untouched, (32, 32, 8)))]


def causal_scaled_attention(fn):
    """As scaled_attention, under a causal mask, for as many queries as keys."""
    properties("causal_attention", CAUSAL, fn)
