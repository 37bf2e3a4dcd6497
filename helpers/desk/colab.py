"""Lessons in Google Colab: a badge in each, and copies of them that begin by fetching the course.

    python helpers/desk/colab.py                  on Colab: install what the lessons need and Colab lacks
    python helpers/desk/colab.py badges           write the badge into every lesson and the README (address: CITATION.cff)
    python helpers/desk/colab.py copies FOLDER    write the copies, which are published as the branch `colab`

Only Python's own library is used.
"""
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = "https://colab.research.google.com/github"
FETCH = """# on Colab: fetch the course, and install what is missing beside Colab's own PyTorch and Triton
!test -d /content/course || git clone --quiet --depth 1 {address} /content/course
%cd -q /content/course/notebooks
%run ../helpers/desk/colab.py"""
LESSONS = "torch", "triton", "numpy", "matplotlib", "matplotlib-inline", "cuda-toolkit"          # of requirements.txt


def repository():
    """OWNER/NAME of the course on GitHub."""
    return re.search(r"(?m)^repository-code: https://github\.com/(\S+)", (ROOT / "CITATION.cff").read_text())[1]


def badge(lesson, folder):
    """The Markdown that opens a lesson's copy; folder: the way to figures/. The address has a line of its own."""
    return (f"[![Open this lesson in Google Colab]({folder}colab.svg)][colab]\n\n"
            f"[colab]:\n{SITE}/{repository()}/blob/colab/notebooks/{lesson}.ipynb")


def with_badge(text, new):
    """The Markdown with its badge exchanged, or put at its end."""
    old = re.compile(r"\[!\[Open this lesson in Google Colab\].*(\n\n\[colab\]:\n\S+)?")
    return old.sub(lambda hit: new, text) if old.search(text) else f"{text.rstrip()}\n\n{new}"


def copy(notebook):
    """A lesson's notebook, a dictionary, as Colab gets it: it begins by fetching the course, and its pictures and links
    have whole addresses."""
    repo = repository()
    figures, notebooks = f"https://raw.githubusercontent.com/{repo}/main/figures/", f"{SITE}/{repo}/blob/colab/notebooks/"
    book = f"https://github.com/{repo}/blob/main/book/"
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = source.replace("](../figures/", f"]({figures}").replace("](../book/", f"]({book}")
            source = re.sub(r"\]\((\d\d_\w+\.ipynb)", rf"]({notebooks}\1", source)
        cells.append(cell | {"source": source})
    cells.insert(1, {"cell_type": "code", "id": "colab", "metadata": {}, "outputs": [], "execution_count": None,
                     "source": FETCH.format(address=f"https://github.com/{repo}")})
    return notebook | {"cells": cells}


def missing():
    """The requirements of the lessons that this Python lacks: pinned, but for a Triton that the PyTorch here names."""
    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        name = re.match(r"[\w-]*", line)[0]
        if name in LESSONS:
            pins.setdefault(name, []).append(line.split("#")[0].strip())
    have = {name for name in pins if _installed(name)}
    if shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists():
        have.add("cuda-toolkit")
    named = [each for each in (importlib.metadata.requires("torch") or [] if "torch" in have else [])
             if re.match(r"triton\b", each)]
    return [line for name in pins if name not in have for line in (named if name == "triton" and named else pins[name])]


def _installed(name):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(command="install", folder=None):
    lessons = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    if command == "install":
        if missing():
            print("installing", ", ".join(missing()))
            subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing()], check=True)
    elif command == "badges":
        readme = ROOT / "README.md"
        readme.write_text(with_badge(readme.read_text(), badge(lessons[0].stem, "figures/")))
        for path in lessons:
            notebook = json.loads(path.read_text())
            first = notebook["cells"][0]
            first["source"] = with_badge("".join(first["source"]), badge(path.stem, "../figures/")).splitlines(keepends=True)
            path.write_text(written(notebook))
    elif command == "copies":
        for path in lessons:
            target = Path(folder) / "notebooks" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(written(copy(json.loads(path.read_text()))))


def written(notebook):
    """A notebook as JupyterLab writes it."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
