"""What the warp-specialized kernel has of its own, on a Hopper GPU; test_forward.py has what the others have, too."""
import numpy as np
import pytest
import torch

from attention import (V4, VIEWS, array, causal_or_not, check, close, each_value, half_types, inputs, nan_in_new_memory,
                       quarters, result, spoilt)
from helpers import reference
from test_eight_bits import check_kernel, specialized

pytestmark = pytest.mark.gpu(9)

# one block and several, group heads, queries that see nothing, keys that are no whole number of tiles
SHAPES = pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (1, 2, 1, 17, 17), (2, 4, 2, 300, 256), (1, 3, 3, 129, 384),
                                           (1, 2, 1, 50, 630), (1, 2, 1, 630, 50), (1, 2, 2, 777, 1300),
                                           (1, 2, 2, 1300, 777)])
WIDTHS = pytest.mark.parametrize("D", [64, 128, 256])    # each has tiles of its own


@half_types
@causal_or_not
@pytest.mark.parametrize("D", [8, 64, 72, 128, 200, 256])
@SHAPES
def test_agrees_with_float64(shape, D, is_causal, dtype):
    check(V4, inputs(*shape, D, dtype), is_causal=is_causal, scale=0.1)


@half_types
@causal_or_not
@pytest.mark.parametrize("D", [72, 128])
@SHAPES
def test_in_eight_bits_it_rounds_p_and_nothing_else(shape, D, is_causal, dtype):
    check_kernel(specialized, inputs(*shape, D, dtype), is_causal, D**-0.5)


@causal_or_not
@pytest.mark.parametrize("B,heads,kv_heads,N,D", [(40, 8, 2, 300, 64), (40, 8, 2, 300, 128), (3, 64, 64, 500, 256)])
def test_more_blocks_than_multiprocessors(B, heads, kv_heads, N, D, is_causal):
    check(V4, inputs(B, heads, kv_heads, N, N, D, torch.float16), is_causal=is_causal, scale=0.1)


@causal_or_not
@WIDTHS
def test_large_logits(D, is_causal):
    tensors = quarters(inputs(1, 1, 1, 300, 300, D, torch.float16))
    o, lse = result(V4, tensors, is_causal=is_causal, scale=1e4)
    want, want_lse = reference.attention(*tensors, scale=1e4, is_causal=is_causal, return_lse=True)
    assert np.abs(array(o) - want).max() < 2e-3
    np.testing.assert_allclose(array(lse), want_lse, rtol=1e-6)


@WIDTHS
@each_value
@pytest.mark.parametrize("which", [0, 1, 2])
def test_hands_nan_and_inf_on(which, value, D):
    tensors = spoilt(inputs(1, 1, 1, 200, 200, D, torch.float16), which, (170, 3), value)
    o, lse = result(V4, tensors, scale=0.1)
    want, want_lse = reference.attention(*tensors, scale=0.1, return_lse=True)
    np.testing.assert_allclose(array(o), want, atol=2e-2)
    np.testing.assert_allclose(array(lse), want_lse, rtol=1e-5)


@causal_or_not
@WIDTHS
def test_writes_every_element_and_is_deterministic(D, is_causal):
    tensors = inputs(20, 4, 2, 300, 200, D, torch.float16)
    want = result(V4, tensors, is_causal=is_causal)
    for _ in range(20):                                  # another program takes another block each time
        with nan_in_new_memory():
            assert all(map(torch.equal, result(V4, tensors, is_causal=is_causal), want))


@pytest.mark.parametrize("view", [view for view, (_, described) in VIEWS.items() if described])
def test_takes_any_layout_of_descriptors(view):
    tensors = inputs(2, 2, 2, 150, 160, 128, torch.float16)
    found = result(V4, [VIEWS[view][0](x) for x in tensors], is_causal=True)
    assert all(map(torch.equal, found, result(V4, tensors, is_causal=True)))
    close(tensors, *found, is_causal=True)
