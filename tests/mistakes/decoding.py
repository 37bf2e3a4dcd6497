"""Right and wrong versions of the merge of splits, of heads packed into one tile, and of the look-up of pages."""
import torch

from helpers import check  # (before triton: helpers.device says why)
from mistakes.ways import beyond_the_end, mistaken, when

import triton
import triton.language as tl

inf = float("inf")


# ---------------------------------------------------------------- the merge

@triton.jit
def merge_kernel(parts_ptr, lses_ptr, o_ptr, lse_ptr, splits, D: tl.constexpr, BLOCK: tl.constexpr):
    row, part, d = tl.program_id(0), tl.arange(0, BLOCK), tl.arange(0, D)
    s = tl.load(lses_ptr + row * splits + part, mask=part < splits, other=-inf)
    o = tl.load(parts_ptr + (row * splits + part)[:, None] * D + d[None, :], mask=part[:, None] < splits, other=0.0)
    m = tl.max(s, axis=0)
    p = tl.exp(s - tl.where(m == -inf, 0.0, m))
    l = tl.sum(p, axis=0)
    tl.store(o_ptr + row * D + d, tl.sum(p[:, None] * o, axis=0) / tl.where(l == 0, 1.0, l))
    tl.store(lse_ptr + row, tl.where(l == 0, -inf, m + tl.log(l)))


def by_kernel(parts, lses):
    rows, splits, D = parts.shape
    o, lse = torch.empty(rows, D, device=parts.device), torch.empty(rows, device=parts.device)
    merge_kernel[(rows,)](parts, lses, o, lse, splits, D, triton.next_power_of_2(splits))
    return o, lse


def merge(parts, lses, mean=False, top=False, shift=lambda s: s.amax(1, keepdim=True), mask=-inf, guard=True, own=True,
          whole=False, scale=1.0):
    s = lses.nan_to_num(nan=mask, posinf=inf, neginf=mask) if own else lses[:1].expand(lses.shape)
    if whole:                                            # a power of two of the parts
        n = 2 ** (parts.shape[1].bit_length() - 1)
        parts, s = parts[:, :n], s[:, :n]
    m = shift(s)
    p = torch.exp(s - torch.where(torch.isinf(m), 0.0, m) if guard else s - m)
    weights = (s > -inf).float() if mean else p
    l = weights.sum(1, keepdim=True)
    o = (weights[..., None] * parts).sum(1) / torch.where((l == 0) & guard, 1.0, l)
    return scale * o, m[:, 0] if top else m[:, 0] + torch.log(p.sum(1))


merging = mistaken(merge)


def without_the_last_row(result, *_):
    o, lse = result
    short = torch.empty_like(o)
    short[:, :8] = o[:, :8]
    return short, lse


MERGE = dict(right=[by_kernel], wrong={
    "one part stays what it is": merging(scale=1.1),
    "outputs are weighted by their lse": merging(mean=True),
    "the lse is that of all keys": merging(top=True),
    "each row has parts of its own": merging(own=False),
    "a number of parts that is no power of two": merging(whole=True),
    "lse near 1e4 and near -1e4": merging(shift=lambda s: torch.zeros_like(s[:, :1])),
    "lse far below 0": [merging(shift=lambda s, low=low: s.amax(1, keepdim=True).clamp(min=low)) for low in (-1e4, -1e9)],
    "lse far apart give no inf and no NaN": [merging(shift=lambda s: s[:, :1]), merging(shift=lambda s: s[:, -1:])],
    "a part without keys weighs nothing": merging(mask=0.0),
    "a row without any key": merging(guard=False),
    "every output element is written": when(by_kernel, lambda *_: True, without_the_last_row),
    "nothing is written outside of the tensors": lambda *x: (beyond_the_end(by_kernel(*x)[0]), by_kernel(*x)[1]),
    "one kernel reads the inputs and stores the result": merge}, also=[lambda parts, lses: parts.sum(1)])


# ---------------------------------------------------------------- packed heads

@triton.jit
def packed_kernel(q_ptr, k_ptr, v_ptr, o_ptr, group, N_q, N_k, D: tl.constexpr, BLOCK_M: tl.constexpr,
                  BLOCK_N: tl.constexpr, HOW: tl.constexpr):
    """HOW: "packed", or, with a program for each query head, "apart"."""
    program, r, n, d = tl.program_id(0), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, D)
    kv = program if HOW == "packed" else program // group
    rows = group * N_q if HOW == "packed" else N_q
    place, inside = (program * rows + r)[:, None] * D + d[None, :], r[:, None] < rows
    q = tl.load(q_ptr + place, mask=inside, other=0.0)
    last = r % N_q + N_k - N_q
    m, l, acc = tl.full([BLOCK_M], -1e38, tl.float32), tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M, D], tl.float32)
    for j in range(0, N_k, BLOCK_N):
        keys = j + n
        tile = (kv * N_k + keys)[:, None] * D + d[None, :]
        k_j = tl.load(k_ptr + tile, mask=keys[:, None] < N_k, other=0.0)
        v_j = tl.load(v_ptr + tile, mask=keys[:, None] < N_k, other=0.0)
        s = tl.where(keys[None, :] <= last[:, None], tl.dot(q, k_j.T, input_precision="ieee") * D**-0.5, -inf)
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p, alpha = tl.exp(s - m_new[:, None]), tl.exp(m - m_new)
        l = alpha * l + tl.sum(p, axis=1)
        acc = tl.dot(p, v_j, alpha[:, None] * acc, input_precision="ieee")
        m = m_new
    tl.store(o_ptr + place, acc / l[:, None], mask=inside)


def packed(q, k, v, how="packed"):
    (heads, N_q, D), (kv_heads, N_k), o = q.shape, k.shape[:2], torch.empty_like(q)
    packed_kernel[(kv_heads if how == "packed" else heads,)](q, k, v, o, heads // kv_heads, N_q, N_k, D, 32, 16, how)
    return o


def attend(q, k, v, pick=lambda x, group: x.repeat_interleave(group, 0), diagonal=lambda i, N_q, N_k: i + N_k - N_q):
    """pick(x, group) gives each query head a key head; diagonal says which key row i of a head's queries sees last."""
    group, (N_q, N_k) = q.shape[0] // k.shape[0], (q.shape[1], k.shape[1])
    k, v = pick(k, group), pick(v, group)
    last = torch.stack([torch.tensor([diagonal(i, N_q, N_k) for i in range(N_q)]) for _ in q]).to(q.device)
    s = (q @ k.mT / 4).masked_fill(torch.arange(N_k, device=q.device) > last[..., None], -inf)
    return torch.softmax(s, -1) @ v


def rows_as_tokens(q, k, v):
    """Takes the row of the tile, not the token, for the place in the sequence."""
    group, N_q = q.shape[0] // k.shape[0], q.shape[1]
    tile = q.view(k.shape[0], group * N_q, -1)
    return attend(tile, k, v).view(q.shape)


def halves(o, *_):
    short = torch.empty_like(o)
    short[..., :8] = o[..., :8]
    return short


PACKED = dict(right=[packed], wrong={
    "a query head for each key head": when(packed, lambda q, k, v: len(q) == len(k), lambda o, q, k, v: 1.1 * o),
    "heads that share a key head": when(packed, lambda q, k, v: len(k) == 1 < len(q), lambda o, *_: o[:1].expand(o.shape)),
    "several key heads, each shared": lambda q, k, v: attend(q, k, v, lambda x, group: x.repeat(group, 1, 1)),
    "several new tokens": [lambda q, k, v: attend(q, k, v, diagonal=lambda i, N_q, N_k: N_k - 1),
                           lambda q, k, v: attend(q, k, v, diagonal=lambda i, N_q, N_k: i)],
    "several new tokens of heads that share": rows_as_tokens,
    "every output element is written": when(packed, lambda *_: True, halves),
    "nothing is written outside of the tensors": lambda *x: beyond_the_end(packed(*x)),
    "each key and each value is read once": lambda q, k, v: packed(q, k, v, "apart")})


# ---------------------------------------------------------------- pages

@triton.jit
def pages_kernel(pages_ptr, table_ptr, x_ptr, length, PAGE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
                 MASKED: tl.constexpr):
    keys, d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    inside = keys < length
    if MASKED:
        page = tl.load(table_ptr + keys // PAGE, mask=inside, other=0)
        x = tl.load(pages_ptr + (page * PAGE + keys % PAGE)[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
    else:
        page = tl.load(table_ptr + tl.minimum(keys, 2 * PAGE) // PAGE)
        x = tl.load(pages_ptr + (page * PAGE + keys % PAGE)[:, None] * D + d[None, :])
    tl.store(x_ptr + keys[:, None] * D + d[None, :], x, mask=inside[:, None])


def by_table(pages, table, length, masked=True):
    x = torch.empty(length, pages.shape[2], device=pages.device)
    pages_kernel[(triton.cdiv(length, 32),)](pages, table, x, length, pages.shape[1], pages.shape[2], 32, masked)
    return x


def looked_up(pages, table, length, page=None, number=lambda table: table):
    """Row by row, with a page size of its own, or other numbers than the table's."""
    page = page or pages.shape[1]
    used = number(table[:-(-length // pages.shape[1])].long())
    rows = torch.arange(length, device=pages.device)
    return pages[used[(rows // page) % len(used)] % len(pages), (rows % page) % pages.shape[1]]


def full_pages(pages, table, length):
    x, whole = torch.zeros(length, pages.shape[2], device=pages.device), length // pages.shape[1] * pages.shape[1]
    x[:whole] = by_table(pages, table, whole) if whole else 0
    return x


PAGES = dict(right=[by_table, looked_up], wrong={
    "one page": when(by_table, lambda pages, table, length: length == 16, lambda x, *_: 1.1 * x),
    "pages one after the other": lambda *x: looked_up(*x, number=lambda table: 0 * table),
    "pages in any order": lambda *x: looked_up(*x, number=lambda table: torch.arange(len(table), device=table.device)),
    "a page that comes twice": lambda *x: looked_up(*x, number=lambda table: table.sort().values),
    "pages of other sizes": lambda *x: looked_up(*x, page=16),
    "a last page that is not full": full_pages,
    "every output element is written": when(by_table, lambda *_: True, halves),
    "nothing is written outside of the tensors": lambda *x: beyond_the_end(by_table(*x)),
    "no page is looked up behind the end": lambda *x: by_table(*x, masked=False)})

CASES = {check.merge_splits: MERGE, check.packed_heads: PACKED, check.read_pages: PAGES}
