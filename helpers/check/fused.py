"""The checks for a backward pass in one walk: five products, keys beyond the end, what fits, and a tile that is added up."""
import functools

import numpy as np
import torch

from helpers import reference, simulator
from helpers.check.core import (difference, differences, everywhere, first, outside, over, properties, tensor, untouched,
                                unwritten)
from helpers.check.simulated import HOPPER, ORDERS, compiles, described, noise, orders, runs


# ---------------------------------------------------------------- five products, in NumPy

class _Counted(np.ndarray):
    """An array that notes the shapes of the products it takes part in, as do all that are computed from it."""
    products = []

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if ufunc is np.matmul and method == "__call__":
            _Counted.products.append(tuple(np.shape(x) for x in inputs))
        plain = [x.view(np.ndarray) if isinstance(x, _Counted) else x for x in inputs]
        into = {"out": tuple(x.view(np.ndarray) if isinstance(x, _Counted) else x for x in out)} if out else {}
        made = getattr(ufunc, method)(*plain, **into, **options)
        return out[0] if out else made.view(_Counted) if isinstance(made, np.ndarray) else made


def _problem(N_q, N_k, BLOCK=16, scale=0.4, D=8):
    """q, k, v, do, lse, delta, scale, BLOCK."""
    rng = np.random.default_rng(N_q + N_k)
    q, do, k, v = (rng.standard_normal((N, D)) for N in (N_q, N_q, N_k, N_k))
    o, lse = reference.attention(q, k, v, scale=scale, return_lse=True)
    return q, k, v, do, lse, (do * o).sum(1), scale, BLOCK


def _gradients(fn, q, k, v, do, lse, delta, scale, BLOCK):
    want = reference.attention_grads(q, k, v, do, scale=scale)
    return differences("dq dk dv", fn(*(x.copy() for x in (q, k, v, do, lse, delta)), scale, BLOCK), want, 1e-9)


def _five(fn, *problem):
    *arrays, scale, BLOCK = problem
    _Counted.products = []
    fn(*(x.view(_Counted) for x in arrays), scale, BLOCK)
    pairs = -(-len(arrays[0]) // BLOCK) * -(-len(arrays[1]) // BLOCK)
    made = len(_Counted.products)
    largest = max((n for shapes in _Counted.products for shape in shapes for n in shape), default=0)
    if largest > max(BLOCK, arrays[0].shape[1]):
        return f"a factor of a product has {largest} rows or columns, and a tile {BLOCK}"
    return "" if made == 5 * pairs else f"{made} products for {pairs} pairs of tiles, expected {5 * pairs}"


def one_walk(fn):
    """fn(q, k, v, do, lse, delta, scale, BLOCK) returns dq, dk, dv of one head without a mask, in NumPy, by five products."""
    on = over("N_q = {}, N_k = {}", _problem)
    with np.errstate(all="ignore"):
        properties("one_walk", [
            ("one tile", on(_gradients, (16, 16))),
            ("several tiles of keys", on(_gradients, (16, 64))),
            ("several tiles of queries", on(_gradients, (64, 16))),
            ("lengths that are no multiple of the block", on(_gradients, (50, 70), (7, 33))),
            ("any block", over("BLOCK = {2}", _problem)(_gradients, (40, 40, 8), (40, 40, 64))),
            ("the scale that it is given", over("scale = {3}", _problem)(_gradients, (32, 48, 16, 1.5))),
            ("five products for each pair of tiles", on(_five, (64, 48), (50, 70))),
            ("the inputs are left as they were", on(untouched, (32, 48)))], fn)


# ---------------------------------------------------------------- keys beyond the end, in Triton

def _tensors(N_q, N_k, score=0.0, scale=0.25, D=16):
    """q, k, v, do, lse, delta, scale. A score is added to that of each key."""
    rng = np.random.default_rng(N_q + N_k)
    q, do, k, v = (rng.standard_normal((N, D)) for N in (N_q, N_q, N_k, N_k))
    if score:
        q[:, 0] = abs(score / scale)**0.5
        k[:, 0] = score / scale / q[0, 0]
    o, lse = reference.attention(q, k, v, scale=scale, return_lse=True)
    return *map(tensor, (q, k, v, do, lse, (do * o).sum(1))), scale


def _agree(fn, q, k, v, do, lse, delta, scale):
    want = reference.attention_grads(q, k, v, do, scale=scale)
    tolerance = 1e-3 if q[0, 0] == q[-1, 0] else 1e-5    # with a score of -200, float32 knows less of the others
    return differences("dq dk dv", fn(q, k, v, do, lse, delta, scale), want, tolerance)


def fused_gradients(fn):
    """fn(q, k, v, do, lse, delta, scale) returns dq, dk, dv [N, D], float32, one head, no mask, by a kernel in one walk."""
    on, lengths = over("N_q = {}, N_k = {}", _tensors), ((50, 70), (17, 33), (1, 1))
    properties("fused_gradients", [
        ("one tile", on(_agree, (32, 32))),
        ("several tiles of keys add to dq", on(_agree, (32, 128))),
        ("several tiles of queries", on(_agree, (128, 32))),
        ("lengths that are no multiple of the block", on(_agree, *lengths)),
        ("keys beyond the end add nothing, however low the scores", on(_agree, (40, 50, -200.0))),
        ("the scale that it is given", on(_agree, (40, 64, 0.0, 0.5))),
        ("every output element is written", on(everywhere(unwritten), (64, 64), *lengths)),
        ("nothing is written outside of the tensors", on(everywhere(outside), (64, 64), *lengths)),
        ("the inputs are left as they were", on(untouched, (32, 64)))], fn)


# ---------------------------------------------------------------- what fits

def _needs(BLOCK_M, BLOCK_N, D):
    """The bytes of the tiles in shared memory, and the numbers in registers of each of 256 threads."""
    tiles = 2 * BLOCK_N * D + 2 * 2 * BLOCK_M * D + BLOCK_N * BLOCK_M                  # k, v; q, do; ds: of 16 bits
    numbers = 2 * BLOCK_N * D + 2 * BLOCK_N * BLOCK_M                                  # dk, dv; s and dp
    return 2 * tiles + 4 * BLOCK_M * D + 2 * 2 * 4 * BLOCK_M, numbers // 256


def _need(number, *sizes):
    """A case: one of the two numbers that fn returns."""
    what = ("the bytes of shared memory", "the numbers a thread holds")[number]

    def case(fn):
        for size in sizes:
            got, want = fn(*size), _needs(*size)
            if not isinstance(got, tuple) or len(got) != 2:
                return f"it returned {got!r}, expected two numbers"
            if got[number] != want[number]:
                return "for BLOCK_M = {}, BLOCK_N = {}, D = {}, {} are {}, expected {}".format(
                    *size, what, got[number], want[number])
        return ""
    return case


def backward_needs(fn):
    """fn(BLOCK_M, BLOCK_N, D): the fused kernel's bytes of shared memory, and the numbers of each of its 256 threads."""
    ours, others = [(64, 128, 128), (128, 128, 64)], [(128, 128, 128), (64, 64, 64), (64, 128, 256), (32, 256, 64)]
    properties("backward_needs", [
        ("shared memory, with 128 keys", _need(0, *ours)), ("shared memory, with other tiles", _need(0, *others)),
        ("registers, with 128 keys", _need(1, *ours)), ("registers, with other tiles", _need(1, *others))], fn)


# ---------------------------------------------------------------- a tile that is added up, in Gluon

def _sums(N, programs, kernel):
    """dq += ds_i^T k by each program, of 64 keys, for N tiles of 64 queries."""
    ds, k = (noise(64 * programs, width, seed=width).half() for width in (64 * N, 64))
    dq = torch.zeros(64 * N, 64)
    kernel[programs,](ds, described(k, 64, 64), described(dq, 64, 64), N, num_warps=4)
    wrong = difference(dq, ds.double().T @ k.double(), 1e-4)
    return f"{N} tiles, {programs} programs: {wrong}" if wrong else ""


def _late(kernel):
    with simulator.schedule() as events:
        wrong = _sums(4, 1, kernel)
    products = [event for event in events[0] if event.unit == "products"]
    added = [event for event in events[0] if event.unit == "copies"][1:]               # the first brings k
    if len(products) != 4 or len(added) != 4:
        return wrong or f"4 tiles took {len(products)} products and {len(added)} copies that add"
    waits = [i for i in range(1, 4) if products[i].begin >= added[i - 1].end]
    return wrong or (f"product {waits[0]} begins when tile {waits[0] - 1} has been added, and not before" if waits else "")


def added_up(kernel):
    """kernel[programs,](ds_ptr, k_desc, dq_desc, N): dq += ds_i^T k, ds [64 * programs, 64 * N], by tiles of 64 x 64."""
    properties("added_up", [
        ("one tile", runs(functools.partial(_sums, 1, 1))),
        ("several tiles", runs(functools.partial(_sums, 5, 1))),
        ("several programs add to one dq", runs(functools.partial(_sums, 3, 3))),
        (ORDERS, orders(lambda kernel: first([_sums(4, 1, kernel)]))),
        ("the next product does not wait for the engine", runs(_late)),
        (HOPPER, compiles(dict(ds_ptr="*fp16", k_desc="tensordesc<fp16[64, 64]>", dq_desc="tensordesc<fp32[64, 64]>", N=5),
                           "wgmma.mma_async", "cp.reduce.async.bulk.tensor"))], kernel)
