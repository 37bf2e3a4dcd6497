"""The checks of lesson 09: right versions pass, and each property catches its mistake, alone."""
import numpy as np
import pytest
import torch

from helpers import check, reference
from helpers.check.heads import _windowed
from helpers.check.core import guarded
from reports import failed, report, stub


def bounds(block, BLOCK_M, BLOCK_N, N_q, N_k):
    shift = N_k - N_q
    return min(N_k, max(0, block * BLOCK_M + shift + 1)) // BLOCK_N * BLOCK_N, min(N_k, (block + 1) * BLOCK_M + shift)


def wrong_bounds(kind):
    def fn(block, BLOCK_M, BLOCK_N, N_q, N_k):
        full, stop = bounds(block, BLOCK_M, BLOCK_N, N_q, N_k)
        if kind == "queries" and N_q == N_k and N_k % BLOCK_M == 0 and BLOCK_M == BLOCK_N:
            full += BLOCK_N                              # the diagonal taken for a full tile
        if kind == "sizes" and BLOCK_M != BLOCK_N:
            full = block * BLOCK_M                       # no multiple of BLOCK_N
        if kind == "more keys" and N_k > N_q:
            stop = min(N_k, (block + 1) * BLOCK_M)       # aligned to the top left
        if kind == "blind" and N_k < N_q:
            stop = min(N_k, (block + 1) * BLOCK_M)
        if kind == "end" and N_k % BLOCK_M and N_q == N_k:
            stop = (block + 1) * BLOCK_M                 # beyond the last key
        return full, stop
    return fn


def only_whole_blocks(o):
    """A copy of o from a grid that was not rounded up: nobody wrote the last rows, if they fill no block of 16."""
    out, rows = torch.empty_like(o), o.shape[-2] // 16 * 16
    out[..., :rows, :] = o[..., :rows, :]
    return out


def beyond_the_end(o):
    """A copy of o that a kernel without a mask might have made: the element after the last is written, too."""
    o = guarded(o)
    o.as_strided([o.numel() + 1], [1])[-1] = 7
    return o


OUTPUT = {"unwritten": only_whole_blocks, "outside": beyond_the_end}


def heads(kind=None):
    def fn(q, k, v):
        B, H, N_q, _ = q.shape
        kv = k.shape[1]
        k_all, v_all = (x.repeat_interleave(H // kv, 1) for x in (k, v))
        if kind == "one" and B == H == 1 and N_q == k.shape[2]:
            q = 1.1 * q
        if kind == "batches" and B > 1:
            k_all = k_all[:1].expand(B, -1, -1, -1)
        if kind == "heads" and H == kv:
            k_all = k_all[:, :1].expand(-1, H, -1, -1)
        if kind == "groups":
            k_all, v_all = (x.repeat(1, H // kv, 1, 1) for x in (k, v))
        if kind in ("more keys", "more queries") and (k.shape[2] > N_q) == (kind == "more keys") and k.shape[2] != N_q:
            seen = torch.ones(N_q, k.shape[2], dtype=torch.bool, device=q.device).tril()             # top left
            return torch.softmax((q @ k_all.mT / 4).masked_fill(~seen, -torch.inf), -1) @ v_all
        return OUTPUT.get(kind, torch.clone)(reference.torch_attention(q, k_all, v_all, is_causal=True))
    return fn


def window(kind=None):
    def fn(q, k, v, window):
        N = len(q)
        if kind == "one" and window == 1:
            window = 2
        if kind == "inside" and window == 5:
            window = 6
        if kind == "across" and 32 < window < N:
            window += 1
        if kind == "long" and window > N:
            window = N - 1
        if kind == "mask" and k.min() < -1e9:
            window = N                                   # scores that low are not above those of masked keys
        q_all, k_all, v_all = (x.double().cpu().numpy() for x in (q, k, v))
        o = _windowed(q_all, k_all, np.nan_to_num(v_all), window)        # a key out of the window is not even multiplied
        if kind in ("before", "after"):
            past = np.tri(N) if kind == "before" else np.tri(N).T
            o[past @ np.isnan(v_all) > 0] = np.nan
        return OUTPUT.get(kind, torch.clone)(torch.tensor(o, dtype=q.dtype, device=q.device))
    return fn


CASES = [
    (check.loop_bounds, bounds, {"as many queries as keys": wrong_bounds("queries"), "blocks of different size": wrong_bounds("sizes"),
                                 "more keys than queries": wrong_bounds("more keys"),
                                 "queries that see no key": wrong_bounds("blind"),
                                 "a last block beyond the end": wrong_bounds("end")}),
    (check.attention_heads, heads(), {"one head": heads("one"), "several batches": heads("batches"), "several heads": heads("heads"),
                                      "grouped heads": heads("groups"), "more keys than queries": heads("more keys"),
                                      "more queries than keys": heads("more queries"),
                                      "every output element is written": heads("unwritten"),
                                      "nothing is written outside of the tensors": heads("outside")}),
    (check.window_attention, window(), {"a window of one key": window("one"), "a window inside a block": window("inside"),
                                        "a window across blocks": window("across"),
                                        "a window longer than the sequence": window("long"),
                                        "a key outside of the window weighs nothing, however low the scores": window("mask"),
                                        "tiles before the window are not visited": window("before"),
                                        "tiles above the diagonal are not visited": window("after"),
                                        "every output element is written": window("unwritten"),
                                        "nothing is written outside of the tensors": window("outside")}),
]


@pytest.mark.parametrize("function,right,mistakes", CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_right_and_stub(function, right, mistakes, capsys):
    found = report(function, right, capsys)
    assert found == dict.fromkeys(mistakes, "ok"), found

    function(stub)
    assert capsys.readouterr().out.strip().endswith("not attempted yet")


@pytest.mark.parametrize("function,name,wrong", [(f, name, wrong) for f, _, mistakes in CASES for name, wrong in mistakes.items()],
                         ids=lambda x: x if isinstance(x, str) else "")
def test_a_wrong_version_fails_its_property_alone(function, name, wrong, capsys):
    found = report(function, wrong, capsys)
    assert failed(found) == [name], found
