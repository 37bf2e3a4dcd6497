"""Ways to go wrong that several topics share."""
import functools

import torch

from helpers.check.core import guarded


class Raises:
    """In place of a kernel."""

    def __init__(self, error):
        self.error = error

    def __getitem__(self, grid):
        raise self.error


INSTEAD = dict(stub=Raises(NotImplementedError()), broken=Raises(ZeroDivisionError("by zero")))


def mistaken(right):
    """Makes wrong versions: mistaken(right)(**mistake) is right with these arguments."""
    return functools.partial(functools.partial, right)


def when(right, applies, spoil):
    """fn that returns spoil(result, *inputs) where applies(*inputs), and else what `right` does."""
    return lambda *inputs: spoil(right(*inputs), *inputs) if applies(*inputs) else right(*inputs)


def without_the_last(z, *_):
    """A copy of which nobody wrote the last row."""
    out = torch.empty_like(z)
    out[:-1] = z[:-1]
    return out


def without_the_rest(z, *_):
    """A copy from a grid that was not rounded up: nobody wrote the last rows, if they fill no block of 16."""
    out, rows = torch.empty_like(z), z.shape[-2] // 16 * 16
    out[..., :rows, :] = z[..., :rows, :]
    return out


def beyond_the_end(z, *_):
    """A copy that a kernel without a mask might have made: the element after the last is written, too."""
    z = guarded(z)
    z.as_strided([z.numel() + 1], [1])[-1] = 7
    return z


def in_place(right):
    """fn that doubles its first tensor or array, afterwards."""
    def wrong(*inputs):
        z = right(*inputs)
        changed = next(x for x in inputs if hasattr(x, "shape") and getattr(x, "ndim", 0))
        changed *= 2
        return z
    return wrong
