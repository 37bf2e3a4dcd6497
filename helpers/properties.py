"""The machinery behind helpers/check.py: run named properties, poison fresh memory, say what differed and where."""
import math
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch

from helpers import device

# NaNs with a payload of their own, so that memory nobody wrote is told apart from a NaN that was computed
POISON = {np.dtype(np.float32): np.uint32(0x7FC0BAD5), np.dtype(np.float64): np.uint64(0x7FF80000000BAD55)}
GUARD = 2**15                                            # poisoned elements before and behind every tensor


def properties(title, cases, fn):
    """Run the (name, case) pairs of one operation on fn and print the report. A case returns "" or what went wrong."""
    results = []
    with poisoned():
        for name, case in cases:
            try:
                results.append((name, case(fn)))
            except Exception as error:
                if _is_stub(error):
                    print(f"{title}: not attempted yet")
                    return
                results.append((name, f"it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"))
    print(title)
    if len(results) > 1 and len({problem for _, problem in results}) == 1 and results[0][1]:
        results = [("every property", results[0][1])]
    for name, problem in results:
        print(f"  FAIL  {name}: {problem}" if problem else f"  ok    {name}")


@contextmanager
def poisoned():
    """Within this block, what nobody wrote is seen.

    float32 and float64 memory from torch's and NumPy's `empty`, `empty_like` and `new_empty` is all POISON. Tensors get a
    guard of poison before and behind them, so that a kernel that misses its mask spoils the guard and not the process.
    In Triton's interpreter, masked lanes that were loaded without `other` are NaN, as undefined as they are on a GPU.
    """
    with ExitStack() as stack:
        for library, name in ((np, "empty"), (np, "empty_like"), (torch, "empty"), (torch, "empty_like"),
                              (torch.Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(library, name, _poison(getattr(library, name))))
        if device.INTERPRETED:
            from triton.runtime.interpreter import InterpreterBuilder
            load = InterpreterBuilder.create_masked_load
            stack.enter_context(mock.patch.object(InterpreterBuilder, "create_masked_load", _undefined_lanes(load)))
        yield


def _poison(make):
    def made(*args, **kwargs):
        out = make(*args, **kwargs)
        if isinstance(out, np.ndarray) and out.dtype in POISON:
            out.view(POISON[out.dtype].dtype)[...] = POISON[out.dtype]
        elif isinstance(out, torch.Tensor) and out.dtype in (torch.float32, torch.float64) and out.device.type != "meta":
            out = _guarded_empty(out)
        return out
    return made


def _guarded_empty(like):
    """A poisoned tensor with the shape and strides of `like`, in the middle of a poisoned stretch of memory."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(like.shape, like.stride())) if like.numel() else 0
    bits = POISON[np.dtype(str(like.dtype).removeprefix("torch."))]
    integers = torch.int32 if like.dtype == torch.float32 else torch.int64
    memory = torch.full([size + 2 * GUARD], int(bits), dtype=integers, device=like.device).view(like.dtype)
    return memory.as_strided(like.shape, like.stride(), GUARD)


def guarded(x):
    """A copy of a tensor with a guard of poison before and behind it."""
    return _guarded_empty(x).copy_(x)


def outside(x):
    """"" if the guard around a tensor is untouched, else where the first stray element lies."""
    storage = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    if len(storage) < 2 * GUARD or x.storage_offset() != GUARD:
        return ""                                        # not one of ours: nothing is known
    spoilt = ~_unwritten(_array(storage))
    spoilt[GUARD:len(spoilt) - GUARD] = False
    if not spoilt.any():
        return ""
    place = int(np.argwhere(spoilt)[0, 0]) - GUARD
    size = len(storage) - 2 * GUARD
    return f"element {place} of {size} was written, {'before the beginning' if place < 0 else 'beyond the end'}"


def _undefined_lanes(load):
    def loaded(self, ptrs, mask, other, *args, **kwargs):
        value = load(self, ptrs, mask, other, *args, **kwargs)
        if other is None and np.issubdtype(value.data.dtype, np.floating):
            value.data = np.where(mask.data, value.data, value.data.dtype.type(math.nan))
        return value
    return loaded


def _is_stub(error):
    while error is not None:                             # Triton's interpreter wraps what a kernel raises
        if isinstance(error, NotImplementedError):
            return True
        error = error.__cause__
    return False


def _array(x):
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def _unwritten(x):
    """Boolean array: which elements still hold the poison."""
    x = np.ascontiguousarray(x)
    return x.view(POISON[x.dtype].dtype) == POISON[x.dtype] if x.dtype in POISON else np.zeros(x.shape, bool)


def _place(mask):
    return [int(i) for i in np.argwhere(mask)[0]]


def difference(got, want, tolerance=1e-5):
    """"" if the elements that were written agree, else where the first difference is."""
    got, want = _array(got), _array(want)
    if got.shape != want.shape:
        return f"the shape is {list(got.shape)}, expected {list(want.shape)}"
    missing = _unwritten(got)
    if got.size and missing.all():
        return "nothing was written"
    with np.errstate(invalid="ignore"):
        wrong = ~missing & ~(np.abs(got - want) <= tolerance * (1 + np.abs(want)))     # a NaN is wrong
    if not wrong.any():
        return ""
    place = _place(wrong)
    return (f"element {place} is {got[tuple(place)]:.4g}, expected {want[tuple(place)]:.4g} "
            f"({wrong.sum()} of {got.size} differ)")


def unwritten(got):
    """"" if every element was written, else which is the first that was not."""
    missing = _unwritten(_array(got))
    if not missing.any():
        return ""
    return f"element {_place(missing)} was never written ({missing.sum()} of {missing.size} were not)"
