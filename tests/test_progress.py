"""`make progress`: what is said of answers that are right, wrong, missing, endless or fatal."""
import json
import os
import subprocess
import sys

import pytest

import books
from helpers import ROOT
from helpers.desk import progress
from helpers.lessons import NOTEBOOKS

FIRST, SECOND = books.NAMES[0], next(name for name in books.NAMES if name.endswith("_online_softmax"))
REPORT = """
import json, sys
from helpers.desk import progress
progress.LIMIT_S = 4
print(*progress.lines(*json.load(sys.stdin)), sep="\\n")
"""


@pytest.mark.parametrize("printed,said", [
    ("f: not attempted yet\n", "not attempted"), ("", "not attempted"),
    ("f\n  ok    one\n  ok    two\n  2 of 2 properties hold\n", "done"),
    ("f\n  ok    one\nf: not attempted yet\n", "not attempted"),
    ("f\n  ok    one\n  FAIL  two: the shape is [1],\n        expected [2]\n", "failing: two"),
    ("f\n  FAIL  one: a: b\n  FAIL  two\n", "failing: one, and 1 more")])
def test_verdict(printed, said):
    assert progress.verdict(printed) == said


def test_report():
    """The report on two lessons, from the text of their notebooks as it would be saved."""
    original = {name: (NOTEBOOKS / f"{name}.ipynb").read_text() for name in (FIRST, SECOND)}
    lessons = {name: json.loads(text) for name, text in original.items()}

    def answer(lesson, number, *sources):
        exercise = next(each for each in books.exercises(lesson) if each.number == number)
        cells = lessons[lesson]["cells"]
        place = next(i for i, cell in enumerate(cells) if "".join(cell["source"]) == exercise.stub)
        cells[place:place + 1] = [{"cell_type": "code", "source": source} for source in sources or [exercise.solution]]

    answer(FIRST, "0.1", "%matplotlib inline\nnot_defined", books.exercises(FIRST)[0].solution, "1 / 0")
    answer(SECOND, "7.1", "def safe_softmax(s):\n    return s.no_such_thing")
    answer(SECOND, "7.2", "import os\nos._exit(3)")
    answer(SECOND, "7.3", "import time\ntime.sleep(99)")
    answer(SECOND, "7.4")
    done = subprocess.run([sys.executable, "-c", REPORT], cwd=ROOT, env=os.environ | progress.QUIET, text=True, check=True,
                          input=json.dumps([{name: json.dumps(notebook) for name, notebook in lessons.items()}, original]),
                          capture_output=True)
    first, solved, untouched, second, *others, total = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert first == "00 · Start here 1 of 2 done, 5 minutes left" and second.endswith("1 of 4 done, 35 minutes left")
    assert solved.endswith("How many blocks? done") and untouched.endswith("the last elements not attempted")
    assert [line.split(":", 1)[-1].strip() if "failing" in line else line.split()[-1] for line in others] == [
        "every property", "it ended the process", "it ran for more than 4 seconds", "done"]
    assert total.endswith("2 of 6 done, 40 minutes left")


def test_a_verdict_is_remembered_until_something_changes(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(progress, "KNOWN", tmp_path / "build" / "progress.json")
    monkeypatch.setattr(progress, "verdicts", lambda tasks: asked.append(sorted(tasks)) or
                        {key: "failing: it hung" if key == "b" else "done" for key in tasks})
    kernel = {"lesson": json.dumps({"cells": [{"source": ["#| export\n", "x = 1"]}]})}
    tasks = {"a": ([], "a", ["one"]), "b": ([], "b", ["two"])}
    for lessons, given in ((kernel, tasks), (kernel, tasks), (kernel, tasks | {"a": ([], "a", ["three"])}),
                           ({"lesson": kernel["lesson"].replace("x = 1", "x = 2")}, tasks)):
        assert progress.remembered(lessons)(given) == {"a": "done", "b": "failing: it hung"}
    assert asked == [["a", "b"], ["b"], ["a", "b"], ["a", "b"]]
