"""Right and wrong versions of masks, block maps, ALiBi and packed sequences."""
import torch
import triton
import triton.language as tl

from helpers import check
from mistakes.ways import mistaken


# ---------------------------------------------------------------- a mask

@triton.jit
def right(b, h, i, j, extra):
    shift, size, first = extra
    return (j <= i + shift) & ((j > i + shift - size) | (j < first))


@triton.jit
def wide(b, h, i, j, extra):
    return (j <= i + extra[0]) & ((j >= i + extra[0] - extra[1]) | (j < extra[2]))


@triton.jit
def plain(b, h, i, j, extra):
    return (j <= i + extra[0]) & (j > i + extra[0] - extra[1])


@triton.jit
def late(b, h, i, j, extra):
    return (j <= i + extra[0]) & (j > i + extra[0] - extra[1]) | (j < extra[2])


@triton.jit
def top_left(b, h, i, j, extra):
    return (j <= i) & ((j > i - extra[1]) | (j < extra[2]))


@triton.jit
def one_more(b, h, i, j, extra):
    return (j <= i + extra[0]) & ((j > i + extra[0] - extra[1]) | (j <= extra[2]) & (extra[2] > 0))


def returning(*fns):
    return lambda: fns if len(fns) > 1 else fns[0]


MASK = dict(right=[returning(right)], wrong={
    "a window": [returning(wide), returning(plain.fn)],                            # not compiled: @triton.jit is missing
    "the first keys stay": [returning(plain), returning(one_more)],
    "no query sees a later key": returning(late),
    "more keys than queries": returning(top_left),
    "more queries than keys": returning(top_left)})


# ---------------------------------------------------------------- a map of tiles

def block_map(seen, BLOCK, every=lambda tile, BLOCK: tile.all() and tile.shape[1] == BLOCK,
              some=lambda tile: tile.any(), square=False, spoil=False, causal=False):
    full, partial = [], []
    for i in range(0, seen.shape[0], BLOCK):
        full.append([])
        partial.append([])
        for n, j in enumerate(range(0, seen.shape[0] if square else seen.shape[1], BLOCK)):
            tile = seen[i:i + BLOCK, j:j + BLOCK]
            if causal and j == i:
                partial[-1].append(n)
            elif every(tile, BLOCK):
                full[-1].append(n)
            elif some(tile):
                partial[-1].append(n)
    if spoil:
        seen[:] = False
    return full, partial


maps = mistaken(block_map)
BLOCK_MAP = dict(right=[block_map], wrong={
    "every pair is seen": maps(every=lambda tile, BLOCK: False),
    "a causal mask": maps(some=lambda tile: tile[0].all()),
    "tiles of which nothing is seen": maps(some=lambda tile: True),
    "one pair is enough, and one is too few": [
        maps(every=lambda tile, BLOCK: tile.mean() > 0.9), maps(some=lambda tile: tile[0].any()),
        maps(some=lambda tile: tile.sum() > 1)],
    "more keys than queries": [maps(square=True), maps(causal=True)],
    "a tile that reaches beyond the keys is partial": maps(every=lambda tile, BLOCK: tile.all()),
    "queries that do not exist do not count": maps(every=lambda tile, BLOCK: tile.sum() == BLOCK**2),
    "the mask is left as it was": maps(spoil=True)})


# ---------------------------------------------------------------- ALiBi

@triton.jit
def alibi(s, b, h, i, j, extra):
    return s - tl.load(extra[0] + h) * (i + extra[1] - j)


@triton.jit
def added(s, b, h, i, j, extra):
    return s + tl.load(extra[0] + h) * (i + extra[1] - j)


@triton.jit
def first_slope(s, b, h, i, j, extra):
    return s - tl.load(extra[0]) * (i + extra[1] - j)


@triton.jit
def without_shift(s, b, h, i, j, extra):                 # the same for all keys of a query: only lse is another
    return s - tl.load(extra[0] + h) * (i - j)


@triton.jit
def learning(ds, s, b, h, i, j, extra, gradients):
    if gradients is not None:
        tl.atomic_add(gradients[0] + h, -tl.sum(ds * (i + extra[1] - j)))
    return ds


@triton.jit
def scaled(ds, s, b, h, i, j, extra, gradients):
    if gradients is not None:
        tl.atomic_add(gradients[0] + h, -tl.sum(ds * (i + extra[1] - j)))
    return ds * (1 - tl.load(extra[0] + h))


@triton.jit
def turned(ds, s, b, h, i, j, extra, gradients):
    if gradients is not None:
        tl.atomic_add(gradients[0] + h, tl.sum(ds * (i + extra[1] - j)))
    return ds


@triton.jit
def one_place(ds, s, b, h, i, j, extra, gradients):
    if gradients is not None:
        tl.atomic_add(gradients[0], -tl.sum(ds * (i + extra[1] - j)))
    return ds


@triton.jit
def overwriting(ds, s, b, h, i, j, extra, gradients):
    if gradients is not None:
        tl.store(gradients[0] + h, -tl.sum(ds * (i + extra[1] - j)))
    return ds


ALIBI = dict(right=[returning(alibi, learning)], wrong={
    "one head": returning(added, learning),
    "several heads": returning(first_slope, learning),
    "more keys than queries": returning(without_shift, learning),
    "the gradients of q, k and v": returning(alibi, scaled),
    "the gradient of the slopes": [returning(alibi, turned), returning(alibi, one_place)],
    "several batches, tiles and lengths": returning(alibi, overwriting)})


# ---------------------------------------------------------------- packed sequences

@torch.no_grad()
def packed(q, k, v, offsets_q, offsets_k, beyond=0, heads=slice(None), lengths=lambda n_q, n_k: n_k, blind=0.0,
           BLOCK=32, skip=False, spoil=0):
    """By PyTorch, tile by tile; `beyond`: how many more keys of the row a last tile holds than it should."""
    o, starts = torch.empty_like(q), (offsets_q[:-1], offsets_q[1:], offsets_k[:-1], offsets_k[1:])
    if skip:
        o[:] = 0
    for a, b, c, d in zip(*(x.tolist() for x in starts)):
        if skip and b == a:
            break
        d = c + lengths(b - a, d - c)
        d = min(len(k), d + (beyond if (d - c) % BLOCK else 0))
        x, y, z = (t.transpose(0, 1) for t in (q[a:b], k[c:d, heads].expand(-1, q.shape[1], -1), v[c:d]))
        found = (torch.softmax(x @ y.mT * q.shape[2]**-0.5, -1) @ z[:, :d - c]).transpose(0, 1)
        o[a:b] = found if d > c else blind
    if spoil:
        o.as_strided((spoil,), (1,), o.storage_offset() + o.numel()).fill_(1.0)
    return o


packs = mistaken(packed)


def unwritten(q, k, v, offsets_q, offsets_k):
    o = torch.empty_like(q)
    o[:len(q) // 32 * 32] = packed(q, k, v, offsets_q, offsets_k)[:len(q) // 32 * 32]
    return o


def as_one(q, k, v, offsets_q, offsets_k):
    return packed(q, k, v, offsets_q[[0, -1]], offsets_k[[0, -1]])


PACKED = dict(right=[packed], wrong={
    "one sequence": lambda *inputs: 2 * packed(*inputs),
    "sequences of whole tiles": as_one,
    "sequences that end inside a tile": packs(beyond=12),
    "several heads": packs(heads=slice(0, 1)),
    "queries and keys of different number": packs(lengths=lambda n_q, n_k: min(n_q, n_k)),
    "an empty sequence": packs(skip=True),
    "queries without a key get zeros": packs(blind=float("nan")),
    "all of that together": packs(beyond=1),
    "every output element is written": unwritten,
    "nothing is written outside of the tensors": packs(spoil=16)})

CASES = {check.window_and_first: MASK, check.block_map: BLOCK_MAP, check.alibi: ALIBI, check.packed_attention: PACKED}
