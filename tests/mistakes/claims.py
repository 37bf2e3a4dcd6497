"""Right and wrong versions for the checks of claims."""
import math
import statistics

from helpers import check


def crossover(lengths, ours, theirs, faster=lambda a, b: a < b):
    found = None
    for N, a, b in reversed(list(zip(lengths, ours, theirs))):
        if not faster(a, b):
            break
        found = N
    return found


def after_the_last_slower(lengths, ours, theirs):
    slower = [N for N, a, b in zip(lengths, ours, theirs) if a >= b]
    return next((N for N in lengths if N > max(slower, default=0)), None)


def first_faster(lengths, ours, theirs):
    return next((N for N, a, b in zip(lengths, ours, theirs) if a < b), None)


def last_slower(lengths, ours, theirs):
    return max((N for N, a, b in zip(lengths, ours, theirs) if a >= b), default=lengths[0])


def twice_the_last_slower(lengths, ours, theirs):
    return 2 * max((N for N, a, b in zip(lengths, ours, theirs) if a >= b), default=lengths[0] // 2)


def never_from_the_beginning(lengths, ours, theirs):
    found = crossover(lengths, ours, theirs)
    return None if found == lengths[0] else found


def only_the_last(lengths, ours, theirs):
    return lengths[-1] if ours[-1] < theirs[-1] else None


def without_the_infinite(lengths, ours, theirs):
    return crossover(lengths, ours, theirs, lambda a, b: a < b < math.inf)


def geometric(theirs, ours):
    return math.prod(a / b for a, b in zip(theirs, ours)) ** (1 / len(ours))


def by_logarithms(theirs, ours):
    return math.exp(statistics.fmean(math.log(a) - math.log(b) for a, b in zip(theirs, ours)))


def arithmetic(theirs, ours):
    return statistics.fmean(a / b for a, b in zip(theirs, ours))


def harmonic(theirs, ours):
    return statistics.harmonic_mean([a / b for a, b in zip(theirs, ours)])


def of_sums(theirs, ours):
    return sum(theirs) / sum(ours)


def middle(theirs, ours):
    return statistics.median(a / b for a, b in zip(theirs, ours))


def product(theirs, ours):
    return geometric(theirs, ours) ** len(ours)


def choose(rows, memory, tolerance, order=lambda r: r["median_ms"], near=lambda r, best: r["q1_ms"] <= best["q3_ms"],
           fits=lambda r, memory: r["peak_bytes"] <= memory, right=lambda r, tolerance: r["relative_error"] <= tolerance):
    fit = [r for r in rows if "error" not in r and fits(r, memory) and right(r, tolerance)]
    fit.sort(key=order)
    return [r["name"] for r in fit if near(r, fit[0])]


def one_pass(rows, memory, tolerance):
    fit = [r for r in rows if r.get("peak_bytes", math.inf) <= memory and r["relative_error"] <= tolerance]
    best = min(fit, key=lambda r: r["median_ms"], default=None)
    return [r["name"] for r in sorted(fit, key=lambda r: r["median_ms"]) if not r["q1_ms"] > best["q3_ms"]]


def chained(rows, memory, tolerance):
    names = choose(rows, memory, tolerance, near=lambda r, best: True)
    times = {r["name"]: r for r in rows}
    end = next((i for i in range(1, len(names)) if times[names[i]]["q1_ms"] > times[names[i - 1]]["q3_ms"]), len(names))
    return names[:end]


def fastest_of_all(rows, memory, tolerance):
    best = min((r for r in rows if "error" not in r), key=lambda r: r["median_ms"])
    return [r["name"] for r in rows if r["name"] in choose(rows, memory, tolerance, near=lambda r, _: r["q1_ms"] <= best["q3_ms"])]


def failed_as_well(rows, memory, tolerance):
    return [r["name"] for r in rows if "error" in r] + choose(rows, memory, tolerance)


def first_or_none(rows, memory, tolerance):
    return choose(rows, memory, tolerance) or None


CASES = {
    check.crossover: dict(
        right=[crossover, after_the_last_slower],
        wrong={"slower at first, then faster for good": [last_slower, only_the_last],
               "faster from the beginning": [never_from_the_beginning, only_the_last],
               "a lucky length in between does not count": first_faster,
               "as fast is not faster": lambda *lists: crossover(*lists, faster=lambda a, b: a <= b),
               "slower again at the end": [first_faster, twice_the_last_slower],
               "never faster": [last_slower, twice_the_last_slower],
               "a rival without memory is slower": without_the_infinite}),
    check.average_speedup: dict(
        right=[geometric, by_logarithms],
        wrong={"the same ratio everywhere is the average": [product, lambda theirs, ours: 1 / geometric(theirs, ours)],
               "turned around, it is one over it": [arithmetic, harmonic, lambda theirs, ours: max(1.0, arithmetic(theirs, ours))],
               "every length counts alike": [of_sums, middle, arithmetic, harmonic]}),
    check.choose: dict(
        right=[choose, one_pass],
        wrong={"the fastest, wherever it stands": lambda *given: choose(*given, order=lambda r: 0, near=lambda r, best: r is best),
               "quartiles that overlap are both taken, the fastest first": [
                   lambda *given: choose(*given)[:1], lambda *given: sorted(choose(*given), reverse=True),
                   lambda *given: choose(*given, near=lambda r, best: r["median_ms"] <= best["q3_ms"])],
               "an overlap with the second only does not count": chained,
               "what failed is left out": failed_as_well,
               "what needs more memory is left out, and is not the fastest": [
                   lambda *given: choose(*given, fits=lambda *_: True), fastest_of_all],
               "what is less exact is left out, and is not the fastest": [
                   lambda *given: choose(*given, right=lambda *_: True), fastest_of_all],
               "an error of NaN is not small": lambda *given: choose(*given, right=lambda r, t: not r["relative_error"] > t),
               "just as much as allowed is allowed": [
                   lambda *given: choose(*given, fits=lambda r, memory: r["peak_bytes"] < memory),
                   lambda *given: choose(*given, right=lambda r, t: r["relative_error"] < t),
                   lambda *given: choose(*given, near=lambda r, best: r["q1_ms"] < best["q3_ms"])],
               "nothing to take, an empty list": first_or_none})}
