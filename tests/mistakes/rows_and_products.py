"""Right and wrong versions of softmax, its logarithm and its entropy, and of matrix products."""
import torch

from helpers import check, device  # (before triton: helpers.device says why)
from mistakes.ways import beyond_the_end, in_place, when, without_the_last

import triton
import triton.language as tl

OUTSIDE, FLOAT16, INNER = ("nothing is written outside of the tensors", "float16 is summed in float32",
                           "an inner length that is no multiple of the block")


# ---------------------------------------------------------------- rows

def softmax(x):
    return torch.softmax(x, dim=1)


def log_softmax(x):
    return torch.log_softmax(x, dim=1)


def rows(right):
    """Wrong versions of softmax, or of its logarithm, for every property that they share."""
    def complete_blocks(x, block=64):                    # what a grid over whole blocks of columns would see
        whole = x.shape[1] // block * block
        return right(x) if whole == x.shape[1] else torch.cat([right(x[:, :whole]), torch.zeros_like(x[:, whole:])], 1)

    def subtracting(limit):
        """The formula with another number in the place of the maximum."""
        def wrong(x):
            s = x - limit(x.max(1, keepdim=True).values)
            l = torch.exp(s).sum(1, keepdim=True)
            return s - torch.log(l) if right is log_softmax else torch.exp(s) / l
        return wrong

    def padded(other):
        """Lanes up to a power of two, with this number."""
        def wrong(x):
            more = x.new_full([len(x), triton.next_power_of_2(x.shape[1]) - x.shape[1]], other)
            return right(torch.cat([x, more], 1))[:, :x.shape[1]]
        return wrong

    return {
        "the values are right": lambda x: right(x) * 1.01,
        "a length that is no power of two": complete_blocks,
        "a single column": when(right, lambda x: x.shape[1] == 1, lambda z, x: x),
        "scores of 1e4": subtracting(lambda m: m.clamp(max=0)),
        "a row that is rare in practice": [subtracting(lambda m: m.clamp(min=0)), padded(0.0), padded(-1000.0),
                                           padded(-1e6), padded(-1e9)],
        "rows that lie apart in memory": lambda x: right(x.as_strided(x.shape, (x.shape[1], 1))),
        "every output element is written": when(right, lambda x: len(x) > 1, without_the_last),
        OUTSIDE: lambda x: beyond_the_end(right(x)),
        "the inputs are left as they were": in_place(right),
    }


@triton.jit
def log_softmax_kernel(x_ptr, z_ptr, N, stride, read, written, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * stride + columns, mask=columns < read, other=0.0)
    x = tl.where(columns < N, x, -float("inf"))
    m = tl.max(x, axis=0)
    z = x - m - tl.log(tl.sum(tl.exp(x - m), axis=0))
    tl.store(z_ptr + tl.program_id(0) * N + columns, z, mask=columns < written)


def with_masks(read=0, written=0):
    """The logarithm, by a kernel that reads and writes so many columns beyond the last."""
    def fn(x):
        z, N = torch.empty(x.shape, device=x.device), x.shape[1]
        log_softmax_kernel[(len(x),)](x, z, N, x.stride(0), N + read, N + written, triton.next_power_of_2(N))
        return z
    return fn


def entropy(x, padding=None, shift=True, guard=True):
    if padding is not None:                              # lanes up to a multiple of 128, with this number
        x = torch.nn.functional.pad(x, (0, -x.shape[1] % 128), value=padding)
    s = x - (x.max(1, keepdim=True).values if shift else 0)
    e = torch.exp(s)
    p = e / e.sum(1, keepdim=True)
    terms = p * (s - torch.log(e.sum(1, keepdim=True)))
    return -(torch.where(p > 0, terms, 0.0) if guard else terms).sum(1)


ENTROPY = dict(right=[entropy, lambda x: entropy(x, padding=-float("inf"))], wrong={
    "rows of a power of two": [lambda x: -entropy(x), lambda x: entropy(x) / 0.7, lambda x: 0 * x[:, 0] + entropy(x)[0]],
    "rows that are no power of two": [lambda x: entropy(x, padding=0.0), lambda x: entropy(x[:, :64])],
    "a row of one number is certain": [lambda x: entropy(x) + 1e-3, lambda x: entropy(x, padding=0.0)],
    "scores of 1e4, and all negative": [lambda x: entropy(x, shift=False), lambda x: entropy(x, padding=-1000.0)],
    "weights of 0 add nothing": lambda x: entropy(x, guard=False),
    "every row gets its number": lambda x: without_the_last(entropy(x)),
    "nothing outside is written": lambda x: beyond_the_end(entropy(x))})


# ---------------------------------------------------------------- products, in Triton

@triton.jit
def product_kernel(a_ptr, b_ptr, bias_ptr, z_ptr, M, N, K, a_row, a_col, b_row, b_col,
                   BLOCK: tl.constexpr, ACC: tl.constexpr, STEPS: tl.constexpr,
                   STORE: tl.constexpr, LOADS: tl.constexpr, BIAS: tl.constexpr):
    rows = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    columns = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    acc = tl.zeros([BLOCK, BLOCK], ACC)
    for k0 in range(0, K if STEPS else K // BLOCK * BLOCK, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        a_inside, b_inside = (rows < M + LOADS[0]) & (k[None, :] < K), (k[:, None] < K) & (columns < N + LOADS[1])
        a = tl.load(a_ptr + rows * a_row + k[None, :] * a_col, mask=a_inside, other=0.0)
        b = tl.load(b_ptr + k[:, None] * b_row + columns * b_col, mask=b_inside, other=0.0)
        acc = (acc + tl.dot(a, b, input_precision="ieee")).to(ACC)
    inside = (rows < M) & (columns < N)
    if BIAS == "rounded":
        acc = acc.to(z_ptr.dtype.element_ty).to(tl.float32)
    if BIAS != "":
        acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0)
    tl.store(z_ptr + rows * N + columns, acc.to(z_ptr.dtype.element_ty), mask=inside if STORE else columns < N + 1)


def product(a, b, bias=None, acc=tl.float32, steps=True, store=True, loads=(0, 0), how="once", strides=None):
    (M, K), N = a.shape, b.shape[1]
    z, strides = torch.empty(M, N, device=a.device, dtype=a.dtype), strides or (*a.stride(), *b.stride())
    product_kernel[(triton.cdiv(M, 32), triton.cdiv(N, 32))](
        a, b, a if bias is None else bias, z, M, N, K, *strides, 32, acc if a.dtype == torch.float16 else tl.float32,
        steps, store, loads, how if bias is not None else "")
    return z


def products(right, **kinds):
    """Wrong versions of an operation with one matrix product inside; the first tensor is [M, K], a result is [M, N]."""
    def where(applies, spoil):
        return when(right, lambda *t: applies(t[0].shape), spoil)

    def last_row_is_zero(z, *_):
        z[-1] = 0
        return z

    return {
        "the values are right": lambda *t: right(*t) + 1,
        "rows or columns that are no multiple of the block": where(lambda shape: shape[0] % 32, last_row_is_zero),
        INNER: kinds["steps"],
        "a single row and a single column": where(lambda shape: shape[0] == 1, lambda z, *_: z + 1),
        FLOAT16: kinds["half"],
        "every output element is written": where(lambda shape: shape[0] > 1, without_the_last),
        OUTSIDE: lambda *t: beyond_the_end(right(*t)),
        "the inputs are left as they were": in_place(right),
    }


def linear(x, w, bias, **kinds):
    return product(x, w.T, bias, **kinds)


def steps_in_float16(a, b):
    if a.dtype != torch.float16:
        return a @ b
    total = torch.zeros(len(a), b.shape[1], dtype=a.dtype, device=a.device)
    for k in range(0, len(b), 64):                       # a step is summed in float32, the steps are not
        total += (a[:, k:k + 64].float() @ b[k:k + 64].float()).half()
    return total


SEEN = device.INTERPRETED                                # a GPU does not say who reads, and a stray store is its end
LOG_SOFTMAX, LINEAR = rows(log_softmax), products(
    torch.nn.functional.linear, half=lambda *t: linear(*t, acc=tl.float16), steps=lambda *t: linear(*t, steps=False))
LOG_SOFTMAX[OUTSIDE] = [LOG_SOFTMAX[OUTSIDE], *SEEN * [with_masks(read=9999), with_masks(written=9999)]]
LINEAR[OUTSIDE] = [LINEAR[OUTSIDE], *SEEN * [lambda *t, wrong=wrong: linear(*t, **wrong) for wrong in (
    dict(store=False), dict(loads=(9999, 0)), dict(loads=(0, 9999)))]]
CASES = {
    check.softmax: dict(right=[softmax], wrong=rows(softmax) | {
        "scores of -inf weigh nothing": lambda x: softmax(torch.where(x == -float("inf"), 0.0, x))}),
    check.log_softmax: dict(right=[log_softmax, with_masks()], wrong=LOG_SOFTMAX,
                            also=[lambda x: torch.log(softmax(x))]),
    check.entropy: ENTROPY,
    check.matmul: dict(right=[product, torch.matmul], wrong=products(
        torch.matmul, half=[steps_in_float16, lambda a, b: product(a, b, acc=tl.float16)],
        steps=lambda a, b: product(a, b, steps=False)) | {
        "views that are not contiguous": lambda a, b: product(a, b, strides=(a.shape[1], 1, b.shape[1], 1))}),
    check.linear: dict(right=[linear], wrong=LINEAR | {
        "the values are right": lambda x, w, bias: product(x, w.T, bias, strides=(x.shape[1], 1, 1, len(w))),
        "the bias is added before the sum is rounded": lambda *t: linear(*t, how="rounded"),
        "one kernel reads the inputs and stores the result": [
            lambda x, w, bias: product(x, w.T) + bias, lambda x, w, bias: product(x, w.T.contiguous(), bias),
            lambda x, w, bias: x @ w.T + bias]}),
}
