"""What stands between a kernel and memory: the launch that knows each pointer's tensor, and the accesses that it checks."""
import bisect
import inspect

import numpy as np
from triton.runtime import interpreter

from helpers.interpreter.accesses import VERBS, Anywhere, Elements, MemoryFault, Touched, line, shown

MARK = 56                                                # the bits from here up are zero in every address of a process
ADDRESS = np.uint64(2**MARK - 1)
ELSEWHERE = "(no argument)"                              # a pointer that was itself loaded, or made from a number


class Launch:
    """A launch of a kernel, called for each program.

    Before the first program, each pointer argument is marked with a number, in the highest byte of its address. Pointer
    arithmetic carries the mark along, so that an access tells which argument it came from, even where q, k and v are
    views of one tensor. `Memory` takes it off.
    """

    def __init__(self, fn):
        self.fn, self.tensors = fn, {}
        self.__name__, self.__globals__, self.__signature__ = fn.__name__, fn.__globals__, inspect.signature(fn)
        self.names, self.elements, self.touched = [], [], []                 # of each pointer argument
        self.storages = {}                               # what is Touched, by the address of its storage
        self.accesses, self.starts, self.programs = 0, [], []
        self.lines = {}                                  # of the stores and atomics, by their number
        self.patched = set()                             # globals of functions whose tl is the interpreter's

    def __call__(self, **arguments):
        if not self.programs:
            self.enter(ELSEWHERE, Anywhere(), None)      # number 0: no mark
            for name, value in arguments.items():
                self.mark(name, value, self.tensors[name])
        self.starts.append(self.accesses)
        self.programs.append(interpreter.interpreter_builder.grid_idx)
        return self.fn(**arguments)

    def mark(self, name, value, tensor):
        if isinstance(value, (tuple, interpreter.tl.tuple)):
            for place, item in enumerate(value):
                self.mark(f"{name}[{place}]", item, tensor[place])
        handle = getattr(value, "handle", None)
        handle = getattr(handle, "base", handle)         # of a tensor descriptor
        if isinstance(handle, interpreter.TensorHandle) and handle.dtype.is_ptr():
            handle.data = handle.data | np.uint64(len(self.names) << MARK)
            while hasattr(tensor, "base"):               # descriptors, and tensors that are read as another type
                tensor = tensor.base
            known = hasattr(tensor, "data_ptr")
            self.enter(name, Elements(name, tensor) if known else Anywhere(), tensor if known else None)

    def enter(self, name, elements, tensor):
        self.names.append(name)
        self.elements.append(elements)
        if tensor is None:
            self.touched.append(None)
            return
        storage, unit = tensor.untyped_storage(), tensor.element_size()
        known = self.storages.setdefault(storage.data_ptr(), Touched(storage, unit))
        known.unit = min(known.unit, unit)
        self.touched.append(known)

    def check(self, number, operation, addresses, size):
        """Raise MemoryFault for an access outside of a tensor, and for a race."""
        wrong = self.elements[number].outside(addresses, size)
        if wrong:
            raise MemoryFault(f"{self.__name__} {VERBS[operation]} {wrong}: {shown(line())}")
        if self.touched[number] is None:
            return
        self.accesses += 1
        if operation != "load":
            self.lines[self.accesses] = line()
        clash = self.touched[number].clash(operation, addresses, size, self.accesses, self.starts[-1])
        if clash:
            address, other, access = clash
            both = dict.fromkeys([line(), *([self.lines[access]] if access in self.lines else [])])
            raise MemoryFault(f"a race in {self.__name__}: {self.program(self.accesses)} {VERBS[operation]} "
                              f"{self.elements[number].element(address)}, and {self.program(access)} {VERBS[other]} "
                              f"it too: {' and '.join(map(shown, both))}")

    def program(self, access):
        """Which program made an access: "program 3", or "program (3, 0)" in a grid of two dimensions."""
        of, dim = self.programs[bisect.bisect_left(self.starts, access) - 1], interpreter.interpreter_builder.grid_dim
        used = max([1, *(axis for axis, length in enumerate(dim, 1) if length > 1)])
        return f"program {of[:used] if used > 1 else of[0]}"


class Memory:
    """In place of the interpreter's C++ module: check an access, show it to all who look, take off the marks, pass it on.

    A mask that numbers and truth values made together is of integers, which Triton 3.9 does not take.
    """

    def __init__(self, module, looks):
        self.module, self.looks, self.launch = module, looks, None

    def __getattr__(self, name):
        return getattr(self.module, name)

    def load(self, pointers, mask, other, dtype):
        return self.module.load(self.seen("load", pointers, mask, dtype), np.asarray(mask, bool), other, dtype)

    def store(self, pointers, value, mask):
        return self.module.store(self.seen("store", pointers, mask, value.dtype), value, np.asarray(mask, bool))

    def atomic_rmw(self, operation, pointers, value, mask, order):
        return self.module.atomic_rmw(operation, self.seen("atomic", pointers, mask, value.dtype), value, mask, order)

    def atomic_cas(self, pointers, expected, value, order):
        return self.module.atomic_cas(self.seen("atomic", pointers, True, value.dtype), expected, value, order)

    def seen(self, operation, pointers, mask, dtype):
        """Addresses without marks, when all that should has looked at them."""
        addresses, size = pointers & ADDRESS, np.dtype(dtype).itemsize
        used = np.broadcast_to(mask, pointers.shape)
        lanes = pointers.ravel() if used.all() else pointers[used]
        masked = pointers.size - lanes.size
        first = int(pointers.flat[0]) >> MARK if pointers.size else 0
        if not lanes.size or int(lanes.min()) >> MARK == first == int(lanes.max()) >> MARK:      # nearly always
            parts = [(first, lanes, masked)]
        else:
            marks, lost = lanes >> np.uint64(MARK), pointers[~used] >> np.uint64(MARK)
            parts = [(int(mark), lanes[marks == mark], int((lost == mark).sum())) for mark in np.unique(marks)]
        for number, lanes, masked in parts:
            lanes = lanes & ADDRESS
            if lanes.size:
                self.launch.check(number, operation, lanes, size)
            for look in self.looks:
                look(self.launch, number, operation, lanes, masked, size)
        return addresses
