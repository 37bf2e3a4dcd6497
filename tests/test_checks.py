"""The checks of the exercises: right versions pass, and every property catches a wrong version (mistakes/*.py).

A module of mistakes has CASES = {check: dict(right=[fn, …], wrong={property: fn or [fn, …]}, also=[fn, …])}, where
those of `also` fail some property. `stub` and `broken` may be given where a check takes no function.
"""
import ast
import contextlib
import importlib
import inspect
import io
import re
import sys
from pathlib import Path
from unittest import mock

import pytest

from helpers import check, device
from helpers.check import core

HERE = Path(__file__).parent
IN_THE_INTERPRETER = {"every number is written by one program", "one kernel reads the inputs and stores the result",
                      "each key and each value is read once", "no page is looked up behind the end",
                      "sectors of v are fetched whole and once", "no program reads more than 512 rows"}


def stub(*args, **kwargs):
    raise NotImplementedError


def broken(*args, **kwargs):
    raise ZeroDivisionError("by zero")


def name_of(run):
    options = [f"{key}={value}" for key, value in getattr(run, "keywords", {}).items()]
    return " ".join([getattr(run, "func", run).__name__, *options])


CASES = {}
for file in sorted((HERE / "mistakes").glob("*.py")):
    for run, versions in getattr(importlib.import_module(f"mistakes.{file.stem}"), "CASES", {}).items():
        CASES[f"{file.stem} {name_of(run)}"] = (run, versions)
every = pytest.mark.parametrize("name", CASES)


def test_every_check_has_its_mistakes():
    """Of the checks on the face and those of CUDA, some by way of a wrapper that names them."""
    faces = [*inspect.getmembers(check, inspect.isfunction), *inspect.getmembers(check.cuda, inspect.isfunction)]
    source = "\n".join(file.read_text() for file in (HERE / "mistakes").glob("*.py"))
    names = [name for name, fn in faces if fn.__doc__ and not name.startswith("_") and name != "cuda_properties"]
    assert [name for name in names if not re.search(rf"check\.(cuda\.)?{name}\b", source)] == []


def printed(run, fn):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run(fn)
    return out.getvalue()


def report(run, fn, only=None):
    """{property: "" or what went wrong}, read from what a check prints; of one property only, if it is named."""
    lines = []
    with contextlib.ExitStack() as stack:
        for module in [module for name, module in sys.modules.items() if only and name.startswith("helpers.check.")]:
            if getattr(module, "properties", None) is core.properties and module is not core:
                stack.enter_context(mock.patch.object(module, "properties", lambda title, cases, fn: core.properties(
                    title, [case for case in cases if case[0] == only], fn)))
        text = printed(run, fn)
    for line in text.splitlines()[1:]:
        if line[:8] == " " * 8:
            lines[-1] += line[7:]
        else:
            lines.append(line)
    parts = [line[8:].partition(": ") for line in lines if line[2:6] in ("ok  ", "FAIL")]
    return {name: problem for name, _, problem in parts}


def versions_of(wrong):
    return wrong if isinstance(wrong, list) else [wrong]


@every
def test_right_versions_pass_and_every_property_has_a_wrong_one(name):
    run, versions = CASES[name]
    for right in versions["right"]:
        found = report(run, right)
        assert found and not any(found.values()), found
        assert set(found) <= set(versions["wrong"])


@pytest.mark.parametrize("name,wrong", [(name, wrong) for name in CASES for wrong in CASES[name][1]["wrong"]])
def test_a_wrong_version_fails_its_property(name, wrong):
    run, versions = CASES[name]
    if wrong in IN_THE_INTERPRETER and not device.INTERPRETED:
        pytest.skip("seen in the interpreter only")
    for fn in versions_of(versions["wrong"][wrong]):
        found = report(run, fn, only=wrong)
        assert found[wrong], found


@pytest.mark.parametrize("name", [name for name in CASES if "also" in CASES[name][1]])
def test_what_is_wrong_somewhere_fails_somewhere(name):
    run, versions = CASES[name]
    for fn in versions["also"]:
        assert any(report(run, fn).values())


@every
def test_a_stub_is_not_attempted_and_an_exception_is_a_failed_property(name):
    run, versions = CASES[name]
    assert printed(run, versions.get("stub", stub)).endswith(": not attempted yet\n")
    found = report(run, versions.get("broken", broken))
    assert all(found.values()) or "ZeroDivisionError: by zero" in str(found), found


def test_the_face_lists_functions():
    """A file of checks with the name of a check would stand in its place."""
    listed = [alias.name for node in ast.parse(inspect.getsource(check)).body
              if getattr(node, "module", None) and node.module.startswith("helpers.check.") for alias in node.names]
    assert len(listed) > 40 and all(inspect.isfunction(getattr(check, name)) for name in listed)
