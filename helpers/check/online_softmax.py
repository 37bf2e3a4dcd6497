"""Checks of softmax in pieces: safe softmax, the online sums, merging partial results.

Sums are compared in a form that does not depend on the number they were measured against, because any number is right
until it overflows: l as m + log(l), or shrunk to the true maximum. So each property fails for one reason.
"""
import copy

import numpy as np

from helpers.check.core import agrees, difference, first, near, over, properties, untouched

inf = np.inf


def _differs(what, got, want):
    """"" if got equals want to 12 digits, else a sentence about `what`."""
    if np.shape(got) or np.shape(want):
        return f"{what}: {found}" if (found := difference(np.asarray(got, np.float64), want, 1e-12)) else ""
    got = np.asarray(got).item()
    return "" if isinstance(got, float) and abs(got - want) <= 1e-12 else near(what, got, want, 1e-12)


_on = over("", lambda *inputs: copy.deepcopy(inputs))


# ---------------------------------------------------------------- safe softmax and its sums

SCORES = np.array([[1.0, 3.0, 5.0, 2.0, 0.5], [2.0, 2.0, 2.0, 2.0, 2.0], [-1.0, 4.0, 0.0, 0.25, 3.0]])


def _stats(s):
    m = s.max(axis=-1)
    p = np.exp(s - np.where(m == -inf, 0, m)[..., None])
    return m, p.sum(axis=-1), p


def _softmax(s):
    _, l, p = _stats(s)
    return p / np.where(l == 0, 1, l)[:, None]


def safe_softmax(fn):
    """fn(s) returns the softmax of every row of a float64 array [rows, n], zeros for a row of nothing but -inf."""
    right = agrees(_softmax, 1e-12)
    properties("safe_softmax", [
        ("each row is a softmax", _on(right, SCORES)),
        ("logits of 1e4, of either sign", _on(right, SCORES + 1e4, SCORES - 1e4)),
        ("scores far below 0", _on(right, SCORES - 1e5, SCORES - 1e30)),
        ("each row has a maximum of its own", _on(right, SCORES[:2] + np.array([[300], [-600]]))),
        ("a score of -inf has the weight 0", _on(right, np.where(SCORES > 2, SCORES, -inf)[::2])),
        ("a row without any score gives zeros", _on(right, np.full((2, 3), -inf))),
        ("a score of NaN is not hidden", _on(_hides, np.where(SCORES == 4, np.nan, SCORES))),
        ("the inputs are left as they were", _on(untouched, SCORES))], fn)


def _hides(fn, s):
    p = fn(s)
    return "" if np.isnan(p[2]).any() else f"the scores {s[2].tolist()} give the weights {p[2].round(3).tolist()}"


def online_softmax(fn):
    """fn(s) returns m and l, the largest of the scores s [n] and the sum of e^(s - m), in one pass."""
    falling, rising = np.array([5.0, 3.0, 4.0, 1.0, 0.5]), np.array([0.5, 1.0, 2.0, 4.0, 5.0])
    properties("online_softmax", [
        ("m is the largest score", lambda fn: _differs("scores [2, 5, 3]: m", fn(np.array([2.0, 5.0, 3.0]))[0], 5.0)),
        ("l is the sum of e^(s - m)", _on(_lse, falling)),
        ("the maximum changes on the way", _on(_lse, rising)),
        ("scores near 1e4", _on(_lse, falling + 1e4)),
        ("scores far below 0", _on(_lse, falling - 1e4, falling - 1e5, falling - 1e30)),
        ("scores of -inf count for nothing", _on(_lse, np.array([-inf, 3.0, -inf, 1.0]), np.full(3, -inf)))], fn)


def _lse(fn, s):
    m_true, l_true, _ = _stats(s)
    m, l = fn(s.copy())
    problem = _differs("m + log(l)", -inf if l == 0 else m + np.log(l), m_true + np.log(l_true) if l_true else -inf)
    return problem and f"scores {s.tolist()}: m = {m:g}, l = {l:g}, {problem}"


# ---------------------------------------------------------------- merging

def merge(fn):
    """fn(a, b) returns the (m, l, acc) of two pieces (m, l, acc) taken together: m and l numbers, acc [D] an array."""
    pieces = _piece(3.0, 1.5, (2.0, -1.0)), _piece(5.0, 1.25, (0.5, 4.0))
    properties("merge", [
        ("two pieces with the same maximum", _on(_merged, (3.0, 3.0, "l", "acc"))),
        ("the first piece has the larger maximum", _on(_merged, (5.0, 3.0, "l"))),
        ("the second piece has the larger maximum", _on(_merged, (3.0, 5.0, "l"))),
        ("the values are shrunk like l", _on(_merged, (5.0, 3.0, "acc"), (3.0, 5.0, "acc"))),
        ("maxima far apart give no inf and no NaN", _on(_merged, (1e4, -1e4), (-1e4, 1e4))),
        ("maxima far below 0", _on(_merged, (-1e30, -1e30, "l", "acc"))),
        ("an empty piece changes nothing", _on(_merged, (-inf, -1e4, "l", "acc"), (-1e4, -inf, "l", "acc"))),
        ("two empty pieces make an empty piece", _on(_merged, (-inf, -inf, "l", "acc"))),
        ("the inputs are left as they were", _on(untouched, pieces))], fn)


def _piece(m, l, acc):
    return (m, 0.0, np.zeros(2)) if m == -inf else (m, l, np.array(acc))


def _merged(fn, m_a, m_b, *look):
    """Merge pieces with these maxima, -inf for an empty one; look at "l", at "acc", and always for NaN and inf."""
    a, b = _piece(m_a, 1.5, (2.0, -1.0)), _piece(m_b, 1.25, (0.5, 4.0))
    top = max(m_a, m_b)
    alpha_a, alpha_b = (0.0 if m == -inf else np.exp(m - top) for m in (m_a, m_b))
    m, l, acc = fn(*copy.deepcopy((a, b)))
    shrink = 1.0 if top == -inf else np.exp(m - top)
    pairs = {"l": (shrink * l, alpha_a * a[1] + alpha_b * b[1]),
             "acc": (shrink * np.asarray(acc), alpha_a * a[2] + alpha_b * b[2])}
    finite = np.isfinite(l) and np.isfinite(acc).all() and not np.isnan(m)
    problem = first(_differs(name, *pairs[name]) for name in look) if finite else f"m = {m:g}, l = {l:g}, acc = {acc}"
    return problem and f"maxima {m_a:g} and {m_b:g}: {problem}"


OUTPUTS = np.array([[1.0, -2.0], [0.5, 3.0], [4.0, 0.0]])
UNEQUAL = np.log([1.0, 2.0, 5.0])                        # of pieces that weigh 1/8, 2/8 and 5/8


def combine(fn):
    """fn(o, lse) returns the output [D] and the lse over all keys, from those of pieces: [pieces, D], [pieces]."""
    far = [([x] * 3, dict(o=OUTPUTS.mean(axis=0))) for x in (1e4, -1e4)]
    far += [([x, x - 2e4, x - 2e4][::step], dict(lse=x)) for x in (1e4, -1e4) for step in (1, -1)]
    properties("combine", [
        ("the outputs are weighted by their lse", _on(_combined, (UNEQUAL, dict(o=OUTPUTS.T @ [0.125, 0.25, 0.625])))),
        ("the lse is that of all keys", _on(_combined, (UNEQUAL, dict(lse=np.log(8))))),
        ("lse near 1e4 and near -1e4", _on(_combined, *far)),
        ("lse far below 0", _on(_combined, ([-2e30, -1e30, -2e30], dict(o=OUTPUTS[1], lse=-1e30)))),
        ("a piece without keys counts for nothing",
         _on(_combined, ([2.0, 2.0, -inf], dict(o=OUTPUTS[:2].mean(axis=0))))),
        ("only pieces without keys", _on(_combined, ([-inf] * 3, dict(o=np.zeros(2), lse=-inf)))),
        ("the inputs are left as they were", _on(untouched, (OUTPUTS, UNEQUAL)))], fn)


def _combined(fn, lse, want):
    """The lse of the pieces, and what to expect of "o", of "lse", or of both."""
    lse = np.array(lse)
    got = dict(zip(("o", "lse"), fn(np.where(lse[:, None] == -inf, 0.0, OUTPUTS), lse)))
    problem = first(_differs(name, got[name], want[name]) for name in want)
    return problem and f"lse of the pieces {lse.tolist()}: {problem}"
