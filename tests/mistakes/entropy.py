"""Right and wrong versions of the entropy of a softmax."""
import torch

from helpers import check
from mistakes.ways import beyond_the_end, without_the_last


def entropy(x, padding=None, shift=True, guard=True):
    if padding is not None:                              # lanes up to a multiple of 128, with this number
        x = torch.nn.functional.pad(x, (0, -x.shape[1] % 128), value=padding)
    s = x - (x.max(1, keepdim=True).values if shift else 0)
    e = torch.exp(s)
    p = e / e.sum(1, keepdim=True)
    terms = p * (s - torch.log(e.sum(1, keepdim=True)))
    return -(torch.where(p > 0, terms, 0.0) if guard else terms).sum(1)


CASES = {check.entropy: dict(right=[entropy, lambda x: entropy(x, padding=-float("inf"))], wrong={
    "rows of a power of two": [lambda x: -entropy(x), lambda x: entropy(x) / 0.7, lambda x: 0 * x[:, 0] + entropy(x)[0]],
    "rows that are no power of two": [lambda x: entropy(x, padding=0.0), lambda x: entropy(x[:, :64])],
    "a row of one number is certain": [lambda x: entropy(x) + 1e-3, lambda x: entropy(x, padding=0.0)],
    "scores of 1e4, and all negative": [lambda x: entropy(x, shift=False), lambda x: entropy(x, padding=-1000.0)],
    "weights of 0 add nothing": lambda x: entropy(x, guard=False),
    "every row gets its number": lambda x: without_the_last(entropy(x)),
    "nothing outside is written": lambda x: beyond_the_end(entropy(x))})}
