"""The checks for warps with different roles: kernels in Gluon, run in the simulator and compiled for a Hopper GPU."""
import functools

import numpy as np
import torch

from helpers import lessons, reference, simulator
from helpers.check.core import difference, first, properties
from helpers.check.simulated import HOPPER, ORDERS, compiles, described, noise, orders, runs


# ---------------------------------------------------------------- a ring of tiles

def _plus_one(N, STAGES, kernel):
    x = noise(16 * N, 32, seed=N)
    y = torch.full_like(x, float("nan"))
    kernel[1,](described(x, 16, 32), y, N, STAGES=STAGES, num_warps=4)
    wrong = difference(y, x + 1)
    return f"{N} tiles in {STAGES} places: {wrong}" if wrong else ""


def _ahead(kernel):
    with simulator.schedule() as events:
        wrong = _plus_one(5, 3, kernel)
    copies = [event for event in events[0] if event.unit == "copies"]
    late = [i for i, (one, two) in enumerate(zip(copies, copies[1:3]), 1) if two.begin > one.end]
    return wrong or (f"three places: tile {late[0]} is asked for when tile {late[0] - 1} has arrived, and not before"
                     if late else "")


def plus_one(kernel):
    """kernel[1,](x_desc, y_ptr, N, STAGES): y = x + 1 for N tiles of 16 x 32, through a ring of STAGES places."""
    properties("plus_one", [
        ("five tiles in two places", runs(functools.partial(_plus_one, 5, 2))),
        ("one place, three, and more than tiles",
         runs(lambda kernel: first(_plus_one(N, S, kernel) for N, S in ((4, 1), (7, 3), (2, 5))))),
        (ORDERS, orders(lambda kernel: _plus_one(7, 2, kernel))),
        ("tiles are asked for ahead", runs(_ahead)),
        (HOPPER, compiles(dict(x_desc="tensordesc<fp32[16, 32]>", y_ptr="*fp32", N=5, STAGES=2),
                          "cp.async.bulk.tensor"))], kernel)


# ---------------------------------------------------------------- readers of a ring

def _two_readers(begin, STAGES, kernel, N=7):
    every, late = torch.full((2, N), -1, dtype=torch.int32)
    kernel[1,](every, late, begin, N, STAGES=STAGES, num_warps=4)
    squares = [i * i for i in range(N)]
    for who, got, want in (("reader", every, squares), ("late_reader", late, [-1] * begin + squares[begin:])):
        if got.tolist() != want:
            return f"begin = {begin}, {STAGES} places: {who} stored {got.tolist()}, expected {want}"
    return ""


def two_readers(kernel):
    """kernel[1,](o_ptr, late_ptr, begin, N, STAGES): two readers of a ring, of which the second wants all from `begin`."""
    properties("two_readers", [
        ("nothing is skipped", runs(functools.partial(_two_readers, 0, 2))),
        ("one is skipped", runs(functools.partial(_two_readers, 1, 2))),
        ("some are skipped", runs(lambda kernel: first(_two_readers(b, 2, kernel) for b in (3, 5)))),
        ("all are skipped", runs(functools.partial(_two_readers, 7, 2))),
        ("one place, and three", runs(lambda kernel: first(_two_readers(4, S, kernel) for S in (1, 3)))),
        (ORDERS, orders(lambda kernel: _two_readers(5, 2, kernel))),
        (HOPPER, compiles(dict(o_ptr="*i32", late_ptr="*i32", begin=3, N=7, STAGES=2), "mbarrier.try_wait"))], kernel)


# ---------------------------------------------------------------- a product by two roles

def _product(steps, STAGES, kernel):
    a, b = noise(64, 64 * steps).half(), noise(64, 64 * steps, seed=1).half()
    c = torch.full((64, 64), float("nan"))
    kernel[1,](described(a, 64, 64), described(b, 64, 64), c, steps, STAGES=STAGES, num_warps=4)
    wrong = difference(c, a.double() @ b.double().T, 1e-4)
    return f"{steps} steps, {STAGES} places: {wrong}" if wrong else ""


def _side_by_side(kernel):
    with simulator.schedule() as events:
        wrong = _product(4, 2, kernel)
    products = [event for event in events[0] if event.unit == "products"]
    if len(products) != 4:
        return wrong or f"4 steps took {len(products)} products"
    alone = [i for i, event in enumerate(products) if i and not event.pending]
    return wrong or (f"product {alone[0]} is started when product {alone[0] - 1} has been waited for" if alone else "")


def product_by_roles(kernel):
    """kernel[1,](a_desc, b_desc, c_ptr, steps, STAGES): c = a b^T, 64 x 64, in steps of 64 features."""
    properties("product_by_roles", [
        ("one step", runs(functools.partial(_product, 1, 2))),
        ("five steps in two places", runs(functools.partial(_product, 5, 2))),
        ("three places, and more than steps",
         runs(lambda kernel: first(_product(n, S, kernel) for n, S in ((7, 3), (2, 4))))),
        (ORDERS, orders(lambda kernel: _product(5, 2, kernel))),
        ("the next product is started before the last one is waited for", runs(_side_by_side)),
        (HOPPER, compiles(dict(a_desc="tensordesc<fp16[64, 64]>", b_desc="tensordesc<fp16[64, 64]>", c_ptr="*fp32",
                                steps=5, STAGES=2), "wgmma.mma_async", "cp.async.bulk.tensor"))], kernel)


# ---------------------------------------------------------------- p @ v one tile late

# the kernel around a loop: a producer of one warp, and a consumer that stores what the loop returns
LATE = """
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from helpers.lessons.warp_specialization import fetch, ring_for


@gluon.jit
def ask(q, k, v, q_desc, k_desc, v_desc, N):
    fetch(q, 0, q_desc, [0, 0, 0, 0])
    for i in range(N):
        fetch(k, i, k_desc, [0, 0, i * k_desc.block_shape[2], 0])
        fetch(v, i, v_desc, [0, 0, i * v_desc.block_shape[2], 0])


@gluon.jit
def store(q, k, v, o_ptr, N, factor):
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, k.tiles.shape[3], 16])
    o = loop(q, k, v, N, factor, s_layout, o_layout)
    rows = gl.arange(0, 64, layout=gl.SliceLayout(1, o_layout))
    d = gl.arange(0, 64, layout=gl.SliceLayout(0, o_layout))
    gl.store(o_ptr + rows[:, None] * 64 + d[None, :], o)


@gluon.jit
def kernel(q_desc, k_desc, v_desc, o_ptr, N, factor, STAGES: gl.constexpr):
    q, k, v = ring_for(q_desc, 1, 1), ring_for(k_desc, STAGES, 1), ring_for(v_desc, STAGES, 1)
    gl.warp_specialize([(store, (q, k, v, o_ptr, N, factor)), (ask, (q, k, v, q_desc, k_desc, v_desc, N))], [1], [32])
"""
BLOCK_N = 32


def _around(loop):
    """The kernel with this loop in it."""
    module = lessons.module_of(LATE, "late")
    module.loop = loop
    return module.kernel


def _attention(tiles, loop, rise=0.0, size=1.0, STAGES=2):
    """64 queries. With `rise` the scores of each tile are larger, by more in some rows."""
    q, k, v = (noise(1, 1, n, 64, seed=seed) for seed, n in enumerate((64, BLOCK_N * tiles, BLOCK_N * tiles)))
    q[..., 0], k[..., 0] = torch.linspace(0.3, 2, 64), rise * (torch.arange(BLOCK_N * tiles) // BLOCK_N)
    q, k, v = (x.half() for x in (size * q, k, v))
    o = torch.full((64, 64), float("nan"))
    _around(loop)[1,](described(q, 1, 1, 64, 64), *(described(x, 1, 1, BLOCK_N, 64) for x in (k, v)), o, tiles,
                      float(np.log2(np.e) / 8), STAGES=STAGES, num_warps=4)
    wrong = difference(o, reference.attention(q, k, v)[0, 0], 2e-3)
    return f"{tiles} tile{'s' * (tiles > 1)}: {wrong}" if wrong else ""


def _order(loop):
    with simulator.schedule() as events:
        wrong = _attention(5, loop)
    scores, values = f"64 x {BLOCK_N} x 64", f"64 x 64 x {BLOCK_N}"
    made = ["s" if event.label == scores else "v" if event.label == values else "?" for event in events[0]
            if event.unit == "products"]
    want = ["s", *4 * ["s", "v"], "v"]
    if made != want:
        return wrong or f"the products are {' '.join(made)}, expected {' '.join(want)} (s: scores, v: p @ v)"
    alone = [i for i, event in enumerate(event for event in events[0] if event.label == f"64 x {BLOCK_N}")
             if i and not event.pending]
    return wrong or (f"while the exponentials of tile {alone[0]} are taken, no product is under way" if alone else "")


def late_values(loop):
    """loop(q, k, v, N, factor, s_layout, o_layout) returns attention of one block of queries over N tiles, p @ v late.

    q, k and v are rings, of tiles [1, 1, rows, 64]; factor is what s is multiplied with for exp2.
    """
    tile = f"tensordesc<fp16[1, 1, {BLOCK_N}, 64]>"
    arguments = dict(q_desc="tensordesc<fp16[1, 1, 64, 64]>", k_desc=tile, v_desc=tile, o_ptr="*fp32", N=5, factor=0.2, STAGES=2)
    with np.errstate(all="ignore"):
        properties("late_values", [
            ("the result is attention", runs(lambda loop: first(_attention(n, loop) for n in (2, 4)))),
            ("maxima that rise from tile to tile, in each row by another step", runs(lambda loop: _attention(5, loop, rise=1.0))),
            ("maxima that fall", runs(lambda loop: _attention(5, loop, rise=-1.0))),
            ("a single tile", runs(lambda loop: _attention(1, loop))),
            ("large logits", runs(lambda loop: _attention(4, loop, rise=0.5, size=100))),
            (ORDERS, orders(lambda loop: _attention(5, loop, STAGES=2))),
            ("p @ v comes one tile late, beside the exponentials", runs(_order)),
            (HOPPER, lambda loop: compiles(arguments, "wgmma.mma_async")(_around(loop)))], loop)
