"""The checks of rows and of matrix products: right answers pass, and each property catches its mistake, alone."""
import pytest
import torch

from helpers import check, device, lessons  # (before triton: helpers.device says why)
from helpers.check.core import guarded

import triton
import triton.language as tl

load_row = lessons.matmul_triton.load_row


def beyond_the_end(z):
    """A copy of z that a kernel without a mask might have made: the element after the last is written, too."""
    z = guarded(z)
    z.as_strided([z.numel() + 1], [1])[-1] = 7
    return z


# ---------------------------------------------------------------- rows

def row_mistakes(right):
    """A wrong version of softmax, or of its logarithm, for every property that they share."""
    def where(applies, spoil):
        return lambda x: spoil(right(x), x) if applies(x) else right(x)

    def complete_blocks(x, block=64):                    # what a grid over whole blocks of columns would see
        whole = x.shape[1] // block * block
        return torch.cat([right(x[:, :whole]), torch.zeros_like(x[:, whole:])], 1) if whole < x.shape[1] > 1 else right(x)

    def subtracting(limit):
        """The formula with another number in the place of the maximum."""
        def wrong(x):
            s = x - limit(x.max(1, keepdim=True).values)
            l = torch.exp(s).sum(1, keepdim=True)
            return s - torch.log(l) if right is log_softmax else torch.exp(s) / l
        return wrong

    def unwritten(z, x):
        out = torch.empty_like(z)
        out[1:] = z[1:]
        return out

    def in_place(x):
        x += 1
        return right(x)

    as_if_contiguous = lambda x: right(x.as_strided(x.shape, (x.shape[1], 1)))
    return {
        "the values are right": where(lambda x: x.shape == (3, 1024), lambda z, x: z * 1.01),
        "a length that is no power of two": complete_blocks,
        "a single column": where(lambda x: x.shape[1] == 1, lambda z, x: x),
        "scores of 1e4": subtracting(lambda m: m.clamp(max=0)),
        "a row that is rare in practice": subtracting(lambda m: m.clamp(min=0)),
        "rows that lie apart in memory": as_if_contiguous,
        "every output element is written": where(lambda x: x.shape[0] > 1, unwritten),
        "nothing is written outside of the tensors": lambda x: beyond_the_end(right(x)),
        "the inputs are left as they were": lambda x: in_place(x) if x.shape == (6, 256) else right(x),
    }


def softmax(x):
    return torch.softmax(x, dim=1)


def log_softmax(x):
    return torch.log_softmax(x, dim=1)


def masked_as_zero(x):
    return softmax(torch.where(x == -float("inf"), 0.0, x))


# ---------------------------------------------------------------- products

def product_mistakes(right):
    """A wrong version of an operation with one matrix product inside, for every property that they share.

    The first tensor is [M, K], a result is [M, N].
    """
    def where(applies, spoil):
        return lambda *t: spoil(right(*t)) if applies(t[0].shape, right(*t).shape[1]) else right(*t)

    def whole_steps(*t):                                 # a loop of K // 16 steps
        whole = t[0].shape[1] // 16 * 16
        return right(t[0][:, :whole], t[1].narrow(1 if right is linear else 0, 0, whole), *t[2:])

    def last_row_is_zero(z):
        z[-1] = 0
        return z

    def in_float16(*t):
        if t[0].dtype != torch.float16:
            return right(*t)
        total = torch.zeros_like(right(*t))
        b = t[1].T if right is linear else t[1]
        for k in range(0, len(b), 64):                   # a step is summed in float32, the steps are not
            total += (t[0][:, k:k + 64].float() @ b[k:k + 64].float()).half()
        return total

    def unwritten(z):
        out = torch.empty_like(z)
        out[:-1] = z[:-1]
        return out

    def in_place(*t):
        z = right(*t)
        if t[0].shape == (192, 64):
            t[1].mul_(2)
        return z

    return {
        "the values are right": where(lambda s, N: s == (128, 192), lambda z: z + 1),
        "rows or columns that are no multiple of the block": where(lambda s, N: s[0] == 50 or N == 77, last_row_is_zero),
        "an inner length that is no multiple of the block": whole_steps,
        "a single row and a single column": where(lambda s, N: s[0] == 1, lambda z: z + 1),
        "float16 is summed in float32": in_float16,
        "every output element is written": where(lambda s, N: s[0] in (33, 64) and s[1] == 64, unwritten),
        "nothing is written outside of the tensors": lambda *t: beyond_the_end(right(*t)),
        "the inputs are left as they were": in_place,
    }


def matmul(a, b):
    return a @ b


def linear(x, w, bias):
    return x @ w.T + bias


def as_if_contiguous(a, b):
    return a.as_strided(a.shape, (a.shape[1], 1)) @ b.as_strided(b.shape, (b.shape[1], 1))


# each operation: its check, a right version, and a wrong version for every property
OPERATIONS = {
    "softmax": (check.softmax, softmax, row_mistakes(softmax) | {"scores of -inf weigh nothing": masked_as_zero}),
    "log_softmax": (check.log_softmax, log_softmax, row_mistakes(log_softmax)),
    "matmul": (check.matmul, matmul, product_mistakes(matmul) | {"views that are not contiguous": as_if_contiguous}),
    "linear": (check.linear, linear, product_mistakes(linear)),
}
every = pytest.mark.parametrize("operation", OPERATIONS)


def report(operation, fn, capsys):
    """What the check prints: {property: "ok" or the problem}."""
    OPERATIONS[operation][0](fn)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == operation
    return {line[8:].split(": ")[0]: "ok" if line.startswith("  ok") else line.split(": ", 1)[1] for line in lines[1:]}


@every
def test_a_right_version_passes(operation, capsys):
    found = report(operation, OPERATIONS[operation][1], capsys)
    assert set(found.values()) == {"ok"} and set(found) == set(OPERATIONS[operation][2])


@pytest.mark.parametrize("operation,name", [(o, name) for o, (_, _, mistakes) in OPERATIONS.items() for name in mistakes])
def test_a_wrong_version_fails_its_property_alone(operation, name, capsys):
    found = report(operation, OPERATIONS[operation][2][name], capsys)
    assert [n for n, result in found.items() if result != "ok"] == [name], found


@every
def test_a_stub_is_not_attempted(operation, capsys):
    def stub(*tensors):
        raise NotImplementedError
    OPERATIONS[operation][0](stub)
    assert capsys.readouterr().out.strip() == f"{operation}: not attempted yet"


@every
def test_an_exception_is_a_failed_property(operation, capsys):
    def broken(*tensors):
        raise ZeroDivisionError("by zero")
    assert all("ZeroDivisionError: by zero" in problem for problem in report(operation, broken, capsys).values())


def test_the_logarithm_of_a_softmax_is_found_out(capsys):
    found = report("log_softmax", lambda x: torch.log(softmax(x)), capsys)
    assert [n for n, result in found.items() if result != "ok"] == ["scores of 1e4", "a row that is rare in practice"]


# ---------------------------------------------------------------- the mistakes that readers make, in Triton

@triton.jit
def linear_kernel(x_ptr, w_ptr, bias_ptr, z_ptr, M, N, K, stride_w, BLOCK: tl.constexpr, ACC: tl.constexpr, MASK: tl.constexpr):
    rows = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    columns = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    acc = tl.zeros([BLOCK, BLOCK], ACC)
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + rows * K + k[None, :], mask=(not MASK) | ((rows < M) & (k[None, :] < K)), other=0.0)
        w = tl.load(w_ptr + columns * stride_w + k[:, None], mask=(not MASK) | ((k[:, None] < K) & (columns < N)), other=0.0)
        acc = (acc + tl.dot(x, w, input_precision="ieee")).to(ACC)
    z = acc + tl.load(bias_ptr + columns, mask=(not MASK) | (columns < N), other=0.0)
    tl.store(z_ptr + rows * N + columns, z.to(z_ptr.dtype.element_ty), mask=(not MASK) | ((rows < M) & (columns < N)))


def linear_with(acc=tl.float32, mask=True, stride=lambda N, K: K, make="empty"):
    def fn(x, w, bias):
        (M, K), N = x.shape, len(w)
        z = getattr(torch, make)(M, N, device=x.device, dtype=x.dtype)
        ACC = acc if x.dtype == torch.float16 else tl.float32
        linear_kernel[(triton.cdiv(M, 32), triton.cdiv(N, 32))](x, w, bias, z, M, N, K, stride(N, K), 32, ACC, mask)
        return z
    return fn


OUTSIDE, FLOAT16 = "nothing is written outside of the tensors", "float16 is summed in float32"


def fails(operation, fn, capsys):
    return {name for name, problem in report(operation, fn, capsys).items() if problem != "ok"}


def test_a_linear_kernel_passes(capsys):
    assert not fails("linear", linear_with(), capsys)


def test_a_float16_accumulator_is_found_out(capsys):
    assert fails("linear", linear_with(acc=tl.float16), capsys) == {FLOAT16}


@pytest.mark.skipif(not device.INTERPRETED, reason="on a GPU a wild address ends the process")
@pytest.mark.parametrize("make", ["empty", "zeros"])
def test_a_kernel_without_masks_is_reported_and_harms_nothing(make, capsys):
    found = fails("linear", linear_with(mask=False, make=make), capsys)
    assert {OUTSIDE, "an inner length that is no multiple of the block"} <= found and FLOAT16 not in found


def test_a_wrong_stride_of_the_weights_is_seen_in_every_shape(capsys):
    found = fails("linear", linear_with(stride=lambda N, K: N), capsys)
    assert {"the values are right", "a single row and a single column", FLOAT16} <= found


@triton.jit
def log_softmax_kernel(x_ptr, z_ptr, N, stride, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    x = load_row(x_ptr + tl.program_id(0) * stride, columns, 1, N)
    m = tl.max(x, axis=0)
    tl.store(z_ptr + tl.program_id(0) * N + columns, x - m - tl.log(tl.sum(tl.exp(x - m), axis=0)))


@pytest.mark.skipif(not device.INTERPRETED, reason="on a GPU the rows overwrite each other in any order")
def test_a_store_without_a_mask_is_found_out(capsys):
    def unmasked(x):
        z = torch.empty(x.shape, device=x.device)
        log_softmax_kernel[(len(x),)](x, z, x.shape[1], x.stride(0), triton.next_power_of_2(x.shape[1]))
        return z
    assert fails("log_softmax", unmasked, capsys) == {OUTSIDE}


@pytest.mark.skipif(not device.INTERPRETED, reason="on a GPU a wild address ends the process")
def test_a_wild_address_is_reported(capsys):
    found = report("linear", linear_with(stride=lambda N, K: 2**30), capsys)
    assert found == {"every property": "it raised InterpreterError: IndexError('the kernel loads from an address outside of its tensors')"}
