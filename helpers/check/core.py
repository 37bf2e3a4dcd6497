"""The machinery behind helpers/check.py: run named properties, poison fresh memory, say what differed and where."""
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch

from helpers import device

# NaNs with a payload of their own, so that memory nobody wrote is told apart from a NaN that was computed
POISON = {"float16": 0x7EAD, "bfloat16": 0x7FED, "float32": 0x7FC0BAD5, "float64": 0x7FF80000000BAD55}
GUARD = 2**15                                            # poisoned elements before and behind every tensor
INPUT = 15                                               # changes the payload around an input: a stray NaN read there and
                                                         # stored behind the output differs from what stood behind the output


def properties(title, cases, fn):
    """Run the (name, case) pairs of one operation on fn and print the report. A case returns "" or what went wrong.

    True if every property holds.
    """
    results = []
    with poisoned():
        for name, case in cases:
            try:
                results.append((name, case(fn)))
            except Exception as error:
                if _is_stub(error):
                    print(f"{title}: not attempted yet")
                    return False
                results.append((name, f"it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"))
    print(title)
    if len(results) > 1 and len({problem for _, problem in results}) == 1 and results[0][1]:
        results = [("every property", results[0][1])]
    for name, problem in results:
        print(f"  FAIL  {name}: {problem}" if problem else f"  ok    {name}")
    return not any(problem for _, problem in results)


@contextmanager
def poisoned():
    """Within this block, what nobody wrote is seen.

    Floating-point memory from torch's and NumPy's `empty`, `empty_like` and `new_empty` is all POISON. Tensors get a
    guard of poison before and behind them, so that a kernel that misses its mask spoils the guard and not the process.
    Triton's interpreter is strict, as helpers/interpreter.py says.
    """
    with ExitStack() as stack:
        for library, name in ((np, "empty"), (np, "empty_like"), (torch, "empty"), (torch, "empty_like"),
                              (torch.Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(library, name, _poison(getattr(library, name))))
        if device.INTERPRETED:
            from helpers.interpreter import strict
            stack.enter_context(strict())
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
    """A poisoned tensor with the shape and strides of `like`, in the middle of a stretch of memory of the same poison."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(like.shape, like.stride())) if like.numel() else 0
    bits = POISON[_name(like.dtype)] ^ change
    memory = torch.full([size + 2 * GUARD], bits, dtype=_integers(like), device=like.device).view(like.dtype)
    return memory.as_strided(like.shape, like.stride(), GUARD)


def guarded(x):
    """A copy of a tensor, to be an input, with a guard of poison before and behind it."""
    return _guarded_empty(x, INPUT).copy_(x)


def everywhere(problem, where, *cases):
    """A case that calls fn with each of the inputs, and looks for the problem in the output and in the tensors among them.

    problem is `unwritten` or `outside`, where(inputs) says which inputs they were.
    """
    def case(fn):
        for inputs in cases:
            tensors = [x for x in (fn(*inputs), *inputs) if isinstance(x, torch.Tensor)]
            found = next(filter(None, map(problem, tensors)), "")
            if found:
                return f"{where(inputs)}: {found}"
        return ""
    return case


def outside(x):
    """"" if the guard around a tensor is untouched, else where the first stray element lies."""
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


def _is_stub(error):
    while error is not None:                             # Triton's interpreter wraps what a kernel raises
        if isinstance(error, NotImplementedError):
            return True
        error = error.__cause__
    return False


def _array(x):
    x = x.detach().cpu() if isinstance(x, torch.Tensor) else np.asarray(x)
    return np.asarray(x.float() if x.dtype == torch.bfloat16 else x)     # NumPy has no bfloat16


def _unwritten(x):
    """Boolean array: which elements of a tensor or an array still hold the poison."""
    x = x.detach().cpu() if isinstance(x, torch.Tensor) else np.asarray(x)
    if _name(x.dtype) not in POISON:
        return np.zeros(x.shape, bool)
    return np.asarray(x.view(_integers(x)) == POISON[_name(x.dtype)])


def _place(mask):
    return [int(i) for i in np.argwhere(mask)[0]]


def difference(got, want, tolerance=1e-5):
    """"" if the elements that were written agree, else where the first difference is."""
    missing, got, want = _unwritten(got), _array(got), _array(want)
    if got.shape != want.shape:
        return f"the shape is {list(got.shape)}, expected {list(want.shape)}"
    if got.size and missing.all():
        return "every element is NaN: not written, or computed from NaN"     # arithmetic keeps the payload
    with np.errstate(invalid="ignore"):
        wrong = ~missing & ~(np.abs(got - want) <= tolerance * (1 + np.abs(want)))     # a NaN is wrong
    if not wrong.any():
        return ""
    place = _place(wrong)
    return (f"element {place} is {got[tuple(place)]:.4g}, expected {want[tuple(place)]:.4g} "
            f"({wrong.sum()} of {got.size} differ)")


def unwritten(got):
    """"" if every element was written, else which is the first that was not."""
    missing = _unwritten(got)
    if not missing.any():
        return ""
    return f"element {_place(missing)} was never written ({missing.sum()} of {missing.size} were not)"
