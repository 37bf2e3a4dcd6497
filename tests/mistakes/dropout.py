"""Right and wrong versions of dropout inside attention."""
import numpy as np

from helpers import check
from mistakes.ways import in_place, mistaken


def attention_with_dropout(q, k, v, keep, dropout_p, grow=True, drop=True, of_l=lambda p, keep, dropout_p: p,
                           safe=True, before=False):
    s = q.shape[1]**-0.5 * q @ k.T
    if before:
        s = np.where(keep, s, -np.inf)
    p = np.exp(s - (s.max(axis=1, keepdims=True) if safe else 0))
    l = of_l(p, keep, dropout_p).sum(axis=1, keepdims=True)
    return (p * keep if drop else p) / ((1 - dropout_p) if grow else 1) @ v / l


by = mistaken(attention_with_dropout)
CASES = {check.attention_with_dropout: dict(right=[attention_with_dropout], wrong={
    "without dropout it is attention": lambda q, *a: attention_with_dropout(2 * q, *a),
    "what is left grows by 1 / (1 - dropout_p)": [by(grow=False),
                                                  lambda *a: attention_with_dropout(*a[:-1], 1 - a[-1])],
    "weights that are dropped count for nothing": [by(drop=False),
                                                   lambda q, k, v, keep, p: attention_with_dropout(q, k, v, ~keep, p)],
    "the sum l is that of all keys": [by(of_l=lambda p, keep, dropout_p: p * keep), by(before=True),
                                      by(of_l=lambda p, keep, dropout_p: p * keep / (1 - dropout_p))],
    "a query that has lost every key gives zeros": [by(before=True), by(of_l=lambda p, keep, dropout_p: p * keep)],
    "another number of keys than of queries":
        lambda q, k, v, keep, p: attention_with_dropout(q, k[:len(q)], v[:len(q)], keep[:, :len(q)], p),
    "logits of 1e4": by(safe=False),
    "the inputs are left as they were": in_place(attention_with_dropout)})}
