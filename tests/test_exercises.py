"""Each exercise: the stub reads "not attempted yet", the solution passes, a bug hunt's fault is found."""
import pytest

import books

EXERCISES = [exercise for name in books.NAMES for exercise in books.exercises(name)]
every = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.number)


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
        assert printed.strip().endswith("not attempted yet"), printed


@every
def test_has_hints(exercise):
    assert 2 <= exercise.hints <= 3


@pytest.mark.parametrize("name", books.NAMES)
def test_every_lesson_has_exercises(name):
    found = books.exercises(name)
    assert 2 <= len(found) <= 4
    assert any(e.bug_hunt for e in found)
