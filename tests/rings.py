"""A ring of two tiles in Gluon, with room for faults: a producer fetches five tiles, a consumer adds 1 to each."""
import itertools

import torch

from helpers import hopper, lessons, simulator
from triton.experimental.gluon import language as gl

HEAD = """
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from helpers.hopper import (async_add, async_load, async_store, fence_async_shared, mbarrier, store_wait, warpgroup_mma,
                            warpgroup_mma_wait)
"""
RING = HEAD + """
@gluon.jit
def produce(x_desc, tiles, full, empty, N):
    for i in range(N):
        stage, turn = i % 2, i // 2
        mbarrier.wait(empty.index(stage), turn + 1 & 1)
        mbarrier.expect(full.index(stage), x_desc.block_type.nbytes)
        async_load(x_desc, [i * 16, 0], full.index(stage), tiles.index(stage))

@gluon.jit
def consume(y_ptr, tiles, full, empty, N):
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    rows = gl.arange(0, 16, layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, 32, layout=gl.SliceLayout(0, layout))
    for i in range(N):
        stage, turn = i % 2, i // 2
        mbarrier.wait(full.index(stage), turn & 1)
        x = tiles.index(stage).load(layout)
        mbarrier.arrive(empty.index(stage))
        gl.store(y_ptr + (i * 16 + rows)[:, None] * 32 + columns[None, :], x + 1)

@gluon.jit
def ring(x_desc, y_ptr, N):
    tiles = gl.allocate_shared_memory(x_desc.dtype, [2] + x_desc.block_shape, x_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    gl.warp_specialize([(consume, (y_ptr, tiles, full, empty, N)), (produce, (x_desc, tiles, full, empty, N))], [1], [24])
"""
NAMES = itertools.count()


def module(source, *changes):
    """A module of this source, for each (old, new) with new in the one place of old."""
    return lessons.module_of(lessons.changed(source, changes, "a source"), f"ring_{next(NAMES)}")


def versions(source, name):
    """versions(source, name)(*changes) is what has this name in such a module."""
    return lambda *changes: getattr(module(source, *changes), name)


def describe(x, *block):
    kind = {torch.float32: gl.float32, torch.float16: gl.float16}[x.dtype]
    return hopper.TensorDescriptor.from_tensor(x, list(block), gl.NVMMASharedLayout.get_default_for(list(block), kind))


def run(kernel, seed=None, N=5):
    """Whether five tiles came out right, in the schedule of this seed."""
    x = torch.randn(80, 32, generator=torch.Generator().manual_seed(3))
    y = torch.full_like(x, float("nan"))
    with simulator.schedule(seed):
        kernel[1,](describe(x, 16, 32), y, N)
    return torch.equal(y, x + 1)


def is_named_or_harmless(lesson, runs, harmless):
    """Assert that of these (seed, run) one is a fault, unless the change is harmless, and that none before is wrong."""
    for seed, run in runs:
        with simulator.schedule(seed):
            try:
                assert run(lesson), "a wrong result without a fault"
            except simulator.Fault:
                assert not harmless
                return
    assert harmless
