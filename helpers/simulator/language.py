"""What the words of a Gluon kernel mean in the simulator."""
import functools

import numpy as np
import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from helpers import hopper as ours
from helpers.simulator.machine import Barrier, Fault, Memory, Partition, machine
from helpers.simulator.memory import TRITON, Shared
from helpers.simulator.tiles import Tile, combine, numpy_type, tile, values

SHARED_BYTES = 232448                                    # of an H100 or H200, for one program
WAY = 600                                                # toy clocks until the first byte of a copy is there


# ---------------------------------------------------------------- registers

def elementwise(function, unit=None):
    """A function of each element; with a unit, by that one, which all partitions share."""
    def apply(x):
        x = tile(x)
        if unit:
            machine.turn()
            machine.active.time = machine.spend(x.data.size / 16, unit, " x ".join(map(str, x.shape)))
        return Tile(function(x.data), x.dtype, x.layout)
    return apply


def reduction(function):
    def apply(x, axis=None):
        layout = gl.SliceLayout(axis, x.layout) if len(x.shape) > 1 and axis is not None and x.layout else None
        return Tile(function(x.data, axis=axis), x.dtype, layout)
    return apply


def where(condition, a, b):
    a, b = (x if isinstance(x, Tile) else Tile(x, getattr(other, "dtype", gl.float32)) for x, other in ((a, b), (b, a)))
    for x in (a, b):
        combine(np.logical_or, Tile(condition.data, gl.int1, condition.layout),           # their layouts agree?
                Tile(np.zeros(x.shape), gl.int1, x.layout))
    made = combine(lambda x, y: np.where(condition.data, x, y), a, b)
    made.layout = made.layout or condition.layout
    return made


# ---------------------------------------------------------------- global memory

def load(pointer, mask=None, other=None, **options):
    """What a mask leaves out without `other` is anything: NaN, or a number that is easy to know again."""
    machine.turn()
    (mask, index), dtype = pointer.meant(mask, "this loads"), TRITON[pointer.memory.dtype]
    other = tile(other).data if other is not None else np.nan if dtype.is_floating() else -12345
    found = np.array(np.broadcast_to(other, mask.shape).astype(numpy_type(dtype)))
    found[mask] = values(pointer.memory[index])
    return Tile(found, dtype, pointer.layout)


def store(pointer, value, mask=None, **options):
    machine.turn()
    _put(pointer, value, mask, add=False)


def atomic_add(pointer, value, mask=None, **options):
    """Nobody has a turn between its load and its store."""
    old = load(pointer, mask)
    _put(pointer, value, mask, add=True)
    return old


def _put(pointer, value, mask, add):
    mask, index = pointer.meant(mask, "this stores")
    found = torch.from_numpy(np.broadcast_to(tile(value).data, mask.shape)[mask]).to(pointer.memory.dtype)
    pointer.memory.index_put_((index,), found, accumulate=add)


# ---------------------------------------------------------------- shared memory and barriers

def allocate_shared_memory(dtype, shape, layout, value=None):
    """New shared memory is full of NaN, or of -1."""
    data = np.full([int(n) for n in shape], np.nan if dtype.is_floating() else -1, numpy_type(dtype))
    made = Shared(Memory(data, data.size * dtype.primitive_bitwidth // 8), data, dtype, layout)
    machine.memory.append(made.memory)
    total = sum(memory.nbytes for memory in machine.memory)
    if total > SHARED_BYTES:
        raise Fault(f"the program takes {total} bytes of shared memory, and there are {SHARED_BYTES}")
    if value is not None:
        made.store(value)
    return made


def barrier(place):
    if place.path not in place.memory.barriers:
        raise Fault(f"nobody has initialised the barrier {machine.name(place)}")
    return place.memory.barriers[place.path]


def init(place, count):
    place.memory.barriers[place.path] = Barrier(int(count))


def invalidate(place):
    place.memory.barriers.pop(place.path)


def arrive(place, *, count=1, pred=True):
    machine.turn()
    if pred:
        machine.arrive(barrier(place), int(count))


def expect(place, nbytes, pred=True):
    machine.turn()
    if pred:
        barrier(place).copies = True
        machine.arrive(barrier(place), nbytes=int(nbytes))


def wait(place, phase, pred=True, deps=()):
    if pred:
        machine.wait(barrier(place), int(phase))


# ---------------------------------------------------------------- copies by the engine

def copy_in(desc, corner, full, shared, pred=True, **options):
    """The tile lands later; until then its place is being written. What lies outside of the tensor is zero."""
    machine.turn()
    if not pred:
        return
    bar = barrier(full)
    (part, inside), bar.copies = desc.parts(corner, shared), True
    access = machine.access(shared, "a copy", True, engine=True, until=(bar, bar.phase))

    def land():
        shared.data[...] = 0
        shared.data[inside] = values(part)
        bar.deliver(access)
    _fly(shared, land)


def copy_out(desc, corner, shared, add=False, **options):
    """The tile is read later, and stored to global memory or added to what is there."""
    machine.turn()
    (part, inside), access = desc.parts(corner, shared), machine.access(shared, "a copy", False, engine=True)

    def land():
        found = torch.from_numpy(shared.data[inside]).to(part.dtype)
        part.copy_(part + found if add else found)
        access.landed = machine.now
    access.landed = None                                 # the time when it has been read
    machine.active.stores.append(access)
    _fly(shared, land)


def _fly(shared, land):
    ends = machine.spend(shared.nbytes / 64, "copies", machine.name(shared), delay=WAY)
    machine.flying.append((ends, land))


def store_wait(pendings, **options):
    """Until at most so many copies out of shared memory, of this partition, are still to be read."""
    p = machine.active
    while len(p.stores) > pendings:
        access = p.stores.pop(0)
        machine.turn(lambda: access.landed is not None)
        p.time, access.over = max(p.time, access.landed), p.step()


# ---------------------------------------------------------------- products

class Pending(Tile):
    """The result of an asynchronous product, which nobody may look at."""

    def __init__(self, product, acc):
        self.product, self.dtype, self.layout, self.size = product, acc.dtype, acc.layout, acc.shape

    shape = property(lambda self: self.size)

    @property
    def data(self):
        raise Fault("this uses the result of an asynchronous product, and not what warpgroup_mma_wait has returned for it")


class Product:
    """a @ b + acc, under way. Its operands are read when it is waited for: until then they must be kept."""

    def __init__(self, a, b, acc, use_acc):
        self.a, self.b, self.acc, self.use_acc, self.value = a, b, acc, use_acc, None
        self.result = Pending(self, acc)
        (M, K), (K_b, N), bits = a.shape, b.shape, b.dtype.primitive_bitwidth
        if K != K_b or acc.shape != [M, N]:
            raise Fault(f"a product of {a.shape} and {b.shape} does not fit into {acc.shape}")
        if a.dtype != b.dtype:
            raise Fault(f"a product of {a.dtype} and {b.dtype}: its factors must have one type")
        self.accesses = [machine.access(x, "a product", False, engine=True) for x in (a, b) if isinstance(x, Shared)]
        self.ends = machine.spend(2 * M * N * K / (4096 * 16 / bits), "products", f"{M} x {N} x {K}")
        self.work = machine.active.work                  # of the partition, when this began

    def finish(self, deps):
        p = machine.active
        p.time = max(p.time, self.ends)
        machine.turn()
        if isinstance(self.a, Tile) and p.work > self.work and all(x is not self.a for x in deps):
            raise Fault("the left factor of a product lies in registers and is not among the deps of its wait: the "
                        "compiler may have put something else there by now")
        value = self.a.data @ self.b.data
        if self.use_acc:
            value = value + (self.acc.product.value if isinstance(self.acc, Pending) else self.acc).data
        self.value = Tile(value, self.result.dtype, self.result.layout)
        for access in self.accesses:
            access.over = p.step()


def warpgroup_mma(a, b, acc, *, use_acc=True, is_async=False, **options):
    machine.turn()
    product = Product(a, b, acc, use_acc)
    machine.active.products.append(product)
    return product.result if is_async else warpgroup_mma_wait(0, [product.result])


def warpgroup_mma_wait(num_outstanding=0, deps=()):
    """What deps are when at most so many products are under way: results, for those that are done."""
    while len(machine.active.products) > num_outstanding:
        machine.active.products.pop(0).finish(deps)
    done = [x.product.value if isinstance(x, Pending) and x.product.value is not None else x for x in deps]
    return done[0] if len(done) == 1 else tuple(done)


# ---------------------------------------------------------------- partitions

def warp_specialize(functions, worker_num_warps, worker_num_regs=None):
    """Run (function, arguments) pairs side by side until all have ended."""
    if len(worker_num_warps) != len(functions) - 1:
        raise Fault(f"{len(functions)} partitions and warps for {len(worker_num_warps)}: the first has those of the launch, "
                    f"all others need a number")
    parent, names = machine.active, [function.__name__ for function, _ in functions]
    names = [f"{n} {names[:i].count(n)}" if names.count(n) > 1 else n for i, n in enumerate(names)]
    parts = [Partition(name, function, arguments, parent.clock, parent.time)
             for name, (function, arguments) in zip(names, functions)]
    parent.clock[parent] += 1
    machine.partitions += parts
    machine.turn(lambda: all(p.greenlet.dead for p in parts))
    for p in parts:
        parent.clock.learn(p.clock)
        parent.time = max(parent.time, p.time)
    return parts[0].result


# ---------------------------------------------------------------- names

class Names:
    """A module of Triton's with our functions in it, and its own types and layouts."""

    def __init__(self, real, **ours):
        self.__dict__.update(ours, real=real)

    def __getattr__(self, name):
        value = getattr(self.real, name)
        if id(value) in MEANINGS:
            return MEANINGS[id(value)]
        if callable(value) and not isinstance(value, type):
            raise Fault(f"{name} is not simulated")
        return value


def numbers(*bounds):
    """range in a kernel: its numbers are tiles, int32."""
    return (Tile(i, gl.int32) for i in range(*map(int, bounds)))


WORDS = dict(
    allocate_shared_memory=allocate_shared_memory, warp_specialize=warp_specialize,
    load=load, store=store, atomic_add=atomic_add, where=where, cdiv=lambda a, b: (a + b - 1) // b,
    exp2=elementwise(np.exp2, "exponentials"), exp=elementwise(np.exp, "exponentials"),
    log2=elementwise(np.log2), log=elementwise(np.log), sqrt=elementwise(np.sqrt), abs=elementwise(np.abs),
    max=reduction(np.fmax.reduce), min=reduction(np.fmin.reduce), sum=reduction(np.sum),
    maximum=lambda a, b: combine(np.fmax, tile(a), b), minimum=lambda a, b: combine(np.fmin, tile(a), b),
    convert_layout=lambda x, layout, assert_trivial=False: x.like(x.data, layout),
    program_id=lambda axis: Tile(machine.program[axis], gl.int32),
    num_programs=lambda axis: Tile(machine.programs[axis], gl.int32),
    static_range=lambda *bounds: range(*map(int, bounds)), static_assert=lambda *condition: None,
    zeros=lambda shape, dtype, layout=None: Tile(np.zeros(shape), dtype, layout),
    full=lambda shape, value, dtype, layout=None: Tile(np.full(shape, tile(value).data), dtype, layout),
    arange=lambda start, end, layout=None: Tile(np.arange(start, end), gl.int32, layout),
    barrier=lambda **options: machine.turn(), thread_barrier=lambda: machine.turn())
BARRIERS = dict(init=init, wait=wait, arrive=arrive, expect=expect, invalidate=invalidate)
COPIES = dict(async_load=copy_in, async_copy_global_to_shared=copy_in, async_store=copy_out, store_wait=store_wait,
              async_copy_shared_to_global=copy_out, async_atomic_add=functools.partial(copy_out, add=True))
PRODUCTS = dict(warpgroup_mma=warpgroup_mma, warpgroup_mma_wait=warpgroup_mma_wait,
                fence_async_shared=lambda cluster=False: machine.fence())
MEANINGS = {id(ours.async_add): COPIES["async_atomic_add"]}            # by the id of what it means to Triton
for module, words in ((gl, WORDS), (hopper.mbarrier, BARRIERS), (hopper.tma, COPIES), (hopper, PRODUCTS), (ours, {})):
    MEANINGS |= {id(getattr(module, name)): word for name, word in words.items() if hasattr(module, name)}
    MEANINGS[id(module)] = Names(module, **words)
