"""Functions of ours in processes of their own: answers, failures, and above all the compiler's."""
import os

import pytest

from helpers import compiled, process

def test_arguments_environment_and_result():
    assert process.call("json", "loads", '{"a": [1, null]}') == dict(a=[1, None])
    assert process.call("os", "getenv", "COLOUR", COLOUR="blue") == "blue" and "COLOUR" not in os.environ


def test_an_exception_is_named():
    with pytest.raises(process.Failed, match="^ZeroDivisionError: "):
        process.call("operator", "floordiv", 1, 0)


def test_a_process_that_dies_leaves_its_status():
    with pytest.raises(process.Failed, match="the process of abort ended with status -6: no message"):
        process.call("os", "abort")


def test_a_function_that_takes_too_long():
    with pytest.raises(process.Failed, match="the process of sleep did not end within 0.5 s"):
        process.call("time", "sleep", 60, limit_s=0.5)


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started():
    status, out, _ = process.output("sh", "-c", "echo begun; sleep 60 & sleep 60", limit_s=0.5)
    assert status is None and out == "begun\n"
    assert process.output("sh", "-c", "cat; echo $COLOUR >&2; exit 3", input="x", COLOUR="blue") == (3, "x", "blue\n")


POINTERS = """import triton
import triton.language as tl

@triton.jit
def put(x_ptr):
    tl.store(x_ptr, tl.zeros([], x_ptr.value.type))

@triton.jit
def kernel(x_ptr):
    put(x_ptr)
"""


def test_the_compiler_says_itself_what_is_wrong():
    """In the function that it was in, and without what a process prints when it ends. Here None stands for a pointer."""
    with pytest.raises(RuntimeError) as failed:
        compiled.compile_kernels([dict(source=POINTERS, kernel="kernel", arguments=dict(x_ptr=None), capability=100)])
    said = str(failed.value)
    assert said.startswith("kernel did not compile for sm_100: at ") and "def put" in said
    assert said.splitlines()[-1] == "AttributeError(\"'NoneType' object has no attribute 'type'\")"
