"""See each global memory access of Triton's interpreter: count it (`watched`), or refuse what no tensor holds (`strict`).

Triton 3.6 to 3.9: whatever a kernel uses (pointers, block pointers, tensor descriptors, atomics), its accesses end in
four functions of the interpreter's C++ module. A stand-in for that module tells which argument of which kernel each of
them belongs to.
"""
import contextlib
import gc
import inspect
from unittest import mock

from helpers import device  # noqa: F401  (before triton: helpers.device says why)

import numpy as np
import torch
from triton.runtime import interpreter

MARK = np.uint64(56)                                     # the bits from here up are zero in every address of a process
ELSEWHERE = "(no argument)"                              # a pointer that was itself loaded, or made from a number
VERBS = dict(load="loads", store="stores", atomic="changes")
_looks = []                                              # what is called at each access, of every `with` that we are inside of


@contextlib.contextmanager
def watched(seen):
    """Call seen(kernel, argument, operation, elements, bytes, masked) at each access made inside the `with`.

    kernel and argument are names, operation is "load", "store" or "atomic"; `masked` lanes are not among the elements.
    A pointer inside a tuple argument is "name[place]".
    """
    def look(kernel, number, operation, addresses, used, size):
        elements = int(np.count_nonzero(used))
        seen(kernel.__name__, kernel.names[number], operation, elements, elements * size, used.size - elements)

    with _looking(look):
        yield


@contextlib.contextmanager
def strict():
    """Inside of the `with`, kernels cannot hide two mistakes.

    Masked lanes that were loaded without `other` are NaN, as undefined as they are on a GPU. An access to what is no
    element of the tensor that the pointer came from raises IndexError, which the interpreter wraps; a pointer that was
    itself loaded from memory may lead into any tensor.
    """
    def look(kernel, number, operation, addresses, used, size):
        wrong = kernel.own[number].problem(addresses[used], size)
        if wrong:
            raise IndexError(f"the kernel {VERBS[operation]} {wrong} ({kernel.__name__})")

    load = interpreter.InterpreterBuilder.create_masked_load
    with _looking(look), mock.patch.object(interpreter.InterpreterBuilder, "create_masked_load", _undefined_lanes(load)):
        yield


def _undefined_lanes(load):
    def loaded(self, ptrs, mask, other, *args, **kwargs):
        value = load(self, ptrs, mask, other, *args, **kwargs)
        if other is None and np.issubdtype(value.data.dtype, np.floating):
            value.data = np.where(mask.data, value.data, value.data.dtype.type(np.nan))
        return value
    return loaded


@contextlib.contextmanager
def _looking(look):
    """look(kernel, number of an argument, operation, addresses, used, bytes of an element) is called at each access."""
    _looks.append(look)
    try:
        with contextlib.nullcontext() if len(_looks) > 1 else _standing_in():
            yield
    finally:
        _looks.remove(look)


@contextlib.contextmanager
def _standing_in():
    memory, executor = _Memory(interpreter._interpreter), interpreter.GridExecutor
    call, arguments, patch = executor.__call__, executor._init_args_hst, interpreter._patch_lang_tensor

    def launch(self, *args, **kwargs):
        fn = self.fn
        self.fn = memory.kernel = _Kernel(fn)
        try:
            return call(self, *args, **kwargs)
        finally:
            self.fn = fn

    def to_host(self, *given):
        args, kwargs = arguments(self, *given)
        self.fn.tensors = inspect.getcallargs(self.fn, *args, **kwargs)
        return args, kwargs

    def patch_index(tensor, scope):                      # Triton 3.6 takes int() of an array, which NumPy 2.4 refuses
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with contextlib.ExitStack() as stack:
        for owner, name, ours in ((interpreter, "_interpreter", memory), (executor, "__call__", launch),
                                  (executor, "_init_args_hst", to_host), (interpreter, "_patch_lang_tensor", patch_index)):
            stack.enter_context(mock.patch.object(owner, name, ours))
        yield


class _Kernel:
    """A kernel's function. Before its first program runs, it marks each pointer argument with a number.

    The mark is the highest byte of the address. Pointer arithmetic carries it along, so that an access tells which
    argument it came from, even where q, k and v are views of one tensor. `_Memory` takes it off.
    """

    def __init__(self, fn):
        self.fn, self.tensors, self.names, self.own = fn, {}, [], []
        self.__name__, self.__globals__, self.__signature__ = fn.__name__, fn.__globals__, inspect.signature(fn)

    def __call__(self, **arguments):
        if not self.names:
            self.enter(ELSEWHERE, _Anywhere())           # number 0: no mark
            for name, value in arguments.items():
                self.mark(name, value, self.tensors[name])
        return self.fn(**arguments)

    def mark(self, name, value, tensor):
        if isinstance(value, (tuple, interpreter.tl.tuple)):
            for place, item in enumerate(value):
                self.mark(f"{name}[{place}]", item, tensor[place])
        handle = getattr(value, "handle", None)
        handle = getattr(handle, "base", handle)         # of a tensor descriptor
        if isinstance(handle, interpreter.TensorHandle) and handle.dtype.is_ptr():
            handle.data = handle.data | np.uint64(len(self.names)) << MARK
            while hasattr(tensor, "base"):               # descriptors, and tensors that are read as another type
                tensor = tensor.base
            self.enter(name, _Elements(name, tensor) if hasattr(tensor, "data_ptr") else _Anywhere())

    def enter(self, name, own):
        self.names.append(name)
        self.own.append(own)


class _Elements:
    """Which addresses are elements of a tensor: of the view itself, not of the memory that it is a part of."""

    def __init__(self, name, x):
        self.name, self.base, self.size, self.shape, self.strides = name, x.data_ptr(), x.element_size(), x.shape, x.stride()
        wide = [d for d in range(x.dim()) if self.shape[d] > 1 and self.strides[d] > 0] or [*range(x.dim())][-1:]
        self.order = sorted(wide, key=lambda d: -self.strides[d])                # greedy: the widest stride first
        spans = [(self.shape[d] - 1) * self.strides[d] for d in self.order]
        self.end = 1 + sum(spans) if x.numel() else 0
        self.dense = self.end == np.prod([self.shape[d] for d in self.order])
        self.overlaps = any(self.strides[d] <= sum(spans[i + 1:]) for i, d in enumerate(self.order))

    def problem(self, addresses, size) -> str:
        """"" if `size` bytes from each address on are in elements, or else which is the first that is not."""
        for byte in (0, size - 1):
            offsets = addresses.astype(np.int64) - self.base + byte
            if not offsets.size or ((self.dense or self.overlaps) and 0 <= offsets.min() and offsets.max() < self.end * self.size):
                continue
            index, inside = self.index(offsets // self.size)
            if not inside.all():
                return self.told([int(i[~inside][0]) for i in index])
        return ""

    def index(self, offsets):
        """The index of each element in each of `order`, what remains between elements, and which of them exist."""
        found, inside = [], (offsets >= 0) & (offsets < self.end)
        if self.overlaps:                                # as windows do that share elements: more than one index
            return [offsets], inside
        for d in self.order:
            found.append(offsets // max(1, self.strides[d]))
            offsets = offsets - found[-1] * self.strides[d]
            inside &= (found[-1] >= 0) & (found[-1] < self.shape[d])
        return [*found, offsets], inside & (offsets == 0)

    def told(self, index) -> str:
        *index, rest = index
        if len(index) < len(self.order) or not self.end:
            return f"an element outside of {self.name}, which has the shape {list(self.shape)}"
        if rest and self.order:
            return f"what lies between the elements of {self.name}, whose strides are {list(self.strides)}"
        places = [0] * len(self.shape)
        for d, i in zip(self.order, index):
            places[d] = i
        place = places[0] if len(places) == 1 else places or rest
        return f"element {place} of {self.name}, which has {' x '.join(map(str, self.shape)) or 1}"


class _Anywhere:
    """The elements of all tensors there are, for a pointer of which nobody knows where it came from."""

    def problem(self, addresses, size) -> str:
        """"" if `size` bytes from each address on are in the memory of tensors."""
        if not addresses.size:
            return ""
        inside = np.zeros(addresses.shape, bool)
        for x in gc.get_objects():
            if issubclass(type(x), torch.Tensor) and x.device.type == "cpu":
                storage = x.untyped_storage()
                inside |= (addresses >= storage.data_ptr()) & (addresses + size <= storage.data_ptr() + storage.nbytes())
        return "" if inside.all() else "an address outside of all tensors"


class _Memory:
    """In place of the interpreter's C++ module: show an access to all who look, take off the marks, pass it on."""

    def __init__(self, module):
        self.module, self.kernel = module, None

    def __getattr__(self, name):
        return getattr(self.module, name)

    def load(self, pointers, mask, other, dtype):
        return self.module.load(self.shown("load", pointers, mask, dtype), mask, other, dtype)

    def store(self, pointers, value, mask):
        return self.module.store(self.shown("store", pointers, mask, value.dtype), value, mask)

    def atomic_rmw(self, operation, pointers, value, mask, order):
        return self.module.atomic_rmw(operation, self.shown("atomic", pointers, mask, value.dtype), value, mask, order)

    def atomic_cas(self, pointers, expected, value, order):
        return self.module.atomic_cas(self.shown("atomic", pointers, True, value.dtype), expected, value, order)

    def shown(self, operation, pointers, mask, dtype):
        marks, addresses = pointers >> MARK, pointers & ((np.uint64(1) << MARK) - np.uint64(1))
        used = np.broadcast_to(np.asarray(mask, bool), pointers.shape)
        first = marks.flat[0]
        for mark in [first] if (marks == first).all() else np.unique(marks):     # nearly always one
            lanes = marks == mark
            for look in _looks:
                look(self.kernel, int(mark), operation, addresses[lanes], used[lanes], np.dtype(dtype).itemsize)
        return addresses
