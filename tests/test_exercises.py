"""Each exercise: the stub reads "not attempted yet", the solution passes, a bug hunt's fault is found."""
import pytest

import books

EXERCISES = [exercise for name in books.NAMES for exercise in books.exercises(name)]
every = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.lesson[:2]}-{e.number}")


@every
def test_solution_passes(exercise):
    printed = books.attempt(exercise, exercise.solution)
    assert "  ok  " in printed and "FAIL" not in printed and "not attempted" not in printed, printed


@every
def test_solution_answers_the_stub(exercise):
    assert set(books.defined(exercise.stub)) <= set(books.defined(exercise.solution))


@every
def test_start(exercise):
    printed = books.attempt(exercise, exercise.stub)
    if exercise.bug_hunt:
        assert "FAIL" in printed and "raised" not in printed, printed
    else:
        assert all(line.endswith("not attempted yet") for line in printed.splitlines()), printed


@every
def test_has_hints(exercise):
    assert 2 <= exercise.hints <= 3


@pytest.mark.parametrize("name", books.NAMES)
def test_a_lesson_has_exercises_and_half_of_them_are_written(name):
    found = books.exercises(name)
    assert 2 <= len(found) <= 4
    assert 2 * sum(e.bug_hunt for e in found) <= len(found)
    assert [e.number for e in found] == [f"{int(name[:2])}.{i}" for i in range(1, len(found) + 1)]


STUB = """def f(x):
    for i in range(3):
        y = x[i]                                       # one
        z = y + 1
    return z
"""


@pytest.mark.parametrize("pieces,solution", [
    (["y = x[i]\n", "y = x[i + 1]\n"], STUB.replace("y = x[i]" + " " * 39 + "# one", "y = x[i + 1]")),
    (["    z = y + 1\nreturn z\n", "return y\n"], STUB.replace("        z = y + 1\n    return z\n", "    return y\n")),
    (["for i in range(3):\n", "for i in [1]:\n", "return z\n", "return -z\n"],
     STUB.replace("range(3)", "[1]").replace("return z", "return -z")),
    (["def f(x):\n    return x\n"], "def f(x):\n    return x\n"),
    (["import math\n", "def f(x):\n    return 1\n"], "import math\ndef f(x):\n    return 1\n")])
def test_a_solution_may_be_wrong_lines_and_right_ones(pieces, solution):
    assert books.solved(STUB, pieces).rstrip() == solution.rstrip()
