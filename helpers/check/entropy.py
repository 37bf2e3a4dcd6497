"""The check of a reduction: one number a row."""
import torch

from helpers.check.core import difference, guarded, outside, properties, unwritten
from helpers.device import DEVICE


def entropy(fn):
    """fn(x) returns the entropy of the softmax of each row of a float32 tensor [rows, N]: [rows]."""
    properties("entropy", ENTROPY, fn)


def _scores(rows, N, scale=1.0, shift=0.0):
    return guarded((scale * torch.randn(rows, N, generator=torch.Generator().manual_seed(N)) + shift).to(DEVICE))


def _expected(x):
    p = torch.softmax(x.double(), 1)
    return -torch.where(p > 0, p * torch.log(p), 0.0).sum(1)


def _agrees(*inputs):
    def case(fn):
        for x in inputs:
            problem = difference(fn(x), _expected(x))
            if problem:
                return f"shape {list(x.shape)}: {problem}"
        return ""
    return case


def _masked():
    x = _scores(5, 64)
    x[:, ::3] = -float("inf")
    return x


def _everywhere(problem):
    def case(fn):
        for x in (_scores(3, 1), _scores(4, 100), _scores(6, 128)):
            found = problem(fn(x)) or problem(x)
            if found:
                return f"shape {list(x.shape)}: {found}"
        return ""
    return case


ENTROPY = [("rows of a power of two", _agrees(_scores(4, 128), _scores(3, 64, 4.0))),
           ("rows that are no power of two", _agrees(_scores(4, 100), _scores(3, 129), _scores(2, 1000))),
           ("a row of one number is certain", _agrees(_scores(3, 1))),
           ("scores of 1e4, and all negative", _agrees(_scores(3, 128, 1.0, 1e4), _scores(3, 100, 1.0, -1e4))),
           ("weights of 0 add nothing", _agrees(_masked(), _scores(3, 128, 100.0))),
           ("every row gets its number", _everywhere(unwritten)),
           ("nothing outside is written", _everywhere(outside))]
