"""What the accesses of one launch must keep to: the elements of a tensor, and no two programs that disturb each other.

helpers.interpreter asks `Elements` and `Touched` at each load, store and atomic operation of an interpreted kernel.
"""
import contextlib
import gc
import linecache
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

VERBS = dict(load="loads", store="stores", atomic="changes")
CLASHES = dict(load=("store", "atomic"), store=("store", "load", "atomic"), atomic=("store", "load"))


class MemoryFault(Exception):
    """An access to what is no element of a tensor, or a race. The message is a sentence, with the kernel's line."""


def line():
    """Where the code stands that asked for an access: the file and the number of the innermost line of a kernel."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


_BETWEEN = tuple(find_spec(name).origin.removesuffix("__init__.py") for name in ("helpers.interpreter", "triton"))


def shown(place):
    """A place in words: "line 6 of the cell, `tl.store(z_ptr + offsets, x)`"."""
    file, number = place
    text = textwrap.shorten(linecache.getline(file, number).split("  #")[0], 80, placeholder=" ...")
    within = "the cell" if "ipykernel_" in file or file.startswith("<ipython") else Path(file).name.strip("<>")
    return f"line {number} of {within}, `{text}`"


class Elements:
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

    def outside(self, addresses, size) -> str:
        """"" if `size` bytes from each of some addresses on are in elements, or else the first that is not."""
        first, last = int(addresses.min()) - self.base, int(addresses.max()) - self.base + size
        if self.dense and 0 <= first and last <= self.end * self.size:
            return ""                                    # nearly always
        for byte in (0, size - 1):
            places, inside, between = self._places(addresses, byte)
            for i in np.flatnonzero(~inside | between)[:1]:
                if inside[i]:
                    return f"what lies between the elements of {self.name}, whose strides are {self.strides}"
                shape = " x ".join(map(str, self.shape))
                return f"{self._element(places[:, i])}, which has {shape} element{'s' * (shape != '1')}"
        return ""

    def element(self, address) -> str:
        """The element that an address is in: "element [2, 0] of z_ptr"."""
        return self._element(self._places(np.array([address], np.uint64))[0][:, 0])

    def _element(self, index):
        return f"element {index.tolist() if len(index) > 1 else index[0]} of {self.name}"

    def _places(self, addresses, byte=0):
        """An index for each address [dimensions, addresses], is it one of the tensor, is it in a gap behind it?"""
        rest = (addresses.astype(np.int64) - self.base + byte) // self.size
        places, inside = np.zeros((len(self.shape), rest.size), np.int64), np.ones(rest.shape, bool)
        for stride, length, place in self.steps:
            places[place], rest = rest // stride, rest % stride
            inside &= (places[place] >= 0) & (places[place] < length)
        return places, inside, rest != 0


class Anywhere:
    """All elements of all tensors: for pointers of unknown origin."""

    def outside(self, addresses, size) -> str:
        inside = np.zeros(addresses.shape, bool)
        for x in gc.get_objects():
            if issubclass(type(x), torch.Tensor) and not issubclass(type(x), FakeTensor) and x.device.type == "cpu":
                with contextlib.suppress(RuntimeError):  # of a tensor of the compiler's, which has no memory
                    first, length = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
                    inside |= (addresses >= first) & (addresses + size <= first + length)
        return "" if inside.all() else "an address outside of all tensors"


class Touched:
    """Which access of a launch was the first of its kind to each unit of a storage.

    Accesses count from 1, and 0 means none. Programs run one after the other, so the accesses of the running program
    are those after its `start`. That the first is kept is enough: if that one was made by the running program, all were.
    """

    def __init__(self, storage, unit):
        self.base, self.bytes, self.unit, self.first = storage.data_ptr(), storage.nbytes(), unit, {}

    def clash(self, operation, addresses, size, number, start):
        """Record an access. None, or if it is a race: (an address, the kind, the number) of an earlier access."""
        at = (addresses - np.uint64(self.base)).view(np.int64) >> (self.unit.bit_length() - 1)
        if size > self.unit:
            at = (at[:, None] + np.arange(size // self.unit)).ravel()
        for other in CLASHES[operation]:
            if other in self.first:
                seen = self.first[other][at]
                races = seen - np.uint32(1) < start      # 0 wraps around, and is none
                if races.any():
                    i = races.argmax()
                    return self.base + int(at[i]) * self.unit, other, int(seen[i])
        first = self.first.setdefault(operation, np.zeros(-(-self.bytes // self.unit), np.uint32))
        fresh = first[at] == 0
        if fresh.any():
            first[at[fresh]] = number
