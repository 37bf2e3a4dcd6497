"""What is measured on an NVIDIA GPU: `make bench`, or `python -m helpers.bench SUITE ...`.

`run` drives the suites, `clock` takes the times, `kernels` has every attention by name; the suites are in `programs`,
`attention`, `masks`, `decoding`, `ring`, `claims`, `host`, `model`, `planted` and `profile`. A result is compared with
a reference before its time is kept. Times are CUDA events around one call, in attention around one replay of its CUDA
graph, so that the host is not timed, too; after a rest and a warm-up, with the L2 cache overwritten between calls.
`ncu` reads the hardware's counters; `profile` has help from `traces` and `sanitizers`.
"""
from helpers import device, records
from helpers.bench import (clock, programs, attention, masks, decoding, claims, host, model, planted, profile,
                           ring)                         # they enter their suites
from helpers.bench.run import SUITES, rows_of

import torch


def record(name: str, /, **live) -> dict:
    """The record of one suite: figures/h200/<name>.json, or if there is a GPU, measured now.

    `live` is {fact: its values}, such as N=[1024, 16384]: then a GPU measures no other rows.
    """
    if device.INTERPRETED:
        return records.load(name)
    rows = [row for facts, measure in SUITES[name]() if all(facts.get(key) in values for key, values in live.items())
            for row in rows_of(facts, measure)]
    torch.cuda.empty_cache()                             # another notebook may be at work on the same GPU
    return made_of(name, clock.provenance(f"bench.record({name!r})"), rows)


def made_of(name: str, where: dict, rows: list) -> dict:
    """A suite's record: where it was measured, the ceilings of the card, what it is, and a row per kernel and size."""
    return dict(**where, ceilings=clock.ceilings(), what=SUITES[name].__doc__, rows=rows)
