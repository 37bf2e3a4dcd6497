"""Runs Gluon kernels without a GPU, and names what they do wrong.

A launch of a Gluon kernel on CPU tensors comes here (helpers/hopper.py). The kernel's Python function is called as it
is, with our objects behind the names that it uses: a partition is a coroutine, a tile a NumPy array, and copies and
products end later than they began. Results are right numbers, and a Fault says in a sentence what the kernel does wrong,
by the order of its waits and not by luck. `schedule` runs launches in another order, and shows what happened when.

Not simulated: registers and the number of warps, whether a layout fits its warps, swizzles and bank conflicts, Gluon's
typing rules (compile a kernel as well: helpers/compiled.py), races in global memory, clusters, and how long anything
takes: its times are toys, which decide who goes first.
"""
import contextlib
import inspect
import itertools
import threading
import types

import torch
from triton.experimental.gluon import language as gl

try:
    from helpers.simulator.machine import MARK, Fault, machine as _machine
except ImportError as problem:
    raise ImportError("Gluon kernels on CPU tensors run in a simulator, which needs the package greenlet: `make setup` "
                      "installs it") from problem
from helpers.simulator.language import MEANINGS, numbers
from helpers.simulator.memory import Descriptor, Pointer
from helpers.simulator.tiles import tile

__all__ = ["Fault", "launch", "schedule", "schedules"]
SEEDS = (None, *range(1, 10))                            # what a check tries
_schedule = [(None, [])]                                 # the seed, and where programs note their events; the last counts
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def schedule(seed=None):
    """Launches inside the `with` run in the order of this seed. Yields a list, to which each program adds its Events.

    Without a seed work takes as long as the toy times say; with one, each partition has a pace of its own.
    """
    events = []
    _schedule.append((seed, events))
    try:
        yield events
    finally:
        _schedule.pop()


def schedules(run):
    """Call run() in ten schedules: the first Fault, or None. What run returns is not looked at."""
    for seed in SEEDS:
        with schedule(seed):
            try:
                run()
            except Fault as fault:
                return fault
    return None


def launch(kernel, grid, *values, **named):
    """Run a Gluon kernel on CPU tensors, and descriptors of CPU tensors, one program after another.

    `grid` as in kernel[grid]; options such as num_warps are not looked at. Raises Fault.
    """
    function, signature = _bind(kernel, {}), inspect.signature(kernel.fn)
    bound = signature.bind(*values, **{name: x for name, x in named.items() if name in signature.parameters})
    bound.apply_defaults()
    fixed = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    grid = grid(bound.arguments) if callable(grid) else grid
    grid = (*grid, 1, 1)[:3] if isinstance(grid, (tuple, list)) else (grid, 1, 1)

    def program():
        return function(**{name: getattr(x, "value", x) if name in fixed else _argument(x)
                           for name, x in bound.arguments.items()})
    program.__name__ = kernel.fn.__name__
    with _one_at_a_time:
        seed, events = _schedule[-1]
        for z, y, x in itertools.product(*map(range, reversed(grid))):
            several = f", program {x}" if grid[1:] == (1, 1) else f", program {x, y, z}"
            title = kernel.fn.__name__ + (several if grid != (1, 1, 1) else "")
            _machine.run(program, title, (x, y, z), grid, seed)
            events.append(_machine.events)


def _argument(x):
    """What a kernel gets for an argument of a launch."""
    if isinstance(x, torch.Tensor):
        extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride())) if x.numel() else 0
        return Pointer(x.detach().as_strided((extent,), (1,)))
    if isinstance(x, (tuple, list)):
        return tuple(map(_argument, x))
    if hasattr(x, "block_shape"):
        return Descriptor(x)
    return tile(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else x


def _bind(kernel, known):
    """The Python function of a kernel, with our objects behind the names that it uses."""
    if id(kernel) in known:                              # its hash would be that of all that it calls
        return known[id(kernel)]

    def meaning(value):
        if id(value) in MEANINGS:
            return MEANINGS[id(value)]
        if isinstance(getattr(value, "fn", None), types.FunctionType):
            return _bind(value, known)
        return value.value if isinstance(value, gl.constexpr) else value
    fn, names = kernel.fn, {MARK: True, "range": numbers}
    closure = tuple(types.CellType(meaning(cell.cell_contents)) for cell in fn.__closure__ or ())
    known[id(kernel)] = types.FunctionType(fn.__code__, names, fn.__name__, fn.__defaults__, closure or None)
    used = {name for code in _codes(fn.__code__) for name in code.co_names}
    names.update((name, meaning(fn.__globals__[name])) for name in used if name in fn.__globals__)
    return known[id(kernel)]


def _codes(code):
    """A function's code, and that of functions and comprehensions within it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)
