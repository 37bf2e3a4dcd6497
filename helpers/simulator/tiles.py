"""Tiles in registers, pointers, and tiles in shared memory: NumPy arrays with a Triton type and a layout.

Narrow floats are kept in float32, rounded to the numbers that the narrow type has. Integers wrap, as on the GPU.
"""
import functools
from types import SimpleNamespace

import numpy as np
import torch
from triton.experimental.gluon import language as gl

from helpers.simulator.machine import Fault, machine

NARROW = dict(fp16=torch.float16, bf16=torch.bfloat16, fp8e4nv=torch.float8_e4m3fn, fp8e5=torch.float8_e5m2)
TRITON = {torch.float64: gl.float64, torch.float32: gl.float32, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16,
          torch.float8_e4m3fn: gl.float8e4nv, torch.float8_e5m2: gl.float8e5, torch.int64: gl.int64,
          torch.int32: gl.int32, torch.int16: gl.int16, torch.int8: gl.int8, torch.uint8: gl.uint8, torch.bool: gl.int1}


@functools.cache
def numpy_type(dtype):
    """The NumPy type in which numbers of a Triton type are kept."""
    if dtype.is_floating():
        return np.float64 if dtype.name == "fp64" else np.float32
    return np.dtype(bool if dtype.name == "int1" else dtype.name)


def rounded(x, dtype):
    """An array as numbers of a Triton type. Conversion to eight bits saturates."""
    x, narrow = np.asarray(x, numpy_type(dtype)), NARROW.get(dtype.name)
    if narrow is None:
        return x
    if narrow.itemsize == 1:
        x = np.clip(x, torch.finfo(narrow).min, torch.finfo(narrow).max)
    return torch.from_numpy(np.array(x)).to(narrow).float().numpy()


def values(x):
    """A tensor's elements as an array of its numpy_type."""
    return (x.float() if x.dtype in NARROW.values() else x).numpy()


# ---------------------------------------------------------------- registers

class Tile:
    """A value in the registers of a partition. A number is a tile without dimensions."""

    def __init__(self, data, dtype, layout=None):
        self.data, self.dtype, self.layout = rounded(data, dtype), dtype, layout
        machine.spend(self.data.size / 128)

    @property
    def shape(self):
        return list(self.data.shape)

    @property
    def type(self):
        return SimpleNamespace(layout=self.layout, shape=self.shape, element_ty=self.dtype)

    def like(self, data, layout):
        return Tile(data, self.dtype, layout)

    def to(self, dtype):
        return Tile(self.data, dtype, self.layout)

    def reshape(self, *shape):
        return self.like(self.data.reshape(*shape), None)

    def permute(self, *order):
        return self.like(self.data.transpose(*order), None)

    def __getitem__(self, index):
        """A new axis for each None. A vector goes back to the layout that it is a slice of."""
        layout = self.layout
        for axis, part in enumerate(index if isinstance(index, tuple) else (index,)):
            if part is None and layout is not None:
                if getattr(layout, "dim", None) != axis:
                    raise Fault(f"a new axis {axis} needs a SliceLayout({axis}, ...), and the layout is {layout}")
                layout = layout.parent
        return self.like(self.data[index], layout)

    def __neg__(self):
        return self.like(-self.data, self.layout)

    def __invert__(self):
        return self.like(~self.data, self.layout)

    def __bool__(self):
        return bool(self.data)

    def __index__(self):
        return int(self.data)

    def __repr__(self):
        return f"{self.dtype} {self.shape}\n{self.data}"

    __hash__ = object.__hash__


def tile(x):
    """A number as a tile, of the type that Triton gives it."""
    if isinstance(x, Tile):
        return x
    if isinstance(x, (bool, np.bool_)):
        return Tile(x, gl.int1)
    return Tile(x, gl.float32 if isinstance(x, float) else gl.int32 if -2**31 <= x < 2**31 else gl.int64)


def common_type(a, b):
    """The type of a result: floats before integers, wide before narrow. A plain number follows the tile."""
    if not isinstance(a, Tile) or not isinstance(b, Tile):
        known, number = (a, b) if isinstance(a, Tile) else (b, a)
        follows = not (known.dtype.name == "int1" or isinstance(number, float) and not known.dtype.is_floating())
        return known.dtype if follows else tile(number).dtype
    narrow, wide = sorted((a.dtype, b.dtype), key=lambda t: (t.is_floating(), t.primitive_bitwidth))
    return gl.float32 if {narrow.name, wide.name} == {"fp16", "bf16"} else wide


def combine(function, a, b, dtype=None):
    """function, element by element, of two tiles or of a tile and a number; the result is of `dtype`."""
    layouts = [x.layout for x in (a, b) if isinstance(x, Tile) and x.shape and x.layout is not None]
    if len(layouts) == 2 and layouts[0] != layouts[1]:
        raise Fault(f"two layouts meet without a convert_layout: {layouts[0]} and {layouts[1]}")
    kind = common_type(a, b)
    if function is np.true_divide and not kind.is_floating():
        kind = gl.float32
    x, y = (np.asarray(x.data if isinstance(x, Tile) else x, numpy_type(kind)) for x in (a, b))
    return Tile(function(x, y), dtype or kind, layouts[0] if layouts else None)


def quotient(a, b):
    """Integers are divided towards zero, as on the GPU, and not down, as in Python."""
    return (a - np.fmod(a, b)) // b


def _give_operators():
    arithmetic = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
                  "floordiv": quotient, "mod": np.fmod, "and": np.bitwise_and, "or": np.bitwise_or,
                  "xor": np.bitwise_xor, "lshift": np.left_shift, "rshift": np.right_shift}
    for name, function in arithmetic.items():
        setattr(Tile, f"__{name}__", lambda a, b, f=function: b + a if isinstance(b, Pointer) else combine(f, a, b))
        setattr(Tile, f"__r{name}__", lambda a, b, f=function: combine(f, b, a))
    for name, function in {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
                           "eq": np.equal, "ne": np.not_equal}.items():
        setattr(Tile, f"__{name}__", lambda a, b, f=function: combine(f, a, b, gl.int1))


_give_operators()


# ---------------------------------------------------------------- global memory

class Pointer(Tile):
    """Addresses: a flat tensor, and the numbers of elements of it."""

    def __init__(self, memory, data=0, layout=None):
        self.memory, self.data, self.layout = memory, np.asarray(data, np.int64), layout
        self.dtype = SimpleNamespace(element_ty=TRITON[memory.dtype])

    def like(self, data, layout):
        return Pointer(self.memory, data, layout)

    def __add__(self, offset):
        moved = combine(np.add, Tile(self.data, gl.int64, self.layout), offset)
        return Pointer(self.memory, moved.data, moved.layout)

    __radd__ = __add__

    def meant(self, mask, doing):
        """The mask as an array, and the numbers of the elements that it lets through: a Fault if one is outside."""
        data, mask = np.broadcast_arrays(self.data, True if mask is None else tile(mask).data)
        index = data[mask]
        if ((index < 0) | (index >= len(self.memory))).any():
            raise Fault(f"{doing} elements {index.min()} to {index.max()} of a tensor that has {len(self.memory)}, and "
                        f"no mask forbids it")
        return mask, torch.from_numpy(np.array(index))


class Descriptor:
    """A tensor in global memory, and the shape of a tile of it."""

    def __init__(self, made):
        base = made.base.detach()
        self.tensor, self.dtype = base.as_strided(made.shape, made.strides), TRITON[base.dtype]
        self.shape, self.block_shape, self.layout = list(made.shape), list(made.block_shape), made.layout
        self.block_type = SimpleNamespace(shape=self.block_shape, element_ty=self.dtype,
                                          nbytes=int(np.prod(self.block_shape)) * base.element_size())

    def parts(self, place, shared):
        """The part of the tensor that a tile at this place covers, and where in the tile that part lies."""
        if shared.shape != self.block_shape or shared.dtype != self.dtype:
            raise Fault(f"the tile in shared memory is {shared.shape} of {shared.dtype}, and the descriptor's "
                        f"{self.block_shape} of {self.dtype}")
        low = [min(max(int(i), 0), n) for i, n in zip(place, self.shape)]
        high = [max(a, min(int(i) + b, n)) for a, i, b, n in zip(low, place, self.block_shape, self.shape)]
        inside = tuple(slice(a - int(i), b - int(i)) for a, b, i in zip(low, high, place))
        return self.tensor[tuple(map(slice, low, high))], inside


# ---------------------------------------------------------------- shared memory

class Shared:
    """A view of an allocation in shared memory. `path` is the part of it, as a kernel would write it: "[1]"."""

    def __init__(self, memory, data, dtype, layout, path=""):
        self.memory, self.data, self.dtype, self.layout, self.path = memory, data, dtype, layout, path
        self.shape, self.nbytes = list(data.shape), data.size * dtype.primitive_bitwidth // 8
        self.type = SimpleNamespace(layout=layout, shape=self.shape, element_ty=dtype)

    def view(self, data, path=""):
        return Shared(self.memory, data, self.dtype, self.layout, self.path + path)

    def index(self, i):
        if not 0 <= int(i) < self.shape[0]:
            raise Fault(f"{machine.name(self)} has {self.shape[0]} places, and this asks for number {int(i)}")
        return self.view(self.data[int(i)], f"[{int(i)}]")

    def slice(self, start, length, dim=0):
        part = slice(int(start), int(start) + int(length))
        if part.start < 0 or part.stop > self.shape[dim]:
            raise Fault(f"{machine.name(self)} is {self.shape}, and this asks for {part.start}:{part.stop}")
        return self.view(self.data[(slice(None),) * dim + (part,)], f"[{':, ' * dim}{part.start}:{part.stop}]")

    def reshape(self, shape):
        made = np.reshape(self.data, [int(n) for n in shape])
        assert np.shares_memory(made, self.data), "a reshape of a part that is not contiguous is not simulated"
        return self.view(made)

    def permute(self, order):
        return self.view(self.data.transpose([int(n) for n in order]))

    def load(self, layout=None):
        machine.turn()
        machine.access(self, "a load", writes=False)
        return Tile(self.data.copy(), self.dtype, layout)

    def store(self, value):
        machine.turn()
        machine.access(self, "a store", writes=True)
        if value.shape != self.shape or value.dtype != self.dtype:
            raise Fault(f"a tile of {value.shape} of {value.dtype} does not fit into {machine.name(self)}, which is "
                        f"{self.shape} of {self.dtype}")
        self.data[...] = value.data
