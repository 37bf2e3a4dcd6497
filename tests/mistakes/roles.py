"""Right and wrong kernels for the checks of warps with different roles."""
import rings
from helpers import check
from mistakes.ways import INSTEAD

HEAD = """
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from helpers.hopper import async_load, mbarrier, warpgroup_mma, warpgroup_mma_wait
from helpers.lessons.warp_specialization import (LOWEST, ROWS, as_operand, fetch, hand_on, make_ring, place_of, put, reader,
                                                 receive, ring_for, softmax, start_scores, start_values, take, writer)
"""
UNTYPED = "    x = 0\n    for i in range(3):\n        x = x + 0.5\n"           # runs, and does not compile

RING = """
@gluon.jit
def asker(ring, x_desc, N):
    for i in range(N):
        tile, full, empty, parity = place_of(ring, i)
        mbarrier.wait(empty, parity ^ 1)
        mbarrier.expect(full, x_desc.block_type.nbytes)
        async_load(x_desc, [i * 16, 0], full, tile)

@gluon.jit
def adder(ring, y_ptr, N):
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
    rows = gl.arange(0, 16, layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, 32, layout=gl.SliceLayout(0, layout))
    for i in range(N):
        x = receive(ring, i).load(layout)
        hand_on(ring, i)
        gl.store(y_ptr + (i * 16 + rows)[:, None] * 32 + columns[None, :], x + 1)

@gluon.jit
def kernel(x_desc, y_ptr, N, STAGES: gl.constexpr):
    ring = ring_for(x_desc, STAGES, READERS=1)
    gl.warp_specialize([(adder, (ring, y_ptr, N)), (asker, (ring, x_desc, N))], [1], [32])
"""
ring = rings.versions(HEAD + RING, "kernel")
WAIT = "        mbarrier.wait(empty, parity ^ 1)\n"
LOAD = "        x = receive(ring, i).load(layout)\n        hand_on(ring, i)\n"
EARLY = "        tile = receive(ring, i)\n        hand_on(ring, i)\n        x = tile.load(layout)\n"

READERS = """
@gluon.jit
def late_reader(ring, o_ptr, begin, N):
    for i in range(N):
        if i < begin:
            receive(ring, i)
            hand_on(ring, i)
        else:
            gl.store(o_ptr + i, take(ring, i))

@gluon.jit
def kernel(o_ptr, late_ptr, begin, N, STAGES: gl.constexpr):
    ring = make_ring(gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0])), READERS=2)
    gl.warp_specialize([(reader, (ring, o_ptr, N)), (late_reader, (ring, late_ptr, begin, N)), (writer, (ring, N))],
                       [4, 1], [32, 32])
"""
readers = rings.versions(HEAD + READERS, "kernel")
SKIP = "            receive(ring, i)\n            hand_on(ring, i)\n"

PRODUCT = """
@gluon.jit
def asker(a, b, a_desc, b_desc, steps):
    for i in range(steps):
        fetch(a, i, a_desc, [0, i * 64])
        fetch(b, i, b_desc, [0, i * 64])

@gluon.jit
def multiplier(a, b, c_ptr, steps):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    rows = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, 64, layout=gl.SliceLayout(0, layout))
    acc = gl.zeros([64, 64], gl.float32, layout)
    for i in range(steps):
        acc = warpgroup_mma(receive(a, i), receive(b, i).permute((1, 0)), acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
        if i > 0:
            hand_on(a, i - 1)
            hand_on(b, i - 1)
    acc = warpgroup_mma_wait(0, deps=[acc])
    hand_on(a, steps - 1)
    hand_on(b, steps - 1)
    gl.store(c_ptr + rows[:, None] * 64 + columns[None, :], acc)

@gluon.jit
def kernel(a_desc, b_desc, c_ptr, steps, STAGES: gl.constexpr):
    a, b = ring_for(a_desc, STAGES, READERS=1), ring_for(b_desc, STAGES, READERS=1)
    gl.warp_specialize([(multiplier, (a, b, c_ptr, steps)), (asker, (a, b, a_desc, b_desc, steps))], [1], [32])
"""
product = rings.versions(HEAD + PRODUCT, "kernel")
BEHIND = "        if i > 0:\n            hand_on(a, i - 1)\n            hand_on(b, i - 1)\n"

LATE = """
@gluon.jit
def late(q, k, v, N, factor, s_layout: gl.constexpr, o_layout: gl.constexpr):
    rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, k_width=2)
    D: gl.constexpr = q.tiles.shape[4]
    q_0 = receive(q, 0).reshape([ROWS, D])
    acc, l = gl.zeros([ROWS, D], gl.float32, o_layout), gl.zeros([ROWS], gl.float32, rows)
    m = gl.full([ROWS], LOWEST, gl.float32, rows)
    s = warpgroup_mma_wait(0, deps=[start_scores(q_0, k, 0, s_layout)])
    hand_on(k, 0)
    p, m, l, alpha = softmax(s, m, l, factor, False)
    p = as_operand(p, None, gl.float16, p_layout, False)
    for i in range(1, N):
        s = start_scores(q_0, k, i, s_layout)
        acc = start_values(acc, p, v, i - 1, False)
        s = warpgroup_mma_wait(1, deps=[s])
        hand_on(k, i)
        p_next, m, l, alpha = softmax(s, m, l, factor, False)
        acc, p = warpgroup_mma_wait(0, deps=[acc, p])
        hand_on(v, i - 1)
        acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, o_layout))[:, None]
        p = as_operand(p_next, None, gl.float16, p_layout, False)
    acc = warpgroup_mma_wait(0, deps=[start_values(acc, p, v, N - 1, False)])
    hand_on(v, N - 1)
    return acc / gl.convert_layout(l, gl.SliceLayout(1, o_layout))[:, None]
"""
late = rings.versions(HEAD + LATE, "late")
SHRINK = "        acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, o_layout))[:, None]\n"
FIRST = "        s = start_scores(q_0, k, i, s_layout)\n"
VALUES = "        acc = start_values(acc, p, v, i - 1, False)\n"
# shrunk before the product that is late is added: wrong as soon as a maximum changes
SHRUNK_FIRST = late((SHRINK, ""), (VALUES, ""), (
    "        acc, p = warpgroup_mma_wait(0, deps=[acc, p])\n        hand_on(v, i - 1)\n", SHRINK
    + VALUES + "        acc, p = warpgroup_mma_wait(0, deps=[acc, p])\n        hand_on(v, i - 1)\n"),
    ("warpgroup_mma_wait(1, deps=[s])", "warpgroup_mma_wait(0, deps=[s])"))


def in_turn_and_late_in_name(*changes):
    """All products waited for before the exponentials."""
    return late(("        s = warpgroup_mma_wait(1, deps=[s])\n", "        s, acc, p = warpgroup_mma_wait(0, deps=[s, acc, p])\n"),
                ("        acc, p = warpgroup_mma_wait(0, deps=[acc, p])\n", ""), *changes)

UNSAFE = """@gluon.jit
def softmax(s, m, l, factor, FP8: gl.constexpr):
    p = gl.exp2(s * factor)
    return p, m, l + gl.sum(p, axis=1), gl.exp2(m - m)

@gluon.jit
def late"""


CASES = {
    check.plus_one: dict(
        right=[ring()],
        wrong={"five tiles in two places": [ring(("x + 1)", "x)")), ring(("parity ^ 1)", "parity)")),
                                            ring(("(i * 16 + rows)", "(rows)"))],
               "one place, three, and more than tiles": [
                   ring(("place_of(ring, i)", "place_of(ring, i % 5)")),
                   ring((WAIT, "        mbarrier.wait(empty, i // 2 & 1 ^ 1)\n"))],
               "no fault, in ten orders of events": [ring((WAIT, "")), ring((LOAD, EARLY))],
               "tiles are asked for ahead": ring(("full, tile)\n", "full, tile)\n        mbarrier.wait(full, parity)\n")),
               "it compiles for a Hopper GPU": ring(("    for i in range(N):\n        x = rec", f"{UNTYPED}    for i in range(N):\n        x = rec"))},
        **INSTEAD),
    check.two_readers: dict(
        right=[readers()],
        wrong={"nothing is skipped": readers(("gl.store(o_ptr + i, take", "gl.store(o_ptr + i, 1 + take")),
               "one is skipped": readers((SKIP, "            hand_on(ring, i)\n")),
               "some are skipped": [readers((SKIP, "            hand_on(ring, i)\n")),
                                    readers((SKIP, "            receive(ring, i)\n"))],
               "all are skipped": [readers((SKIP, "            receive(ring, i)\n")),
                                   readers((SKIP, "            gl.store(o_ptr + i, take(ring, i))\n"))],
               "one place, and three": readers((SKIP, "            receive(ring, i % 2)\n            hand_on(ring, i)\n")),
               "no fault, in ten orders of events": readers((SKIP, "            hand_on(ring, i)\n")),
               "it compiles for a Hopper GPU": readers(("    for i in range(N):\n", f"{UNTYPED}    for i in range(N):\n"))},
        **INSTEAD),
    check.product_by_roles: dict(
        right=[product()],
        wrong={"one step": product(("    gl.store(c_ptr", "    acc = acc + 1\n    gl.store(c_ptr")),
               "five steps in two places": [product(("acc, is_async", "acc, use_acc=False, is_async")),
                                            product(("b_desc, [0, i * 64]", "b_desc, [0, 0]"))],
               "three places, and more than steps": product(("fetch(a, i, a_desc, [0, i * 64])",
                                                             "fetch(a, i, a_desc, [0, i % 5 * 64])")),
               "no fault, in ten orders of events": [
                   product(("wait(1, deps", "wait(2, deps")),
                   product((BEHIND, "        hand_on(a, i)\n        hand_on(b, i)\n"),
                           ("    hand_on(a, steps - 1)\n    hand_on(b, steps - 1)\n", ""))],
               "the next product is started before the last one is waited for": product(
                   ("wait(1, deps", "wait(0, deps"), (BEHIND, "        hand_on(a, i)\n        hand_on(b, i)\n"),
                   ("    hand_on(a, steps - 1)\n    hand_on(b, steps - 1)\n", "")),
               "it compiles for a Hopper GPU": product(("    acc = gl.zeros", f"{UNTYPED}    acc = gl.zeros"))},
        **INSTEAD),
    check.late_values: dict(
        right=[late()],
        wrong={"the result is attention": [SHRUNK_FIRST, late((SHRINK, "")), late(("p, v, N - 1, False", "p, v, 0, False"))],
               "maxima that rise from tile to tile, in each row by another step": [SHRUNK_FIRST, late((SHRINK, ""))],
               "maxima that fall": late(("range(1, N)", "range(2, N)")),
               "a single tile": late(("    s = warpgroup_mma_wait(0, deps=[start_scores(q_0, k, 0",
                                      "    s = warpgroup_mma_wait(0, deps=[start_scores(q_0, k, N // 2 - N // 2 + (N == 1)")),
               "large logits": late(("@gluon.jit\ndef late", UNSAFE)),
               "no fault, in ten orders of events": [
                   late(("        hand_on(v, i - 1)\n", ""), (FIRST, FIRST + "        hand_on(v, i - 1)\n")),
                   late(("warpgroup_mma_wait(1, deps=[s])", "warpgroup_mma_wait(2, deps=[s])"))],
               "p @ v comes one tile late, beside the exponentials": [
                   in_turn_and_late_in_name(), late((FIRST, ""), (VALUES, VALUES + FIRST))],
               "it compiles for a Hopper GPU": late(("    m = gl.full", f"{UNTYPED}    m = gl.full"))})}
