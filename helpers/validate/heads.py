"""q, k and v of one head or of many."""
import torch

from helpers.validate.options import flag
from helpers.validate.inputs import alike, equal, kinds_of, no_gradient, remembered, strides, tensors


def one_head(q, k, v):
    """Check the arguments of single-head attention: three [N, D] tensors of one type on one device, 1 <= D <= 256.

    Raises TypeError for a wrong type and ValueError for a wrong shape or device, naming the argument.
    """
    tensors(q=q, k=k, v=v)
    if q.dim() != 2:
        raise ValueError(f"q has {q.dim()} dimensions, shape {list(q.shape)}: expected [N, D], one head")
    for name, x in (("k", k), ("v", v)):
        equal(name, list(x.shape), "q", list(q.shape), "shape {}")
    _width(q.shape[1])
    no_gradient(q=q, k=k, v=v)


def many_heads(q, k, v, enable_gqa: bool):
    """Check the arguments of multi-head attention: q [B, heads, N_q, D], k and v [B, kv_heads, N_k, D], 1 <= D <= 256.

    kv_heads divides heads, and differs from it only with enable_gqa. Raises TypeError or ValueError, naming the
    argument.
    """
    kinds = kinds_of(q=q, k=k, v=v)
    flag(enable_gqa=enable_gqa)
    _fit(kinds, enable_gqa)


def before_operator(q, k, v, enable_gqa: bool):
    """many_heads for an operator's caller. If the compiler asks, the operator's fake does it."""
    if not torch.compiler.is_compiling():
        many_heads(q, k, v, enable_gqa)


@remembered
def _fit(kinds, enable_gqa):
    alike(kinds)
    for name, _, _, shape, steps in kinds:
        strides(name, shape, steps)
    q, k, v = (list(kind[3]) for kind in kinds)
    equal("v", v, "k", k, "shape {}")
    equal("k", k[0], "q", q[0], "{} batches")
    groups(q, "k", k)
    if q[1] != k[1] and not enable_gqa:
        raise ValueError(f"k has {k[1]} heads, q has {q[1]}: pass enable_gqa=True for grouped-query attention")


def groups(q, name, k):
    """ValueError unless heads of shape k go with those of shape q: features a head, and a number that divides."""
    equal(name, k[3], "q", q[3], "{} features a head")
    _width(q[3])
    if q[1] != k[1] and (not q[1] or not k[1] or q[1] % k[1]):
        raise ValueError(f"{name} has {k[1]} heads, which does not divide the {q[1]} heads of q "
                         "(grouped-query attention needs a divisor)")


def _width(D):
    if not 1 <= D <= 256:
        raise ValueError(f"q has head dimension D = {D}: the kernel takes 1 to 256")
