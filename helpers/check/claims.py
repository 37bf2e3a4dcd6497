"""The checks of lesson "Claims": from which length on a kernel is faster for good, an average of speed-ups, a choice."""
import math
import random

from helpers.check.core import first, near, properties

LENGTHS = [128, 256, 512, 1024, 2048, 4096]


def _from(want, *ratios):
    """A case for `crossover`: at 128, 256, 512, ... tokens ours is so many times as fast as theirs."""
    def case(fn):
        lengths, ours = LENGTHS[:len(ratios)], [0.1 * 2**i for i in range(len(ratios))]
        got = fn(list(lengths), list(ours), [r * ms for r, ms in zip(ratios, ours)])
        return "" if got == want else f"{', '.join(map(str, ratios))} times as fast: {got!r}, expected {want!r}"
    return case


def crossover(fn):
    """fn(lengths, ours, theirs), three lists, returns the least length from which on ours takes less time, or None."""
    properties("crossover", [
        ("slower at first, then faster for good", _from(1024, 0.5, 0.7, 0.9, 1.5, 2.0, 3.0)),
        ("faster from the beginning", _from(128, 1.1, 2.0, 3.0)),
        ("a lucky length in between does not count", _from(2048, 0.5, 1.3, 0.8, 0.9, 1.2, 1.5)),
        ("as fast is not faster", _from(512, 0.5, 1.0, 1.25, 2.0)),
        ("slower again at the end", _from(None, 0.5, 1.5, 2.0, 0.9)),
        ("never faster", _from(None, 0.5, 0.6, 0.7)),
        ("a rival without memory is slower", _from(512, 0.5, 0.9, math.inf, math.inf))], fn)


def _times(count):
    draw = random.Random(count)
    return [draw.uniform(0.5, 8) for _ in range(count)]


def _one_ratio(fn):
    ours = _times(5)
    return near("the average of 2.5 at each of 5 lengths", fn([2.5 * ms for ms in ours], list(ours)), 2.5, 1e-9)


def _turned_around(fn):
    there, back = fn([2.0, 2.0], [1.0, 4.0]), fn([1.0, 4.0], [2.0, 2.0])
    return near(f"the average of 2 and 0.5 is {there:.4g}, and turned around it", back, 1 / there, 1e-9)


def _alike(fn):
    """Three times as fast at one length: the answer must rise by the same factor, whichever length it is."""
    theirs, ours = _times(4), _times(5)[:4]
    before, rises = fn(list(theirs), list(ours)), []
    for i in range(4):
        rises.append(fn(list(theirs), ours[:i] + [ours[i] / 3] + ours[i + 1:]) / before)
    return first(near(f"3 times as fast at length {i} of 4: the factor by which the answer grows", rise, 3**0.25, 1e-9)
                 for i, rise in enumerate(rises, 1))


def average_speedup(fn):
    """fn(theirs, ours), times in ms at the same lengths, returns how many times as fast ours is on average."""
    properties("average_speedup", [
        ("the same ratio everywhere is the average", _one_ratio),
        ("turned around, it is one over it", _turned_around),
        ("every length counts alike", _alike)], fn)


ROWS = {name: dict(name=name, median_ms=ms, q1_ms=q1, q3_ms=q3, peak_bytes=peak, relative_error=error)
        for name, ms, q1, q3, peak, error in [("a", 3.0, 2.9, 3.1, 50, 1e-4), ("b", 1.0, 0.9, 1.2, 50, 1e-4),
                                              ("c", 1.3, 1.1, 1.6, 50, 1e-4), ("d", 1.7, 1.5, 1.9, 50, 1e-4),
                                              ("large", 0.5, 0.4, 0.6, 101, 1e-4), ("wrong", 0.5, 0.4, 0.6, 50, 2e-3),
                                              ("odd", 0.5, 0.4, 0.6, 50, math.nan), ("just", 1.3, 1.2, 1.4, 100, 1e-3)]}
ROWS["failed"] = dict(name="failed", error="out of memory")


def _told(row):
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    more = f", {row['peak_bytes']} bytes, error {row['relative_error']}" if row["name"] not in "abcd" else ""
    return "{name} {median_ms} ms ({q1_ms} to {q3_ms})".format(**row) + more


def _of(names, *want):
    """A case for `choose`: of these rows, with 100 bytes and an error of at most 1e-3, take `want`."""
    def case(fn):
        got = fn([dict(ROWS[name]) for name in names.split()], 100, 1e-3)
        said = "; ".join(_told(ROWS[name]) for name in names.split())
        return "" if got == list(want) else f"100 bytes, 0.001; {said}: {got!r}, expected {list(want)!r}"
    return case


def choose(fn):
    """fn(rows, memory, tolerance), rows of a record, returns the names of those to choose from, the fastest first."""
    properties("choose", [
        ("the fastest, wherever it stands", _of("a b", "b")),
        ("quartiles that overlap are both taken, the fastest first", _of("c b a", "b", "c")),
        ("an overlap with the second only does not count", _of("b c d", "b", "c")),
        ("what failed is left out", _of("failed a", "a")),
        ("what needs more memory is left out, and is not the fastest", _of("large b d", "b")),
        ("what is less exact is left out, and is not the fastest", _of("wrong b d", "b")),
        ("an error of NaN is not small", _of("odd b d", "b")),
        ("just as much as allowed is allowed", _of("b just", "b", "just")),
        ("nothing to take, an empty list", _of("failed large wrong"))], fn)
