"""What a check sees of the kernels that a function launches in Triton's interpreter: who reads and who writes what.

On a GPU nothing is seen, and nothing is wrong.
"""
import numpy as np

from helpers.check.core import first, parameters
from helpers.device import INTERPRETED


def _accesses(fn, *inputs):
    """What fn returns, and for "load", "store" and "atomic" the (addresses, programs) of all accesses."""
    from triton.runtime.interpreter import interpreter_builder

    from helpers.interpreter import looking
    seen = {operation: [np.empty((2, 0), np.int64)] for operation in ("load", "store", "atomic")}

    def look(kernel, number, operation, addresses, used, size):
        x, y, z = interpreter_builder.grid_idx
        used = addresses[used].astype(np.int64)
        seen[operation].append(np.stack([used, np.full_like(used, (x << 40) + (y << 20) + z)]))

    with looking(look):
        outputs = fn(*inputs)
    return outputs, {operation: np.concatenate(parts, axis=1) for operation, parts in seen.items()}


def _of(x, accesses):
    """(elements of a contiguous tensor, programs) of the accesses to it."""
    places = (accesses[0] - x.data_ptr()) // x.element_size()
    inside = (places >= 0) & (places < x.numel())
    return places[inside], accesses[1][inside]


def one_owner(names):
    """A problem(fn, *inputs): an element of these tensors that fn returns was not stored by one program."""
    def problem(fn, *inputs):
        if not INTERPRETED:
            return ""
        outputs, seen = _accesses(fn, *inputs)
        if seen["atomic"].size:
            return "an atomic operation, where a number with one owner needs none"
        return first(_owners(name, x, seen["store"]) for name, x in zip(names.split(), outputs))
    return problem


def _owners(name, x, stores):
    places, programs = _of(x, stores)
    low, high = np.full(x.numel(), 2**62), np.full(x.numel(), -1)
    np.minimum.at(low, places, programs)
    np.maximum.at(high, places, programs)
    if (high < 0).any():
        return f"{name} is not what a kernel stored: element {np.argmax(high < 0)} of {x.numel()} comes from elsewhere"
    return f"two programs store to element {np.argmax(low < high)} of {name}" if (low < high).any() else ""


def own_work(fn, *inputs):
    """A problem(fn, *inputs): the kernels do not read every input where it is, or do not store what fn returns."""
    if not INTERPRETED:
        return ""
    out, seen = _accesses(fn, *inputs)
    for name, x in zip(parameters(fn), inputs):
        if not _of(x, seen["load"])[0].size:
            return f"no kernel reads {name} where it lies"
    return "" if _of(out, seen["store"])[0].size else "what is returned was not stored by a kernel"
