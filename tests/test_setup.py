"""Set-up: the Makefile's targets, the check of the machine, the pins, the drawings."""
import builtins
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
from nbconvert import HTMLExporter
from traitlets.config import Config

from helpers import ROOT
from helpers.desk import preflight
from helpers.lessons import NOTEBOOKS

sys.path.insert(0, str(ROOT / "figures"))
import draw

PINS = dict(re.findall(r"^([\w-]+)(?:\[[\w,]+\])?==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))


def make(*arguments):
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_bare_make_lists_every_target():
    listed = re.findall(r"^make ([\w-]+)", make(), re.MULTILINE)
    assert listed == ["help", "setup", "lab", "test", "progress", "update", "figures", "bench", "book", "test-book", "clean"]


def test_lab_takes_port_and_browser():
    assert "--port 9999" in make("-n", "lab", "PORT=9999")
    assert "--no-browser" in make("-n", "lab", "BROWSER=no") and "--no-browser" not in make("-n", "lab")
    assert "notebooks/00_start_here.ipynb" in make("-n", "lab")


def test_this_machine_is_fine():
    assert preflight.problem() is None


@pytest.mark.parametrize("change,sentence", [
    (lambda m: m.setattr(platform, "system", lambda: "Darwin"), "no Triton for macOS"),
    (lambda m: m.setattr(platform, "system", lambda: "Windows"), "inside WSL2"),
    (lambda m: m.setattr(platform, "machine", lambda: "riscv64"), "no Triton for riscv64"),
    (lambda m: m.setattr(sys, "version_info", (3, 9, 18)), "needs Python 3.10 to 3.14"),
])
def test_an_unsuitable_machine_gets_one_sentence(monkeypatch, change, sentence):
    change(monkeypatch)
    assert sentence in preflight.problem() and "\n" not in preflight.problem()


def test_missing_venv(monkeypatch):
    real = builtins.__import__
    def without_venv(name, *args, **kwargs):
        if name == "ensurepip":
            raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without_venv)
    assert "python3-venv" in preflight.problem()


@pytest.mark.parametrize("index,gpu,words,doubtful", [
    ("", False, ["several GB", "no NVIDIA GPU", "CPU=yes"], True),
    ("", True, ["several GB"], False),
    ("https://example.org/whl/cpu", False, ["build for CPUs", "2.5 GB"], False)])
def test_what_will_be_downloaded_is_said(monkeypatch, index, gpu, words, doubtful):
    monkeypatch.setattr(preflight.shutil, "which", lambda name: "nvidia-smi" if gpu else None)
    monkeypatch.setattr(preflight.os.path, "exists", lambda path: False)
    said, doubt = preflight.download({"PIP_EXTRA_INDEX_URL": index})
    assert all(word in said for word in words) and doubt == doubtful
    assert ("CPU=yes" in said) == doubtful


def test_cpu_takes_pytorchs_index_for_cpus():
    assert make("--eval", "show: ; @echo $$PIP_EXTRA_INDEX_URL", "show", "CPU=yes") == "https://download.pytorch.org/whl/cpu\n"


def test_settings_are_those_of_this_jupyterlab():
    schemas = Path(sys.prefix) / "share" / "jupyter" / "lab" / "schemas"
    settings = json.loads((ROOT / ".jupyter" / "labconfig" / "default_setting_overrides.json").read_text())
    for plugin, values in settings.items():
        package, name = plugin.split(":")
        assert set(values) <= set(json.loads((schemas / package / f"{name}.json").read_text())["properties"]), plugin


@pytest.mark.parametrize("config", ["server", "nbconvert"])
def test_an_exported_lesson_has_its_drawings(config):
    settings = json.loads((ROOT / ".jupyter" / f"jupyter_{config}_config.json").read_text())
    exporter = HTMLExporter(config=Config(settings))
    lesson = next(NOTEBOOKS.glob("*_online_softmax.ipynb"))
    html, _ = exporter.from_notebook_node(nbformat.read(lesson, as_version=4), {"metadata": {"path": str(NOTEBOOKS)}})
    assert html.count('src="data:image/svg+xml;base64,') == 2 and "../figures/" not in html
    assert 'alt="A filmstrip of three blocks' in html and "No description has been provided" not in html


def test_everything_is_pinned():
    lines = [line for name in ("", "-book") for line in (ROOT / f"requirements{name}.txt").read_text().splitlines()]
    for line in lines:
        requirement = line.split("#")[0].strip()
        assert not requirement or re.match(r"[\w\[\],-]+==[\w.]+( ; .*)?$", requirement), line
    assert PINS["torch"] == "2.13.0" and PINS["triton"] == "3.7.1"


def test_triton_is_the_one_that_pytorch_names():
    wanted = [r for r in importlib.metadata.requires("torch") if re.match(r"triton\b", r)]
    if importlib.metadata.version("torch").split("+")[0] != PINS["torch"] or not wanted:
        pytest.skip("this build of PyTorch names no Triton")
    assert f"triton=={PINS['triton']}" in wanted[0].replace(" ", "")


@pytest.mark.skipif(matplotlib.__version__ != PINS["matplotlib"], reason="another matplotlib draws other bytes")
def test_figures_are_up_to_date(tmp_path):
    draw.draw(tmp_path)
    for name in draw.DRAWINGS:
        assert (tmp_path / f"{name}.svg").read_bytes() == (ROOT / "figures" / f"{name}.svg").read_bytes(), name


TEXTS = ".py", ".md", ".txt", ".yml", ".ipynb", ".cu", ".cuh", "Makefile", "run"
PATTERNS = ("tests/test_setup.py", "tests/test_lint.py")   # these two hold the patterns themselves


def test_nothing_names_a_machine_or_a_registry():
    files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    for name in files:
        if name.endswith(TEXTS) and name not in PATTERNS and (ROOT / name).is_file():
            found = re.search(r"/work/|/tmp/venv|/root/|/opt/pypi|files\.pythonhosted", (ROOT / name).read_text())
            assert not found, f"{name}: {found and found[0]}"
