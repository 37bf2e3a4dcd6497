"""What v3 and v4 add to attention: which kernel serves which arguments; tiles and tuning; gradients by request."""
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import triton

from attention import (FLASH, TUNED, V3, VIEWS, causal_or_not, check, close, each_type, half_types, inputs)
from helpers import device
from helpers.lessons import backward_triton, fp8, prefetch, warp_specialization
from helpers.lessons.fp8 import flash_attention_v3 as v3

V4 = warp_specialization.flash_attention_v4


@contextmanager
def path_taken():
    """A list that names the launches within the block: "v2", "v3", "ws"."""
    names = []

    def named(module, name):
        launch = getattr(module, name)

        def noted(*arguments, **options):
            names.append(name[-2:])
            return launch(*arguments, **options)
        return mock.patch.object(module, name, noted)
    with named(prefetch, "launch_v2"), named(prefetch, "launch_v3"), named(warp_specialization, "launch_ws"):
        yield names


# ---------------------------------------------------------------- which kernel serves

@each_type
@pytest.mark.parametrize("D", [1, 3, 7, 8, 40, 128, 200, 256])
def test_rows_of_whole_sixteen_bytes_and_two_byte_types_have_descriptors(D, dtype):
    with path_taken() as path:
        v3(*inputs(1, 1, 1, 7, 7, D, dtype))
    assert path == ["v3" if D % 8 == 0 and dtype != torch.float32 and TUNED else "v2"]


@half_types
@pytest.mark.parametrize("view", VIEWS)
def test_layouts_that_have_descriptors(view, dtype):
    tensors, (change, described) = inputs(2, 2, 2, 20, 40, 24, dtype), VIEWS[view]
    want = v3(*tensors, is_causal=True)
    for chosen in ((0, 1, 2), (0,), (1,), (2,))[:None if dtype == torch.float16 else 1]:
        views = [change(x) if i in chosen else x for i, x in enumerate(tensors)]
        assert bool(prefetch.describable(*views, 0.5, (0.0, 0))) == (TUNED and described)
        with path_taken() as path:
            o, lse = v3(*views, is_causal=True, return_lse=True)
        assert path == ["v3" if TUNED and described else "v2"]
        if described:
            assert torch.equal(o, want)
    close(tensors, o, lse, is_causal=True)


def test_steps_of_zero_have_no_descriptor():
    x = inputs(1, 1, 1, 50, 50, 24, torch.float16)[0]
    for view in (x.expand(2, -1, -1, -1), x.expand(-1, 3, -1, -1), x[:, :, :1].expand(-1, -1, 50, -1)):
        with path_taken() as path:
            check(V3, [view] * 3, is_causal=True)
        assert path == ["v2"]


@pytest.mark.parametrize("scale", [-0.7, 0.0, -5e-324, 5e-324, 1e-38, 1.5e-38])
def test_a_scale_that_float32_does_not_hold_is_for_v2(scale):
    with path_taken() as path:
        v3(*inputs(1, 1, 1, 7, 7, 16, torch.float16), scale=scale)
    assert path == ["v3" if scale >= torch.finfo(torch.float32).tiny and TUNED else "v2"]


def test_older_gpus_take_plain_pointers():
    with mock.patch.object(device, "capability", lambda x: 80), path_taken() as path:
        check(V3, inputs(1, 1, 1, 70, 70, 64, torch.float16), is_causal=True)
    assert path == ["v2"]


def test_v4_without_its_gpu_is_v3():
    tensors = inputs(1, 2, 1, 50, 60, 24, torch.float16)
    with mock.patch.object(device, "capability", lambda x: 100), path_taken() as path:
        o, lse = V4(*tensors, is_causal=True, enable_gqa=True, return_lse=True)
        assert torch.equal(o, v3(*tensors, is_causal=True, enable_gqa=True))
    assert path in (["v3", "v3"], ["v2", "v2"])
    close(tensors, o, lse, is_causal=True)


@pytest.mark.gpu(9)
@causal_or_not
@pytest.mark.parametrize("precision", ["fp16", "fp8"])
@pytest.mark.parametrize("N_q,N_k", [(2048, 2047), (2047, 2048), (2048, 2048), (4096, 4095), (4096, 4096)])
@pytest.mark.parametrize("D", [32, 64, 128, 136])
def test_long_sequences_are_specialized(D, N_q, N_k, precision, is_causal):
    tiles = warp_specialization.tiles_ws(D, N_q, N_k, is_causal, precision == "fp8")
    with path_taken() as path:
        V4(*inputs(1, 1, 1, N_q, N_k, D, torch.float16), is_causal=is_causal, precision=precision)
    assert ("ws" in path) == bool(tiles)
    ours = D == 128 or (D > 32 and precision == "fp16")
    assert bool(tiles) == (ours and min(N_q, N_k) >= (4096 if D == 64 and is_causal else 2048))


# ---------------------------------------------------------------- tiles

@pytest.mark.parametrize("N_k", [100, 192, 256])
def test_all_tiles_give_the_same(N_k):
    """With tiles that divide the keys there is no masked stage, with others there is."""
    tensors = inputs(1, 1, 1, 70, N_k, 64, torch.float16)
    small = [(16, 32), (32, 16)] if device.INTERPRETED else []
    for BLOCK_M, BLOCK_N in ((64, 16), (64, 32), (64, 64), (64, 128), (128, 64), (128, 128), *small):
        for is_causal in (False, True):
            found = prefetch.launch_v3(*tensors, is_causal, 0.125, tiles=dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N))
            close(tensors, *found, is_causal=is_causal)


@causal_or_not
@pytest.mark.parametrize("D", [24, 64, 128])
def test_the_tuned_kernel(D, is_causal):
    tensors = inputs(1, 2, 2, 150, 200, D, torch.float16)
    found = prefetch.launch_v3(*tensors, is_causal, D**-0.5, kernel=prefetch.tuned_v3_kernel)
    close(tensors, *found, is_causal=is_causal)


@pytest.mark.parametrize("BLOCK_M,BLOCK_N", [(64, 128), (128, 64), (64, 32)])
def test_a_tuner_sets_the_tiles_of_the_descriptors(BLOCK_M, BLOCK_N):
    configs = [prefetch.option(BLOCK_M, BLOCK_N, 4, 2)]
    tuned = triton.autotune(key=["N_q"], configs=configs)(prefetch.flash_attention_v3_kernel)
    tensors = inputs(1, 2, 1, 150, 200, 40, torch.float16)
    want = prefetch.launch_v3(*tensors, True, 0.1, tiles=dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N))
    assert all(map(torch.equal, prefetch.launch_v3(*tensors, True, 0.1, kernel=tuned), want))


def test_tiles_divide_128():
    """`EVEN` and the blocks of FP8's scales rely on that."""
    for config in prefetch.tuned_v3_kernel.configs:
        assert 128 % config.kwargs["BLOCK_M"] == 0 and 128 % config.kwargs["BLOCK_N"] == 0 and config.pre_hook
    lengths = [(4096, False), (4096, True), (10_000, False), (10_000, True)]
    made = [prefetch.tiles_v3(D, N_k, is_causal) for D in range(1, 257) for N_k, is_causal in lengths]
    made += [fp8.tiles_fp8(D, capability) for D in range(1, 257) for capability in (90, 100)]
    assert all(128 % sizes["BLOCK_M"] == 0 and 128 % sizes["BLOCK_N"] == 0 for sizes in made)


# ---------------------------------------------------------------- gradients

@pytest.mark.parametrize("dtype,dropout_p", [(torch.float32, 0.0), (torch.float32, 0.3), (torch.float16, 0.3),
                                             (torch.bfloat16, 0.6)])
def test_what_descriptors_do_not_serve_is_flash_attention_bit_for_bit(dtype, dropout_p):
    tensors = [x.requires_grad_() for x in inputs(1, 2, 1, 20, 40, 24, dtype)]
    options = dict(is_causal=True, dropout_p=dropout_p, seed=5, enable_gqa=True, return_lse=True)
    results = []
    for attention in (V3, FLASH):
        o, lse = attention(*tensors, **options)
        loss = o.float().square().sum() + lse.square().sum()
        results.append([o, lse, *torch.autograd.grad(loss, tensors)])
    assert all(map(torch.equal, *results))


def test_autograd_is_asked_where_a_derivative_is_wanted():
    tensors = inputs(1, 2, 2, 10, 10, 16, torch.float16)
    with mock.patch.object(backward_triton.TritonAttention, "apply", side_effect=RuntimeError("autograd")):
        v3(*tensors)
        for i in range(3):
            with pytest.raises(RuntimeError, match="autograd"):
                v3(*(x.clone().requires_grad_(i == j) for j, x in enumerate(tensors)))


@pytest.mark.parametrize("options,message", [(dict(precision="fp4"), "precision is 'fp4': expected 'fp16' or 'fp8'"),
                                             (dict(precision=None), "precision is None")])
def test_refuses_a_precision(options, message):
    for attention in (V3, V4):
        with pytest.raises(ValueError, match=message):
            attention(*inputs(1, 1, 1, 10, 10, 16), **options)
