"""Each exercise: the stub reads "not attempted yet", the solution passes, a bug hunt's fault is found."""
import pytest

import lessons

EXERCISES = [exercise for name in lessons.NAMES for exercise in lessons.exercises(name)]
every = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.number)


@every
def test_solution_passes(exercise):
    printed = lessons.attempt(exercise, exercise.solution)
    assert "  ok  " in printed and "FAIL" not in printed and "not attempted" not in printed, printed


@every
def test_solution_answers_the_stub(exercise):
    assert set(lessons.defined(exercise.stub)) <= set(lessons.defined(exercise.solution))


@every
def test_start(exercise):
    printed = lessons.attempt(exercise, exercise.stub)
    if exercise.bug_hunt:
        assert "FAIL" in printed and "raised" not in printed, printed
    else:
        assert printed.strip().endswith("not attempted yet"), printed


@every
def test_has_hints(exercise):
    assert 2 <= exercise.hints <= 3


@pytest.mark.parametrize("name", lessons.NAMES)
def test_every_lesson_has_exercises(name):
    found = lessons.exercises(name)
    assert 2 <= len(found) <= 4
    assert any(e.bug_hunt for e in found)
