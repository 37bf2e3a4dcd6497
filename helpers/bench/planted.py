"""Faults planted in the kernels on warp specialization: what the simulator says of them, and what a GPU makes of them."""
import concurrent.futures
import json
import os
import sys
import time

from helpers import device, lessons, process
from helpers.bench.run import suite

import torch

LESSON = "warp_specialization"
SECONDS, PATIENCE, LAUNCHES = 3.0, 8.0, 2000             # of launching; until one hangs; at most
PROCESSES, LIMIT_S = 6, 150                              # side by side; of each

_PLACE = "{0}.tiles.index(i % {0}.tiles.shape[0])"       # a ring's tile, which nobody has waited for
_FIRST = """    s = warpgroup_mma_wait(0, deps=[s])
    hand_on(rings.k, i)
"""
_FIRST_EARLY = """    hand_on(rings.k, i)
    s = warpgroup_mma_wait(0, deps=[s])
"""
_WAIT = """        s = warpgroup_mma_wait(1, deps=[s])                                # all but the last product
"""
_BOTH = """        acc, p = warpgroup_mma_wait(0, deps=[acc, p]) if not FP8 else (warpgroup_mma_wait(0, deps=[acc]), p)
        hand_on(v, i - 1)
"""
_SKIPPED = """            receive(rings.k, i)
            hand_on(rings.k, i)
            receive(rings.v, i)
"""

# what is wrong: (who runs, the lines that change)
PLANTED = {
    "the reader does not wait for full": ("numbers", [("receive(ring, i).load", _PLACE.format("ring") + ".load")]),
    "the reader waits with the other parity": ("numbers", [("mbarrier.wait(full, parity)", "mbarrier.wait(full, parity ^ 1)")]),
    "the writer does not wait for empty": ("numbers", [(
        "    mbarrier.wait(empty, parity ^ 1)                   # until all have handed on the one before\n", "")]),
    "handed on before it is read": ("numbers", [(
        "    number = gl.sum(receive(ring, i)", "    cell = receive(ring, i)\n    hand_on(ring, i)\n    number = gl.sum(cell"),
        ("axis=0)\n    hand_on(ring, i)\n", "axis=0)\n")]),
    "never handed on": ("numbers", [("axis=0)\n    hand_on(ring, i)\n", "axis=0)\n")]),
    "no wait for v": ("attention", [("v_i = receive(v, i)", "v_i = " + _PLACE.format("v"))]),
    "k handed on early, first tile": ("attention", [(_FIRST, _FIRST_EARLY)]),
    "k handed on early, in the loop": ("attention", [(
        _WAIT + "        hand_on(k, i)\n", "        hand_on(k, i)\n" + _WAIT)]),
    "v handed on early": ("attention", [(_WAIT, "        hand_on(v, i - 1)\n" + _WAIT),
                                        (_BOTH, _BOTH.replace("        hand_on(v, i - 1)\n", ""))]),
    "the scores are not waited for": ("attention", [("warpgroup_mma_wait(1, deps=[s])", "warpgroup_mma_wait(2, deps=[s])")]),
    "p is not among the deps": ("attention", [(
        "acc, p = warpgroup_mma_wait(0, deps=[acc, p]) if not FP8 else (warpgroup_mma_wait(0, deps=[acc]), p)",
        "acc = warpgroup_mma_wait(0, deps=[acc])")]),
    "no wait for the next block's cell": ("attention", [(
        "    mbarrier.wait(empty, parity ^ 1)                   # until all have handed on the one before\n", "")]),
    "half of the bytes expected": ("attention", [(
        "mbarrier.expect(full, desc.block_type.nbytes)", "mbarrier.expect(full, desc.block_type.nbytes // 2)")]),
    "v counts one reader of two": ("attention", [(
        "ring_for(v_desc, STAGES, PARTS)", "ring_for(v_desc, STAGES, 1)")]),
    "tiles skipped without waiting": ("causal", [(_SKIPPED, "            hand_on(rings.k, i)\n")]),
    "no fence behind p's store": ("fp8", [("(p.to(dtype))\n        fence_async_shared()\n", "(p.to(dtype))\n")]),
}


def launcher(who, large):
    """call(module), which launches what `who` runs: on the GPU if it is to be large, and small in the simulator."""
    where = device.DEVICE if large else "cpu"
    if who == "numbers":
        N = 1000 if large else 5

        def call(module):
            o = torch.full((N,), -1, dtype=torch.int32, device=where)
            module.numbers_kernel[1,](o, N, STAGES=2, num_warps=4)
            return o
        return call
    heads, N, D = 32 if large else 1, 2048 if large else 512, 64 if who == "causal" else 128
    q, k, v = torch.randn(3, 1, heads, N, D, generator=torch.Generator().manual_seed(1)).half()
    q, k, v = (x.to(where) for x in (q, k, v))
    usual = getattr(lessons, LESSON)
    tiles = usual.tiles_ws(D, usual.LONG, usual.LONG, who == "causal", who == "fp8")
    if who == "fp8":
        *x8, scales = eight_bits(q, k, v, where)
        return lambda module: module.launch_ws(*x8, False, D**-0.5, scales, D, torch.float16, tiles=tiles)[0]
    return lambda module: module.launch_ws(q, k, v, who == "causal", D**-0.5, tiles=tiles)[0]


def eight_bits(q, k, v, where: str) -> list:
    """q, k, v and their scales: quantized where this machine runs Triton, then moved to `where`, strides and all."""
    *x8, scales = lessons.fp8.quantize_qkv(*(x.to(device.DEVICE) for x in (q, k, v)))
    x8 = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=where).copy_(x) for x in x8]
    return [*x8, [x.to(where) for x in scales]]


def said(name: str):
    """What the simulator says of a planted fault in ten schedules: a Fault, or None."""
    from helpers import simulator
    who, changes = PLANTED[name]
    call, module = launcher(who, large=False), lessons.variant(LESSON, *changes)
    return simulator.schedules(lambda: call(module))


def outcome(row: dict) -> str:
    """What became of a planted fault on a GPU, from a row of the record, in a few words."""
    if row["outcome"] == "fails":
        return "fails"
    if row["outcome"] == "hangs":
        return "hangs" if row["launches"] == 1 else f"hangs at launch {row['launches']:,}"
    return f"{row['wrong']:,} of {row['launches']:,} wrong"


def on_gpu(name: str) -> dict:
    """In a process of its own: launch a planted fault again and again. {"outcome": "right", "wrong", "hangs"; …}."""
    who, changes = PLANTED[name]
    call = launcher(who, large=True)
    right = call(getattr(lessons, LESSON))
    module, wrong, begin, launches = lessons.variant(LESSON, *changes), 0, None, 0
    while launches < LAUNCHES and (begin is None or time.monotonic() - begin < SECONDS):
        got, done = call(module), torch.cuda.Event()
        done.record()
        begin = begin or time.monotonic()
        last = time.monotonic()
        while not done.query():
            if time.monotonic() - last > PATIENCE:
                return dict(outcome="hangs", launches=launches + 1, wrong=wrong)
        launches += 1
        wrong += not torch.equal(got, right)
    return dict(outcome="wrong" if wrong else "right", launches=launches, wrong=wrong)


def _process(name):
    """on_gpu(name) in a process: what it returned, or with which words it died."""
    status, out, err = process.output(sys.executable, "-m", "helpers.bench.planted", name, limit_s=LIMIT_S)
    if status is None:
        raise RuntimeError(f"the process of {name!r} did not end within {LIMIT_S} s")
    answers = [line for line in out.splitlines() if line.startswith("{")]
    if answers:
        return json.loads(answers[-1])
    last = [line for line in err.splitlines() if "rror" in line]
    return dict(outcome="fails", message=(last or ["no message"])[-1][:200])


@suite(seconds=60)
def planted():
    """Faults planted in lesson code, launched again and again: how many launches were wrong, and whether one hung."""
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        found = {name: pool.submit(_process, name) for name in PLANTED}
        for name in PLANTED:
            yield dict(name=name, who=PLANTED[name][0]), found[name].result


if __name__ == "__main__":
    print(json.dumps(on_gpu(sys.argv[1])), flush=True)
    os._exit(0)                                          # a kernel that hangs is not waited for
