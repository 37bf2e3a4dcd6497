"""Checks of decoding: the merge of splits, heads packed into one tile, and the look-up of pages."""
import functools

import numpy as np
import torch

from helpers import reference
from helpers.check.core import agrees, differences, everywhere, outside, over, properties, tensor, unwritten
from helpers.check.kernels import own_work, read_once
from helpers.device import DEVICE

inf = np.inf


# ---------------------------------------------------------------- the merge

def merge_splits(fn):
    """fn(parts, lses) returns o [rows, D] and lse [rows] over all keys, from those of splits, each [rows, splits, ...].

    float32 tensors. A part without keys has zeros and lse = -inf, and so has a row without any.
    """
    on = over("parts [{}, {}, 16]", _parts)
    right = functools.partial(_merged, ("o", "lse"))
    shapes = (3, 4), (5, 7), (1, 33)
    properties("merge_splits", [
        ("one part stays what it is", on(right, (2, 1))),
        ("outputs are weighted by their lse", on(functools.partial(_merged, ("o",)), (1, 4))),
        ("the lse is that of all keys", on(functools.partial(_merged, ("lse",)), (1, 4))),
        ("each row has parts of its own", on(right, (3, 4), (5, 8))),
        ("a number of parts that is no power of two", on(right, (1, 3), (1, 33))),
        ("lse near 1e4 and near -1e4", on(right, (1, 4, 1e4), (1, 4, -1e4))),
        ("lse far below 0", on(right, (1, 4, -1e30, 0, 1e29))),
        ("lse far apart give no inf and no NaN", on(right, (1, 4, 0, 0, 500), (1, 4, 0, 0, -500))),
        ("a part without keys weighs nothing", on(right, (1, 4, 0, 1), (1, 4, -1e4, 3))),
        ("a row without any key", on(right, (1, 4, 0, 4))),
        ("every output element is written", on(everywhere(unwritten), *shapes)),
        ("nothing is written outside of the tensors", on(everywhere(outside), *shapes)),
        ("one kernel reads the inputs and stores the result",
         on(lambda fn, *inputs: own_work(functools.wraps(fn)(lambda *x: fn(*x)[0]), *inputs), (3, 4)))], fn)


def _parts(rows, splits, level=0, empty=0, apart=0, D=16):
    """parts [rows, splits, D] and lses [rows, splits] around `level`, each larger by `apart` than the one before; the last
    `empty` parts have no keys."""
    rng = np.random.default_rng(rows + splits)
    parts, lses = rng.standard_normal((rows, splits, D)), level + 2 * rng.standard_normal((rows, splits))
    lses += apart * np.arange(splits)
    parts[:, splits - empty:], lses[:, splits - empty:] = 0, -inf
    return tensor(parts), tensor(lses)


def _merged(look, fn, parts, lses):
    s, o = lses.double().cpu().numpy(), parts.double().cpu().numpy()
    m = s.max(1, keepdims=True)
    p = np.exp(s - np.where(m == -inf, 0, m))
    l = p.sum(1)
    with np.errstate(divide="ignore"):
        want = (p[..., None] * o).sum(1) / np.where(l == 0, 1, l)[:, None], m[:, 0] + np.log(l)
    return differences("o lse", fn(parts, lses), want, look=look)


# ---------------------------------------------------------------- packed heads

def packed_heads(fn):
    """fn(q, k, v) returns causal attention o [heads, N_q, D] of q [heads, N_q, D] and k, v [kv_heads, N_k, D], float32.

    The queries stand at the end of the keys. heads / kv_heads * N_q is at most 32, and D is 16.
    """
    on = over("heads = {}, kv_heads = {}, N_q = {}, N_k = {}", _heads)
    right = agrees(functools.partial(reference.attention, is_causal=True))
    shapes = (4, 2, 1, 50), (6, 2, 3, 40), (3, 1, 7, 33)
    properties("packed heads", [
        ("a query head for each key head", on(right, (3, 3, 1, 50))),
        ("heads that share a key head", on(right, (4, 1, 1, 50), (3, 1, 1, 20))),
        ("several key heads, each shared", on(right, (4, 2, 1, 50), (6, 2, 1, 40))),
        ("several new tokens", on(right, (1, 1, 3, 50), (2, 2, 5, 40))),
        ("several new tokens of heads that share", on(right, (4, 1, 3, 50), (6, 2, 5, 40))),
        ("every output element is written", on(everywhere(unwritten), *shapes)),
        ("nothing is written outside of the tensors", on(everywhere(outside), *shapes)),
        ("each key and each value is read once", on(read_once("k v"), (4, 1, 1, 50), (6, 2, 3, 40)))], fn)


def _heads(heads, kv_heads, N_q, N_k, D=16):
    rng = np.random.default_rng(heads + N_q)
    return [tensor(rng.standard_normal((h, N, D))) for h, N in ((heads, N_q), (kv_heads, N_k), (kv_heads, N_k))]


# ---------------------------------------------------------------- pages

def read_pages(fn):
    """fn(pages, table, length) returns the first `length` rows of a sequence, [length, D], by its block table.

    pages float* [number, page, D], table int* [n]: rows i * page to (i + 1) * page - 1 are those of page table[i].
    """
    on, right = over("pages of {}, table {}, length {}", _pages), agrees(_rows)
    some = (16, (3, 0, 2), 48), (4, (5, 1, 4, 0, 2), 18), (16, (1, 0), 19)
    properties("read_pages", [
        ("one page", on(right, (16, (0,), 16))),
        ("pages one after the other", on(right, (16, (0, 1, 2, 3), 64))),
        ("pages in any order", on(right, (16, (3, 0, 2, 1), 64))),
        ("a page that comes twice", on(right, (16, (2, 1, 2), 48))),
        ("pages of other sizes", on(right, (4, (5, 1, 4), 12), (48, (1, 0), 96))),
        ("a last page that is not full", on(right, (16, (1, 0), 19), (4, (5, 1, 4, 0, 2), 18))),
        ("every output element is written", on(everywhere(unwritten), *some)),
        ("nothing is written outside of the tensors", on(everywhere(outside), *some)),
        ("no page is looked up behind the end", on(right, (16, (1, 0, -1, -1), 19), (16, (1, -1, -1), 5)))], fn)


def _pages(page, table, length, D=16):
    pages = np.random.default_rng(page + length).standard_normal((6, page, D))
    return tensor(pages), torch.tensor(table, dtype=torch.int32, device=DEVICE), length


def _rows(pages, table, length):
    used = table[:-(-length // pages.shape[1])].long()
    return pages[used].flatten(0, 1)[:length].double().cpu().numpy()
