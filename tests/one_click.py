"""The one-click ways into the course, as far as they can be tried without their services. Not part of `make test`.

    .venv/bin/python tests/one_click.py colab [LESSON]     the copy of a lesson, run in an empty folder
    .venv/bin/python tests/one_click.py container          the development container's command, in an empty folder

Not covered: that the services open the files, Colab's own packages (this Python's stand for them) and its T4, the
container's image and VS Code, and the addresses on GitHub (this folder, as it is committed, stands for them).
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import ROOT
from helpers.desk import colab


def try_colab(folder, lesson="start_here"):
    notebook = colab.copy(json.loads(next((ROOT / "notebooks").glob(f"*_{lesson}.ipynb")).read_text()))
    text = colab.written(notebook)
    for address, here in ((f"https://github.com/{colab.repository()}", f"file://{ROOT}"), ("/content", str(folder))):
        assert address in text
        text = text.replace(address, here)
    notebook = nbformat.reads(text, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    print("".join(output.get("text", "") for cell in cells[:2] for output in cell.outputs), end="")
    print(f"{lesson}: {len(cells)} cells ran")


def try_container(folder):
    subprocess.run(["git", "clone", "--quiet", f"file://{ROOT}", folder / "course"], check=True)
    settings = json.loads((folder / "course" / ".devcontainer" / "devcontainer.json").read_text())
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | settings["containerEnv"]
    subprocess.run(settings["postCreateCommand"], shell=True, cwd=folder / "course", env=environment, check=True)
    python = folder / "course" / settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"].split("}/")[1]
    subprocess.run([python, "-c", "from helpers import device; print(device.describe())"], cwd=folder / "course", check=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        {"colab": try_colab, "container": try_container}[sys.argv[1]](Path(empty), *sys.argv[2:])
