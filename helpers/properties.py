"""The machinery behind helpers/check.py: run named properties, poison fresh memory, say what differed and where."""
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch

# NaNs with a payload of their own, so that memory nobody wrote is told apart from a NaN that was computed
POISON = {np.dtype(np.float32): np.uint32(0x7FC0BAD5), np.dtype(np.float64): np.uint64(0x7FF80000000BAD55)}


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
    for name, problem in results:
        print(f"  FAIL  {name}: {problem}" if problem else f"  ok    {name}")


@contextmanager
def poisoned():
    """Within this block, float32 and float64 memory from torch's and NumPy's `empty` and `empty_like` is all POISON."""
    def poison(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            if isinstance(out, np.ndarray) and out.dtype in POISON:
                out.view(POISON[out.dtype].dtype)[...] = POISON[out.dtype]
            elif isinstance(out, torch.Tensor) and out.dtype in (torch.float32, torch.float64):
                integers = torch.int32 if out.dtype == torch.float32 else torch.int64
                out.view(integers).fill_(int(POISON[np.dtype(str(out.dtype)[6:])]))
            return out
        return made
    with ExitStack() as stack:
        for library in (np, torch):
            for name in ("empty", "empty_like"):
                stack.enter_context(mock.patch.object(library, name, poison(getattr(library, name))))
        yield


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
    return x.view(POISON[x.dtype].dtype) == POISON[x.dtype] if x.dtype in POISON else np.zeros(x.shape, bool)


def _place(mask):
    return [int(i) for i in np.argwhere(mask)[0]]


def difference(got, want, tolerance=1e-5):
    """"" if the elements that were written agree, else where the first difference is."""
    got, want = _array(got), _array(want)
    if got.shape != want.shape:
        return f"the shape is {list(got.shape)}, expected {list(want.shape)}"
    unwritten = _unwritten(np.ascontiguousarray(got))
    if got.size and unwritten.all():
        return "nothing was written"
    wrong = ~unwritten & ~(np.abs(got - want) <= tolerance * (1 + np.abs(want)))   # a NaN is wrong
    if not wrong.any():
        return ""
    place = _place(wrong)
    return (f"element {place} is {got[tuple(place)]:.4g}, expected {want[tuple(place)]:.4g} "
            f"({wrong.sum()} of {got.size} differ)")


def unwritten(got):
    """"" if every element was written, else which is the first that was not."""
    missing = _unwritten(np.ascontiguousarray(_array(got)))
    if not missing.any():
        return ""
    return f"element {_place(missing)} was never written ({missing.sum()} of {missing.size} were not)"
