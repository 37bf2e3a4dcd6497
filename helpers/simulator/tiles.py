"""Tiles in registers: NumPy arrays with a Triton type and a layout.

Narrow floats are kept in float32, rounded to the numbers that the narrow type has. Integers wrap, as on the GPU.
"""
import functools
from types import SimpleNamespace

import numpy as np
import torch
from triton.experimental.gluon import language as gl

from helpers.simulator.machine import Fault, machine

NARROW = dict(fp16=torch.float16, bf16=torch.bfloat16, fp8e4nv=torch.float8_e4m3fn, fp8e5=torch.float8_e5m2)


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
        setattr(Tile, f"__{name}__", lambda a, b, f=function: combine(f, a, b))
        setattr(Tile, f"__r{name}__", lambda a, b, f=function: combine(f, b, a))
    for name, function in {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
                           "eq": np.equal, "ne": np.not_equal}.items():
        setattr(Tile, f"__{name}__", lambda a, b, f=function: combine(f, a, b, gl.int1))


_give_operators()
