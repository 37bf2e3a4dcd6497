"""What the tests know of notebooks: their cells, their exercises, and how to run a solution."""
import ast
import functools
import re
import textwrap
from dataclasses import dataclass

import nbformat

import helpers.desk.exercises
from helpers.desk.exercises import found
from helpers.lessons import NOTEBOOKS

NAMES = [path.stem for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))]
SOLUTION = re.compile(r"<summary>Solution</summary>(.*?)</details>", re.DOTALL)
FENCED = re.compile(r"^```[\w+]+\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass
class Exercise:
    lesson: str
    number: str
    bug_hunt: bool
    stub: str           # the cell with the stub or the planted fault
    check: str          # the cell with the check
    hints: int
    solution: str


@functools.cache
def read(lesson):
    """A lesson as nbformat has it, which nobody changes."""
    return nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4)


def prose(lesson):
    """The text of a lesson's markdown cells."""
    return "\n".join(cell.source for cell in read(lesson).cells if cell.cell_type == "markdown")


def exercises(lesson):
    """Every exercise of a lesson as it was made: a stub, its check, then hints and solution."""
    made = []
    for each in found(read(lesson).cells):
        stub, check = each.cells
        answer = SOLUTION.search(each.after)
        solution = solved(stub, FENCED.findall(answer[1])) if answer else ""
        made.append(Exercise(lesson, each.number, "Bug hunt" in each.title, stub, check,
                             each.after.count("<summary>Hint"), solution))
    return made


def solved(stub, pieces):
    """A solution from its fenced pieces: a whole cell, or for a bug hunt pairs of wrong lines and right ones."""
    if len(pieces) % 2 or not all(_lines(stub, wrong) for wrong in pieces[::2]):
        return "".join(pieces)
    lines = stub.splitlines()
    for wrong, right in zip(pieces[::2], pieces[1::2]):
        at = _lines("\n".join(lines), wrong)
        margin = min(re.match(" *", line)[0] for line in lines[slice(*at)] if line)
        lines[at[0]:at[1]] = textwrap.indent(textwrap.dedent(right).rstrip(), margin).splitlines()
    return "\n".join(lines)


def _lines(stub, wrong):
    """Where in a stub some lines are, whatever their margin and comments: (first, the one after the last), or None."""
    def bare(text):
        lines = textwrap.dedent(text).strip("\n").splitlines()
        return [re.sub(r"\s*(#|//) .*", "", line).rstrip() for line in lines]

    stub, wrong = stub.splitlines(), bare(wrong)
    places = [(i, i + len(wrong)) for i in range(len(stub))]
    return next((place for place in places if bare("\n".join(stub[slice(*place)])) == wrong), None)


def defined(source):
    """Names of the functions that a piece of Python defines."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def attempt(exercise, source):
    """What `source` and the check printed, in place of the stub."""
    cells = read(exercise.lesson).cells
    return helpers.desk.exercises.attempt(cells, f"{exercise.lesson} {exercise.number}", [source, exercise.check])
