"""The exercise checks: right answers pass, stubs are recognised, and each property catches its mistake, alone."""
import functools
import inspect
import math
import re

import numpy as np
import pytest
import torch

from helpers import check, device, lessons, reference
from helpers.check.core import difference, guarded, outside, poisoned, unwritten


# ---------------------------------------------------------------- wrong versions, one for each property

def cdiv(n, block):
    return (n + block - 1) // block


CDIV = {
    "a length that is a multiple of the block": lambda n, b: n // b + 1 if n and n < 2**53 else cdiv(n, b),
    "a length that is no multiple of the block": lambda n, b: n // b if n < 2**53 else cdiv(n, b),
    "nothing to do needs no block": lambda n, b: max(1, cdiv(n, b)),
    "lengths too long for a float": lambda n, b: math.ceil(n / b),
}


def vector_mistakes(right):
    """Wrong versions of an operation on vectors, from a right one. The vector is the last tensor argument."""
    length = lambda args: len([x for x in args if isinstance(x, torch.Tensor)][-1])

    def mistake(applies, spoil):
        def wrong(*args):
            z = right(*args)
            return spoil(z, args) if applies(length(args)) else z
        return wrong

    def shifted(z, args):
        return z + 1

    def last_is_zero(z, args):
        z[-1] = 0
        return z

    def refuses(z, args):
        raise RuntimeError("a grid of zero programs")

    def last_is_missing(z, args):
        if len(z) == 1:                                  # then nothing would be written, which is another mistake
            return z
        out = torch.empty_like(z)
        out[:-1] = z[:-1]
        return out

    def too_long(z, args):
        z.as_strided([len(z) + 1], [1])[-1] = 7          # one element beyond the end
        return z

    def in_place(z, args):
        [x for x in args if isinstance(x, torch.Tensor)][0].mul_(2)
        return z

    return {
        "every value that was written is right": mistake(lambda n: n % 1024 == 0 and n, shifted),
        "written values are right at a length that is no multiple of the block": mistake(lambda n: n % 1024 and n > 1, last_is_zero),
        "a single element": mistake(lambda n: n == 1, shifted),
        "an empty vector": mistake(lambda n: n == 0, refuses),
        "every output element is written": mistake(lambda n: n > 1, last_is_missing),
        "nothing is written outside of the tensors": mistake(lambda n: n > 1, lambda z, args: too_long(guarded(z), args)),
        "the inputs are left as they were": mistake(lambda n: n == 1024, in_place),
    }


def block_sums(x, block):
    return torch.stack([piece.sum() for piece in x.split(block)]) if len(x) else x


def blocked(q, k, v, BLOCK_M=32, BLOCK_N=16, *, is_causal=False, scale=True, own=True, cap=np.inf, mask=-np.inf, rescale=True,
            pad=False, first_row=True, lazy=True, block_bug=False, lse_bug=False, last_row=True, in_place=False, return_lse=False):
    """Blocked attention in NumPy with a switch for each mistake that the check should find."""
    N, D = q.shape
    o = np.empty_like(v)
    _, lse = reference.attention(q, k, v, is_causal=is_causal, return_lse=True)
    for i in range(0, N, BLOCK_M):
        q_i = q[i:i + BLOCK_M] * (D**-0.5 if scale else 1)
        rows = i + np.arange(len(q_i))
        m, l, acc = np.full(len(q_i), -3e38), np.zeros(len(q_i)), np.zeros((len(q_i), D))
        for j in range(0, min(i + BLOCK_M, N) if is_causal and lazy else N, BLOCK_N):
            s = q_i @ k[j:j + BLOCK_N].T
            s = np.pad(s, ((0, 0), (0, BLOCK_N - s.shape[1]))) if pad else s
            keys = j + np.arange(s.shape[1])
            if is_causal:
                s[(keys > rows[:, None]) & ((rows[:, None] > 0) | first_row)] = mask
            m_new = np.minimum(np.maximum(m, s.max(1) if own else s.max()), cap)
            alpha = np.exp(m - m_new)
            with np.errstate(over="ignore"):
                p = np.exp(s - m_new[:, None])
            l = alpha * l + p.sum(1)
            acc = (alpha[:, None] if rescale else 1) * acc + p[:, :len(v[j:j + BLOCK_N])] @ v[j:j + BLOCK_N]
            m = m_new
        with np.errstate(invalid="ignore"):
            o[i:i + BLOCK_M] = acc / l[:, None]
    if block_bug and BLOCK_N != 16:
        o += 0.01
    if not last_row:
        poison = np.empty_like(o)
        o[-1] = poison[-1]
    if in_place:
        q *= 2
    if lse_bug:
        with np.errstate(over="ignore"):
            lse = np.exp(lse)
    return (o, lse) if return_lse else o


ATTENTION = {
    "the result is attention": dict(scale=False),
    "each row has a maximum of its own": dict(own=False),
    "a length that is no multiple of the block": dict(pad=True),
    "the largest score comes last": dict(rescale=False),
    "logits of 1e4": dict(cap=500),
    "every output element is written": dict(last_row=False),
    "the inputs are left as they were": dict(in_place=True),
    "tiles above the diagonal are not visited": dict(lazy=False),
    "any block size gives the same answer": dict(block_bug=True),
    "the first causal row sees one key": dict(first_row=False),
    "a later key weighs nothing, however low the scores": dict(mask=-1e9),
    "lse is the log of the sum of exponentials": dict(lse_bug=True),
}


def blocked_attention(is_causal, return_lse, mistake):
    def fn(q, k, v, BLOCK_M=32, BLOCK_N=16):
        return blocked(q, k, v, BLOCK_M, BLOCK_N, is_causal=is_causal, return_lse=return_lse, **mistake)
    return fn


# each operation: its check, a right version, and a wrong version for every property
OPERATIONS = {
    "cdiv": (check.cdiv, cdiv, CDIV),
    "vector_add": (check.vector_add, torch.add, vector_mistakes(torch.add)),
    "scale_add": (check.scale_add, lambda a, x, y: a * x + y, vector_mistakes(lambda a, x, y: a * x + y)),
    "reverse": (check.reverse, lambda x: x.flip(0), vector_mistakes(lambda x: x.flip(0))),
    "block_sums": (check.block_sums, block_sums, vector_mistakes(block_sums)),
}
for is_causal in (False, True):
    for return_lse in (False, True):
        mistakes = {name: blocked_attention(is_causal, return_lse, mistake) for name, mistake in ATTENTION.items()
                    if (is_causal or not re.search("causal|diagonal|later", name)) and (return_lse or "lse" not in name)}
        if is_causal:                                    # zero scores beyond the end are masked like later keys
            del mistakes["a length that is no multiple of the block"]
        OPERATIONS[f"attention causal={is_causal} lse={return_lse}"] = (
            functools.partial(check.attention, is_causal=is_causal, return_lse=return_lse, numpy=True),
            blocked_attention(is_causal, return_lse, {}), mistakes)

CASES = [(operation, name) for operation, (_, _, mistakes) in OPERATIONS.items() for name in mistakes]


def report(operation, fn, capsys):
    """What the check prints: {property: "ok" or the problem}."""
    OPERATIONS[operation][0](fn)
    printed = capsys.readouterr().out
    lines = printed.splitlines()[1:]
    return {line[8:].split(": ")[0]: "ok" if line.startswith("  ok") else line.split(": ", 1)[1] for line in lines}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_right_version_passes(operation, capsys):
    found = report(operation, OPERATIONS[operation][1], capsys)
    assert found and set(found.values()) == {"ok"}
    missing = set(found) - set(OPERATIONS[operation][2])
    assert missing <= ({"a length that is no multiple of the block"} if "causal=True" in operation else set())


@pytest.mark.parametrize("operation,name", CASES)
def test_a_wrong_version_fails_its_property_alone(operation, name, capsys):
    found = report(operation, OPERATIONS[operation][2][name], capsys)
    assert [n for n, result in found.items() if result != "ok"] == [name], found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stub_is_not_attempted(operation, capsys):
    def stub(*args, BLOCK_M=1, BLOCK_N=1):
        raise NotImplementedError
    OPERATIONS[operation][0](stub)
    assert capsys.readouterr().out.strip().endswith(": not attempted yet")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_exception_is_a_failed_property(operation, capsys):
    def broken(*args):
        raise ZeroDivisionError("by zero")
    assert report(operation, broken, capsys) == {"every property": "it raised ZeroDivisionError: by zero"}


def test_a_wrong_shape_is_named(capsys):
    assert report("vector_add", lambda x, y: (x + y)[:-1], capsys)["every value that was written is right"] == \
        "length 1024: the shape is [1023], expected [1024]"


DTYPES = [(np, np.float16), (np, np.float32), (np, np.float64), (torch, torch.float16), (torch, torch.bfloat16),
          (torch, torch.float32), (torch, torch.float64)]


@pytest.mark.parametrize("library,dtype", DTYPES, ids=str)
def test_poison_is_nan_and_is_undone(library, dtype):
    with poisoned():
        fresh = library.empty((2, 3), dtype=dtype)
        assert library.isnan(fresh).all() and library.isnan(library.empty_like(fresh)).all()
        assert library.empty(3, dtype=library.int32).shape == (3,)
    assert library.empty.__name__ == "empty"
    assert unwritten(fresh) == "element [0, 0] was never written (6 of 6 were not)"
    fresh[:] = float("nan")                              # a NaN that was computed is another
    assert unwritten(fresh) == "" and difference(fresh, np.zeros((2, 3))).startswith("element [0, 0] is nan, expected 0")


def test_nothing_but_poison_is_not_said_to_be_unwritten():
    with poisoned():
        fresh = np.empty(3)
    for got in (fresh, 2 * fresh + 1):                   # both hold the same NaN
        assert difference(got, np.zeros(3)) == "every element is NaN: not written, or computed from NaN"


def test_numbers_that_numpy_lacks_are_compared():
    got = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert difference(got, [1.0, 2.0]) == "" and "element [1] is 2, expected 3" in difference(got, [1.0, 3.0])


def test_checks_say_what_they_take():
    for name, fn in inspect.getmembers(check, inspect.isfunction):
        if fn.__module__.startswith("helpers.check") and not name.startswith("_"):
            assert fn.__doc__.startswith("fn("), name


@pytest.mark.parametrize("dtype", [dtype for library, dtype in DTYPES if library is torch], ids=str)
def test_guards_notice_stray_writes(dtype):
    with poisoned():
        x = torch.empty(3, 5, dtype=dtype)
        assert outside(x) == "" and x.is_contiguous()
        x.fill_(0)
        assert outside(x) == ""
        x.as_strided([1], [1], x.storage_offset() + 17)[0] = 1
        assert outside(x) == "element 17 of 15 was written, beyond the end"
    y = guarded(torch.arange(3.0, dtype=dtype))          # what stands behind an input is not what stands behind an output
    x.as_strided([1], [1], x.storage_offset() + 17)[0] = y.as_strided([1], [1], y.storage_offset() + 3)[0]
    assert outside(y) == "" and "element 17" in outside(x)
    x = guarded(torch.arange(6.0, dtype=dtype).reshape(2, 3).T)
    assert outside(x) == "" and x.stride() == (1, 3) and x[2, 1] == 5
    x.as_strided([1], [1], x.storage_offset() - 2)[0] = 1
    assert outside(x) == "element -2 of 6 was written, before the beginning"


@pytest.mark.skipif(not device.INTERPRETED, reason="on a GPU masked lanes are undefined in earnest")
def test_masked_lanes_without_other_are_undefined_in_a_check():
    lesson = lessons.vector_add_triton
    with poisoned():
        x = torch.ones(5)
        assert torch.equal(lesson.add(x, x, BLOCK=8), 2 * x)         # lanes that are never stored do no harm
