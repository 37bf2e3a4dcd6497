"""Tensors that a kernel can read, and calls that autograd or the compiler must not look into."""
import functools

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from helpers import device


def remembered(check):
    """check, which returns nothing, runs once for equal arguments: a model asks for the same few again and again."""
    known = functools.lru_cache(maxsize=1024)(check)

    @functools.wraps(check)
    def once(*arguments):
        try:
            known(*arguments)
        except TypeError as problem:
            if "unhashable" not in str(problem):
                raise
            check(*arguments)                            # symbolic sizes, the compiler's, have no hash
    return once


def tensors(**named):
    """Check that the named arguments are tensors that a kernel can read: of one supported type, on the device where
    kernels run, with memory that holds their numbers, and without what a kernel would lose, tangents and transforms.

    Raises TypeError for another type, and ValueError for the rest, naming the argument.
    """
    alike(kinds_of(**named))


def readable(name, x):
    """The part of `tensors` that looks at one tensor alone, whatever its type."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a torch.Tensor")
    if is_functorch_wrapped_tensor(x):
        raise ValueError(f"{name} belongs to a transform of torch.func (grad, jvp, vmap, ...), which cannot look "
                         "into a kernel: use torch.autograd for gradients, and an axis of the input for a batch")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:       # the first is quick
        raise ValueError(f"{name} carries a tangent, and kernels have no forward-mode derivative: use reverse "
                         f"mode, torch.autograd, or pass its primal, torch.autograd.forward_ad.unpack_dual({name})")
    if x.layout is not torch.strided:
        raise ValueError(f"{name} has the layout {x.layout}: expected a dense tensor (pass {name}.to_dense())")
    if x.is_neg():                                   # such as z.conj().imag
        raise ValueError(f"{name} is a view whose numbers still have to be negated, and a kernel would read them "
                         f"as they lie in memory: pass {name}.resolve_neg()")


def kinds_of(**named):
    """(name, type, device, shape, strides) of tensors that a kernel can read."""
    for name, x in named.items():
        readable(name, x)
    return tuple((name, x.dtype, x.device, x.shape, x.stride()) for name, x in named.items())


def alike(kinds):
    """TypeError or ValueError unless tensors of these kinds have one type, which a kernel takes, and one device."""
    (first, dtype, place, *_), *others = kinds
    served(first, dtype, place)
    for name, other, where, *_ in others:
        if other != dtype:
            raise TypeError(f"{name} is {other}, {first} is {dtype}: they must be equal")
        together(name, where, first, place)


def together(name, where, first, place):
    """ValueError unless two tensors are on one device."""
    if where != place:
        raise ValueError(f"{name} is on {where}, {first} is on {place}: they must be on one device")


def equal(name, x, first, y, what):
    """ValueError unless x of one tensor is y of the first; `what` is a format that says what they are."""
    if x != y:
        raise ValueError(f"{name} has {what.format(x)}, {first} has {y}: they must be equal")


def served(name, dtype, place):
    """TypeError or ValueError unless there are kernels for a type and a device."""
    try:
        device.dot_type(dtype)
    except TypeError as problem:
        raise TypeError(f"{name} is {dtype}, and there is {problem}") from None
    if place.type != device.DEVICE:
        raise ValueError(f"{name} is on {place}, and kernels run on {device.DEVICE} here: "
                         f"make it with device={device.DEVICE!r} or move it there")


def strides(name, shape, steps):
    """Raise ValueError unless shape is [batch, heads, N, D], and where 32-bit offsets inside a tile would overflow.

    In a tile of at most 256 rows and features an offset is less than 256 times the sum of the two strides.
    """
    if len(shape) != 4:
        raise ValueError(f"{name} has {len(shape)} dimensions, shape {list(shape)}: expected [batch, heads, N, D]")
    (rows, features), (row, feature) = shape[2:], steps[2:]
    if row * (rows > 1) + feature * (features > 1) >= 2**23:
        raise ValueError(f"{name} has rows that lie {row} elements apart, and features that lie {feature} apart: "
                         f"the kernel takes less than 2^23 together (pass {name}.contiguous())")


def no_gradient(**named):
    """Raise ValueError if autograd would expect a gradient: a kernel without a backward pass would silently drop it."""
    for name, x in named.items():
        if torch.is_grad_enabled() and isinstance(x, torch.Tensor) and x.requires_grad:
            raise ValueError(f"{name} requires a gradient, and this kernel has no backward pass: "
                             f"call it under torch.no_grad(), or pass {name}.detach()")


def uncompiled(fn):
    """fn, which torch.compile cannot look into: it is called as it stands, between what was compiled before and after.

    Not by torch.compiler.disable right away, which would import the compiler, for seconds, wherever fn is defined.
    """
    @functools.wraps(fn)
    def called(*arguments, **options):
        if torch.compiler.is_compiling():
            return torch.compiler.disable(fn)(*arguments, **options)
        return fn(*arguments, **options)
    return called
