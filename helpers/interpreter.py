"""See each global memory access of Triton's interpreter: count it (`watched`), or refuse what no tensor holds
(`strict`).

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
_looks = []                                       # what is called at each access, of every `with` that we are inside of


@contextlib.contextmanager
def watched(seen):
    """Call seen(kernel, argument, operation, elements, bytes, masked) at each access made inside the `with`.

    kernel and argument are names, operation is "load", "store" or "atomic"; `masked` lanes are not among the elements.
    A pointer inside a tuple argument is "name[place]".
    """
    def look(kernel, number, operation, addresses, used, size):
        elements = int(np.count_nonzero(used))
        seen(kernel.__name__, kernel.names[number], operation, elements, elements * size, used.size - elements)

    with looking(look):
        yield


@contextlib.contextmanager
def strict():
    """Inside of the `with`, kernels cannot hide two mistakes.

    Masked lanes that were loaded without `other` are NaN, as undefined as they are on a GPU. An access to what is no
    element of the tensor that the pointer came from raises IndexError, which the interpreter wraps; a pointer that was
    itself loaded from memory may lead into any tensor.
    """
    def look(kernel, number, operation, addresses, used, size):
        wrong = kernel.problems[number](addresses[used], size)
        if wrong:
            raise IndexError(f"the kernel {VERBS[operation]} {wrong} ({kernel.__name__})")

    builder = interpreter.InterpreterBuilder
    undefined = _undefined_lanes(builder.create_masked_load)
    with looking(look), mock.patch.object(builder, "create_masked_load", undefined):
        yield


def _undefined_lanes(load):
    def loaded(self, ptrs, mask, other, *args, **kwargs):
        value = load(self, ptrs, mask, other, *args, **kwargs)
        if other is None and np.issubdtype(value.data.dtype, np.floating):
            value.data = np.where(mask.data, value.data, value.data.dtype.type(np.nan))
        return value
    return loaded


@contextlib.contextmanager
def looking(look):
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

    with (mock.patch.multiple(interpreter, _interpreter=memory, _patch_lang_tensor=patch_index),
          mock.patch.multiple(executor, __call__=launch, _init_args_hst=to_host)):
        yield


class _Kernel:
    """A kernel's function. Before its first program runs, it marks each pointer argument with a number.

    The mark is the highest byte of the address. Pointer arithmetic carries it along, so that an access tells which
    argument it came from, even where q, k and v are views of one tensor. `_Memory` takes it off.
    """

    def __init__(self, fn):
        self.fn, self.tensors, self.names, self.problems = fn, {}, [], []
        self.__name__, self.__globals__, self.__signature__ = fn.__name__, fn.__globals__, inspect.signature(fn)

    def __call__(self, **arguments):
        if not self.names:
            self.enter(ELSEWHERE, _in_no_tensor)         # number 0: no mark
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
            self.enter(name, _Elements(name, tensor).problem if hasattr(tensor, "data_ptr") else _in_no_tensor)

    def enter(self, name, problem):
        self.names.append(name)
        self.problems.append(problem)


class _Elements:
    """Which addresses are elements of a tensor: of the view itself, not of the memory that it is a part of."""

    def __init__(self, name, x):
        self.name, self.base, self.size = name, x.data_ptr(), x.element_size()
        self.shape, self.strides = list(x.shape), list(x.stride())
        self.steps = sorted(((stride, length, place) for place, (length, stride) in enumerate(zip(x.shape, x.stride()))
                             if length > 1 and stride > 0), reverse=True)     # the widest first: greedy division
        spans = [(length - 1) * stride for stride, length, _ in self.steps]
        self.end = 1 + sum(spans) if x.numel() else 0
        if not (self.end and spans) or any(stride <= sum(spans[i:]) for i, (stride, *_) in enumerate(self.steps, 1)):
            self.shape, self.steps = [self.end], [(1, self.end, 0)]          # one place, none, or windows that overlap
        self.dense = self.end == np.prod([length for _, length, _ in self.steps])

    def problem(self, addresses, size) -> str:
        """"" if `size` bytes from each address on are in elements, or else which is the first that is not."""
        for byte in (0, size - 1):
            rest = (addresses.astype(np.int64) - self.base + byte) // self.size
            if not rest.size or self.dense and 0 <= rest.min() and rest.max() < self.end:
                continue                                 # nearly always
            places, inside = [np.zeros_like(rest) for _ in self.shape], np.ones(rest.shape, bool)
            for stride, length, place in self.steps:
                places[place], rest = rest // stride, rest % stride
                inside &= (places[place] >= 0) & (places[place] < length)
            for i in np.flatnonzero(~inside | (rest != 0))[:1]:
                if inside[i]:
                    return f"what lies between the elements of {self.name}, whose strides are {self.strides}"
                index = [int(place[i]) for place in places]
                index, shape = index if len(index) > 1 else index[0], " x ".join(map(str, self.shape))
                return f"element {index} of {self.name}, which has {shape}"
        return ""


def _in_no_tensor(addresses, size) -> str:
    """"" if `size` bytes from each address on are in any tensor there is: for pointers of unknown origin."""
    inside = np.zeros(addresses.shape, bool)
    for x in gc.get_objects() if addresses.size else ():
        if issubclass(type(x), torch.Tensor) and x.device.type == "cpu":
            first, length = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
            inside |= (addresses >= first) & (addresses + size <= first + length)
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
