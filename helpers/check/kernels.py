"""What a check sees of the kernels that a function launches in Triton's interpreter: who reads and who writes which address."""
from contextlib import contextmanager
from unittest import mock

import numpy as np

from helpers.check.core import first, parameters
from helpers.device import INTERPRETED


class _Recorder:
    """In place of the interpreter's C++ module: note the addresses of each access, and pass it on."""

    def __init__(self, interpreter):
        self.module, self.builder = interpreter._interpreter, interpreter.interpreter_builder
        self.loads, self.stores = [np.empty(0, np.uint64)], [np.empty((2, 0), np.uint64)]
        self.programs, self.atomics = {}, 0

    def __getattr__(self, name):
        return getattr(self.module, name)

    def load(self, pointers, mask, other, dtype):
        self.loads.append(pointers[np.broadcast_to(mask, pointers.shape)])
        return self.module.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        used = pointers[np.broadcast_to(mask, pointers.shape)]
        program = self.programs.setdefault(self.builder.grid_idx, len(self.programs))
        self.stores.append(np.stack([used, np.full_like(used, program)]))
        return self.module.store(pointers, value, mask)

    def atomic_rmw(self, *arguments):
        self.atomics += 1
        return self.module.atomic_rmw(*arguments)

    def atomic_cas(self, *arguments):
        self.atomics += 1
        return self.module.atomic_cas(*arguments)


@contextmanager
def _recorded():
    from triton.runtime import interpreter
    recorder = _Recorder(interpreter)
    with mock.patch.object(interpreter, "_interpreter", recorder):
        yield recorder


def _within(addresses, x):
    """Which elements of a contiguous tensor the addresses are, and which of the addresses are elements of it."""
    inside = (addresses >= x.data_ptr()) & (addresses < x.data_ptr() + x.numel() * x.itemsize)
    return (addresses[inside] - np.uint64(x.data_ptr())) // np.uint64(x.itemsize), inside


def one_owner(names):
    """A problem(fn, *inputs): an element of what fn returns, tensors of these names, was not stored by exactly one program.

    On a GPU nothing is seen, and nothing is wrong.
    """
    def problem(fn, *inputs):
        if not INTERPRETED:
            return ""
        with _recorded() as seen:
            outputs = fn(*inputs)
        if seen.atomics:
            return f"{seen.atomics} atomic operations, where a number with one owner needs none"
        addresses, programs = np.concatenate(seen.stores, axis=1)
        return first(_owners(name, x, addresses, programs) for name, x in zip(names.split(), outputs))
    return problem


def _owners(name, x, addresses, programs):
    places, inside = _within(addresses, x)
    low, high = np.full(x.numel(), 2**62), np.full(x.numel(), -1)
    np.minimum.at(low, places, programs[inside].astype(np.int64))
    np.maximum.at(high, places, programs[inside].astype(np.int64))
    if (high < 0).any():
        return f"{name} is not what a kernel stored: element {np.argmax(high < 0)} of {x.numel()} was computed elsewhere"
    return f"two programs store to element {np.argmax(low < high)} of {name}" if (low < high).any() else ""


def own_work(fn, *inputs):
    """A problem(fn, *inputs): the kernels do not read every input where it is, or do not store what fn returns."""
    if not INTERPRETED:
        return ""
    with _recorded() as seen:
        out = fn(*inputs)
    loads, stores = np.concatenate(seen.loads), np.concatenate(seen.stores, axis=1)[0]
    for name, x in zip(parameters(fn), inputs):
        if not len(_within(loads, x)[0]):
            return f"no kernel reads {name} where it lies"
    return "" if len(_within(stores, out)[0]) else "what is returned was not stored by a kernel"
