"""Count what Triton kernels load and store, exactly, by running them in the interpreter.

    with traffic.count() as moved:
        add(x, y)
    print(moved)

Counted is what the programs ask for, lane by lane: a load through 64 x 32 pointers is 2048 elements, less the lanes
that are masked off, which are reported apart. Caches come after that, and so does the rounding to whole sectors: the
memory of a GPU may move less, or more. What stays on the chip (tl.dot, reductions, tl.gather) is not counted.
"""
import contextlib
from collections import defaultdict
from dataclasses import astuple, dataclass

from helpers import device, lessons, process
from helpers.interpreter import watched

import torch

_counting = []                                           # the Traffic of every `with count()` that we are inside of


@dataclass
class Moved:
    """Elements and bytes that were moved, and lanes that were masked off and moved nothing."""
    elements: int = 0
    bytes: int = 0
    masked: int = 0

    def __add__(self, other):
        return Moved(self.elements + other.elements, self.bytes + other.bytes, self.masked + other.masked)


class Traffic:
    """rows[kernel, argument, operation] is what Moved; operation is "load", "store" or "atomic"."""

    def __init__(self):
        self.rows = defaultdict(Moved)

    def total(self, operation, argument=None) -> Moved:
        """One operation over all kernels, for one pointer argument or for all. An atomic counts once, not as two."""
        return sum((moved for (_, name, kind), moved in self.rows.items()
                    if kind == operation and argument in (None, name)), Moved())

    def __str__(self):
        return "\n".join(f"{kernel}, {argument}: {operation} {moved.elements:,} elements, {moved.bytes:,} bytes"
                         + (f", {moved.masked:,} lanes masked off" if moved.masked else "")
                         for (kernel, argument, operation), moved in self.rows.items())


def _seen(kernel, argument, operation, elements, bytes, masked):
    for traffic in _counting:
        traffic.rows[kernel, argument, operation] += Moved(elements, bytes, masked)


@contextlib.contextmanager
def count():
    """Count the kernels launched inside the `with`; gives a Traffic. RuntimeError if kernels run on the GPU."""
    if not device.INTERPRETED:
        raise RuntimeError("traffic.count() watches Triton's interpreter, and here kernels run on the GPU: call "
                           "traffic.of(lesson, function, ...), or start Python with TRITON_INTERPRET=1")
    moved = Traffic()
    _counting.append(moved)
    try:
        with contextlib.nullcontext() if len(_counting) > 1 else watched(_seen):
            yield moved
    finally:
        _counting.pop()


def of(lesson: str, function: str, *shapes, dtype="float16", **options) -> Traffic:
    """Call a lesson's exported function on random tensors of these shapes and count its kernels, with or without a GPU.

    `options` are passed on as they are, lists as int32 tensors. On a GPU machine the call runs in a process of its own
    with the interpreter on; RuntimeError with the last line of its message if it fails there.
    """
    if not device.INTERPRETED:
        return _in_a_process(lesson, function, *shapes, dtype=dtype, **options)
    options = {name: torch.tensor(x, dtype=torch.int32) if isinstance(x, list) else x for name, x in options.items()}
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator).to(getattr(torch, dtype)) for shape in shapes]
    with count() as moved:
        getattr(getattr(lessons, lesson), function)(*inputs, **options)
    return moved


def _in_a_process(*arguments, **options) -> Traffic:
    moved = Traffic()
    try:
        rows = process.call("helpers.interpreter.traffic", "_rows", arguments, options, TRITON_INTERPRET="1")
    except RuntimeError as problem:
        raise RuntimeError(f"{arguments[1]} could not be counted: {problem}") from None
    moved.rows.update({tuple(key): Moved(*numbers) for key, numbers in rows})
    return moved


def _rows(arguments, options) -> list:
    """What `of` counts, as JSON can hold it."""
    return [(key, astuple(moved)) for key, moved in of(*arguments, **options).rows.items()]
