"""Right and wrong versions of the gradients in NumPy: of a softmax, of keys and values in blocks, of a bias."""
import numpy as np

from helpers import check
from mistakes.ways import in_place, mistaken


def softmax_backward(p, dp, keep=True):
    return p * (dp - (p * dp).sum(axis=1, keepdims=keep))


def by_jacobian(p, dp):
    return np.stack([(np.diag(row) - np.outer(row, row)) @ g for row, g in zip(p, dp)])


SOFTMAX_BACKWARD = dict(right=[softmax_backward], wrong={
    "one row": [lambda p, dp: softmax_backward(p, dp).squeeze(), lambda p, dp: p * dp,
                lambda p, dp: p * (dp - dp.sum(axis=1, keepdims=True))],
    "the rows do not mix": [lambda p, dp: softmax_backward(p, dp, keep=False), lambda p, dp: p * (dp - (p * dp).sum())],
    "dp that is the same for all keys gives zeros": lambda p, dp: softmax_backward(p, dp) + 0.01,
    "a probability of 0 gives 0": lambda p, dp: softmax_backward(np.maximum(p, 1e-4), dp),
    "no Jacobian is built": by_jacobian,
    "the inputs are left as they were": in_place(softmax_backward)})


# ---------------------------------------------------------------- dK and dV in blocks, causal

def blocked_dkdv(q, k, v, do, lse, delta, scale, BLOCK,
                 start=lambda j, shift, BLOCK: max(0, j - shift) // BLOCK * BLOCK,
                 lost=lambda N_q, N_k, BLOCK: False, inside=True, blind=True):
    """start(j, shift, BLOCK) is where the loop over queries begins; shapes that are `lost` lose their last tile."""
    N_q, N_k = len(q), len(k)
    shift = N_k - N_q
    dk, dv = np.zeros_like(k), np.zeros_like(v)
    lse = np.where(np.isneginf(lse), np.inf, lse)        # a blind query weighs nothing, whatever the mask
    for j in range(0, N_k, BLOCK):
        for i in range(start(j, shift, BLOCK), N_q - BLOCK if lost(N_q, N_k, BLOCK) else N_q, BLOCK):
            at, to = slice(i, i + BLOCK), slice(j, j + BLOCK)
            seen = np.arange(N_k)[None, to] <= np.arange(N_q)[at, None] + shift
            s = scale * q[at] @ k[to].T - lse[at, None]
            p = np.exp(np.where(seen, s, -np.inf)) if inside else np.exp(s) * seen
            dv[to] += p.T @ do[at]
            dk[to] += scale * (p * (do[at] @ v[to].T - delta[at, None])).T @ q[at]
    return dk, dv if blind else dv + do[np.isposinf(lse)].sum(axis=0)


dkdv = mistaken(blocked_dkdv)


def starts(off, unit=True):
    """Loops that begin `off` queries late, at a multiple of the block if unit."""
    def start(j, shift, BLOCK):
        return max(0, j - shift + off) // (BLOCK if unit else 1) * (BLOCK if unit else 1)
    return dkdv(start=start)


def usual_scale(q, k, v, do, lse, delta, scale, BLOCK):
    dk, dv = blocked_dkdv(q, k, v, do, lse, delta, scale, BLOCK)
    return dk / scale * 8**-0.5, dv


BLOCKED_DKDV = dict(right=[blocked_dkdv, starts(0, unit=False)], wrong={
    "one block": dkdv(lost=lambda N_q, N_k, BLOCK: N_q == N_k == BLOCK),
    "several blocks": dkdv(lost=lambda N_q, N_k, BLOCK: N_q > BLOCK),
    "a length that is no multiple of the block": dkdv(lost=lambda N_q, N_k, BLOCK: N_q % BLOCK),
    "more keys than queries": [dkdv(start=lambda j, shift, BLOCK: (j - min(shift, 0)) // BLOCK * BLOCK), starts(31)],
    "more queries than keys": dkdv(blind=False),
    "a few keys more or less than queries": [starts(1), starts(2), starts(15), starts(1, unit=False),
                                             starts(8, unit=False)],
    "the scale that it is given": usual_scale,
    "masked scores far above the others": dkdv(inside=False),
    "tiles above the diagonal are not visited": [dkdv(start=lambda j, shift, BLOCK: 0), starts(-32)],
    "the inputs are left as they were": in_place(blocked_dkdv)})


# ---------------------------------------------------------------- the gradient of a bias

def strips(q, k, v, bias, do, BLOCK=64, forget=False, safe=True):
    """Strips of BLOCK queries, all keys at once: right, but for the memory."""
    N, D = q.shape
    dbias = np.zeros_like(bias)
    for i in range(0, N, BLOCK):
        rows = np.arange(i, min(i + BLOCK, N))
        place = rows[:, None] - np.arange(N)[None, :] + N - 1
        s = D**-0.5 * q[rows] @ k.T + (0 if forget else bias[place])
        p = np.exp(s - (s.max(axis=1, keepdims=True) if safe else 0))
        p /= p.sum(axis=1, keepdims=True)
        np.add.at(dbias, place, softmax_backward(p, do[rows] @ v.T))
    return dbias


def attention_dbias(q, k, v, bias, do, BLOCK=64, keep=lambda N, BLOCK: True, add=np.add.at):
    """Tile by tile. The last tile is dropped unless keep(N, BLOCK)."""
    N, D = q.shape
    dbias = np.zeros_like(bias)
    for i in range(0, N if keep(N, BLOCK) else N - BLOCK, BLOCK):
        at = slice(i, i + BLOCK)

        def tiles():
            for j in range(0, N, BLOCK):
                to = slice(j, j + BLOCK)
                place = np.arange(N)[at, None] - np.arange(N)[None, to] + N - 1
                yield to, place, D**-0.5 * q[at] @ k[to].T + bias[place]

        lse = np.logaddexp.reduce([np.logaddexp.reduce(s, axis=1) for _, _, s in tiles()])
        delta = sum(((np.exp(s - lse[:, None]) @ v[to]) * do[at]).sum(1) for to, _, s in tiles())
        for to, place, s in tiles():
            add(dbias, place, np.exp(s - lse[:, None]) * (do[at] @ v[to].T - delta[:, None]))
    return dbias


def dbias(keep=lambda N, BLOCK: True, **mistake):
    def fn(q, k, v, bias, do, BLOCK=64):
        return attention_dbias(q, k, v, bias, do, BLOCK, keep, **mistake)
    return fn


def keeps_one(dbias, place, ds):
    dbias[place] += ds                                   # of several additions to one place, one is made


ATTENTION_DBIAS = dict(right=[attention_dbias], wrong={
    "the sums along the diagonals are right": [dbias(keep=lambda N, BLOCK: N != 128), dbias(add=keeps_one),
                                               lambda q, k, v, bias, do: bias],
    "a length that is no multiple of the block": dbias(keep=lambda N, BLOCK: N % BLOCK == 0),
    "the bias is part of the scores": lambda *a: strips(*a, forget=True),
    "logits of 1e4": lambda *a: strips(*a, safe=False),
    "no matrix is held, nor a strip of it": [strips, lambda *a: strips(*a, BLOCK=9999)],
    "the inputs are left as they were": in_place(attention_dbias),
    "any block size gives the same answer": dbias(keep=lambda N, BLOCK: BLOCK != 48)})

CASES = {check.softmax_backward: SOFTMAX_BACKWARD, check.blocked_dkdv: BLOCKED_DKDV,
         check.attention_dbias: ATTENTION_DBIAS}
