"""Right and wrong versions of softmax in pieces: safe softmax, one pass, merging."""
import numpy as np

from helpers import check
from mistakes.ways import in_place, mistaken

inf = np.inf


def safe_softmax(s, axis=1, low=-inf, high=inf, common=False, mask=-inf, guard=True, eps=0.0):
    m = np.clip(s.max() if common else s.max(axis=axis, keepdims=True), low, high)
    p = np.exp(np.where(s == -inf, mask, s) - (np.where(m == -inf, 0, m) if guard else m))
    l = p.sum(axis=axis, keepdims=True)
    return p / (np.where((l == 0) & guard, 1, l) + eps)


safe = mistaken(safe_softmax)


def online_softmax(s, start=-inf, cap=inf, shrink=True, guard=True, last=False, alpha=lambda x: x):
    m, l = start, 0.0
    for s_i in s:
        m_new = min(s_i if last else max(m, s_i), cap)
        m_ref = 0.0 if guard and m_new == -inf else m_new
        l = (alpha(np.exp(m - m_ref)) if shrink else 1) * l + np.exp(s_i - m_ref)
        m = m_new
    return m, l


online = mistaken(online_softmax)


def merge(a, b, shrink_a=True, shrink_b=True, shrink_acc=True, measure=max, guard=True, low=-inf,
          alpha=lambda x: x):
    (m_a, l_a, acc_a), (m_b, l_b, acc_b) = a, b
    m = measure(m_a, m_b)
    m_ref = max(0.0 if guard and m == -inf else m, low)
    alpha_a, alpha_b = alpha(np.exp(m_a - m_ref)), alpha(np.exp(m_b - m_ref))
    l = (alpha_a if shrink_a else 1) * l_a + (alpha_b if shrink_b else 1) * l_b
    return m, l, alpha_a * acc_a + alpha_b * acc_b if shrink_acc else acc_a + acc_b


merging = mistaken(merge)


def merge_in_place(a, b):
    m, l, acc = merge(a, b)
    a[2][:] = acc
    return m, l, acc


def combine(o, lse, mean=False, top=False, shift=max, mask=-inf, guard=True, low=-inf):
    masked = np.where(np.isfinite(lse) | ~np.isfinite(lse).any(), lse, mask)
    m = max(shift(masked), low)
    p = np.exp(masked - (0.0 if guard and m == -inf else m))
    p_o = np.where(lse > -inf, 1.0, 0.0) if mean else p
    l = p_o.sum()
    return p_o @ o / (l if l or not guard else 1.0), m if top else m + np.log(p.sum())


def by_lse(o, lse):
    top = np.logaddexp.reduce(lse)
    return np.exp(lse - (0.0 if top == -inf else top)) @ o, top


combining = mistaken(combine)


SQUARED, ROOT, ONE_OR_NONE = (lambda alpha: alpha**2), (lambda alpha: alpha**0.5), (lambda alpha: 1.0 * (alpha == 1))
NAN = np.full(2, np.nan)
CASES = {
    check.safe_softmax: dict(right=[safe_softmax], wrong={
        "each row is a softmax": [lambda s: safe_softmax(s)**2, safe(axis=0), safe(eps=1e-9)],
        "logits of 1e4, of either sign": [safe(low=-700, high=700), safe(low=0.0), safe(high=0.0)],
        "scores far below 0": [safe(low=low) for low in (-1e4, -1e9, -1e29)],
        "each row has a maximum of its own": safe(common=True),
        "a score of -inf has the weight 0": [safe(mask=0), safe(mask=-1.0)],
        "a row without any score gives zeros": safe(guard=False),
        "a score of NaN is not hidden": [lambda s: np.nan_to_num(safe_softmax(s)),
                                         lambda s: np.nan_to_num(safe_softmax(s, guard=False))],
        "the inputs are left as they were": in_place(safe_softmax)}, also=[lambda s: s * np.nan, lambda s: None]),
    check.online_softmax: dict(right=[online_softmax], wrong={
        "m is the largest score": online(last=True),
        "l is the sum of e^(s - m)": [lambda s: (max(s), online_softmax(s)[1] + 1), lambda s: (np.nan, np.nan)],
        "the maximum changes on the way": [online(shrink=False),
                                           *(online(alpha=alpha) for alpha in (SQUARED, ROOT, ONE_OR_NONE))],
        "scores near 1e4": online(cap=100),
        "scores far below 0": [online(start=start) for start in (0.0, -1e4, -1e9)],
        "scores of -inf count for nothing": online(guard=False)}, also=[lambda s: None]),
    check.merge: dict(right=[merge], wrong={
        "two pieces with the same maximum": lambda a, b: a if a[0] == b[0] else merge(a, b),
        "the first piece has the larger maximum": [merging(shrink_b=False), merging(alpha=SQUARED),
                                                   merging(alpha=ROOT), merging(alpha=ONE_OR_NONE)],
        "the second piece has the larger maximum": [merging(shrink_a=False), merging(alpha=SQUARED)],
        "the values are shrunk like l": [merging(shrink_acc=False), lambda a, b: (*merge(a, b)[:2], np.zeros(3))],
        "maxima far apart give no inf and no NaN": merging(measure=lambda m_a, m_b: m_a if m_a > -inf else m_b),
        "maxima far below 0": [merging(low=low) for low in (-1e4, -1e9, -1e29)],
        "an empty piece changes nothing": lambda a, b: merge(*(x if x[0] > -inf else (0.0, *x[1:]) for x in (a, b))),
        "two empty pieces make an empty piece": merging(guard=False),
        "the inputs are left as they were": merge_in_place}, also=[lambda a, b: (np.nan, np.nan, NAN),
                                                                   lambda a, b: None]),
    check.combine: dict(right=[combine, by_lse], wrong={
        "the outputs are weighted by their lse": combining(mean=True),
        "the lse is that of all keys": combining(top=True),
        "lse near 1e4 and near -1e4": [combining(shift=lambda lse: 0.0), combining(shift=lambda lse: lse[np.isfinite(lse).argmax()])],
        "lse far below 0": [combining(low=low) for low in (-1e4, -1e9, -1e29)],
        "a piece without keys counts for nothing": [combining(mask=0.0), combining(mask=-1.0)],
        "only pieces without keys": combining(guard=False),
        "the inputs are left as they were": in_place(combine)}, also=[lambda o, lse: (NAN, np.nan),
                                                                      lambda o, lse: None]),
}
