"""Memory in which what nobody wrote, and what was written beside a tensor, is seen."""
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch

from helpers import device

# NaNs with a payload of their own, so that memory nobody wrote is told apart from a NaN that was computed
POISON = {"float16": 0x7EAD, "bfloat16": 0x7FED, "float32": 0x7FC0BAD5, "float64": 0x7FF80000000BAD55}
GUARD = 2**15                                            # poisoned elements before and behind every tensor
INPUT = 15                                               # changes the payload around an input: a stray NaN read there
                                                         # and stored behind an output differs from what stood there


@contextmanager
def poisoned():
    """Within this block, what nobody wrote is seen.

    Floating-point memory from torch's and NumPy's `empty`, `empty_like` and `new_empty` is all POISON. Tensors get a
    guard of poison before and behind them, so that a kernel that misses its mask spoils the guard and not the process.
    """
    with ExitStack() as stack:
        for library, name in ((np, "empty"), (np, "empty_like"), (torch, "empty"), (torch, "empty_like"),
                              (torch.Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(library, name, _poison(getattr(library, name))))
        yield


def _poison(make):
    def made(*args, **kwargs):
        out = make(*args, **kwargs)
        if _name(out.dtype) not in POISON:
            return out
        if isinstance(out, np.ndarray):
            out.view(_integers(out))[...] = POISON[_name(out.dtype)]
            return out
        return out if out.device.type == "meta" else _guarded_empty(out)
    return made


def _name(dtype):
    """"float32" for NumPy's type and for torch's."""
    return str(dtype).removeprefix("torch.")


def _integers(x):
    """The type of whole numbers that are as wide as the elements of an array or a tensor."""
    return getattr(torch if isinstance(x, torch.Tensor) else np, f"int{8 * x.dtype.itemsize}")


def _guarded_empty(like, change=0):
    """A poisoned tensor with the shape and strides of `like`, in the middle of memory of the same poison."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(like.shape, like.stride())) if like.numel() else 0
    bits = POISON[_name(like.dtype)] ^ change
    memory = torch.full([size + 2 * GUARD], bits, dtype=_integers(like), device=like.device).view(like.dtype)
    return memory.as_strided(like.shape, like.stride(), GUARD)


def guarded(x):
    """A copy of a tensor, to be an input, with a guard of poison before and behind it."""
    return _guarded_empty(x, INPUT).copy_(x)


def tensor(x):
    """An array as a guarded float32 tensor where kernels run."""
    return guarded(torch.tensor(x, dtype=torch.float32, device=device.DEVICE))


def outside(x):
    """"" if the guard around a tensor is untouched, else where the first stray element lies."""
    if not isinstance(x, torch.Tensor):
        return ""
    storage = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    if len(storage) < 2 * GUARD or x.storage_offset() != GUARD:
        return ""                                        # not one of ours: nothing is known
    bits = storage.view(_integers(storage)).cpu().numpy()
    spoilt = bits != bits[0]
    spoilt[GUARD:len(spoilt) - GUARD] = False
    if not spoilt.any():
        return ""
    place = int(np.argwhere(spoilt)[0, 0]) - GUARD
    size = len(storage) - 2 * GUARD
    return f"element {place} of {size} was written, {'before the beginning' if place < 0 else 'beyond the end'}"


def array(x):
    """A tensor, an array or a number as a NumPy array."""
    x = x.detach().cpu() if isinstance(x, torch.Tensor) else np.asarray(x)
    return np.asarray(x.float() if x.dtype == torch.bfloat16 else x)     # NumPy has no bfloat16


def missing(x):
    """Boolean array: which elements of a tensor or an array still hold the poison."""
    x = x.detach().cpu() if isinstance(x, torch.Tensor) else np.asarray(x)
    if _name(x.dtype) not in POISON:
        return np.zeros(x.shape, bool)
    return np.asarray(x.view(_integers(x)) == POISON[_name(x.dtype)])


def place(mask):
    """Where the first True of a boolean array is."""
    return [int(i) for i in np.argwhere(mask)[0]]


def unwritten(got):
    """"" if every element was written, else which is the first that was not."""
    unseen = missing(got)
    if not unseen.any():
        return ""
    return f"element {place(unseen)} was never written ({unseen.sum()} of {unseen.size} were not)"
