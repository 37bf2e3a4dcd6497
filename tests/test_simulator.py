"""The simulator of Gluon kernels: right results, every planted fault named in every order, no fault where there is none."""
import importlib
import re
import sys

import numpy as np
import pytest
import torch

import rings
from helpers import compiled, lessons, reference, simulator
from helpers.bench import planted
from helpers.lessons import warp_specialization

SEEDS = [None, *range(20)]


def fault(run, *arguments):
    """What the simulator says, a line for each place; None if it says nothing."""
    try:
        run(*arguments)
    except simulator.Fault as found:
        return "\n".join(found.args)
    return None


# ---------------------------------------------------------------- a ring

def test_a_ring_is_right_in_every_order():
    kernel = rings.module(rings.RING).ring
    assert all(rings.run(kernel, seed) for seed in SEEDS)


LOAD = "        x = tiles.index(stage).load(layout)\n"
ARRIVE = "        mbarrier.arrive(empty.index(stage))\n"
PLANTED = {                                              # what changes, and what the first schedule says
    "no wait for full": ([("        mbarrier.wait(full.index(stage), turn & 1)\n", "")],
                         r"a load reads tiles\[0\], and a copy may still be writing it: consume has not waited for full\[0\]"),
    "no wait for empty": ([("        mbarrier.wait(empty.index(stage), turn + 1 & 1)\n", "")],
                          r"produce asks for a tile where one is still on its way: .* handed on \(empty\[0\]\)"),
    "the other parity of full": ([("turn & 1)\n        x =", "turn + 1 & 1)\n        x =")],
                                 r"consume has waited for phase -1 of full\[0\], which counts as over"),
    "the other parity of empty": ([("turn + 1 & 1)\n        mbarrier.expect", "turn & 1)\n        mbarrier.expect")],
                                  r"deadlock.*\n.*\nproduce waits for phase 0 of empty\[0\], which lacks 1 of 1 arrivals"),
    "always parity 0": ([("full.index(stage), turn & 1)", "full.index(stage), 0)")],
                        r"consume has waited for phase 0 of full\[0\], and this copy ends phase 1"),
    "never handed on": ([(ARRIVE, "")], r"deadlock.*\n.*\nproduce waits for phase 0 of empty\[0\]"),
    "handed on before it is read": ([(LOAD + ARRIVE, ARRIVE + LOAD)],
                                    r"a copy overwrites tiles\[0\].* consume handed it on, at empty\[0\], before it was done"),
    "half of the bytes": ([("x_desc.block_type.nbytes)", "x_desc.block_type.nbytes // 2)")],
                          r"full\[0\] was told to expect 1024 bytes less"),
    "twice the bytes": ([("x_desc.block_type.nbytes)", "x_desc.block_type.nbytes * 2)")],
                        r"deadlock.*\nconsume waits for phase 0 of full\[0\], which lacks 2048 bytes"),
    "no expect": ([("        mbarrier.expect(full.index(stage), x_desc.block_type.nbytes)\n", "")],
                  r"deadlock.*\nconsume .* has had 2048 bytes that nobody expects"),
    "two arrivals wanted": ([("mbarrier.init(empty.index(i), count=1)", "mbarrier.init(empty.index(i), count=2)")],
                            r"deadlock.*\n.*\nproduce waits for phase 0 of empty\[0\], which lacks 1 of 2 arrivals"),
    "a barrier without init": ([("        mbarrier.init(empty.index(i), count=1)\n", "")],
                               r"nobody has initialised the barrier empty\[0\]"),
    "a store outside": ([("(y_ptr + (i * 16 + rows)", "(y_ptr + (i * 16 + rows + 1)")],
                        r"this stores elements 2080 to 2591 of a tensor that has 2560"),
    "a tile too few is read": ([("consume, (y_ptr, tiles, full, empty, N)", "consume, (y_ptr, tiles, full, empty, N - 1)")],
                               r"the program ends, and nobody has waited for a copy"),
    "the tile beside it": ([("x = tiles.index(stage)", "x = tiles.index((stage + 1) % 2)")],
                           r"a load reads tiles\[1\], and (nobody has written|a copy may still be writing)"),
    "a place that is not there": ([("x = tiles.index(stage)", "x = tiles.index(stage + 2)")],
                                  r"tiles has 2 places, and this asks for number 2"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_in_a_ring_is_named_in_every_order(name):
    changes, sentence = PLANTED[name]
    kernel = rings.module(rings.RING, *changes).ring
    said = [fault(rings.run, kernel, seed) for seed in SEEDS]
    assert all(said)
    assert all(text.startswith("ring: ") for text in said)
    assert re.search(sentence, said[0])
    lines = [line for line in said[0].splitlines()[1:] if "produce, line" in line or "consume, line" in line]
    assert len(lines) >= 1 or "deadlock" in said[0]
    if " may still be " in said[0]:                      # the lines of both sides
        assert len(lines) == 2


# ---------------------------------------------------------------- smaller kernels

VECTOR = "gl.BlockedLayout([1], [32], [4], [0])"
SMALL = {
    "a load outside": (f"x = gl.load(x_ptr + gl.arange(0, 128, {VECTOR}))",
                       "this loads elements 0 to 127 of a tensor that has 100"),
    "a tile that nobody wrote": (
        f"""t = gl.allocate_shared_memory(gl.float32, [128], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    t.load({VECTOR})""", "a load reads t, and nobody has written there yet"),
    "two layouts": (f"x = gl.arange(0, 128, {VECTOR}) + gl.arange(0, 128, gl.BlockedLayout([4], [32], [4], [0]))",
                    "two layouts meet without a convert_layout"),
    "two layouts in a choice": (
        f"x = gl.arange(0, 128, {VECTOR})\n    y = gl.where(x > 5, gl.arange(0, 128, gl.BlockedLayout([4], [32], [4], [0])), 1)",
        "two layouts meet without a convert_layout"),
    "a new axis at the wrong side": (
        "x = gl.arange(0, 16, gl.SliceLayout(0, gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])))[:, None]",
        r"a new axis 1 needs a SliceLayout\(1, ...\)"),
    "too much shared memory": ("t = gl.allocate_shared_memory(gl.float32, [256, 256], gl.SwizzledSharedLayout(1, 1, 1, [0, 1]))",
                               "takes 262144 bytes of shared memory, and there are 232448"),
    "another type in a store": (
        f"""t = gl.allocate_shared_memory(gl.float16, [128], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    t.store(gl.full([128], 1.0, gl.float32, {VECTOR}))""", r"a tile of \[128\] of fp32 does not fit into t"),
    "a word that is not simulated": ("gl.histogram(x_ptr, 4)", "histogram is not simulated"),
    "a barrier that is used before init": (
        """bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.arrive(bar)""", "nobody has initialised the barrier bar"),
    "an arrival too many": (
        """bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(bar, count=2)
    mbarrier.arrive(bar, count=3)""", "bar has all 2 arrivals|one more"),
    "a phase missed": (
        """bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(bar, count=1)
    for i in range(3):
        mbarrier.arrive(bar)
    mbarrier.wait(bar, 0)""", "phase 0 of bar is over, and so is the next one"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_fault_in_a_small_kernel_is_named(name):
    body, sentence = SMALL[name]
    kernel = rings.module(f"{rings.HEAD}\n@gluon.jit\ndef kernel(x_ptr):\n    {body}\n").kernel
    said = fault(lambda: kernel[1,](torch.zeros(100)))
    assert said and re.search(sentence, said) and "kernel, line " in said


PIPELINE = rings.HEAD + """
@gluon.jit
def kernel(a_desc, b_desc, c_desc, K, STAGES: gl.constexpr, ADD: gl.constexpr):
    a = gl.allocate_shared_memory(a_desc.dtype, [STAGES] + a_desc.block_shape, a_desc.layout)
    b = gl.allocate_shared_memory(b_desc.dtype, [STAGES] + b_desc.block_shape, b_desc.layout)
    c = gl.allocate_shared_memory(c_desc.dtype, c_desc.block_shape, c_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    acc = gl.zeros([64, 64], gl.float32, layout)
    for i in range(K + STAGES - 1):
        if i < K:
            mbarrier.expect(full.index(i % STAGES), a_desc.block_type.nbytes + b_desc.block_type.nbytes)
            async_load(a_desc, [0, i * 64], full.index(i % STAGES), a.index(i % STAGES))
            async_load(b_desc, [0, i * 64], full.index(i % STAGES), b.index(i % STAGES))
        j = i - (STAGES - 1)
        if j >= 0:
            mbarrier.wait(full.index(j % STAGES), j // STAGES & 1)
            acc = warpgroup_mma(a.index(j % STAGES), b.index(j % STAGES).permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=[acc])
    c.store(acc.to(c_desc.dtype))
    fence_async_shared()
    if ADD:
        async_add(c_desc, [0, 0], c)
    else:
        async_store(c_desc, [0, 0], c)
    store_wait(0)
"""


@pytest.mark.parametrize("add", [False, True])
def test_products_and_copies_out_are_right(add):
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 64, 320, generator=generator).half()
    for STAGES in (1, 2, 3):
        c = torch.ones(64, 64)
        rings.module(PIPELINE).kernel[1,](rings.describe(a, 64, 64), rings.describe(b, 64, 64), rings.describe(c, 64, 64),
                                          5, STAGES, add)
        torch.testing.assert_close(c, a.float() @ b.float().T + add, rtol=1e-5, atol=1e-4)


def test_copies_that_add_compile():
    """By Triton's own word where there is one, and else by ours."""
    square = dict(a_desc="tensordesc<fp16[64, 64]>", b_desc="tensordesc<fp16[64, 64]>", c_desc="tensordesc<fp32[64, 64]>")
    ptx = compiled.compile_gluon(rings.module(PIPELINE).kernel, square | dict(K=5, STAGES=2, ADD=True))["ptx"]
    assert "cp.reduce.async.bulk.tensor.2d" in ptx and ".add" in ptx


@pytest.mark.parametrize("old,new,sentence", [
    ("    fence_async_shared()\n", "", "a copy may not see what a store wrote into c: there is no fence"),
    ("    store_wait(0)\n", "", "the program ends, and nobody has waited for a copy"),
    ("            acc = warpgroup_mma_wait(0, deps=[acc])\n", "",
     r"a copy overwrites a\[0\], and a product may still be reading it: kernel has not waited for that product"),
    ("    c.store(acc.to", "    c.store((acc + warpgroup_mma(a.index(0), b.index(0), acc, is_async=True)).to",
     "uses the result of an asynchronous product"),
    ("            mbarrier.wait(full.index(j % STAGES), j // STAGES & 1)\n", "", "has not waited for full"),
    ("a_desc.block_type.nbytes + b_desc", "b_desc",
     r"phase 0 of full\[0\] is over before all its bytes have come"),
    ("warpgroup_mma_wait(0", "warpgroup_mma_wait(1", "a product may still be reading it")])
def test_a_fault_in_a_pipelined_product_is_named(old, new, sentence):
    kernel = rings.module(PIPELINE, (old, new)).kernel
    a, b, c = torch.zeros(64, 320).half(), torch.zeros(64, 320).half(), torch.zeros(64, 64)
    described = [rings.describe(x, 64, 64) for x in (a, b, c)]
    assert re.search(sentence, simulator.schedules(lambda: kernel[1,](*described, 5, 2, False)).args[0])


def test_numbers_are_those_of_the_gpu():
    source = f"""{rings.HEAD}
@gluon.jit
def kernel(o_ptr, n, p):
    gl.store(o_ptr + 0, -7 // n)
    gl.store(o_ptr + 1, (-7) % (n + 0))
    gl.store(o_ptr + 2, p * 65536 + n)
    gl.store(o_ptr + 3, gl.program_id(0) + 10 * gl.num_programs(0))
    x = gl.load(o_ptr + gl.arange(0, 8, {VECTOR}), mask=gl.arange(0, 8, {VECTOR}) < 2)
    gl.store(o_ptr + 4, gl.max(x, axis=0))
"""
    o = torch.zeros(8, dtype=torch.int32)
    rings.module(source).kernel[2,](o, 2, 65536)
    assert o[:4].tolist() == [-3, -1, 2, 21]             # towards zero, sign of what is divided, wrapped, the last program


# ---------------------------------------------------------------- the lesson's kernels

def inputs(N_q, N_k, D, heads=1, kv_heads=1, dtype=torch.float16):
    generator = torch.Generator().manual_seed(N_q + D)
    return [torch.randn(1, h, N, D, generator=generator).to(dtype) for h, N in ((heads, N_q), (kv_heads, N_k), (kv_heads, N_k))]


def attention_is_right(lesson, D, is_causal, N_q, N_k, fp8=False, heads=1, kv_heads=1):
    q, k, v = inputs(N_q, N_k, D, heads, kv_heads)
    want, want_lse = reference.attention(q, k, v, is_causal=is_causal, return_lse=True)
    tiles = lesson.tiles_ws(D, lesson.LONG, lesson.LONG, is_causal, fp8)
    if fp8:
        *x8, scales = planted.eight_bits(q, k, v, where="cpu")
        o = lesson.launch_ws(*x8, is_causal, D**-0.5, scales, D, torch.float16, tiles=tiles)[0]
        return np.linalg.norm(o.double().numpy() - want) < 0.1 * np.linalg.norm(want)
    o, lse = lesson.launch_ws(q, k, v, is_causal, D**-0.5, tiles=tiles)
    seen = np.isfinite(want_lse)
    return (np.abs(o.double().numpy() - want).max() < 2e-3 and np.array_equal(np.isfinite(lse.numpy()), seen)
            and np.abs(lse.double().numpy()[seen] - want_lse[seen]).max() < 1e-5)


@pytest.mark.parametrize("D,is_causal,N_q,N_k", [(64, True, 200, 330), (128, False, 330, 200), (256, True, 330, 200)])
def test_attention_is_right_in_any_order(D, is_causal, N_q, N_k):
    for seed in range(3):                                # test_forward.py has everything else, in one order
        with simulator.schedule(seed):
            assert attention_is_right(warp_specialization, D, is_causal, N_q, N_k, heads=2)


def numbers_are_right(lesson):
    o = torch.full((9,), -1, dtype=torch.int32)
    lesson.numbers_kernel[1,](o, 9, STAGES=2, num_warps=4)
    return o.tolist() == [i * i for i in range(9)]


# the kernels of the lesson, from small to large, each in several schedules; a block of few tiles, and one of many
RUNS = [(seed, run) for run in (
    numbers_are_right, lambda lesson: attention_is_right(lesson, 128, False, 200, 200),
    lambda lesson: attention_is_right(lesson, 64, True, 700, 700),
    lambda lesson: attention_is_right(lesson, 128, False, 700, 700),
    lambda lesson: attention_is_right(lesson, 128, True, 300, 300, fp8=True)) for seed in (None, 1)]
# no harm in: handing k on early inside the loop, where v's place, which the next copy of k waits for behind its own, is
# handed on later; and a turn that is not waited for, since turns order products for speed alone
TURN = "mbarrier.wait(rings.turns.index(PART), (i + 1 + (PART > 0)) & 1)"
HARMLESS = {"move up hand_on(k, i)", f"delete {TURN}"}
SYNC = re.compile(r"\s+(mbarrier\.(wait|arrive|expect|init)|fence_async_shared|hand_on|receive|store_wait)\(.*\)$")
WAITED = re.compile(r"warpgroup_mma_wait\((\d)")


def mutants(lesson="warp_specialization"):
    """(what changes, source) for each line of a lesson that synchronises: without it, with the other parity, a line up."""
    lines = lessons.source(lesson).splitlines()
    for i, text in enumerate(lines):
        code, before = (line.split("#")[0].rstrip() for line in (text, lines[i - 1]))
        margin = re.match(r"\s*", code)[0]
        changed = {}
        if SYNC.match(code):
            changed["delete"] = [before, f"{margin}pass"]
            if "mbarrier.wait" in code:
                changed["flip"] = [before, f"{code[:-1]} ^ 1)"]
            if re.search(r"mbarrier.arrive|hand_on", code) and re.match(rf"{margin}\S", before) and " = place" not in before:
                changed["move up"] = [code, before]
        if WAITED.search(code):
            changed["wait less"] = [before, WAITED.sub(lambda found: f"warpgroup_mma_wait({int(found[1]) + 1}", code)]
        for what, new in changed.items():
            yield f"{what} {code.strip()}", "\n".join([*lines[:i - 1], *new, *lines[i + 1:]])


@pytest.mark.parametrize("what,source", [*mutants()], ids=lambda x: x if len(x) < 200 else "")
def test_a_mutant_of_the_lesson_is_named_and_never_just_wrong(what, source):
    rings.is_named_or_harmless(rings.module(source), RUNS, what in HARMLESS)


# ---------------------------------------------------------------- how it is called

def test_launches_are_simulated_by_where_their_tensors_are():
    x, y = torch.randn(16, 32), torch.full((16, 32), float("nan"))
    with simulator.schedule() as events:
        rings.module(rings.RING).ring[1,](rings.describe(x, 16, 32), y, 1)
    assert torch.equal(x + 1, y)
    (copy,), = events
    assert (copy.unit, copy.label, copy.partition) == ("copies", "tiles[0]", "produce") and copy.end > copy.begin


def test_schedules_say_the_first_fault_and_nothing_for_none():
    good, bad = rings.module(rings.RING).ring, rings.module(rings.RING, (ARRIVE, "")).ring
    assert simulator.schedules(lambda: rings.run(good)) is None
    assert max(map(len, str(simulator.schedules(lambda: rings.run(bad))).splitlines())) <= 98


def test_a_loop_that_never_ends_is_a_fault(monkeypatch):
    monkeypatch.setattr("helpers.simulator.machine.MOST_TURNS", 100)
    kernel = rings.module(f"{rings.HEAD}\n@gluon.jit\ndef kernel(x_ptr):\n    while gl.load(x_ptr) < 1:\n        pass\n").kernel
    assert "after 100 steps the program is not over" in fault(lambda: kernel[1,](torch.zeros(1)))


def test_planted_faults_are_planted_and_said():
    harmless = {"k handed on early, in the loop", "no wait for the next block's cell"}
    assert {name for name in planted.PLANTED if not planted.said(name)} == harmless


def test_what_became_of_a_planted_fault_is_said_in_a_few_words():
    rows = [dict(outcome="hangs", launches=1, wrong=0), dict(outcome="hangs", launches=1200, wrong=3),
            dict(outcome="wrong", launches=2000, wrong=63), dict(outcome="fails", message="an illegal address")]
    assert [planted.outcome(row) for row in rows] == ["hangs", "hangs at launch 1,200", "63 of 2,000 wrong", "fails"]


def test_without_greenlet_the_import_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    for name in ("helpers.simulator", "helpers.simulator.machine"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="needs the package greenlet"):
        importlib.import_module("helpers.simulator")
