"""A line that says how far a loop is: every item passes, and one line is left."""
import subprocess
import sys

import nbformat
from nbclient import NotebookClient

from helpers import ROOT


def test_in_a_notebook():
    source = "from helpers.desk import watch\nprint(sum(watch.steps(range(5), 5, 'step')))"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    line, printed = notebook.cells[0].outputs
    assert line["data"] == {"text/plain": "[gpu] step 5 of 5"} and printed["text"] == "10\n"


def test_elsewhere():
    done = subprocess.run([sys.executable, "-c", "from helpers.desk import watch; print(list(watch.steps('ab', 2, 'x')))"],
                          cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['a', 'b']"
