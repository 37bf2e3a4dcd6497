"""See each global memory access of Triton's interpreter, and which argument of which kernel it belongs to.

Triton 3.6 to 3.9: whatever a kernel uses (pointers, block pointers, tensor descriptors, atomics), its accesses end in
four functions of the interpreter's C++ module. `watched` stands in for that module while it lasts.
"""
import contextlib
import inspect

from helpers import device  # noqa: F401  (before triton: helpers.device says why)

import numpy as np
from triton.runtime import interpreter

MARK = np.uint64(56)                                     # the bits from here up are zero in every address of a process
ELSEWHERE = "(no argument)"                              # a pointer that was itself loaded, or made from a number


@contextlib.contextmanager
def watched(seen):
    """Call seen(kernel, argument, operation, elements, bytes, masked) at each access made inside the `with`.

    kernel and argument are names, operation is "load", "store" or "atomic"; `masked` lanes are not among the elements.
    A pointer inside a tuple argument is "name[place]". Not to be nested; what was there before comes back at the end.
    """
    memory, call, patch = interpreter._interpreter, interpreter.GridExecutor.__call__, interpreter._patch_lang_tensor
    watching = _Memory(memory, seen)

    def launch(self, *args, **kwargs):
        self.fn = watching.kernel = _Kernel(self.fn)
        return call(self, *args, **kwargs)

    def patch_index(tensor, scope):                      # Triton 3.6 takes int() of an array, which NumPy 2.4 refuses
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._interpreter, interpreter.GridExecutor.__call__ = watching, launch
    interpreter._patch_lang_tensor = patch_index
    try:
        yield
    finally:
        interpreter._interpreter, interpreter.GridExecutor.__call__ = memory, call
        interpreter._patch_lang_tensor = patch


class _Kernel:
    """A kernel's function. Before its first program runs, it marks each pointer argument with a number.

    The mark is the highest byte of the address. Pointer arithmetic carries it along, so that an access tells which
    argument it came from, even where q, k and v are views of one tensor. `_Memory` takes it off.
    """

    def __init__(self, fn):
        self.fn, self.names = fn, []
        self.__name__, self.__globals__, self.__signature__ = fn.__name__, fn.__globals__, inspect.signature(fn)

    def __call__(self, **arguments):
        if not self.names:
            self.names.append(ELSEWHERE)                 # number 0: no mark
            for name, value in arguments.items():
                self.mark(name, value)
        return self.fn(**arguments)

    def mark(self, name, value):
        if isinstance(value, (tuple, interpreter.tl.tuple)):
            for place, item in enumerate(value):
                self.mark(f"{name}[{place}]", item)
        handle = getattr(value, "handle", None)
        handle = getattr(handle, "base", handle)         # of a tensor descriptor
        if isinstance(handle, interpreter.TensorHandle) and handle.dtype.is_ptr():
            handle.data = handle.data | np.uint64(len(self.names)) << MARK
            self.names.append(name)


class _Memory:
    """In place of the interpreter's C++ module: report an access, take off the marks, pass it on."""

    def __init__(self, module, seen):
        self.module, self.seen, self.kernel = module, seen, None

    def __getattr__(self, name):
        return getattr(self.module, name)

    def load(self, pointers, mask, other, dtype):
        return self.module.load(self.report("load", pointers, mask, dtype), mask, other, dtype)

    def store(self, pointers, value, mask):
        return self.module.store(self.report("store", pointers, mask, value.dtype), value, mask)

    def atomic_rmw(self, operation, pointers, value, mask, order):
        return self.module.atomic_rmw(operation, self.report("atomic", pointers, mask, value.dtype), value, mask, order)

    def atomic_cas(self, pointers, expected, value, order):
        return self.module.atomic_cas(self.report("atomic", pointers, True, value.dtype), expected, value, order)

    def report(self, operation, pointers, mask, dtype):
        marks = pointers >> MARK
        for mark in np.unique(marks):
            lanes = marks == mark
            elements = int(np.count_nonzero(lanes & np.asarray(mask)))
            self.seen(self.kernel.__name__, self.kernel.names[mark], operation, elements,
                      elements * np.dtype(dtype).itemsize, int(np.count_nonzero(lanes)) - elements)
        return pointers & ((np.uint64(1) << MARK) - np.uint64(1))
