"""Triton's interpreter, made strict for the checks: undefined lanes are NaN, and a wild address does not end the process."""
from contextlib import ExitStack, contextmanager
from unittest import mock

from helpers import device  # noqa: F401  (before triton: helpers.device says why)

import numpy as np
from triton.runtime import interpreter


@contextmanager
def strict():
    """Within this block, kernels that the interpreter runs cannot hide two mistakes.

    Masked lanes that were loaded without `other` are NaN, as undefined as they are on a GPU. An access outside of the
    memory of all arguments raises IndexError, which the interpreter wraps; the guards around tensors are in that memory.
    """
    memory, load = _Memory(interpreter._interpreter), interpreter.InterpreterBuilder.create_masked_load
    arguments = interpreter.GridExecutor._init_args_hst

    def at_launch(self, *given):
        on_host = arguments(self, *given)
        memory.ranges = [*_ranges(on_host)]
        return on_host

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(interpreter, "_interpreter", memory))
        stack.enter_context(mock.patch.object(interpreter.GridExecutor, "_init_args_hst", at_launch))
        stack.enter_context(mock.patch.object(interpreter.InterpreterBuilder, "create_masked_load", _undefined_lanes(load)))
        yield


def _undefined_lanes(load):
    def loaded(self, ptrs, mask, other, *args, **kwargs):
        value = load(self, ptrs, mask, other, *args, **kwargs)
        if other is None and np.issubdtype(value.data.dtype, np.floating):
            value.data = np.where(mask.data, value.data, value.data.dtype.type(np.nan))
        return value
    return loaded


def _ranges(x):
    """(first address, the one after the last) of the memory of each tensor in the arguments of a launch."""
    if isinstance(x, (tuple, list, dict)):
        for item in x.values() if isinstance(x, dict) else x:
            yield from _ranges(item)
    elif hasattr(x, "data_ptr"):
        storage = x.untyped_storage()                    # of an empty tensor, perhaps: then no address is in the range
        yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    elif hasattr(x, "base"):                             # a tensor descriptor
        yield from _ranges(x.base)


class _Memory:
    """In place of the interpreter's C++ module: refuse what lies in no argument, pass the rest on."""

    def __init__(self, module):
        self.module, self.ranges = module, []

    def __getattr__(self, name):
        return getattr(self.module, name)

    def load(self, pointers, mask, other, dtype):
        self.look("loads from", pointers, mask, dtype)
        return self.module.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        self.look("stores to", pointers, mask, value.dtype)
        return self.module.store(pointers, value, mask)

    def atomic_rmw(self, operation, pointers, value, mask, order):
        self.look("changes", pointers, mask, value.dtype)
        return self.module.atomic_rmw(operation, pointers, value, mask, order)

    def atomic_cas(self, pointers, expected, value, order):
        self.look("changes", pointers, True, value.dtype)
        return self.module.atomic_cas(pointers, expected, value, order)

    def look(self, verb, pointers, mask, dtype):
        used = pointers[np.broadcast_to(np.asarray(mask, bool), pointers.shape)]
        if not used.size:
            return
        low, high, size = used.min(), used.max(), np.dtype(dtype).itemsize
        if any(begin <= low and high <= end - size for begin, end in self.ranges):
            return                                       # all in one tensor, as nearly always
        inside = np.zeros(used.shape, bool)
        for begin, end in self.ranges:
            inside |= (used >= begin) & (used <= end - size)
        if not inside.all():
            raise IndexError(f"the kernel {verb} an address outside of its tensors")
