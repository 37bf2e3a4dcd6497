"""The checks for softmax in pieces, part of helpers/check.py: safe softmax, the online sums, merging partial results.

Sums are compared in a form that does not depend on the number they were measured against, because any number is right
until it overflows: l as m + log(l), or shrunk to the true maximum. So each property fails for one reason.
"""
import copy

import numpy as np

from helpers.check.core import difference, properties

quiet = np.errstate(all="ignore")                        # a wrong answer is reported, not warned about


def _differs(what, got, want):
    """"" if got equals want to 12 digits, else a sentence about `what`."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape or want.shape:
        problem = difference(got, want, tolerance=1e-12)
        return f"{what}: {problem}" if problem else ""
    same = got == want or abs(got - want) <= 1e-12 * (1 + abs(want))
    return "" if same else f"{what} is {got:.6g}, expected {want:.6g}"


def _first(problems):
    return next((problem for problem in problems if problem), "")


def _each(problem):
    """Make problem(fn, x), "" or a sentence, into a case that tries several x and tells of the first problem."""
    return lambda *inputs: lambda fn: _first(problem(fn, x) for x in inputs)


def _arrays(x):
    return [np.asarray(x)] if not isinstance(x, tuple) else [array for part in x for array in _arrays(part)]


def _untouched(*inputs):
    def case(fn):
        given = copy.deepcopy(inputs)
        fn(*given)
        return _first("an argument was changed" for x, y in zip(_arrays(given), _arrays(inputs)) if not np.array_equal(x, y))
    return case


# ---------------------------------------------------------------- safe softmax and its sums

def _stats(s):
    m = s.max(axis=-1)
    p = np.exp(s - np.where(m == -np.inf, 0, m)[..., None])
    return m, p.sum(axis=-1), p


@_each
def _softmax_of(fn, s):
    _, l, p = _stats(s)
    return _differs("p", fn(s.copy()), p / np.where(l == 0, 1, l)[:, None])


SCORES = np.array([[1.0, 3.0, 5.0, 2.0, 0.5], [2.0, 2.0, 2.0, 2.0, 2.0], [-1.0, 4.0, 0.0, 0.25, 3.0]])
SAFE_SOFTMAX = [("each row is a softmax", _softmax_of(SCORES)),
                ("logits of 1e4, of either sign", _softmax_of(SCORES + 1e4, SCORES - 1e4)),
                ("each row has a maximum of its own", _softmax_of(SCORES[:2] + np.array([[300], [-600]]))),
                ("a score of -inf has the weight 0", _softmax_of(np.where(SCORES > 2, SCORES, -np.inf)[::2])),
                ("a row without any score gives zeros", _softmax_of(np.full((2, 3), -np.inf))),
                ("the inputs are left as they were", _untouched(SCORES))]


@quiet
def safe_softmax(fn):
    """fn(s) returns the softmax of every row of a float64 array [rows, n], zeros for a row of nothing but -inf."""
    properties("safe_softmax", SAFE_SOFTMAX, fn)


@_each
def _lse_of(fn, s):
    m_true, l_true, _ = _stats(s)
    m, l = fn(s.copy())
    problem = _differs("m + log(l)", -np.inf if l == 0 else m + np.log(l), m_true + np.log(l_true) if l_true else -np.inf)
    return problem and f"scores {s.tolist()}: m = {m:g}, l = {l:g}, {problem}"


FALLING, RISING = np.array([5.0, 3.0, 4.0, 1.0, 0.5]), np.array([0.5, 1.0, 2.0, 4.0, 5.0])
MASKED = np.array([-np.inf, 3.0, -np.inf, 1.0])
ONLINE = [("m is the largest score", lambda fn: _differs("scores [2, 5, 3]: m", fn(np.array([2.0, 5.0, 3.0]))[0], 5.0)),
          ("l is the sum of e^(s - m)", _lse_of(FALLING)),
          ("the maximum changes on the way", _lse_of(RISING)),
          ("scores near 1e4", _lse_of(FALLING + 1e4)),
          ("scores far below 0", _lse_of(FALLING - 1e4, FALLING - 1e5, FALLING - 1e30)),
          ("scores of -inf count for nothing", _lse_of(MASKED, np.full(3, -np.inf)))]


@quiet
def online_softmax(fn):
    """fn(s) returns m and l, the largest of the scores s [n] and the sum of e^(s - m), in one pass."""
    properties("online_softmax", ONLINE, fn)


# ---------------------------------------------------------------- merging

def _piece(m, l, acc):
    return (m, 0.0, np.zeros(2)) if m == -np.inf else (m, l, np.array(acc))


@_each
def _merged(fn, case):
    """Merge two pieces with the maxima case[:2], -inf for an empty piece; look at "l", at "acc", and always for NaN and inf."""
    m_a, m_b, *look = case
    a, b = _piece(m_a, 1.5, (2.0, -1.0)), _piece(m_b, 1.25, (0.5, 4.0))
    top = max(m_a, m_b)
    alpha_a, alpha_b = (0.0 if m == -np.inf else np.exp(m - top) for m in (m_a, m_b))
    m, l, acc = fn(*copy.deepcopy((a, b)))
    shrink = 1.0 if top == -np.inf else np.exp(m - top)
    pairs = {"l": (shrink * l, alpha_a * a[1] + alpha_b * b[1]),
             "acc": (shrink * np.asarray(acc), alpha_a * a[2] + alpha_b * b[2])}
    finite = np.isfinite(l) and np.isfinite(acc).all() and not np.isnan(m)
    problem = _first(_differs(name, *pairs[name]) for name in look) if finite else f"m = {m:g}, l = {l:g}, acc = {acc}"
    return problem and f"maxima {m_a:g} and {m_b:g}: {problem}"


MERGE = [("two pieces with the same maximum", _merged((3.0, 3.0, "l", "acc"))),
         ("the first piece has the larger maximum", _merged((5.0, 3.0, "l"))),
         ("the second piece has the larger maximum", _merged((3.0, 5.0, "l"))),
         ("the values are shrunk like l", _merged((5.0, 3.0, "acc"), (3.0, 5.0, "acc"))),
         ("maxima far apart give no inf and no NaN", _merged((1e4, -1e4), (-1e4, 1e4))),
         ("an empty piece changes nothing", _merged((-np.inf, -1e4, "l", "acc"), (-1e4, -np.inf, "l", "acc"))),
         ("two empty pieces make an empty piece", _merged((-np.inf, -np.inf, "l", "acc"))),
         ("the inputs are left as they were", _untouched(_piece(3.0, 1.5, (2.0, -1.0)), _piece(5.0, 1.25, (0.5, 4.0))))]


@quiet
def merge(fn):
    """fn(a, b) returns the (m, l, acc) of two pieces (m, l, acc) taken together: m and l are numbers, acc [D] an array."""
    properties("merge", MERGE, fn)


@_each
def _combined(fn, case):
    """The lse of the pieces, and what to expect of "o", of "lse", or of both."""
    lse, want = np.array(case[0]), case[1]
    got = dict(zip(("o", "lse"), fn(np.where(lse[:, None] == -np.inf, 0.0, OUTPUTS), lse)))
    problem = _first(_differs(name, got[name], want[name]) for name in want)
    return problem and f"lse of the pieces {case[0]}: {problem}"


OUTPUTS = np.array([[1.0, -2.0], [0.5, 3.0], [4.0, 0.0]])
UNEQUAL = np.log([1.0, 2.0, 5.0])                        # of pieces that weigh 1/8, 2/8 and 5/8
LARGE = [case for x in (1e4, -1e4) for case in (([x] * 3, dict(o=OUTPUTS.mean(axis=0))), ([x, x - 2e4, x - 2e4], dict(lse=x)))]
COMBINE = [("the outputs are weighted by their lse", _combined((UNEQUAL, dict(o=OUTPUTS.T @ [0.125, 0.25, 0.625])))),
           ("the lse is that of all keys", _combined((UNEQUAL, dict(lse=np.log(8))))),
           ("lse near 1e4 and near -1e4", _combined(*LARGE)),
           ("a piece without keys counts for nothing", _combined(([2.0, 2.0, -np.inf], dict(o=OUTPUTS[:2].mean(axis=0))))),
           ("only pieces without keys", _combined(([-np.inf] * 3, dict(o=np.zeros(2), lse=-np.inf)))),
           ("the inputs are left as they were", _untouched(OUTPUTS, UNEQUAL))]


@quiet
def combine(fn):
    """fn(o, lse) returns the output [D] and the lse over all keys, from those of disjoint pieces: [pieces, D], [pieces]."""
    properties("combine", COMBINE, fn)
