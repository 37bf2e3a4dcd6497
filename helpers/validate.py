"""Argument checks that the attention kernels share: a wrong call ends in a sentence, not in a wrong result."""
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
