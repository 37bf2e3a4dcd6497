"""ring_attention on 1 to 4 processes against one; shards; what differs between ranks; a rank that dies; DDP beside it.
"""
import inspect
import time

import numpy as np
import pytest
import torch

from helpers import bench, device, lessons, process
from helpers.bench import ring as suite
from helpers.lessons import many_gpus as lesson
from helpers.process.ranks import Ranks
from on_ranks import attends_elsewhere, compares, cuts, dies, repeats, trains, trains_a_gpt


@pytest.fixture(scope="module")
def ranks():
    with Ranks(4, "helpers.lessons.many_gpus") as four:
        yield four


BOUNDS = dict(float32=(2e-6, 1e-5), float16=(2e-3, 5e-3), bfloat16=(2e-2, 5e-2))
CASES = [(size, 1, 2, 1, 24, 8, is_causal, True, "float32", None) for size in (1, 2, 3, 4) for is_causal in (False, True)]
CASES += [(2, 2, 1, 1, 20, 16, True, False, "float32", 0.3), (3, 1, 2, 2, 12, 5, True, False, "float32", None),
          (2, 1, 1, 1, 16, 8, True, True, "float16", None), (3, 1, 1, 1, 18, 8, True, True, "bfloat16", None)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_output_and_gradients_are_those_of_one_process(ranks, case):
    errors, (bound, gradient_bound) = ranks(compares, *case), BOUNDS[case[8]]
    assert errors[case[0]:] == [None] * (4 - case[0])
    for o, lse, *gradients in errors[:case[0]]:
        assert o < bound and lse < 1e-5 and max(gradients) < gradient_bound, (o, lse, gradients)


def test_the_same_bits_in_every_run(ranks):
    assert all(ranks(repeats))


# ---------------------------------------------------------------- merging

def test_merging_in_any_order_and_into_strided_rows():
    generator = torch.Generator().manual_seed(0)
    o, lse = torch.randn(4, 1, 2, 40, 5, generator=generator), 3 * torch.randn(4, 1, 2, 40, generator=generator)
    o, lse = o.to(device.DEVICE), lse.to(device.DEVICE)
    lse[0, :, :, :3], lse[1, :, :, 2:5] = -torch.inf, -torch.inf
    lse[:, :, :, 7] = -torch.inf
    o[lse == -torch.inf] = 0
    weights = torch.softmax(lse.double(), 0).nan_to_num(0)
    want, want_lse = (weights[..., None] * o.double()).sum(0), torch.logsumexp(lse.double(), 0)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        first, *others = order
        room, room_lse = o.new_full((1, 2, 60, 5), torch.nan), o.new_full((1, 2, 60), torch.nan)
        got, got_lse = room[:, :, 10:50], room_lse[:, :, 10:50]
        got.copy_(o[first]), got_lse.copy_(lse[first])
        for each in others:
            assert lesson.merge_into(got, got, got_lse, o[each], lse[each]) is got
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got_lse.double(), want_lse, rtol=1e-6, atol=1e-6)
        for x in (room, room_lse):
            assert x[:, :, :10].isnan().all() and x[:, :, 50:].isnan().all()
    want[:, :, 30:] = (weights[:2, :, :, 30:, None] * o[:2, :, :, 30:].double()).sum(0) / weights[:2, :, :, 30:, None].sum(0)
    want[:, :, :30] = o[0, :, :, :30]                    # those of the last rows alone, into another type
    got = lesson.merge_into(torch.full_like(o[0], torch.nan).half(), o[0], lse[0], o[1, :, :, 30:], lse[1, :, :, 30:].clone())
    torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("module,name", [("causal_and_multihead", "launch_v2"), ("warp_specialization", "forward_v4")])
def test_kernels_return_float32_partial_results_when_asked(module, name):
    launch = getattr(getattr(lessons, module), name)
    q, k, v = torch.randn(3, 1, 1, 20, 16, generator=torch.Generator().manual_seed(1)).half().to(device.DEVICE)
    o, lse = launch(q, k, v, False, 0.25, dtype=torch.float32)
    rounded, same = launch(q, k, v, False, 0.25)
    assert o.dtype == torch.float32 and rounded.dtype == torch.float16 and lse.equal(same)
    assert (o - rounded).abs().max() < 2e-3 and not o.equal(rounded.float())


# ---------------------------------------------------------------- shards

def ring(rank, size):
    return lesson.Ring(None, rank, size)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("zigzag", [False, True])
def test_every_pair_of_a_query_and_a_key_it_sees_is_computed_once(size, zigzag):
    N, seen = 4 * size, np.zeros((4 * size, 4 * size), int)
    chunks = [lesson.chunks_of(ring(rank, size), zigzag) for rank in range(size)]
    places = [np.concatenate([np.split(np.arange(N), parts)[c] for c in mine]) for parts, mine in chunks]
    work = np.zeros((size, size), int)
    for rank in range(size):
        for step in range(size):
            source = (rank - step) % size
            block = lesson.meeting(ring(rank, size), source, N // size, True, zigzag)
            if block:
                rows, keys = places[rank][block[0]], places[source][block[1]]
                seen[np.ix_(rows, keys)] += np.tri(len(rows), dtype=int) if block[2] else 1
                work[rank, step] = len(rows) * (len(rows) + 1) // 2 if block[2] else len(rows) * len(keys)
    assert np.array_equal(seen, np.tri(N, dtype=int))
    assert not zigzag or (work == work[0]).all()


def test_shards_and_what_is_refused(ranks):
    for rank, (found, whole, said, empty) in enumerate(ranks(cuts)):
        early, late = range(3 * rank, 3 * rank + 3), range(21 - 3 * rank, 24 - 3 * rank)
        assert found == [[2 * i for i in (*early, *late)], [2 * i for i in range(6 * rank, 6 * rank + 6)], [rank, 7 - rank]]
        assert whole == [True, True] and empty == [1, 1, 0, 8]
        for sentence, start in zip(said, (
                "x has 12 rows, which 8 chunks do not divide (4 ranks)", "x requires a gradient",
                "x's shape is (2, 2) on rank 0 of the ring and (2, 3) on rank 3", "q has 3 rows: with zigzag",
                "is_causal with 2 queries and 4 keys", "scale is 0.5 on rank 0 of the ring and 1.5 on rank 1",
                "whether gradients are needed is False on rank 0 of the ring and True on rank 2"), strict=True):
            assert sentence.startswith(start), sentence


# ---------------------------------------------------------------- cross-attention, groups, DDP

def test_unequal_lengths_second_derivatives_and_foreign_groups(ranks):
    for rank, (error, said) in enumerate(ranks(attends_elsewhere)):
        assert error < 2e-6 and "no second derivatives" in said[0]
        assert rank == 0 or said[1].startswith("group does not contain this process")


def test_inside_a_model_with_ddp_on_another_axis(ranks):
    assert all(difference < 1e-6 * largest for difference, largest in ranks(trains))


def test_attention_in_a_model_under_ddp(ranks):
    """The operator and the layer of the lesson on models: every rank has the mean of all gradients."""
    first, *others = ranks(trains_a_gpt)
    assert first[1] and all(other == first for other in others)


# ---------------------------------------------------------------- ranks that fail (the last: they end the processes)

def test_a_rank_that_dies_is_a_sentence_and_a_status_within_seconds(ranks):
    start = time.monotonic()
    with pytest.raises(process.Failed, match="rank 1 ended with status 1: enough") as caught:
        ranks(dies)
    assert time.monotonic() - start < 30
    others = [part for part in str(caught.value).split("; ") if not part.startswith("rank 1")]
    assert others                                        # on a busy machine not all within the time of grace
    for part in others:
        assert "status 1: RuntimeError: rank" in part and "waited in vain" in part
    assert all(each.poll() for each in ranks.processes)


# ---------------------------------------------------------------- the suite

def test_the_suite_asks_for_every_case_and_takes_the_largest_memory(monkeypatch):
    failed, closed = [], []
    class Pretending:
        def __init__(self, size, module, backend, timeout):
            assert (size, module, backend) == (2, "helpers.bench.ring", "nccl")

        def __call__(self, fn, *arguments):
            inspect.getsource(fn)
            if arguments == ("PyTorch, flash", 65536, True, False) and not failed.append(self):
                raise process.Failed("rank 1 ended with status 1: no room", "")
            return [dict(median_ms=1.0, q1_ms=1.0, q3_ms=1.0, peak_bytes=5), dict(median_ms=1.0, peak_bytes=7)]

        close = lambda self: closed.append(self)
    monkeypatch.setattr(suite, "Ranks", Pretending)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    rows = [row for job in bench.SUITES["ring"]() for row in bench.rows_of(*job)]
    assert bench.SUITES["ring"].gpus == 2 and len(rows) == 1 + 12 * len(suite.NAMES) + 2 * 2
    assert {row["gpus"] for row in rows if row["name"] == "one GPU"} == {1}
    lost = [row for row in rows if "error" in row]
    assert [row["error"] for row in lost] == ["rank 1 ended with status 1: no room"] and len({*failed, *closed}) == 2
    assert all(row["peak_bytes"] == 7 for row in rows[1:] if row not in lost)
