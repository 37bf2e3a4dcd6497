"""bfloat16 and float8 in Triton's interpreter, computed right.

The interpreter keeps such numbers as their bit patterns, and adds, compares and multiplies the patterns as if they were
integers. Here a block of them is float32, which holds each of their values, and every result is rounded to the nearest
value that its type has (ties to even), by PyTorch. Patterns remain in memory and in bit casts alone.
"""
import numpy as np
import torch
from triton._C.libtriton import ir
from triton.runtime import interpreter

TYPES = {"bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
OTHERS = "fp8e4b8", "fp8e4b15", "fp8e5b16"               # of other vendors and of the past


def patterns(x, name):
    """The bit patterns, as unsigned integers, of numbers rounded to a type."""
    return _rounded(x, name).view(torch.int16 if name == "bf16" else torch.uint8).numpy().view(f"u{TYPES[name].itemsize}")


def values(bits, name):
    """The numbers, as float32, that bit patterns of a type stand for."""
    bits = np.array(bits).view(np.int16 if name == "bf16" else np.uint8)
    return torch.from_numpy(bits).view(TYPES[name]).float().numpy()


def _rounded(x, name):
    return torch.from_numpy(np.array(x, np.float32)).to(TYPES[name])


def install():
    """Once a process, for the interpreter that helpers.interpreter installs."""
    handle, builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
    usual = {name: getattr(builder, name) for name in (
        "create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas", "create_bitcast")}
    np_dtype, fits, check = interpreter._get_np_dtype, interpreter._validate_np_data_size, handle.__post_init__

    def settle(self):
        name = self.dtype.name
        if name in TYPES and self.data.dtype.kind == "f":                    # else the outcome of a comparison
            self.data = _rounded(self.data, name).float().numpy()
        elif name in OTHERS:
            raise NotImplementedError(f"{name}: of the types of 8 bits, fp8e4nv and fp8e5 are computed here, and no other")
        check(self)

    def load(self, ptrs, mask, other, *hints, **named):
        dtype = ptrs.get_element_ty()
        if dtype.name not in TYPES:
            return usual["create_masked_load"](self, ptrs, mask, other, *hints, **named)
        other = patterns(np.zeros(ptrs.data.shape) if other is None else other.data, dtype.name)
        bits = interpreter._interpreter.load(ptrs.data, mask.data, other, other.dtype)
        return handle(values(bits, dtype.name), dtype)

    def store(self, ptrs, value, mask, *hints):
        name = ptrs.get_element_ty().name
        if name not in TYPES:
            return usual["create_masked_store"](self, ptrs, value, mask, *hints)
        return interpreter._interpreter.store(ptrs.data, patterns(value.data, name), mask.data)

    def cast(self, src, dst_type):
        to, data = dst_type.scalar, src.data.astype(interpreter._get_np_dtype(dst_type))
        if to.name in TYPES and to.primitive_bitwidth == 8:                  # a GPU stops at the largest number
            data = data.clip(-torch.finfo(TYPES[to.name]).max, torch.finfo(TYPES[to.name]).max)
        return handle(data, to)

    def cast_rounding(self, src, dst_type, rounding):
        if rounding not in (None, ir.ROUNDING_MODE.RTNE):
            raise NotImplementedError("the interpreter rounds to nearest: fp_downcast_rounding takes 'rtne' here")
        return cast(self, src, dst_type)

    def bitcast(self, src, dst_type):
        name, to = src.dtype.scalar.name, dst_type.scalar
        if name in TYPES and src.data.dtype.kind == "f":
            src = handle(patterns(src.data, name), interpreter.tl.uint16 if name == "bf16" else interpreter.tl.uint8)
        return handle(values(src.data, to.name), to) if to.name in TYPES else usual["create_bitcast"](self, src, dst_type)

    def atomic(name):
        def refuse(self, *arguments):
            dtype = next(x for x in arguments if isinstance(x, handle)).get_element_ty()
            if dtype.name in TYPES:
                raise NotImplementedError(f"the interpreter has no atomic operation for {dtype.name}: change a float32")
            return usual[name](self, *arguments)
        return refuse

    builder.create_masked_load, builder.create_masked_store, builder.create_bitcast = load, store, bitcast
    builder.create_atomic_rmw, builder.create_atomic_cas = atomic("create_atomic_rmw"), atomic("create_atomic_cas")
    builder.cast_impl, builder.create_fp_to_fp = cast, cast_rounding
    builder.create_fabs = lambda self, x: self.unary_op(x, np.abs)
    builder.create_dot = lambda self, a, b, d, *options: handle(
        np.matmul(a.data, b.data, dtype=d.data.dtype) + d.data, d.dtype.scalar)
    builder.get_bf16 = lambda self, value: handle(np.array([value], np.float32), interpreter.tl.bfloat16)
    handle.__post_init__ = settle
    interpreter._get_np_dtype = lambda dtype: np.dtype(np.float32) if dtype.scalar.name in TYPES else np_dtype(dtype)
    interpreter._validate_np_data_size = lambda data, dtype: dtype.name in TYPES or fits(data, dtype)
