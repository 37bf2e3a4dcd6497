"""What a check sees of the kernels that a function launches in Triton's interpreter: what is read and what is written.

On a GPU nothing is seen, and nothing is wrong.
"""
import numpy as np

from helpers.check.core import first, parameters
from helpers.device import INTERPRETED


def _accesses(fn, *inputs):
    """What fn returns, and for "load", "store" and "atomic" all accesses: (launch, number of the program), addresses."""
    from helpers.interpreter import looking
    seen = dict(load=[], store=[], atomic=[])
    with looking(lambda kernel, number, operation, addresses, masked, size: seen[operation].append(
            ((kernel, len(kernel.programs)), addresses))):
        outputs = fn(*inputs)
    return outputs, seen


def _of(x, accesses):
    """Which elements of a contiguous tensor are among the addresses."""
    addresses = np.concatenate([np.empty(0, np.uint64), *(addresses for _, addresses in accesses)])
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
        if seen["atomic"]:
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


def whole_sectors(fn, x):
    """A problem(fn, x): loads of x fetch more sectors of 32 bytes than x fills, with a quarter to spare."""
    if not INTERPRETED:
        return ""
    _, seen = _accesses(fn, x)
    fetched = 32 * sum(np.unique(_of(x, [each]) * x.element_size() // 32).size for each in seen["load"])
    if not fetched:
        return "no kernel reads the input where it lies"
    return "" if fetched <= 1.25 * x.nbytes else f"{fetched:,} bytes in whole sectors are fetched of {x.nbytes:,}"


def shared_out(fn, x, most):
    """A problem(fn, x, most): some program loads more than `most` elements of x."""
    if not INTERPRETED:
        return ""
    _, seen = _accesses(lambda *_: fn(x))
    loads = {}
    for program, addresses in seen["load"]:
        loads[program] = loads.get(program, 0) + _of(x, [(program, addresses)]).size
    if max(loads.values(), default=0) <= most:
        return ""
    return f"of {len(loads)} in all, a program reads {max(loads.values()):,} of {x.numel():,} elements"
