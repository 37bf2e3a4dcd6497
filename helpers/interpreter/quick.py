"""What Triton's interpreter works out again and again, found once: it computes the same, in less than half the time.

- A type, and what a tensor says of itself, depend on names and shapes alone: the first of a kind is kept.
- Blocks of one shape need not be broadcast to it.
- Sums and products of integers are not computed once more with 64 bits, to look for overflows that nobody is told of.
"""
import dataclasses

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def install():
    """Once a process, for the interpreter that helpers.interpreter installs."""
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    tensors, blocks, dtypes = {}, {}, {}
    tensor, block, np_dtype = tl.tensor.__init__, tl.block_type.__init__, interpreter._get_np_dtype
    broadcast = TritonSemantic.broadcast_impl_value

    def tensor_once(self, handle, type):
        if type.name not in tensors:
            tensor(self, handle, type)
            tensors[type.name] = self.__dict__ | dict(handle=None)
        self.__dict__ |= tensors[type.name] | dict(handle=handle, type=type, dtype=type.scalar)

    def block_once(self, element_ty, shape):
        key = element_ty.name, *[getattr(length, "value", length) for length in shape]
        if key not in blocks:
            block(self, element_ty, shape)
            blocks[key] = self.__dict__.copy()
        self.__dict__ |= blocks[key]

    def np_dtype_once(dtype):
        if dtype.name not in dtypes:
            dtypes[dtype.name] = np_dtype(dtype)
        return dtypes[dtype.name]

    def broadcast_others(self, lhs, rhs):
        if lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape == rhs.type.shape:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    tl.tensor.__init__, tl.block_type.__init__ = tensor_once, block_once
    interpreter._get_np_dtype, TritonSemantic.broadcast_impl_value = np_dtype_once, broadcast_others
