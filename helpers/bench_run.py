"""A long measurement that shows how far it is, and goes on where it was stopped; part of helpers/bench.py.

The rows of a suite go to figures/<device>/.partial/<suite>.jsonl as they are measured. If a run is stopped, the next one
keeps them, provided that nothing has changed: device, driver, versions and commit. When a suite is complete, its own file
is written and the partial one removed.
"""
import contextlib
import json
import sys
import time

from helpers.records import folder

SAME = ("device", "driver", "torch", "triton", "cuda", "cudnn", "commit")    # what must not change within a record
_known = []                                              # rows that the interrupted run of this suite has left


def row(facts: dict, measure) -> dict:
    """facts, which say what is measured, together with what measure() returns or an interrupted run has measured for them."""
    left = kept(facts)
    return left[0] if left else facts | measure()


def kept(facts: dict) -> list:
    """The rows that an interrupted run has measured for these facts."""
    return [r for r in _known if facts.items() <= r.items()]


def run_suite(name: str, suite, where: dict, show=lambda row: None) -> list:
    """All rows of suite(), those of an interrupted run taken over; show(row) is called for each."""
    path = partial(name, where)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with _resuming(left_over(path, where)), path.open("w") as file:
        for entry in ({key: where[key] for key in SAME}, *_known):           # a second interruption loses nothing either
            _write(file, entry)
        for found in suite():
            if found not in _known:
                _write(file, found)
            rows.append(found)
            show(found)
    return rows


def partial(name: str, where: dict):
    """The file that holds the rows of an incomplete suite."""
    return folder(where["device"]) / ".partial" / f"{name}.jsonl"


def left_over(path, where: dict) -> list:
    """The rows in a partial file, if device, versions and commit are the same. None from a dirty tree: it may have changed."""
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


@contextlib.contextmanager
def _resuming(rows):
    _known[:] = rows
    try:
        yield
    finally:
        _known.clear()


def _write(file, entry):
    file.write(json.dumps(entry) + "\n")
    file.flush()


class Progress:
    """One line that says which suite and row is measured, the time so far, and about how long the rest will take.

    On a terminal the line is written over; elsewhere (a log) a new one comes every ten seconds at most. `seconds` is
    {suite: how long it takes by experience}. TimeoutError once `budget` seconds have passed.
    """

    def __init__(self, seconds: dict, budget: float, clock=time.monotonic, out=sys.stdout):
        self.seconds, self.budget, self.clock, self.out = seconds, budget, clock, out
        self.start = self.shown = clock()
        self.suite, self.began, self.rows = None, self.start, 0

    def begin(self, suite: str):
        """The next suite begins; the ones before it are done."""
        self.suite, self.began, self.rows = suite, self.clock(), 0
        self._show("")

    def row(self, row: dict):
        """A row is done."""
        self.rows += 1
        now = self.clock()
        if self.out.isatty() or now - self.shown > 10:
            self._show(" ".join(str(row[key]) for key in ("name", "N", "D", "n") if key in row))
        if now - self.start > self.budget:
            raise TimeoutError(f"stopped after {now - self.start:.0f} s, at row {self.rows} of {self.suite}: "
                               "run the same command again, and it goes on from there")

    def end(self):
        """The suite is over: what is printed next begins on a line of its own."""
        if self.out.isatty():
            self.out.write("\n")

    def remaining(self) -> float:
        """Seconds that the rest will take, by experience: of this suite and of those after it."""
        suites = list(self.seconds)
        later = sum(self.seconds[name] for name in suites[suites.index(self.suite) + 1:])
        return later + max(0, self.seconds[self.suite] - (self.clock() - self.began))

    def _show(self, what):
        self.shown = self.clock()
        suites = list(self.seconds)
        line = (f"{suites.index(self.suite) + 1}/{len(suites)} {self.suite}: {self.rows} rows, {what or 'begins'}; "
                f"{_minutes(self.shown - self.start)} so far, about {_minutes(self.remaining())} left")
        terminal = self.out.isatty()
        self.out.write(f"\r{line[:110]:110}" if terminal else line + "\n")
        self.out.flush()


def _minutes(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
