"""Argument checks that the attention kernels share: a wrong call ends in a sentence, not in a wrong result."""
import numbers

import torch

from helpers import device


def one_head(q, k, v):
    """Check the arguments of single-head attention: three [N, D] tensors of one type on one device, 1 <= D <= 256.

    Raises TypeError for a wrong type and ValueError for a wrong shape or device, naming the argument.
    """
    tensors(q=q, k=k, v=v)
    if q.dim() != 2:
        raise ValueError(f"q has {q.dim()} dimensions, shape {list(q.shape)}: expected [N, D], one head")
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            raise ValueError(f"{name} has shape {list(x.shape)}, q has {list(q.shape)}: they must be equal")
    if not 1 <= q.shape[1] <= 256:
        raise ValueError(f"q has head dimension D = {q.shape[1]}: the kernel takes 1 to 256")
    no_gradient(q=q, k=k, v=v)


def many_heads(q, k, v, enable_gqa: bool):
    """Check the arguments of multi-head attention: q [B, heads, N_q, D], k and v [B, kv_heads, N_k, D], 1 <= D <= 256.

    kv_heads divides heads, and differs from it only with enable_gqa. Raises TypeError or ValueError, naming the
    argument.
    """
    tensors(q=q, k=k, v=v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} has {x.dim()} dimensions, shape {list(x.shape)}: expected [batch, heads, N, D]")
    if k.shape != v.shape:
        raise ValueError(f"v has shape {list(v.shape)}, k has {list(k.shape)}: they must be equal")
    strides(q=q, k=k, v=v)
    for axis, what in ((0, "batches"), (3, "features a head")):
        if k.shape[axis] != q.shape[axis]:
            raise ValueError(f"k has {k.shape[axis]} {what}, q has {q.shape[axis]}: they must be equal")
    if not 1 <= q.shape[3] <= 256:
        raise ValueError(f"q has head dimension D = {q.shape[3]}: the kernel takes 1 to 256")
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads != kv_heads and not enable_gqa:
        raise ValueError(f"k has {kv_heads} heads, q has {heads}: pass enable_gqa=True for grouped-query attention")
    if heads != kv_heads and (not heads or not kv_heads or heads % kv_heads):
        raise ValueError(f"k has {kv_heads} heads, which does not divide the {heads} heads of q "
                         "(grouped-query attention needs a divisor)")


def strides(**named):
    """Raise ValueError where rows or features lie so far apart that 32-bit offsets inside a tile would overflow."""
    for name, x in named.items():
        for axis, what in ((2, "rows"), (3, "features")):
            if x.shape[axis] > 1 and x.stride(axis) >= 2**23:
                raise ValueError(f"{name} has {what} that lie {x.stride(axis)} elements apart: the kernel takes less "
                                 f"than 2^23 (pass {name}.contiguous())")


def dropout(dropout_p, seed):
    """Raise TypeError or ValueError unless dropout_p is in [0, 1) and seed None or an int from 0 to 2^31 - 1."""
    if not isinstance(dropout_p, numbers.Real):
        raise TypeError(f"dropout_p is {dropout_p!r}: expected a number")
    if not (seed is None or isinstance(seed, numbers.Integral)):
        raise TypeError(f"seed is {seed!r}: expected an int or None")
    if not 0 <= dropout_p <= 1 - 2**-24:                 # more is 1 in float32
        raise ValueError(f"dropout_p is {dropout_p}: expected a probability from 0 to below 1")
    if seed is not None and not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed}: expected an int from 0 to 2^31 - 1, or None")


def no_gradient(**named):
    """Raise ValueError if autograd would expect a gradient: a kernel without a backward pass would silently drop it."""
    for name, x in named.items():
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, and this kernel has no backward pass: "
                             f"call it under torch.no_grad(), or pass {name}.detach()")


def tensors(**named):
    """Check that the named arguments are tensors of one supported type, on the one device where kernels run."""
    first, reference = next(iter(named.items()))
    for name, x in named.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}, expected a torch.Tensor")
        device.dot_type(x.dtype)                         # a TypeError unless there is a kernel for this type
        if x.dtype != reference.dtype:
            raise TypeError(f"{name} is {x.dtype}, {first} is {reference.dtype}: they must be equal")
        if x.device != reference.device:
            raise ValueError(f"{name} is on {x.device}, {first} is on {reference.device}: they must be on one device")
        if x.device.type != device.DEVICE:
            raise ValueError(f"{name} is on {x.device}, and kernels run on {device.DEVICE} here: "
                             f"make it with device={device.DEVICE!r} or move it there")
