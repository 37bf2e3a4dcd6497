"""Argument checks that the kernels share: a wrong call ends in a sentence, not in a wrong result."""
import ast
import functools
import inspect
import numbers
import textwrap

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from helpers import device


def remembered(check):
    """check, which returns nothing, runs once for equal arguments: a model asks for the same few again and again."""
    known = functools.lru_cache(maxsize=1024)(check)

    @functools.wraps(check)
    def once(*arguments):
        try:
            known(*arguments)
        except TypeError as problem:
            if "unhashable" not in str(problem):
                raise
            check(*arguments)                            # symbolic sizes, the compiler's, have no hash
    return once


def one_head(q, k, v):
    """Check the arguments of single-head attention: three [N, D] tensors of one type on one device, 1 <= D <= 256.

    Raises TypeError for a wrong type and ValueError for a wrong shape or device, naming the argument.
    """
    tensors(q=q, k=k, v=v)
    if q.dim() != 2:
        raise ValueError(f"q has {q.dim()} dimensions, shape {list(q.shape)}: expected [N, D], one head")
    for name, x in (("k", k), ("v", v)):
        _equal(name, list(x.shape), "q", list(q.shape), "shape {}")
    _width(q.shape[1])
    no_gradient(q=q, k=k, v=v)


def many_heads(q, k, v, enable_gqa: bool):
    """Check the arguments of multi-head attention: q [B, heads, N_q, D], k and v [B, kv_heads, N_k, D], 1 <= D <= 256.

    kv_heads divides heads, and differs from it only with enable_gqa. Raises TypeError or ValueError, naming the
    argument.
    """
    kinds = _kinds(q=q, k=k, v=v)
    flag(enable_gqa=enable_gqa)
    _fit(kinds, enable_gqa)


def before_operator(q, k, v, enable_gqa: bool):
    """many_heads for an operator's caller. If the compiler asks, the operator's fake does it."""
    if not torch.compiler.is_compiling():
        many_heads(q, k, v, enable_gqa)


@remembered
def _fit(kinds, enable_gqa):
    _alike(kinds)
    for name, _, _, shape, steps in kinds:
        strides(name, shape, steps)
    q, k, v = (list(kind[3]) for kind in kinds)
    _equal("v", v, "k", k, "shape {}")
    _equal("k", k[0], "q", q[0], "{} batches")
    _groups(q, "k", k)
    if q[1] != k[1] and not enable_gqa:
        raise ValueError(f"k has {k[1]} heads, q has {q[1]}: pass enable_gqa=True for grouped-query attention")


def _groups(q, name, k):
    """ValueError unless heads of shape k go with those of shape q: features a head, and a number that divides."""
    _equal(name, k[3], "q", q[3], "{} features a head")
    _width(q[3])
    if q[1] != k[1] and (not q[1] or not k[1] or q[1] % k[1]):
        raise ValueError(f"{name} has {k[1]} heads, which does not divide the {q[1]} heads of q "
                         "(grouped-query attention needs a divisor)")


def _equal(name, x, first, y, what):
    if x != y:
        raise ValueError(f"{name} has {what.format(x)}, {first} has {y}: they must be equal")


def _width(D):
    if not 1 <= D <= 256:
        raise ValueError(f"q has head dimension D = {D}: the kernel takes 1 to 256")


def cache(q, k_cache, v_cache, lengths, block_table, scales):
    """Check the arguments of attention to a cache: q [B, heads, N_q, D], lengths int32 [B], and either k_cache and
    v_cache [B, kv_heads, N_max, D], or block_table int32 [B, n] and pages [pages, kv_heads, page, D].

    The cache has the type of q; or float8_e4m3fn, and scales, float32 [2, ...], a number for each of its rows. Raises
    TypeError or ValueError, naming the argument. The numbers in lengths and block_table are left to cache_numbers.
    """
    some = {name: x for name, x in (("block_table", block_table), ("scales", scales)) if x is not None}
    _cache_fits(_kinds(q=q, k_cache=k_cache, v_cache=v_cache, lengths=lengths, **some))


@remembered
def _cache_fits(kinds):
    shapes = {name: list(shape) for name, _, _, shape, _ in kinds}
    (_, q_dtype, place, *_), eight, paged = kinds[0], "scales" in shapes, "block_table" in shapes
    _served("q", q_dtype, place)
    expected = dict.fromkeys(("k_cache", "v_cache"), torch.float8_e4m3fn if eight else q_dtype)
    expected |= dict(q=q_dtype, lengths=torch.int32, block_table=torch.int32, scales=torch.float32)
    for name, dtype, where, shape, steps in kinds:
        if dtype != expected[name]:
            more = "" if name not in ("k_cache", "v_cache") else " beside scales" if eight else (
                ", the type of q, or torch.float8_e4m3fn beside scales")
            raise TypeError(f"{name} is {dtype}: expected {expected[name]}{more}")
        together(name, where, "q", place)
        if name in ("q", "k_cache", "v_cache"):
            strides(name, shape, steps)
    B, (rows, kv_heads, page, _) = shapes["q"][0], shapes["k_cache"]
    if paged and (len(shapes["block_table"]) != 2 or not page):
        raise ValueError(f"block_table has shape {shapes['block_table']}, k_cache {shapes['k_cache']}: expected [B, n] "
                         "and [pages, kv_heads, page, D], with at least one key a page")
    fitting = dict(v_cache=shapes["k_cache"], lengths=[B], scales=[2, rows, kv_heads, page],
                   block_table=[B, *shapes.get("block_table", [])[1:]])
    for name, shape in shapes.items():
        if shape != fitting.get(name, shape):
            raise ValueError(f"{name} has shape {shape}: expected {fitting[name]}")
    if not paged:
        _equal("k_cache", rows, "q", B, "{} batches")
    _groups(shapes["q"], "k_cache", shapes["k_cache"])
    if eight and place.type == "cuda" and torch.cuda.get_device_capability(place) < (9, 0):
        raise ValueError(f"q is on a GPU of compute capability {torch.cuda.get_device_capability(place)}: FP8 needs 9.0 "
                         "or later")


def cache_numbers(lengths, block_table, N_max: int, pages: int, page: int):
    """ValueError for a length that is not 0 to N_max, or a page in use that is not 0 to pages - 1, saying where.

    In the interpreter only: on a GPU the host would wait for all work that is under way. There, kernels answer with NaN.
    """
    for b, length in enumerate(lengths.tolist() if device.INTERPRETED else ()):
        if not 0 <= length <= N_max:
            raise ValueError(f"lengths[{b}] is {length}: expected 0 to {N_max}, for which the cache has room")
        used = [] if block_table is None else block_table[b, :-(-length // page)].tolist()
        for i, number in enumerate(used):
            if not 0 <= number < pages:
                raise ValueError(f"block_table[{b}, {i}] is {number}: expected 0 to {pages - 1}, the pages of the cache")


def strides(name, shape, steps):
    """Raise ValueError unless shape is [batch, heads, N, D], and where 32-bit offsets inside a tile would overflow.

    In a tile of at most 256 rows and features an offset is less than 256 times the sum of the two strides.
    """
    if len(shape) != 4:
        raise ValueError(f"{name} has {len(shape)} dimensions, shape {list(shape)}: expected [batch, heads, N, D]")
    (rows, features), (row, feature) = shape[2:], steps[2:]
    if row * (rows > 1) + feature * (features > 1) >= 2**23:
        raise ValueError(f"{name} has rows that lie {row} elements apart, and features that lie {feature} apart: "
                         f"the kernel takes less than 2^23 together (pass {name}.contiguous())")


def flag(**named):
    """Raise TypeError unless each argument is True or False."""
    for name, x in named.items():
        if not isinstance(x, bool):
            raise TypeError(f"{name} is {_said(x)}: expected True or False")


def score_scale(scale, D: int) -> float:
    """The scale as a float, 1 / sqrt(D) if it is None.

    Raises TypeError unless it is a number (a tensor is none: its gradient would be lost), and ValueError for NaN and
    for one so large that the kernel, which multiplies it by log2(e) in float32, would turn it into infinity.
    """
    if scale is None:
        return D**-0.5
    if not isinstance(scale, numbers.Real) or isinstance(scale, bool):
        raise TypeError(f"scale is {_said(scale)}: expected a number, or None for 1 / sqrt(D)")
    if not abs(scale) < 2**127:                          # not: also for NaN
        raise ValueError(f"scale is {scale}: expected a number between -2^127 and 2^127")
    return float(scale)


def tiles(chosen: dict | None, usual: dict, D: int = 1) -> dict:
    """The usual tiles and launch options, with those that are `chosen` instead of some of them.

    Raises TypeError or ValueError, naming the option, for a name that is not among the usual ones, and unless each
    BLOCK_ is a power of two from 16, the least that tl.dot takes, to 256, BLOCK_D at least D, and the others positive.
    """
    if chosen is None:
        return usual
    if not isinstance(chosen, dict):
        raise TypeError(f"tiles is {_said(chosen)}: expected a dictionary with some of {', '.join(usual)}")
    for name, size in chosen.items():
        if name not in usual:
            raise ValueError(f"tiles has {name!r}, which is none of {', '.join(usual)}")
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"tiles has {name} = {size!r}: expected an int")
        if size < 1 or size & size - 1 and name != "GROUP" and name != "num_stages":
            raise ValueError(f"tiles has {name} = {size}: expected a power of two")
        least = max(16, D if name == "BLOCK_D" else 0)
        if name.startswith("BLOCK_") and not least <= size <= 256:
            raise ValueError(f"tiles has {name} = {size}: expected a power of two from {least} to 256")
    return usual | chosen


def dropout(dropout_p, seed):
    """Raise TypeError or ValueError unless dropout_p is in [0, 1) and seed None or an int from 0 to 2^31 - 1."""
    if not isinstance(dropout_p, numbers.Real):
        raise TypeError(f"dropout_p is {_said(dropout_p)}: expected a number")
    if not (seed is None or isinstance(seed, numbers.Integral)):
        raise TypeError(f"seed is {_said(seed)}: expected an int or None")
    if not 0 <= dropout_p <= 1 - 2**-24:                 # more is 1 in float32
        raise ValueError(f"dropout_p is {dropout_p}: expected a probability from 0 to below 1")
    if seed is not None and not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed}: expected an int from 0 to 2^31 - 1, or None")


def no_gradient(**named):
    """Raise ValueError if autograd would expect a gradient: a kernel without a backward pass would silently drop it."""
    for name, x in named.items():
        if torch.is_grad_enabled() and isinstance(x, torch.Tensor) and x.requires_grad:
            raise ValueError(f"{name} requires a gradient, and this kernel has no backward pass: "
                             f"call it under torch.no_grad(), or pass {name}.detach()")


def tensors(**named):
    """Check that the named arguments are tensors that a kernel can read: of one supported type, on the device where
    kernels run, with memory that holds their numbers, and without what a kernel would lose, tangents and transforms.

    Raises TypeError for another type, and ValueError for the rest, naming the argument.
    """
    _alike(_kinds(**named))


def _kinds(**named):
    """(name, type, device, shape, strides) of tensors that a kernel can read."""
    for name, x in named.items():
        readable(name, x)
    return tuple((name, x.dtype, x.device, x.shape, x.stride()) for name, x in named.items())


def _alike(kinds):
    (first, dtype, place, *_), *others = kinds
    _served(first, dtype, place)
    for name, other, where, *_ in others:
        if other != dtype:
            raise TypeError(f"{name} is {other}, {first} is {dtype}: they must be equal")
        together(name, where, first, place)


def together(name, where, first, place):
    if where != place:
        raise ValueError(f"{name} is on {where}, {first} is on {place}: they must be on one device")


def _served(name, dtype, place):
    """TypeError or ValueError unless there are kernels for a type and a device."""
    try:
        device.dot_type(dtype)
    except TypeError as problem:
        raise TypeError(f"{name} is {dtype}, and there is {problem}") from None
    if place.type != device.DEVICE:
        raise ValueError(f"{name} is on {place}, and kernels run on {device.DEVICE} here: "
                         f"make it with device={device.DEVICE!r} or move it there")


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
            raise TypeError(f"{name} is {_said(x)}: expected what {make} returns")
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
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else _said(x)


def readable(name, x):
    """The part of `tensors` that looks at one tensor alone, whatever its type."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a torch.Tensor")
    if is_functorch_wrapped_tensor(x):
        raise ValueError(f"{name} belongs to a transform of torch.func (grad, jvp, vmap, ...), which cannot look "
                         "into a kernel: use torch.autograd for gradients, and an axis of the input for a batch")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:       # the first is quick
        raise ValueError(f"{name} carries a tangent, and kernels have no forward-mode derivative: use reverse "
                         f"mode, torch.autograd, or pass its primal, torch.autograd.forward_ad.unpack_dual({name})")
    if x.layout is not torch.strided:
        raise ValueError(f"{name} has the layout {x.layout}: expected a dense tensor (pass {name}.to_dense())")
    if x.is_neg():                                   # such as z.conj().imag
        raise ValueError(f"{name} is a view whose numbers still have to be negated, and a kernel would read them "
                         f"as they lie in memory: pass {name}.resolve_neg()")


def uncompiled(fn):
    """fn, which torch.compile cannot look into: it is called as it stands, between what was compiled before and after.

    Not by torch.compiler.disable right away, which would import the compiler, for seconds, wherever fn is defined.
    """
    @functools.wraps(fn)
    def called(*arguments, **options):
        if torch.compiler.is_compiling():
            return torch.compiler.disable(fn)(*arguments, **options)
        return fn(*arguments, **options)
    return called


def _said(x) -> str:
    """x in a sentence: what it is, and what kind of thing if that would be too long."""
    return repr(x) if isinstance(x, (str, numbers.Number)) or x is None else f"a {type(x).__name__}"
