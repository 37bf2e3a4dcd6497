"""What the checks are made of: named properties, what is wrong with a result, and cases that look at several inputs."""
import copy
import inspect
import warnings

import numpy as np
import torch

from helpers.check import report
from helpers.check.memory import array, guarded, missing, outside, place, poisoned, tensor, unwritten  # noqa: F401


def properties(title, cases, fn):
    """Run the (name, case) pairs of one operation on fn and print the report. A case returns "" or what went wrong.

    True if every property holds.
    """
    results = {}
    with poisoned(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's on inf and NaN, which are the report's to tell
        for name, case in cases:
            try:
                results[name] = case(fn)
            except Exception as error:
                if report.is_stub(error):
                    print(f"{title}: not attempted yet")
                    return False
                results[name] = report.raised(error)
    return report.show(title, results)


# ---------------------------------------------------------------- what is wrong: "" or a sentence

def difference(got, want, tolerance=1e-5):
    """"" if the elements that were written agree, else where the first difference is."""
    unseen, got, want = missing(got), array(got), array(want)
    if got.shape != want.shape:
        return f"the shape is {list(got.shape)}, expected {list(want.shape)}"
    if got.size and unseen.all():
        return "every element is NaN: not written, or computed from NaN"     # arithmetic keeps the payload
    with np.errstate(all="ignore"):
        close = np.abs(got - want) <= tolerance * (1 + np.abs(want))
    wrong = ~(unseen | close | (got == want) | (np.isnan(got) & np.isnan(want)))
    if not wrong.any():
        return ""
    at = place(wrong)
    return "element {} is {}, expected {} ({} of {} differ)".format(
        at, *apart(got[tuple(at)], want[tuple(at)]), wrong.sum(), got.size)


def apart(got, want):
    """Two numbers in as few digits, from 4 up, as tell them apart."""
    return next((f"{got:.{n}g}", f"{want:.{n}g}") for n in range(4, 18) if n == 17 or f"{got:.{n}g}" != f"{want:.{n}g}")


def differences(names, got, want, tolerance=1e-5, look=None):
    """`difference` for a function that returns several arrays, of these names; of those in `look` only, if it is given."""
    names = names.split()
    if not isinstance(got, (tuple, list)) or len(got) != len(names):
        return f"it returned {type(got).__name__}, expected {' and '.join(names)}"
    found = [(name, difference(x, y, tolerance)) for name, x, y in zip(names, got, want) if look is None or name in look]
    return first(problem and f"{name}: {problem}" for name, problem in found)


def near(what, got, want, tolerance):
    """"" if a number is as expected, else a sentence about `what`."""
    if not isinstance(got, (int, float, np.number)) or isinstance(got, bool):
        return f"{what} is {got!r}, expected a number"
    if got == want or abs(got - want) <= tolerance * abs(want):
        return ""
    return "{} is {}, expected {}".format(what, *apart(got, want))


def first(problems):
    """The first that is not ""."""
    return next(filter(None, problems), "")


# ---------------------------------------------------------------- cases

def over(where, make=lambda *key: key):
    """Makes cases: over(where, make)(problem, *keys) asks problem(fn, *make(*key)) for each key, up to the first answer
    that is not "". `where` is a format that says, of the parts of a key, on which inputs that was."""
    def of(problem, *keys):
        def case(fn):
            for key in keys:
                key = key if isinstance(key, tuple) else (key,)
                if found := problem(fn, *make(*key)):
                    return f"{where.format(*key)}: {found}" if where else found
            return ""
        return case
    return of


def agrees(expected, tolerance=1e-5):
    """A problem(fn, *inputs): fn returns an array that differs from expected(*inputs)."""
    def problem(fn, *inputs):
        want = expected(*inputs)                         # before fn, which may spoil its inputs
        return difference(fn(*inputs), want, tolerance)
    return problem


def everywhere(look):
    """A problem(fn, *inputs): look(x), `unwritten` or `outside`, is not "" for what fn returns or for an input."""
    def problem(fn, *inputs):
        got = fn(*inputs)
        outputs = got if isinstance(got, tuple) else [got]
        return first(look(x) for x in (*outputs, *inputs) if isinstance(x, (torch.Tensor, np.ndarray)))
    return problem


def untouched(fn, *inputs):
    """A problem(fn, *inputs): fn changes one of its inputs."""
    before = copy.deepcopy(inputs)
    fn(*inputs)
    same = [all(np.array_equal(array(a), array(b)) for a, b in zip(_flat(x), _flat(y))) for x, y in zip(inputs, before)]
    names = [*parameters(fn), *(f"argument {i}" for i in range(len(parameters(fn)) + 1, len(inputs) + 1))]
    return "" if all(same) else f"{names[same.index(False)]} was changed"


def parameters(fn):
    """The names of what a function takes in this order; none if Python does not know them."""
    try:
        return [name for name, p in inspect.signature(fn).parameters.items() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    except (TypeError, ValueError):                      # no function at all, or one that is not written in Python
        return []


def _flat(x):
    return [part for item in x for part in _flat(item)] if isinstance(x, (tuple, list)) else [x]


def equal(name, expected, *keys):
    """A case: fn returns exactly what expected does, for each tuple of arguments."""
    def problem(fn, *arguments):
        got, want = fn(*arguments), expected(*arguments)
        alike = (tuple(got) if isinstance(got, list) else got) == want
        return "" if alike else f"{name}({', '.join(map(str, arguments))}) is {got}, expected {want}"
    return over("")(problem, *keys)
