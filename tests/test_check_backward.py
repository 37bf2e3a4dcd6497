"""The checks of lesson 10: right versions pass, and each property catches its mistake, alone."""
import numpy as np
import pytest
import torch

from helpers import check, reference
from reports import broken, failed, report, stub

quiet = np.errstate(all="ignore")                        # some mistakes overflow, and that is their point


# ---------------------------------------------------------------- the softmax's gradient

def softmax_backward(p, dp, keep=True):
    return p * (dp - (p * dp).sum(axis=1, keepdims=keep))


def by_jacobian(p, dp):
    return np.stack([(np.diag(row) - np.outer(row, row)) @ g for row, g in zip(p, dp)])


def in_place(p, dp):
    dp -= (p * dp).sum(axis=1, keepdims=True)
    return p * dp


def through_a_unit_range(p, dp):
    spread = np.ptp(dp, axis=1, keepdims=True)
    return spread * softmax_backward(p, dp / spread)


SOFTMAX_BACKWARD = {
    "one row": lambda p, dp: softmax_backward(p, dp).squeeze(),
    "the rows do not mix": lambda p, dp: softmax_backward(p, dp, keep=False),
    "dp that is the same for all keys gives zeros": lambda p, dp: through_a_unit_range(p, dp - 3.0),
    "a probability of 0 gives 0": lambda p, dp: softmax_backward(np.maximum(p, 1e-4), dp),
    "no Jacobian is built": by_jacobian,
    "the inputs are left as they were": in_place,
}


# ---------------------------------------------------------------- dK and dV in blocks, causal

def blocked_dkdv(q, k, v, do, lse, delta, scale, BLOCK, start=None, lost=lambda N_q, N_k, BLOCK: False, inside=True):
    """start(j, shift, BLOCK) is where the loop over queries begins; shapes that are `lost` lose their last tile."""
    N_q, N_k = len(q), len(k)
    shift = N_k - N_q
    dk, dv = np.zeros_like(k), np.zeros_like(v)
    lse = np.where(np.isneginf(lse), np.inf, lse)        # a blind query weighs nothing, whatever the mask
    for j in range(0, N_k, BLOCK):
        first = start(j, shift, BLOCK) if start else max(0, j - shift) // BLOCK * BLOCK
        for i in range(first, N_q - BLOCK if lost(N_q, N_k, BLOCK) else N_q, BLOCK):
            at, to = slice(i, i + BLOCK), slice(j, j + BLOCK)
            seen = np.arange(N_k)[None, to] <= np.arange(N_q)[at, None] + shift
            s = scale * q[at] @ k[to].T - lse[at, None]
            p = np.exp(np.where(seen, s, -np.inf)) if inside else np.exp(s) * seen
            dv[to] += p.T @ do[at]
            dk[to] += scale * (p * (do[at] @ v[to].T - delta[at, None])).T @ q[at]
    return dk, dv


def dkdv(**mistake):
    return lambda *args: blocked_dkdv(*args, **mistake)


def usual_scale(q, k, v, do, lse, delta, scale, BLOCK):
    dk, dv = blocked_dkdv(q, k, v, do, lse, delta, scale, BLOCK)
    return dk / scale * 8**-0.5, dv


def delta_in_place(q, k, v, do, lse, delta, scale, BLOCK):
    delta *= 2
    return blocked_dkdv(q, k, v, do, lse, delta / 2, scale, BLOCK)


def blind_queries_count(q, k, v, do, lse, delta, scale, BLOCK):
    dk, dv = blocked_dkdv(q, k, v, do, lse, delta, scale, BLOCK)
    return dk, dv + do[np.isneginf(lse)].sum(axis=0)


BLOCKED_DKDV = {
    "one block": dkdv(lost=lambda N_q, N_k, BLOCK: N_q == N_k == BLOCK == 16),
    "several blocks": dkdv(lost=lambda N_q, N_k, BLOCK: N_q == N_k == 64),
    "a length that is no multiple of the block": dkdv(lost=lambda N_q, N_k, BLOCK: N_q == N_k and N_q % BLOCK),
    "more keys than queries": dkdv(start=lambda j, shift, BLOCK: (j - min(shift, 0)) // BLOCK * BLOCK),
    "more queries than keys": blind_queries_count,
    "the scale that it is given": usual_scale,
    "masked scores far above the others": dkdv(inside=False),
    "tiles above the diagonal are not visited": dkdv(start=lambda j, shift, BLOCK: 0),
    "the inputs are left as they were": delta_in_place,
}


# ---------------------------------------------------------------- the gradient of a bias

def attention_dbias(q, k, v, bias, do, BLOCK=64, forget=False, safe=True, drop=()):
    """Strips of BLOCK queries, all keys at once. The last of N queries is dropped for the pairs (N, BLOCK) in `drop`."""
    N, D = q.shape
    dbias = np.zeros_like(bias)
    for i in range(0, N, BLOCK):
        rows = np.arange(i, min(i + BLOCK, N - ((N, BLOCK) in drop)))
        place = rows[:, None] - np.arange(N)[None, :] + N - 1
        s = D**-0.5 * q[rows] @ k.T + (0 if forget else bias[place])
        p = np.exp(s - (s.max(axis=1, keepdims=True) if safe else 0))
        p /= p.sum(axis=1, keepdims=True)
        np.add.at(dbias, place, softmax_backward(p, do[rows] @ v.T))
    return dbias


def dbias(**mistake):
    def fn(q, k, v, bias, do, BLOCK=64):
        return attention_dbias(q, k, v, bias, do, BLOCK, **mistake)
    return fn


def bias_in_place(q, k, v, bias, do, BLOCK=64):
    bias += 1.0
    return attention_dbias(q, k, v, bias - 1.0, do, BLOCK)


ATTENTION_DBIAS = {
    "the sums along the diagonals are right": dbias(drop=[(16, 64), (128, 64)]),
    "a length that is no multiple of the block": dbias(drop=[(67, 64)]),
    "the bias is part of the scores": dbias(forget=True),
    "logits of 1e4": dbias(safe=False),
    "no N x N matrix is held": lambda q, k, v, bias, do, BLOCK=64: attention_dbias(
        q, k, v, bias, do, 1000 if len(q) == 3000 else BLOCK),
    "the inputs are left as they were": bias_in_place,
    "any block size gives the same answer": dbias(drop=[(64, 48)]),
}


# ---------------------------------------------------------------- dK and dV of grouped heads

def grouped_dkdv(q, k, v, do, lse, delta, kind=None):
    (B, heads, N_q, _), (kv_heads, N_k) = q.shape, k.shape[1:3]
    dk, dv = (torch.empty_like(x) for x in (k, v))
    exact = reference.attention_grads(q, k, v, do)[1:]
    for out, x in zip((dk, dv), exact):
        out.copy_(torch.tensor(x))
    if kind == "one" and B == heads == 1 and N_q == N_k == 64:
        dk *= 1.1
    if kind == "batches" and B > 1 and heads == 1:
        dv[1:] = dv[:1]
    if kind == "heads" and heads == kv_heads and N_q == N_k == 64:
        dv[:, 1:] = dv[:, :1]
    if kind == "groups" and heads != kv_heads:           # the last head of each group wins
        group = heads // kv_heads
        last = reference.attention_grads(q[:, group - 1::group], k, v, do[:, group - 1::group])[1:]
        for out, x in zip((dk, dv), last):
            out.copy_(torch.tensor(x))
    if kind == "more keys" and N_k == 96:
        dk[:, :, N_q:] = 0
    if kind == "more queries" and N_q == 96:
        dk, dv = (torch.tensor(x).to(dk) for x in reference.attention_grads(q[:, :, :N_k], k, v, do[:, :, :N_k])[1:])
    if kind == "length" and N_k % 32:
        dv[..., N_k // 32 * 32:, :] = 0
    if kind == "unwritten" and N_k > 32 and N_k % 32:
        dv[..., N_k // 32 * 32:, :] = torch.empty_like(dv)[..., N_k // 32 * 32:, :]
    if kind == "outside" and N_k % 32:
        dk.as_strided([1], [1], dk.storage_offset() + dk.numel())[0] = 0.0
    return dk, dv


KINDS = {"one head": "one", "several batches": "batches", "several heads": "heads", "grouped heads": "groups",
         "more keys than queries": "more keys", "more queries than keys": "more queries",
         "a length that is no multiple of the block": "length", "every output element is written": "unwritten",
         "nothing is written outside of the tensors": "outside"}
GROUPED_DKDV = {name: lambda *args, kind=kind: grouped_dkdv(*args, kind=kind) for name, kind in KINDS.items()}

OPERATIONS = {"softmax_backward": (softmax_backward, SOFTMAX_BACKWARD), "blocked_dkdv": (blocked_dkdv, BLOCKED_DKDV),
              "attention_dbias": (attention_dbias, ATTENTION_DBIAS), "grouped_dkdv": (grouped_dkdv, GROUPED_DKDV)}
CASES = [(operation, name) for operation, (_, mistakes) in OPERATIONS.items() for name in mistakes]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_right_version_passes_and_every_property_has_a_mistake(operation, capsys):
    right, mistakes = OPERATIONS[operation]
    assert report(getattr(check, operation), right, capsys) == dict.fromkeys(mistakes, "ok")


@pytest.mark.parametrize("operation,name", CASES)
def test_a_wrong_version_fails_its_property_alone(operation, name, capsys):
    found = report(getattr(check, operation), OPERATIONS[operation][1][name], capsys)
    assert failed(found) == [name], found
    assert "raised" not in found[name]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stub_is_not_attempted(operation, capsys):
    getattr(check, operation)(stub)
    assert capsys.readouterr().out == f"{operation}: not attempted yet\n"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_exception_is_a_failed_property(operation, capsys):
    assert report(getattr(check, operation), broken, capsys) == {"every property": "it raised ZeroDivisionError: by zero"}


def test_messages_say_what_and_where(capsys):
    assert "MB at its peak, expected less than 8.0 MB" in report(check.softmax_backward, by_jacobian, capsys)["no Jacobian is built"]
    found = report(check.blocked_dkdv, dkdv(start=lambda *args: 0), capsys)
    assert "dk of key 32 used do of queries 0 to 31" in found["tiles above the diagonal are not visited"]
    found = report(check.blocked_dkdv, BLOCKED_DKDV["more keys than queries"], capsys)
    assert found["more keys than queries"].startswith("N_q = 50, N_k = 90, blocks of 32: dk: element [")
    found = report(check.attention_dbias, ATTENTION_DBIAS["any block size gives the same answer"], capsys)
    assert found["any block size gives the same answer"].startswith("N = 64, BLOCK = 48: element [")
    found = report(check.grouped_dkdv, GROUPED_DKDV["grouped heads"], capsys)
    assert found["grouped heads"] == "4 query heads, 2 key heads: dk is not the sum over each group of 2"
    assert "any block size" not in str(report(check.attention_dbias, lambda q, k, v, bias, do: bias, capsys))


def test_additions_to_one_place_are_all_made(capsys):
    def keeps_one(q, k, v, bias, do):                    # dbias[place] += ds
        N, D = q.shape
        place = np.arange(N)[:, None] - np.arange(N)[None, :] + N - 1
        p = np.exp(D**-0.5 * q @ k.T + bias[place])
        p /= p.sum(axis=1, keepdims=True)
        dbias = np.zeros_like(bias)
        dbias[place] += softmax_backward(p, do @ v.T)
        return dbias
    assert report(check.attention_dbias, keeps_one, capsys)["the sums along the diagonals are right"] != "ok"
