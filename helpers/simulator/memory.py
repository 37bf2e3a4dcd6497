"""Pointers, descriptors, and tiles in shared memory."""
from types import SimpleNamespace

import numpy as np
import torch
from triton.experimental.gluon import language as gl

from helpers.simulator.machine import Fault, machine
from helpers.simulator.tiles import Tile, combine, tile

TRITON = {torch.float64: gl.float64, torch.float32: gl.float32, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16,
          torch.float8_e4m3fn: gl.float8e4nv, torch.float8_e5m2: gl.float8e5, torch.int64: gl.int64,
          torch.int32: gl.int32, torch.int16: gl.int16, torch.int8: gl.int8, torch.uint8: gl.uint8, torch.bool: gl.int1}


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
