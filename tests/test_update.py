"""`make update`: a reader's answers, changed cells and added cells meet a newer version of the lessons."""
import copy
import json
import subprocess

import nbformat
import pytest

import books
from helpers.desk import merge, update
from helpers.desk.exercises import found
from helpers.lessons import NOTEBOOKS

LESSON = "notebooks/07_x.ipynb"
PATH = next(NOTEBOOKS.glob("*_online_softmax.ipynb"))


def save(cells):
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1, sort_keys=True,
                      ensure_ascii=False) + "\n"


def code(source, **more):
    return nbformat.v4.new_code_cell(source, **more)


@pytest.fixture
def old():
    return json.loads(PATH.read_text())["cells"]


@pytest.fixture
def mine(old):
    """The reader solved every exercise, ran the checks, changed one cell of the course, and added cells."""
    cells, place = copy.deepcopy(old), 0
    for exercise in books.exercises(PATH.stem):
        place = next(i for i, cell in enumerate(cells) if merge.text(cell) == exercise.stub)
        cells[place]["source"] = exercise.solution
        cells[place + 1]["outputs"] = [nbformat.v4.new_output("stream", text="  ok    mine\n")]
    cells[3]["source"] = merge.text(cells[3]) + "\nprint('I looked closer')"
    cells.insert(4, code("my_notes = 1", id="mine-1"))
    cells.append(code("after_all = 1", id="mine-2"))
    return cells


@pytest.fixture
def new(old):
    """The course put a cell in front, so that all ids move on, and changed prose, an example and a check."""
    cells = copy.deepcopy(old)
    cells.insert(1, nbformat.v4.new_markdown_cell("A new section."))
    cells[3]["source"] = "New prose. " + merge.text(cells[3])
    checks = [cell for cell in cells if merge.text(cell).startswith("check.")]
    checks[0]["source"] = merge.text(checks[0]) + "  # again"
    for place, cell in enumerate(cells):
        cell["id"] = f"07-{place:02}"
    return cells


def texts(cells):
    return [merge.text(cell) for cell in cells]


def test_all_of_the_reader_and_all_of_the_new_version(old, mine, new):
    cells, told = merge.merged(old, mine, new)
    nbformat.validate(nbformat.reads(save(cells), as_version=4))
    assert len({cell["id"] for cell in cells}) == len(cells) == len(new) + 2
    now = texts(cells)
    assert "A new section." in now and "my_notes = 1" in now and now[-1] == "after_all = 1"
    assert now[4].endswith("print('I looked closer')") and now[5] == "my_notes = 1" and now[3].startswith("New prose. ")
    solutions = [exercise.solution for exercise in books.exercises(PATH.stem)]
    assert [exercise.cells[0] for exercise in found(cells)] == solutions
    checks = [cell for cell in cells if merge.text(cell).startswith("check.")]
    assert merge.text(checks[0]).endswith("  # again") and "mine" not in json.dumps(checks[0])
    assert all("  ok    mine" in json.dumps(check) for check in checks[1:])
    assert told == []


def test_nothing_of_the_reader_is_the_new_version(old, new):
    cells, told = merge.merged(old, copy.deepcopy(old), new)
    assert texts(cells) == texts(new) and [c["id"] for c in cells] == [c["id"] for c in new] and told == []


def test_nothing_new_is_the_readers(old, mine):
    assert merge.merged(old, mine, copy.deepcopy(old)) == (mine, [])


def test_what_both_changed_stays_the_readers_and_is_told(old, mine, new):
    exercise = books.exercises(PATH.stem)[0]
    stub = next(cell for cell in new if merge.text(cell) == exercise.stub)
    stub["source"] = "def safe_softmax(s, axis):\n    raise NotImplementedError"
    cells, told = merge.merged(old, mine, new)
    assert exercise.solution in texts(cells) and stub["source"] not in texts(cells)
    assert told == ["yours is kept, and the new version has another: `def safe_softmax(s, axis):`"]


def test_a_cell_that_the_new_version_dropped_stays_if_the_reader_changed_it(old, mine, new):
    del new[4]
    cells, told = merge.merged(old, mine, new)
    assert mine[3]["source"] in texts(cells)
    assert told == [f"yours is kept, and the new version has none: {merge.title(mine[3])}"]
    assert merge.text(old[3]) not in texts(merge.merged(old, copy.deepcopy(old), new)[0])


def test_a_deleted_cell_comes_back(old, new):
    assert texts(merge.merged(old, old[:5] + old[7:], new)[0]) == texts(new)


def test_cells_without_their_ids_are_found_by_their_text(old, mine, new):
    for place, cell in enumerate(mine):
        cell["id"] = f"x{place}"
    cells, _ = merge.merged(old, mine, new)
    assert {exercise.cells[0] for exercise in found(cells)} >= {books.exercises(PATH.stem)[0].solution}
    assert "my_notes = 1" in texts(cells) and "A new section." in texts(cells)


# ---------------------------------------------------------------- whole clones

@pytest.fixture
def clones(tmp_path, old, monkeypatch):
    """A course and a reader's clone of it."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "someone")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "someone@example.org")
    course, reader = tmp_path / "course", tmp_path / "reader"
    (course / "notebooks").mkdir(parents=True)
    update.git("init", "--quiet", "--initial-branch", "main", folder=course)
    publish(course, {LESSON: save(old), "helpers.py": "old\n", ".gitignore": "backups/\n"})
    update.git("clone", "--quiet", str(course), str(reader), folder=tmp_path)
    return course, reader


def publish(course, files):
    for name, content in files.items():
        (course / name).write_text(content)
    update.git("add", "--all", folder=course)
    update.git("commit", "--quiet", "--message", "a version", folder=course)


@pytest.mark.parametrize("commits", [False, True])
def test_an_update_keeps_the_answers(clones, old, mine, new, commits):
    course, reader = clones
    publish(course, {LESSON: save(new), "helpers.py": "new\n", "notebooks/08_y.ipynb": save(old[:2])})
    (reader / LESSON).write_text(save(mine))
    if commits:
        update.git("commit", "--quiet", "--all", "--message", "answers", folder=reader)
    said = []
    update.update(reader, said.append)
    assert (reader / LESSON).read_text() == save(merge.merged(old, mine, new)[0])
    assert (reader / "helpers.py").read_text() == "new\n" and (reader / "notebooks/08_y.ipynb").exists()
    backup, = (reader / "backups").iterdir()
    assert (backup / LESSON).read_text() == save(mine)
    status = update.git("status", "--porcelain", folder=reader)
    assert status == ("" if commits else f" M {LESSON}\n")
    update.update(reader, said.append)
    assert said[-1] == "There is nothing new."


def test_a_second_update_starts_from_the_first(clones, old, mine, new):
    course, reader = clones
    (reader / LESSON).write_text(save(mine))
    for front in ("one", "two"):
        new.insert(1, nbformat.v4.new_markdown_cell(front))
        for place, cell in enumerate(new):
            cell["id"] = f"07-{place:02}"
        publish(course, {LESSON: save(new)})
        update.update(reader, lambda sentence: None)
    now = texts(json.loads((reader / LESSON).read_text())["cells"])
    assert now[1:3] == ["two", "one"] and now.count("my_notes = 1") == 1
    assert all(exercise.solution in now for exercise in books.exercises(PATH.stem))


def test_a_lesson_that_is_gone_stays_with_the_readers_work(clones, mine):
    course, reader = clones
    (reader / LESSON).write_text(save(mine))
    update.git("rm", "--quiet", LESSON, folder=course)
    publish(course, {"helpers.py": "new\n"})
    update.update(reader, lambda sentence: None)
    assert (reader / LESSON).read_text() == save(mine) and (reader / "helpers.py").read_text() == "new\n"


@pytest.mark.parametrize("why", ["both", "in the way", "no origin"])
def test_what_cannot_be_merged_is_refused_and_left_alone(clones, mine, new, why):
    course, reader = clones
    publish(course, {LESSON: save(new), "helpers.py": "new\n", "added.py": "new\n"})
    (reader / LESSON).write_text(save(mine))
    if why == "both":
        (reader / "helpers.py").write_text("mine\n")
    if why == "in the way":
        (reader / "added.py").write_text("mine\n")
    if why == "no origin":
        update.git("remote", "remove", "origin", folder=reader)
    before = {path: path.read_bytes() for path in (reader / LESSON, reader / "helpers.py")}
    with pytest.raises(update.Refused, match={"both": "both changed helpers.py", "in the way": "added.py",
                                              "no origin": "made by `git clone`"}[why]):
        update.update(reader)
    assert {path: path.read_bytes() for path in before} == before
    assert not subprocess.run(["git", "diff", "--name-only", "--diff-filter=U"], cwd=reader, capture_output=True).stdout
