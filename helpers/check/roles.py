"""The checks for warps with different roles: turns in a ring, its readers, attention with p @ v one tile late."""
import itertools
import random
from types import SimpleNamespace

import numpy as np

from helpers import reference
from helpers.check.core import difference, first, over, properties, untouched

# ---------------------------------------------------------------- whose turn it is


def _turns(name, part, *stages):
    """A case that compares one part of fn(i, STAGES) with a count of how often a place was used before."""
    def case(fn):
        for STAGES in stages:
            used = [0] * STAGES
            for i, stage in zip(range(4 * STAGES + 3), itertools.cycle(range(STAGES))):
                got, want = fn(i, STAGES)[part], (stage, used[stage] % 2, (used[stage] + 1) % 2)[part]
                if got != want:
                    return f"for tile {i} of a ring of {STAGES}, {name} is {got}, expected {want}"
                used[stage] += 1
        return ""
    return case


TURNS = [("the places of a ring, one after the other", _turns("the place", 0, 2, 4)),
         ("with which parity readers wait", _turns("the readers' parity", 1, 2, 4)),
         ("with which parity the writer waits", _turns("the writer's parity", 2, 2, 4)),
         ("a single place", lambda fn: first(_turns(*part, 1)(fn) for part in PARTS)),
         ("three places, and five", lambda fn: first(_turns(*part, 3, 5)(fn) for part in PARTS))]
PARTS = ("the place", 0), ("the readers' parity", 1), ("the writer's parity", 2)


def ring_turn(fn):
    """fn(i, STAGES) returns the place of the i-th tile, and the parities with which its readers and its writer wait."""
    properties("ring_turn", TURNS, fn)


# ---------------------------------------------------------------- a reader of a ring

class Barrier:
    """Counts arrivals; when all have come, its phase ends and the next begins."""

    def __init__(self, name, count, when_over=lambda: None):
        self.name, self.count, self.arrived, self.phase, self.when_over = name, count, 0, 0, when_over

    def arrive(self):
        self.arrived += 1
        if self.arrived == self.count:
            self.arrived, self.phase = 0, self.phase + 1
            self.when_over()


def _ring(STAGES, readers):
    """A ring of cells. What all have handed on is gone: the writer may have written again."""
    ring = SimpleNamespace(cells=[None] * STAGES)
    ring.full = [Barrier(f"full[{stage}]", 1) for stage in range(STAGES)]
    ring.empty = [Barrier(f"empty[{stage}]", readers, lambda stage=stage: ring.cells.__setitem__(stage, None))
                  for stage in range(STAGES)]
    return ring


def _writer(ring, numbers):
    for i, number in enumerate(numbers):
        stage, turn = i % len(ring.cells), i // len(ring.cells)
        yield ring.empty[stage], (turn + 1) % 2
        ring.cells[stage] = number
        ring.full[stage].arrive()


def _run(tasks, choose):
    """Advance {name: generator} by turns, whoever may, until all are done. "" or what holds them up."""
    waits = {}

    def advance(name):
        try:
            waits[name] = next(tasks[name])
        except StopIteration:
            waits.pop(name, None)
    for name in tasks:
        advance(name)
    for _ in range(1000):
        if not waits:
            return ""
        free = [name for name, (barrier, parity) in waits.items() if barrier.phase % 2 != parity % 2]
        if not free:
            return "all wait, " + ", ".join(f"{name} for phase {barrier.phase} of {barrier.name}"
                                            for name, (barrier, parity) in list(waits.items())[-2:])
        advance(choose(free))
    return "after 1000 turns it is not over"


def _relay(STAGES, *begins, numbers=(7, 3, 8, 1, 9, 4, 6)):
    """A case in which one reader for each of `begins` takes the numbers from there on, in 30 orders of events."""
    def case(fn):
        where = f"{STAGES} place{'s' * (STAGES > 1)}"
        for seed in range(30):
            ring, got = _ring(STAGES, len(begins)), [[] for _ in begins]
            tasks = {f"reader {n}": fn(ring, begin, len(numbers), got[n]) for n, begin in enumerate(begins)}
            stuck = _run(tasks | {"the writer": _writer(ring, numbers)}, random.Random(seed).choice)
            for n, begin in enumerate(begins):
                if not stuck and got[n] != list(numbers[begin:]):
                    return f"{where}: reader {n} wants {list(numbers[begin:])}, and got {got[n]}"
            if stuck:
                return f"{where}: {stuck}"
            for stage, barrier in enumerate(ring.empty):
                turns = len(range(stage, len(numbers), STAGES))
                if (barrier.phase, barrier.arrived) != (turns, 0):
                    return (f"{where}: {barrier.name} is in phase {barrier.phase} at the end, with {barrier.arrived} "
                            f"arrivals; expected phase {turns}, with 0")
        return ""
    return case


READER = [("one reader, two places", _relay(2, 0)),
          ("two readers", _relay(2, 0, 0)),
          ("any number of places", lambda fn: first(_relay(S, 0)(fn) for S in (1, 3, 9))),
          ("some are skipped", lambda fn: first(_relay(2, 0, b)(fn) for b in (1, 2, 5))),
          ("all are skipped", _relay(2, 0, 7))]


def ring_reader(fn):
    """fn(ring, begin, end, got) appends numbers begin to end - 1 of a ring to got; it yields (barrier, parity) to wait.

    ring.cells, ring.full and ring.empty are lists, an item for each place.
    """
    properties("ring_reader", READER, fn)


# ---------------------------------------------------------------- p @ v one tile late

class _Tiles(list):
    """A list of tiles that notes which were asked for."""

    def __init__(self, name, tiles, asked):
        super().__init__(tiles)
        self.name, self.asked = name, asked

    def __getitem__(self, j):
        if isinstance(j, slice):
            return [self[each] for each in range(*j.indices(len(self)))]
        self.asked.append((self.name, j % len(self)))
        return super().__getitem__(j)

    def __iter__(self):
        return (self[j] for j in range(len(self)))


def _problem(seed, tiles, rise=0.0, size=1.0):
    """q, lists of tiles of k and v, scale. With `rise` the scores of each tile are larger, by more in some rows."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((6, 8)), rng.standard_normal((tiles, 5, 8)), rng.standard_normal((tiles, 5, 3))
    q[:, 0], k[:, :, 0] = np.linspace(0.3, 2, 6), rise * np.arange(tiles)[:, None]
    return size * q, list(k), list(v), 8**-0.5


def _attention(*cases):
    def case(fn):
        for problem in cases:
            q, k, v, scale = problem
            got = fn(q.copy(), [x.copy() for x in k], [x.copy() for x in v], scale)
            wrong = difference(got, reference.attention(q, np.concatenate(k), np.concatenate(v), scale=scale), 1e-9)
            if wrong:
                return f"{len(k)} tile{'s' * (len(k) > 1)}: {wrong}"
        return ""
    return case


def _order(fn):
    asked = []
    q, k, v, scale = _problem(4, 5)
    fn(q, _Tiles("k", k, asked), _Tiles("v", v, asked), scale)
    began = {what: asked.index(what) for what in reversed(asked)}
    for j in range(5):
        if ("k", j) not in began or ("v", j) not in began:
            return f"{'k' if ('k', j) not in began else 'v'}[{j}] was not used"
        if j < 4 and began["v", j] < began["k", j + 1]:
            return f"v[{j}] was used before k[{j + 1}]"
        if j < 3 and began["v", j] > began["k", j + 2]:
            return f"v[{j}] was used after k[{j + 2}]: two tiles late"
    return ""


LATE = [("the result is attention", _attention(_problem(0, 4), _problem(1, 3))),
        ("maxima that rise from tile to tile, in each row by another step", _attention(_problem(2, 5, rise=0.7))),
        ("maxima that fall", _attention(_problem(2, 5, rise=-0.7))),
        ("a single tile", _attention(_problem(3, 1))),
        ("logits of 1e4", _attention(_problem(3, 4, rise=0.5, size=1e4))),
        ("p @ v comes one tile late", _order),
        ("the inputs are left as they were", over("", _problem)(untouched, (5, 3)))]


def late_values(fn):
    """fn(q, k, v, scale), k and v lists of tiles, returns attention, and uses v[j] between k[j + 1] and k[j + 2]."""
    with np.errstate(all="ignore"):                      # a wrong answer is reported, not warned about
        properties("late_values", LATE, fn)
