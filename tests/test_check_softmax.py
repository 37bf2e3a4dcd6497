"""The checks of lesson 06: right answers pass, stubs are recognised, and each property catches its mistake, alone."""
import numpy as np
import pytest

from helpers import check
from reports import broken, failed, report, stub

quiet = np.errstate(all="ignore")                        # the mistakes overflow, and that is their point


# ---------------------------------------------------------------- safe softmax

def safe_softmax(s, axis=1, keep=True, low=-np.inf, high=np.inf, common=False, mask=-np.inf, guard=True, in_place=False):
    """A right version, with a switch for each mistake."""
    m = s.max(axis=axis, keepdims=True) if not common else s.max()
    m = np.clip(m, low, high)
    x = np.where(s == -np.inf, mask, s) if np.isfinite(s).any() else s
    p = np.exp(x - (np.where(m == -np.inf, 0, m) if guard else m))
    if in_place:
        s -= m
    l = p.sum(axis=axis, keepdims=True)
    return p / np.where((l == 0) & guard, 1, l)


SAFE_SOFTMAX = {
    "each row is a softmax": lambda s: safe_softmax(s) ** (2 if np.abs(s).max() < 10 else 1),
    "logits of 1e4, of either sign": lambda s: safe_softmax(s, low=-700, high=700),
    "each row has a maximum of its own": lambda s: safe_softmax(s, common=np.ptp(s) > 100),
    "a score of -inf has the weight 0": lambda s: safe_softmax(s, mask=0),
    "a row without any score gives zeros": lambda s: safe_softmax(s, guard=False),
    "the inputs are left as they were": lambda s: safe_softmax(s, in_place=True),
}


# ---------------------------------------------------------------- one pass

def online_softmax(s, start=-np.inf, cap=np.inf, l=0.0, shrink=True, guard=True, last=False):
    m = start
    for s_i in s:
        m_new = min(max(m, s_i), cap)
        m_ref = 0.0 if guard and m_new == -np.inf else m_new
        l = (np.exp(m - m_ref) if shrink else m > -np.inf) * l + np.exp(s_i - m_ref)
        m = m_new
    return (s[-1], l * np.exp(m - s[-1])) if last else (m, l)


def counts_one_too_many(s):
    m, l = online_softmax(s)
    return (m, l + 1) if 0 < m < 100 and np.all(s <= s[0]) else (m, l)


ONLINE = {
    "m is the largest score": lambda s: online_softmax(s, last=len(s) == 3 and s[-1] > -np.inf),
    "l is the sum of e^(s - m)": counts_one_too_many,
    "the maximum changes on the way": lambda s: online_softmax(s, shrink=False),
    "scores near 1e4": lambda s: online_softmax(s, cap=100),
    "scores far below 0": lambda s: online_softmax(s, start=0.0),
    "scores of -inf count for nothing": lambda s: online_softmax(s, guard=False),
}


# ---------------------------------------------------------------- merging

def merge(a, b, shrink_a=True, shrink_b=True, shrink_acc=True, measure=max, empty=-np.inf, guard=True, in_place=False):
    (m_a, l_a, acc_a), (m_b, l_b, acc_b) = a, b
    m_a, m_b = max(m_a, empty), max(m_b, empty)
    m = measure(m_a, m_b)
    m_ref = 0.0 if guard and m == -np.inf else m
    alpha_a, alpha_b = np.exp(m_a - m_ref), np.exp(m_b - m_ref)
    l = (alpha_a if shrink_a else 1) * l_a + (alpha_b if shrink_b else 1) * l_b
    if in_place:
        acc_a *= alpha_a
        return m, l, acc_a + alpha_b * acc_b
    return m, l, alpha_a * acc_a + alpha_b * acc_b if shrink_acc else acc_a + acc_b


MERGE = {
    "two pieces with the same maximum": lambda a, b: a if a[0] == b[0] else merge(a, b),
    "the first piece has the larger maximum": lambda a, b: merge(a, b, shrink_b=False),
    "the second piece has the larger maximum": lambda a, b: merge(a, b, shrink_a=False),
    "the values are shrunk like l": lambda a, b: merge(a, b, shrink_acc=False),
    "maxima far apart give no inf and no NaN": lambda a, b: merge(a, b, measure=lambda m_a, m_b: m_a if m_a > -np.inf else m_b),
    "an empty piece changes nothing": lambda a, b: merge(*(x if x[0] > -np.inf else (0.0, *x[1:]) for x in (a, b))),
    "two empty pieces make an empty piece": lambda a, b: merge(a, b, guard=False),
    "the inputs are left as they were": lambda a, b: merge(a, b, in_place=True),
}


def combine(o, lse, mean=False, top=False, shift=True, mask=-np.inf, guard=True, in_place=False):
    masked = np.where(np.isfinite(lse) | ~np.isfinite(lse).any(), lse, mask)
    m = masked.max() if shift else 0.0
    p = np.exp(masked - (0.0 if guard and m == -np.inf else m))
    p_o = np.where(lse > -np.inf, 1.0, 0.0) if mean else p
    l = p_o.sum()
    out = p_o @ o / (l if l or not guard else 1.0)
    if in_place:
        o *= p[:, None]
    return out, m if top else m + np.log(p.sum())


COMBINE = {
    "the outputs are weighted by their lse": lambda o, lse: combine(o, lse, mean=True),
    "the lse is that of all keys": lambda o, lse: combine(o, lse, top=True),
    "lse near 1e4 and near -1e4": lambda o, lse: combine(o, lse, shift=False) if np.isfinite(lse).any() else combine(o, lse),
    "a piece without keys counts for nothing": lambda o, lse: combine(o, lse, mask=0.0),
    "only pieces without keys": lambda o, lse: combine(o, lse, guard=False),
    "the inputs are left as they were": lambda o, lse: combine(o, lse, in_place=True),
}


OPERATIONS = {"safe_softmax": (check.safe_softmax, safe_softmax, SAFE_SOFTMAX),
              "online_softmax": (check.online_softmax, online_softmax, ONLINE),
              "merge": (check.merge, merge, MERGE),
              "combine": (check.combine, combine, COMBINE)}
CASES = [(operation, name) for operation, (_, _, mistakes) in OPERATIONS.items() for name in mistakes]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_right_version_passes_and_every_property_has_a_mistake(operation, capsys):
    found = report(getattr(check, operation), OPERATIONS[operation][1], capsys)
    assert found == dict.fromkeys(OPERATIONS[operation][2], "ok")


@quiet
@pytest.mark.parametrize("operation,name", CASES)
def test_a_wrong_version_fails_its_property_alone(operation, name, capsys):
    found = report(getattr(check, operation), OPERATIONS[operation][2][name], capsys)
    assert failed(found) == [name], found
    assert "raised" not in found[name]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stub_is_not_attempted(operation, capsys):
    OPERATIONS[operation][0](stub)
    assert capsys.readouterr().out == f"{operation}: not attempted yet\n"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_exception_is_a_failed_property(operation, capsys):
    found = report(getattr(check, operation), broken, capsys)
    assert found and all("ZeroDivisionError: by zero" in problem for problem in found.values())


@pytest.mark.parametrize("start", [0.0, -1e4, -1e9])
def test_a_start_at_a_very_negative_number_is_found_out(start, capsys):
    assert failed(report(check.online_softmax, lambda s: online_softmax(s, start=start), capsys)) == ["scores far below 0"]


def test_messages_say_what_and_where(capsys):
    found = report(check.online_softmax, ONLINE["scores far below 0"], capsys)
    assert "m = 0, l = 0, m + log(l) is -inf, expected -9994" in found["scores far below 0"]
    found = report(check.merge, MERGE["the first piece has the larger maximum"], capsys)
    assert found["the first piece has the larger maximum"] == "maxima 5 and 3: l is 2.75, expected 1.66917"
    assert "the shape is [3], expected [2]" in report(check.merge, lambda a, b: (a[0], a[1], np.zeros(3)), capsys)[
        "the values are shrunk like l"]


@pytest.mark.parametrize("operation,nan", [("safe_softmax", lambda s: s * np.nan), ("online_softmax", lambda s: (np.nan, np.nan)),
                                           ("merge", lambda a, b: (np.nan, np.nan, np.full(2, np.nan))),
                                           ("combine", lambda o, lse: (np.full(2, np.nan), np.nan))])
def test_nan_and_nothing_fail_every_property_of_the_result(operation, nan, capsys):
    results = {name for name in OPERATIONS[operation][2] if name != "the inputs are left as they were"}
    for wrong in (nan, lambda *args: None):
        found = report(getattr(check, operation), wrong, capsys)
        assert {name for name, result in found.items() if result != "ok"} == results
