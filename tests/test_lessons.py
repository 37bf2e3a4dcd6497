"""Lessons are modules: real ones, in this process and in others."""
import importlib
import inspect
import json
import multiprocessing
import pickle
import sys
import traceback
import types

import pytest
import torch

from helpers import device, lessons
from helpers.lessons import vector_add_triton


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(cell, ...): a lesson of the topic `x` with these code cells, in a folder of its own."""
    monkeypatch.setattr(lessons, "NOTEBOOKS", tmp_path)

    def written(*cells):
        cells = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
        (tmp_path / "50_x.ipynb").write_text(json.dumps({"cells": cells}))
    yield written
    sys.modules.pop("helpers.lessons.x", None)
    vars(lessons).pop("x", None)


# ---------------------------------------------------------------- in this process

def test_is_a_real_module():
    module = sys.modules["helpers.lessons.vector_add_triton"]
    assert isinstance(module, types.ModuleType)
    assert module is vector_add_triton is lessons.vector_add_triton is importlib.import_module(module.__name__)
    assert module.add.__module__ == module.__name__ == module.__spec__.name
    assert inspect.getmodule(module.add) is module and "vector_add_triton.ipynb" in repr(module)


def test_holds_exported_cells_only():
    assert callable(vector_add_triton.add)
    assert not hasattr(vector_add_triton, "plotting") and not hasattr(vector_add_triton, "scale_add")


def test_runs_once(write):
    write("print('not exported')", "#| export\nruns = []", "#| export\nruns.append(1)")
    for _ in range(2):
        from helpers.lessons import x
        assert x.runs == lessons.x.runs == [1]


def test_a_saved_edit_is_seen_after_reload(write):
    write("#| export\nimport functools\n\ndef answer():\n    return 1")
    from helpers.lessons import x
    write("#| export\n\ndef answer():\n    return 2", "#| export\nmore = 3")
    assert x.answer() == 1 and not hasattr(x, "more")
    assert importlib.reload(x) is x and x.answer() == 2 and x.more == 3
    assert inspect.getsource(x.answer) == "def answer():\n    return 2\n"


def test_source_of_functions_classes_and_kernels():
    model = lessons.attention_in_a_model
    assert inspect.getsource(vector_add_triton.add).startswith("def add(x: torch.Tensor")
    assert inspect.getsource(model.Attention).startswith("class Attention(nn.Module):")
    assert inspect.getsource(model.Attention.merge).lstrip().startswith("def merge(self, o):")
    assert "def add_kernel(" in inspect.getsource(vector_add_triton.add_kernel.fn)
    assert inspect.getsource(lessons.causal_and_multihead.Stream).startswith("class Stream(NamedTuple):")
    source, first = inspect.getsourcelines(vector_add_triton.add)
    assert lessons.source("vector_add_triton").splitlines(keepends=True)[first - 1:][:len(source)] == source


def test_a_traceback_shows_the_line_and_its_notebook():
    with pytest.raises(AttributeError) as caught:
        vector_add_triton.add(None, None)
    shown = "".join(traceback.format_exception(caught.value))
    assert "x.contiguous()" in shown and "vector_add_triton.ipynb" in shown


def test_a_kernel_runs():
    x = torch.arange(5, device=device.DEVICE)
    assert vector_add_triton.add(x, x).tolist() == [0, 2, 4, 6, 8]


def from_import(topic):
    exec(f"from helpers.lessons import {topic}")


def import_by_name(topic):
    return importlib.import_module(f"helpers.lessons.{topic}")


def test_a_variant_has_other_lines_and_is_no_lesson(write):
    write("#| export\ndef f():\n    return 1\n")
    changed = lessons.variant("x", ("return 1", "return 2"))
    assert (changed.f(), lessons.x.f()) == (2, 1)
    assert inspect.getsource(changed.f) == "def f():\n    return 2\n" and changed.__name__ not in sys.modules
    for old in ("return 3", "f"):
        with pytest.raises(ValueError, match="times in lesson 'x', and not once"):
            lessons.variant("x", (old, "g"))


@pytest.mark.parametrize("call", [from_import, import_by_name, lessons.source, lessons.notebook])
def test_an_unknown_topic_is_an_import_error(call):
    with pytest.raises(ImportError, match="no lesson 'nothing'; the lessons are start_here, vector_add_cuda, "):
        call("nothing")


@pytest.mark.parametrize("call", [from_import, import_by_name, lessons.source])
def test_a_lesson_without_exports_is_an_import_error(call):
    with pytest.raises(ImportError, match=r"'start_here' exports nothing: none of its code cells begins with `#\|"):
        call("start_here")


def test_what_is_no_lesson_is_no_attribute():
    with pytest.raises(AttributeError, match="there is no lesson 'nothing'"):
        _ = lessons.nothing
    assert not hasattr(lessons, "start_here") and not hasattr(lessons, "__nothing__")


def test_a_lesson_that_fails_says_where_and_is_not_kept(write):
    write("#| export\nright = 1", "#| export\nwrong = right / 0")
    with pytest.raises(ZeroDivisionError) as caught:
        from_import("x")
    assert "wrong = right / 0" in "".join(traceback.format_exception(caught.value))
    assert "helpers.lessons.x" not in sys.modules
    write("#| export\nimport nothing_like_it")
    with pytest.raises(ImportError, match="No module named 'nothing_like_it'"):
        _ = lessons.x


# ---------------------------------------------------------------- in others

def read_back(pickled, saved):
    """What has become of functions, classes, a tuple, a layer and tensors."""
    add, Attention, stream = pickle.loads(pickled)
    layer, x, y = torch.load(saved, weights_only=False)
    return [add.__module__, Attention.__name__, stream.step, type(layer).__module__, isinstance(layer, Attention),
            torch.equal(layer(x), y), add(x, x).equal(2 * x)]


def test_pickle_torch_save_and_spawn(tmp_path):
    """A new process gets a lesson's function by its name, and imports the lesson for it."""
    model = lessons.attention_in_a_model
    torch.manual_seed(0)
    layer = model.TritonFlashAttention(16, 2, causal=True).to(device.DEVICE)
    x = torch.randn(1, 5, 16, device=device.DEVICE)
    stream = lessons.causal_and_multihead.Stream(1, 2, 3)
    pickled = pickle.dumps((vector_add_triton.add, model.Attention, stream))
    torch.save((layer, x, layer(x)), tmp_path / "saved")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(model.encode, ("hello",))[1] == "ehlo"
        assert pool.apply(read_back, (pickled, tmp_path / "saved")) == [
            "helpers.lessons.vector_add_triton", "Attention", 3, "helpers.lessons.attention_in_a_model", True, True, True]
