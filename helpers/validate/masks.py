"""Masks and score changes of a reader's own, and packed sequences."""
import ast
import inspect
import textwrap

import torch

from helpers.validate.heads import before_operator
from helpers.validate.options import said
from helpers.validate.inputs import together


def jit_function(name, fn, arguments: str, **sizes):
    """Raise TypeError unless fn is a @triton.jit function of so many arguments, and ValueError if it looks at one of
    those in `sizes`, and None is its size."""
    given = " ".join(getattr(fn, "arg_names", ()))
    if len(given.split()) != len(arguments.split()):
        what = f"a function of {given.replace(' ', ', ')}" if given else f"a {type(fn).__name__}"
        raise TypeError(f"{name} is {what}: expected a @triton.jit function of {arguments.replace(' ', ', ')}")
    for argument, size in sizes.items():
        if size is None and looks_at(fn, arguments.split().index(argument)):
            raise ValueError(f"{name} looks at {argument}: say how many there are, batch for b and heads for h")


def looks_at(fn, place: int) -> bool:
    """Whether a @triton.jit function uses the argument at this place."""
    code = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(fn.fn))))
    return any(isinstance(node, ast.Name) and node.id == fn.arg_names[place] for node in code)


def masking(q, k, v, enable_gqa, mask, score, sink):
    """before_operator, and TypeError or ValueError unless mask, score and sink fit q and k."""
    before_operator(q, k, v, enable_gqa)
    for name, x, part, make in (("mask", mask, "kinds", "block_map"), ("score", score, "learns", "score_change")):
        if not (x is None or hasattr(x, part)):
            raise TypeError(f"{name} is {said(x)}: expected what {make} returns")
    (B, heads, N_q, _), N_k = q.shape, k.shape[2]
    if mask and not (mask.shape[0] in (1, B) and mask.shape[1] in (1, heads) and mask.shape[2:] == (N_q, N_k)):
        raise ValueError(f"mask is a map of (batch, heads, N_q, N_k) = {tuple(mask.shape)}, "
                         f"and q and k have {(B, heads, N_q, N_k)}")
    if sink is not None and not (isinstance(sink, torch.Tensor) and sink.shape == (heads,)):
        raise ValueError(f"sink is {_shape(sink)}: expected a tensor [{heads}], a logit for each head")
    tensors = dict(mask=mask and mask.tensors, score=score and score.extra, sink=[sink])
    for name, x in ((name, x) for name, found in tensors.items() for x in found or () if x is not None):
        together(name, x.device, "q", q.device)
    if score and not score.learns and any(x.requires_grad for x in score.extra):
        raise ValueError("score has a tensor that requires a gradient, and a derivative that adds nothing to gradients")


def packed(q, k, v, offsets_q, offsets_k):
    """Raise ValueError unless q, k, v are [total, heads, D], and the offsets are integers [sequences + 1]."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor) or x.dim() != 3:
            raise ValueError(f"{name} is {_shape(x)}: expected a tensor [total, heads, D]")
    for name, x in (("offsets_q", offsets_q), ("offsets_k", offsets_k)):
        if not isinstance(x, torch.Tensor) or x.dim() != 1 or not len(x) or x.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} is {_shape(x)}: expected a tensor [sequences + 1] of int32 or int64")
        together(name, x.device, "q", q.device)
    if len(offsets_q) != len(offsets_k):
        raise ValueError(f"offsets_q names {len(offsets_q) - 1} sequences, offsets_k {len(offsets_k) - 1}: they must be equal")


def offsets(**named):
    """Raise ValueError unless each (offsets, total) begins with 0, does not fall, and ends with the total."""
    for name, (x, total) in named.items():
        x = x.tolist()
        falls = [i for i in range(1, len(x)) if x[i] < x[i - 1]]
        if falls:
            raise ValueError(f"{name} falls from {x[falls[0] - 1]} to {x[falls[0]]} at place {falls[0]}")
        if x[0] != 0 or x[-1] != total:
            raise ValueError(f"{name} goes from {x[0]} to {x[-1]}: expected from 0 to the total, {total}")


def _shape(x):
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else said(x)
