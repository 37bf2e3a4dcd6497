"""A long measurement that shows how far it is, and goes on where it was stopped.

A suite is a function that yields jobs (facts, measure): facts say what is measured, measure() returns what was found,
one dictionary or a list of them, which becomes the rest of the row or rows. So a suite knows nothing of what an
interrupted run has left. The rows go to figures/<device>/.partial/<suite>.jsonl as they are measured. If a run is
stopped, the next one keeps them, provided that nothing has changed: device, driver, versions and commit. When a suite
is complete, its own file is written and the partial one removed.
"""
import contextlib
import json
import time

from helpers.records import folder

SUITES = {}                                              # {name: suite}, by `suite`
SAME = ("device", "driver", "torch", "triton", "cuda", "cudnn", "commit")    # what must not change within a record


def suite(seconds: int, gpus: int = 1):
    """A decorator: this function is a suite, which takes about so many seconds on an H200 with a slow host, and needs
    so many GPUs."""
    def enter(fn):
        fn.seconds, fn.gpus = seconds, gpus
        SUITES[fn.__name__] = fn
        return fn
    return enter


def rows_of(facts: dict, measure) -> list:
    """The rows of one job, measured now."""
    found = measure()
    return [facts | row for row in (found if isinstance(found, list) else [found])]


def run_suite(name: str, where: dict, show=lambda row: None) -> list:
    """All rows of a suite, those of an interrupted run taken over; show(row) is called for each."""
    path = partial(name, where)
    path.parent.mkdir(parents=True, exist_ok=True)
    left, rows = left_over(path, where), []
    with path.open("w") as file:
        _write(file, [{key: where[key] for key in SAME}, *left])            # a second interruption loses nothing either
        for facts, measure in SUITES[name]():
            found = [row for row in left if facts.items() <= row.items()]
            if not found:
                found = rows_of(facts, measure)
                _write(file, found)
            for row in found:
                rows.append(row)
                show(row)
    return rows


def partial(name: str, where: dict):
    """The file that holds the rows of an incomplete suite."""
    return folder(where["device"]) / ".partial" / f"{name}.jsonl"


def left_over(path, where: dict) -> list:
    """The rows in a partial file, if device, versions and commit are the same; none from a dirty tree."""
    if not path.is_file() or where["commit"].endswith("-dirty"):
        return []
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the last line, if the run was killed while it wrote
            rows.append(json.loads(line))
    return rows[1:] if rows[:1] == [{key: where[key] for key in SAME}] else []


def is_complete(name: str, where: dict) -> bool:
    """Whether figures/<device>/ holds this suite already, from this very commit and these versions."""
    path = folder(where["device"]) / f"{name}.json"
    if not path.is_file() or where["commit"].endswith("-dirty"):
        return False
    before = json.loads(path.read_text())
    return all(before[key] == where[key] for key in SAME)


def _write(file, entries):
    file.write("".join(json.dumps(entry) + "\n" for entry in entries))
    file.flush()


class Progress:
    """Lines that say which suite and row is measured, the time so far, and about how long the rest will take.

    `seconds` is {suite: how long it takes by experience}. TimeoutError once `budget` seconds have passed.
    """

    def __init__(self, seconds: dict, budget: float, clock=time.monotonic):
        self.seconds, self.budget, self.clock = seconds, budget, clock
        self.start, self.suites = clock(), list(seconds)

    def begin(self, suite: str):
        """The next suite begins; the ones before it are done."""
        self.suite, self.began, self.rows = suite, self.clock(), 0
        self._show("begins")

    def row(self, row: dict):
        """A row is done. Ten seconds after the last line there is another one."""
        self.rows += 1
        now = self.clock()
        if now - self.shown > 10:
            self._show(" ".join(str(row[key]) for key in ("name", "N", "D", "n") if key in row))
        if now - self.start > self.budget:
            raise TimeoutError(f"stopped after {now - self.start:.0f} s, at row {self.rows} of {self.suite}: "
                               "run the same command again, and it goes on from there")

    def remaining(self) -> float:
        """Seconds that the rest will take, by experience: of this suite and of those after it."""
        later = sum(self.seconds[name] for name in self.suites[self.suites.index(self.suite) + 1:])
        return later + max(0, self.seconds[self.suite] - (self.clock() - self.began))

    def _show(self, what):
        self.shown = self.clock()
        print(f"{self.suites.index(self.suite) + 1}/{len(self.suites)} {self.suite}: {self.rows} rows, {what}; "
              f"{_minutes(self.shown - self.start)} so far, about {_minutes(self.remaining())} left", flush=True)


def _minutes(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
