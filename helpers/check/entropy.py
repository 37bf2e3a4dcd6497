"""The check of a reduction, in Triton: one number a row."""
import torch

from helpers.check.core import agrees, everywhere, guarded, outside, over, properties, unwritten
from helpers.device import DEVICE


def entropy(fn):
    """fn(x) returns the entropy of the softmax of each row of a float32 tensor [rows, N]: [rows]."""
    on, right, sizes = over("shape [{}, {}]", _scores), agrees(_entropy), ((3, 1), (4, 100), (6, 128))
    properties("entropy", [
        ("rows of a power of two", on(right, (4, 128), (3, 64, 4.0))),
        ("rows that are no power of two", on(right, (4, 100), (3, 129), (2, 1000))),
        ("a row of one number is certain", on(right, (3, 1))),
        ("scores of 1e4, and all negative", on(right, (3, 128, 1.0, 1e4), (3, 100, 1.0, -1e4))),
        ("weights of 0 add nothing", on(right, (5, 64, 1.0, 0.0, 3), (3, 128, 100.0))),
        ("every row gets its number", on(everywhere(unwritten), *sizes)),
        ("nothing outside is written", on(everywhere(outside), *sizes))], fn)


def _scores(rows, N, scale=1.0, shift=0.0, masked=0):
    """Random scores; the first of every `masked` columns is -inf."""
    x = scale * torch.randn(rows, N, generator=torch.Generator().manual_seed(N)) + shift
    if masked:
        x[:, ::masked] = -float("inf")
    return [guarded(x.to(DEVICE))]


def _entropy(x):
    p = torch.softmax(x.double(), 1)
    return -torch.where(p > 0, p * torch.log(p), 0.0).sum(1)
