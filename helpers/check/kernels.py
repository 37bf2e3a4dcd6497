"""What a check sees of the kernels that a function launches in Triton's interpreter: what is read and what is written.

On a GPU nothing is seen, and nothing is wrong.
"""
import numpy as np

from helpers.check.core import first, parameters
from helpers.device import INTERPRETED


def _accesses(fn, *inputs):
    """What fn returns, and for "load", "store" and "atomic" the addresses of all accesses."""
    from helpers.interpreter import looking
    seen = {operation: [np.empty(0, np.uint64)] for operation in ("load", "store", "atomic")}
    with looking(lambda kernel, number, operation, addresses, masked, size: seen[operation].append(addresses)):
        outputs = fn(*inputs)
    return outputs, {operation: np.concatenate(parts) for operation, parts in seen.items()}


def _of(x, addresses):
    """Which elements of a contiguous tensor are among the addresses."""
    places = (addresses.astype(np.int64) - x.data_ptr()) // x.element_size()
    return places[(places >= 0) & (places < x.numel())]


def one_owner(names):
    """A problem(fn, *inputs): an element of these tensors that fn returns was not stored by one program.

    Where two programs store it, or load, add and store, the interpreter raises.
    """
    def problem(fn, *inputs):
        if not INTERPRETED:
            return ""
        outputs, seen = _accesses(fn, *inputs)
        if seen["atomic"].size:
            return "an atomic operation, where a number with one owner needs none"
        return first(_missed(name, x, seen["store"]) for name, x in zip(names.split(), outputs))
    return problem


def _missed(name, x, stores):
    missed = np.ones(x.numel(), bool)
    missed[_of(x, stores)] = False
    if not missed.any():
        return ""
    return f"{name} is not what a kernel stored: element {missed.argmax()} of {x.numel()} comes from elsewhere"


def read_once(names):
    """A problem(fn, *inputs): an element of one of these inputs is loaded more than once."""
    def problem(fn, *inputs):
        if not INTERPRETED:
            return ""
        _, seen = _accesses(fn, *inputs)
        for name, x in zip(parameters(fn), inputs):
            times = np.bincount(_of(x, seen["load"]), minlength=x.numel()) if name in names.split() else np.ones(1)
            if times.max() > 1:
                return f"element {times.argmax()} of {name} is read {times.max()} times"
        return ""
    return problem


def own_work(fn, *inputs):
    """A problem(fn, *inputs): the kernels do not read every input where it is, or do not store what fn returns."""
    if not INTERPRETED:
        return ""
    out, seen = _accesses(fn, *inputs)
    for name, x in zip(parameters(fn), inputs):
        if not _of(x, seen["load"]).size:
            return f"no kernel reads {name} where it lies"
    return "" if _of(out, seen["store"]).size else "what is returned was not stored by a kernel"
