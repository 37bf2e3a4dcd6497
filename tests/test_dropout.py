"""Dropout: the random numbers, the mask, every kernel that drops, and what a caller may ask for."""
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from attention import (BOUNDS, FLASH, array, backward_with, causal_or_not, close_grads, differentiable, each_type,
                       grads, inputs, wanted)
from helpers import device
from helpers.lessons.backward_triton import dropout_mask, draw_seed, flash_attention as flash
from helpers.lessons.causal_and_multihead import flash_attention_v2, launch_v2


# ---------------------------------------------------------------- the random numbers

def philox(counter, key, rounds):
    """Philox-4x32 (Salmon et al. 2011, section 3.3) for four arrays of counters and two of keys."""
    counter, (k0, k1) = [np.asarray(c, np.uint64) for c in counter], (np.asarray(k, np.uint64) for k in key)
    low, high = (lambda x: x & np.uint64(0xFFFFFFFF)), (lambda x: x >> np.uint64(32))
    for _ in range(rounds):
        a, b = np.uint64(0xD2511F53) * counter[0], np.uint64(0xCD9E8D57) * counter[2]
        counter = [high(b) ^ counter[1] ^ k0, low(b), high(a) ^ counter[3] ^ k1, low(a)]
        k0, k1 = low(k0 + np.uint64(0x9E3779B9)), low(k1 + np.uint64(0xBB67AE85))
    return counter


@triton.jit
def philox_kernel(in_ptr, seed_ptr, out_ptr):
    a, b, c, d = tl.philox(tl.load(seed_ptr), tl.load(in_ptr), tl.load(in_ptr + 1), tl.load(in_ptr + 2),
                           tl.load(in_ptr + 3), 10)
    tl.store(out_ptr, a.to(tl.int64))
    tl.store(out_ptr + 1, b.to(tl.int64))
    tl.store(out_ptr + 2, c.to(tl.int64))
    tl.store(out_ptr + 3, d.to(tl.int64))


@pytest.mark.parametrize("counter,key,answer", [         # the published answers of Random123, philox4x32 with 10 rounds
    (4 * [0], 2 * [0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (4 * [0xFFFFFFFF], 2 * [0xFFFFFFFF], [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])])
def test_the_generator_gives_the_published_answers(counter, key, answer):
    assert [int(x) for x in philox(counter, key, 10)] == answer
    counter = torch.tensor(np.array(counter, np.uint32).view(np.int32), device=device.DEVICE)
    seed = torch.tensor(np.array(key, np.uint32).view(np.int64), device=device.DEVICE)
    out = torch.zeros(4, dtype=torch.int64, device=device.DEVICE)
    philox_kernel[1,](counter, seed, out)
    assert out.tolist() == answer


# ---------------------------------------------------------------- the mask

@pytest.mark.parametrize("dropout_p,seed", [(0.1, 0), (0.5, 7), (0.9, 2**31 - 1)])
def test_the_mask_is_seven_rounds_of_the_generator(dropout_p, seed):
    bh, rows, keys = (x.ravel() for x in np.indices((6, 70, 90)))
    bits = philox((keys, rows, bh, 0 * bh), (seed, 0), 7)[0].astype(np.uint32).view(np.int32)
    uniform = np.where(bits < 0, ~bits, bits) / 2**31
    got = dropout_mask(2, 3, 70, 90, dropout_p, seed).cpu().numpy().ravel()
    decided = np.abs(uniform - dropout_p) > 1e-6         # the kernel compares in float32
    assert decided.mean() > 0.999 and np.array_equal(got[decided], (uniform >= dropout_p)[decided])


@pytest.mark.parametrize("dropout_p", [0.02, 0.5, 0.9])
def test_the_rate_of_dropout(dropout_p):
    keep = array(dropout_mask(2, 3, 128, 128, dropout_p, 3)).reshape(6, 128, 128)
    for axes in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):     # over all, and for each key, each query and each head
        n = np.prod([keep.shape[axis] for axis in axes])
        assert np.abs(keep.mean(axes) - (1 - dropout_p)).max() < 5 * np.sqrt(dropout_p * (1 - dropout_p) / n)


def test_heads_queries_keys_and_seeds_drop_independently():
    keep = array(dropout_mask(2, 2, 128, 128, 0.5, 3)).reshape(4, 128, 128)
    other = array(dropout_mask(2, 2, 128, 128, 0.5, 4)).reshape(4, 128, 128)
    for a, b in ((keep, other), (keep[:-1], keep[1:]), (keep[:, :-1], keep[:, 1:]), (keep[..., :-1], keep[..., 1:]),
                 (keep, keep.swapaxes(1, 2))):
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(a.size / 2)      # a pair may be counted twice


def test_the_mask_belongs_to_the_seed_and_the_place():
    keep = dropout_mask(1, 3, 70, 90, 0.3, 11)
    assert keep.dtype == torch.bool and torch.equal(keep, dropout_mask(1, 3, 70, 90, 0.3, 11))
    assert torch.equal(keep[:, :2, :33, :65], dropout_mask(1, 2, 33, 65, 0.3, 11))
    assert not torch.equal(keep, dropout_mask(1, 3, 70, 90, 0.3, 12))


@pytest.mark.parametrize("BLOCK_M,BLOCK_N", [(16, 16), (16, 64), (64, 32), (64, 64)])
def test_every_kernel_drops_the_same(BLOCK_M, BLOCK_N):
    """Equal scores and unit vectors for v and do: each probability can be read in the results."""
    N = D = 48
    keep = dropout_mask(1, 2, N, N, 0.4, 9)
    zeros = torch.zeros(1, 2, N, D, device=device.DEVICE)
    unit = torch.eye(N, device=device.DEVICE).expand_as(zeros)
    o, _ = launch_v2(zeros, zeros, unit, False, 1.0, (0.4, 9), tiles=dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N))
    assert torch.allclose(o, keep / (0.6 * N))
    q, k, v = zeros.clone().requires_grad_(), unit.clone().requires_grad_(), torch.ones_like(zeros).requires_grad_()
    with backward_with((BLOCK_M, BLOCK_N), (BLOCK_M, BLOCK_N)):
        dq, dv = torch.autograd.grad(flash(q, k, v, scale=1.0, dropout_p=0.4, seed=9), (q, v), unit)
        q, k = unit.clone().requires_grad_(), zeros.clone().requires_grad_()
        dk, = torch.autograd.grad(flash(q, k, v, scale=1.0, dropout_p=0.4, seed=9), k, unit)
    assert torch.allclose(dv.mT, keep / (0.6 * N))
    ds = (keep / 0.6 - keep.float().mean(-1, keepdim=True) / 0.6) / N           # dp is 1 everywhere
    assert torch.allclose(dq, ds, atol=1e-6) and torch.allclose(dk.mT, ds, atol=1e-6)


# ---------------------------------------------------------------- attention with dropout

@each_type
@causal_or_not
def test_agrees_with_the_reference(is_causal, dtype):
    *tensors, do = inputs(2, 2, 1, 30, 40, 24, dtype, more=1)
    keep = array(dropout_mask(2, 2, 30, 40, 0.25, 21)) / 0.75
    got = grads(FLASH, tensors, do, is_causal=is_causal, dropout_p=0.25, seed=21)
    close_grads(got, wanted(tensors, do, is_causal=is_causal, keep=keep), BOUNDS[dtype])


def test_almost_everything_dropped():
    *tensors, do = inputs(1, 1, 1, 20, 20, 16, more=1)
    for dropout_p in (0.999, 1 - 2**-24):                # more is 1 in float32, and refused
        assert all(torch.isfinite(x).all() for x in grads(FLASH, tensors, do, dropout_p=dropout_p, seed=0))


def test_no_dropout_is_no_dropout():
    *tensors, do = inputs(1, 2, 2, 40, 40, 16, more=1)
    state = torch.get_rng_state()
    plain = grads(FLASH, tensors, do)
    assert torch.equal(torch.get_rng_state(), state)     # nothing was drawn
    assert all(map(torch.equal, plain, grads(FLASH, tensors, do, dropout_p=0.0, seed=4)))
    assert torch.equal(plain[0], flash_attention_v2(*tensors))


@differentiable
def test_a_seed_is_drawn_from_torch(attention):
    tensors = inputs(1, 1, 1, 40, 40, 16, torch.float16)
    torch.manual_seed(5)
    first, second = (attention(*tensors, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(attention(*tensors, dropout_p=0.5), first) and not torch.equal(first, second)


def test_both_passes_drop_the_same_without_a_seed():
    *tensors, do = inputs(1, 1, 1, 40, 40, 16, more=1)
    torch.manual_seed(5)
    first = grads(FLASH, tensors, do, dropout_p=0.5)
    torch.manual_seed(5)
    with torch.device("meta"):                           # the generator is the CPU's, whatever the default device
        seed = draw_seed(0.5, None)
    assert all(map(torch.equal, grads(FLASH, tensors, do, dropout_p=0.5, seed=seed), first))


def test_the_expectation_is_kept():
    *tensors, do = inputs(1, 1, 1, 8, 8, 4, more=1)
    many, dos = [x.expand(4, 4, -1, -1).clone() for x in tensors], do.expand(4, 4, -1, -1)
    runs = [grads(FLASH, many, dos, dropout_p=0.3, seed=seed) for seed in range(3)]
    want = wanted(tensors, do)
    for i, name in ((0, "o"), (2, "dq"), (3, "dk"), (4, "dv")):
        samples = np.concatenate([array(run[i]).reshape(16, 8, 4) for run in runs])
        error = np.abs(samples.mean(0) - want[i][0, 0])
        assert (error <= 5 * samples.std(0) / np.sqrt(len(samples)) + 1e-6).all(), name


@differentiable
@pytest.mark.parametrize("options,message", [
    (dict(dropout_p=1.0), "dropout_p is 1.0"), (dict(dropout_p=-0.1), "dropout_p is -0.1"),
    (dict(dropout_p=float("nan")), "dropout_p is nan"), (dict(dropout_p="0.1"), "dropout_p is .*0.1"),
    (dict(dropout_p=0.1, seed=-1), "seed is -1"), (dict(dropout_p=0.1, seed=2**31), "seed is 2147483648"),
    (dict(dropout_p=0.1, seed=1.5), "seed is 1.5"),
])
def test_refuses_options(attention, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        attention(*inputs(1, 1, 1, 10, 10, 16), **options)
