"""The strict interpreter: what is no element of a tensor is neither read nor written, and races are found, by name."""
import contextlib
import re
import threading
import traceback

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from helpers import device

if not device.INTERPRETED:
    pytest.skip("kernels run on the GPU", allow_module_level=True)
from helpers.interpreter import traffic
from helpers.interpreter.accesses import MemoryFault


@triton.jit
def copy_kernel(x_ptr, z_ptr, first, n, BLOCK: tl.constexpr):
    lanes = first + tl.arange(0, BLOCK)
    tl.store(z_ptr + tl.arange(0, BLOCK), tl.load(x_ptr + lanes, mask=lanes < n), mask=lanes < n)


def problem(kernel, *arguments, grid=(1,), **options):
    """"" or what the interpreter says of a launch, without the lines."""
    try:
        kernel[grid](*arguments, **options)
    except MemoryFault as fault:
        said, _, lines = str(fault).rpartition(": line ")
        assert re.match(r"\d+ of test_interpreter.py, `.*`$", lines)
        return said
    return ""


def copied(x, first, n, room=64):
    return problem(copy_kernel, x, torch.zeros(room), first, n, BLOCK=64)


memory = torch.arange(400.)
IN, OUT = "", "copy_kernel loads "


@pytest.mark.parametrize("x,first,n,says", [
    (memory[:40], 0, 40, IN), (memory[:40], 0, 41, "element 40 of x_ptr, which has 40 elements"),
    (memory[100:140], 0, 41, "element 40 of x_ptr, which has 40 elements"),           # the storage goes on: a guard
    (memory[100:140], -1, 40, "element -1 of x_ptr, which has 40 elements"),
    (memory[100:164], 0, 64, IN), (memory[7], 0, 1, IN), (memory[7], 0, 2, "element 1 of x_ptr, which has 1 element"),
    (memory[:40].view(5, 8), 0, 40, IN), (memory[:40].view(5, 8), 0, 44, "element [5, 0] of x_ptr, which has 5 x 8 elements"),
    (memory[:40].reshape(1, 5, 8), 0, 44, "element [0, 5, 0] of x_ptr, which has 1 x 5 x 8 elements"),
    (memory[:40].view(5, 8).T, 0, 40, IN),
    (memory[:40].view(5, 8).T, 0, 41, "element [0, 5] of x_ptr, which has 8 x 5 elements"),
    (memory.as_strided((5, 8), (10, 1)), 0, 8, IN),
    (memory.as_strided((5, 8), (10, 1)), 0, 9, "element [0, 8] of x_ptr, which has 5 x 8 elements"),     # a gap behind each row
    (memory[:40:2], 0, 1, IN), (memory[:40:2], 0, 2, "what lies between the elements of x_ptr, whose strides are [2]"),
    (memory[:5].expand(8, 5), 0, 5, IN), (memory[:5].expand(8, 5), 0, 6, "element [0, 5] of x_ptr, which has 8 x 5 elements"),
    (memory.as_strided((5, 8), (1, 1)), 0, 12, IN),                          # windows that overlap
    (memory.as_strided((5, 8), (1, 1)), 0, 13, "element 12 of x_ptr, which has 12 elements"),
    (memory[:0], 0, 0, IN), (torch.empty(0), 0, 1, "element 0 of x_ptr, which has 0 elements")])
def test_what_is_loaded(x, first, n, says):
    assert copied(x, first, n) == (f"{OUT}{says}" if says else "")


def test_what_is_stored():
    assert copied(memory[:64], 0, 64) == ""
    assert copied(memory[:64], 0, 64, room=60) == "copy_kernel stores element 60 of z_ptr, which has 60 elements"


def test_neighbours_in_one_tensor_are_told_apart():
    """q, k and v are often slices of one tensor, and what lies behind q is k."""
    q, k = torch.zeros(2, 64)
    assert problem(copy_kernel, q, k, 8, 72, BLOCK=64) == "copy_kernel loads element 64 of x_ptr, which has 64 elements"


@triton.jit
def pair_kernel(pair, sum_ptr):
    tl.atomic_add(sum_ptr + 3, tl.load(pair[1][0] + 2))


def test_tuples_and_atomics():
    ends = torch.arange(3.)
    assert problem(pair_kernel, (ends, (ends,)), torch.zeros(4)) == ""
    assert problem(pair_kernel, (ends, (ends[1:],)), torch.zeros(4)) == (
        "pair_kernel loads element 2 of pair[1][0], which has 2 elements")
    assert problem(pair_kernel, (ends, (ends,)), torch.zeros(3)) == (
        "pair_kernel changes element 3 of sum_ptr, which has 3 elements")


@triton.jit
def descriptor_kernel(x, z_ptr, M, N, BLOCK: tl.constexpr):
    z = tl.make_tensor_descriptor(z_ptr, [M, N], [N, 1], [BLOCK, BLOCK])
    z.store([0, 0], x.load([0, 0]))


def test_descriptors():
    """A tile may hang over the edge of what is described; the description may not be larger than the tensor."""
    x = torch.randn(400).as_strided((12, 16), (20, 1))
    for rows, says in ((12, ""), (13, "descriptor_kernel loads element [12, 0] of x, which has 12 x 16 elements")):
        described = TensorDescriptor(x, [rows, 16], [20, 1], [16, 16])
        assert problem(descriptor_kernel, described, torch.zeros(rows, 16), rows, 16, BLOCK=16) == says
    described = TensorDescriptor(x, [12, 16], [20, 1], [16, 16])
    said = problem(descriptor_kernel, described, torch.zeros(11, 16), 12, 16, BLOCK=16)
    assert "stores element [11, 0] of z_ptr, which has 11 x 16" in said


@triton.jit
def far_kernel(addresses_ptr, z_ptr):
    x = tl.load(addresses_ptr).to(tl.pointer_type(tl.float32))
    tl.store(z_ptr + tl.arange(0, 4), tl.load(x + tl.arange(0, 4)))


@pytest.mark.filterwarnings("error")                     # the compiler's tensors have no memory to ask for
def test_a_pointer_from_memory_leads_into_any_tensor():
    x, z = torch.ones(4), torch.zeros(4)
    with FakeTensorMode():
        fake = torch.ones(4)
    assert fake.shape == x.shape
    assert problem(far_kernel, torch.tensor([x.data_ptr()]), z) == "" and z.tolist() == [1, 1, 1, 1]
    said = problem(far_kernel, torch.tensor([8]), z)
    assert said == "far_kernel loads an address outside of all tensors"


@triton.jit
def wide_kernel(x_ptr, z_ptr, i):
    tl.store(z_ptr, tl.load(x_ptr.to(tl.pointer_type(tl.int32)) + i))


def test_elements_read_as_a_wider_type():
    x, z = torch.ones(6, dtype=torch.int16), torch.zeros(1, dtype=torch.int32)
    assert problem(wide_kernel, x, z, 2) == ""
    assert problem(wide_kernel, x[:5], z, 2) == "wide_kernel loads element 5 of x_ptr, which has 5 elements"


@triton.jit
def undefined_kernel(x_ptr, z_ptr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    tl.store(z_ptr + lanes, tl.load(x_ptr + lanes, mask=lanes < 2))


def test_undefined_lanes_are_nan():
    z = torch.zeros(4)
    assert problem(undefined_kernel, torch.ones(4), z, BLOCK=4) == ""
    assert z.isnan().tolist() == [False, False, True, True]


def test_counting_and_strictness_together():
    x, z = torch.ones(64), torch.zeros(64)
    with traffic.count() as moved:
        copy_kernel[(1,)](x, z, 0, 60, BLOCK=64)
        with pytest.raises(MemoryFault, match="element 64 of x_ptr"):
            copy_kernel[(1,)](x, z, 32, 70, BLOCK=64)
    assert moved.rows == {key: traffic.Moved(60, 240, 4) for key in moved.rows} and len(moved.rows) == 2


def test_a_launcher_can_be_called_again():
    launch, x = copy_kernel[(1,)], torch.ones(64)
    for _ in range(2):
        launch(x, torch.zeros(64), 0, 64, BLOCK=64)


@triton.jit
def shifted(x_ptr, lanes):
    return tl.load(x_ptr + lanes + 1)                    # a function of the kernel reads too far


@triton.jit
def shifting_kernel(x_ptr, z_ptr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    tl.store(z_ptr + lanes, shifted(x_ptr, lanes))


def test_the_last_line_of_the_traceback_says_it_all():
    number = shifted.fn.__code__.co_firstlineno + 2
    try:
        shifting_kernel[(1,)](torch.ones(4), torch.zeros(4), BLOCK=4)
    except MemoryFault as fault:
        lines = traceback.format_exc().strip().splitlines()
        assert lines[-1] == (
            "helpers.interpreter.accesses.MemoryFault: shifting_kernel loads element 4 of x_ptr, which has 4 elements: "
            f"line {number} of test_interpreter.py, `return tl.load(x_ptr + lanes + 1)`")
        assert fault.__cause__ is None and sum("File " in line for line in lines) <= 5
    else:
        pytest.fail("it read a fifth element of four")


# ---------------------------------------------------------------- races

@triton.jit
def race_kernel(x_ptr, z_ptr, HOW: tl.constexpr, ONLY: tl.constexpr = 99):
    """Four elements a program, with `x` and `z` the same tensor or two."""
    pid = tl.program_id(0) + 2 * tl.program_id(1)
    own = 4 * pid + tl.arange(0, 4)
    if HOW == "own":
        tl.store(z_ptr + own, tl.load(x_ptr + own))
        tl.store(z_ptr + own, tl.load(z_ptr + own) + 1)
    if HOW == "stores":
        tl.store(z_ptr + 5, pid, mask=pid <= ONLY)
    if HOW == "adds":
        tl.store(z_ptr, tl.load(z_ptr) + 1)
    if HOW == "before":                                  # the next program's elements, before it writes them
        tl.store(z_ptr + own, tl.load(x_ptr + own + 4))
    if HOW == "behind":                                  # those of the program before, after it wrote them
        tl.store(z_ptr + own + 4, tl.load(x_ptr + own))
    if HOW == "atomics":
        tl.atomic_add(z_ptr + tl.arange(0, 4), 1.0)
    if HOW == "atomic and load":
        tl.atomic_add(z_ptr + 1, 1.0)
        tl.load(x_ptr + 4 * pid + 1)
    if HOW == "load and atomic":
        tl.load(x_ptr + 4 * pid + 4)
        tl.atomic_add(z_ptr + 4 * pid, 1.0)
    if HOW == "store and atomic":
        tl.store(z_ptr + own, 1.0)
        tl.atomic_add(z_ptr, 1.0)
    if HOW == "reads":
        tl.load(x_ptr + tl.arange(0, 4))


RACE = "a race in race_kernel: program "


@pytest.mark.parametrize("how,grid,says", [
    ("own", (3,), ""), ("reads", (3,), ""), ("atomics", (3,), ""), ("stores", (1,), ""),
    ("stores", (2,), RACE + "1 stores element 5 of z_ptr, and program 0 stores it too"),
    ("stores", (2, 2), RACE + "(0, 1) stores element 5 of z_ptr, and program (0, 0) stores it too"),
    ("adds", (2,), RACE + "1 loads element 0 of z_ptr, and program 0 stores it too"),
    ("before", (2,), RACE + "1 stores element 4 of z_ptr, and program 0 loads it too"),
    ("behind", (2,), RACE + "1 loads element 4 of x_ptr, and program 0 stores it too"),
    ("atomic and load", (2,), RACE + "1 changes element 1 of z_ptr, and program 0 loads it too"),
    ("load and atomic", (3,), RACE + "1 changes element 4 of z_ptr, and program 0 loads it too"),
    ("store and atomic", (2,), RACE + "1 changes element 0 of z_ptr, and program 0 stores it too")])
def test_races(how, grid, says):
    x = torch.zeros(32)
    assert problem(race_kernel, x, x, how, grid=grid).split(": line")[0] == says


def test_no_race_in_two_tensors_or_in_two_launches():
    x, z = torch.zeros(2, 32)
    for how in ("before", "behind"):
        for _ in range(2):
            assert problem(race_kernel, x, z, how, grid=(4,)) == ""
    assert problem(race_kernel, x, z, "stores", 0, grid=(4,)) == ""          # the others' lanes are masked


def test_a_race_names_both_lines():
    x = torch.zeros(32)
    with pytest.raises(MemoryFault) as fault:
        race_kernel[(2,)](x, x, "store and atomic")
    assert re.search(r"too: line (\d+) of test_interpreter.py, `tl.atomic_add\(z_ptr, 1.0\)` and line (\d+) of "
                     r"test_interpreter.py, `tl.store\(z_ptr \+ own, 1.0\)`$", str(fault.value))


def test_views_of_one_storage_share_their_races():
    half = torch.zeros(64, dtype=torch.float16)
    whole = half.view(torch.float32)
    assert problem(race_kernel, half, whole, "behind", grid=(2,)) == ""
    assert problem(race_kernel, half, whole, "behind", grid=(3,)).startswith(
        RACE + "2 loads element 8 of x_ptr, and program 0 stores it too")
    assert problem(race_kernel, whole, half, "behind", grid=(3,)).startswith(
        RACE + "2 stores element 12 of z_ptr, and program 1 loads it too")


# ---------------------------------------------------------------- threads

def test_threads_wait_for_each_other():
    results, done = {}, []

    def work(i):
        for _ in range(3):
            x, z = torch.full([64], float(i)), torch.zeros(64)
            copy_kernel[(1,)](x, z, 0, 64, BLOCK=64)
            results.setdefault(i, []).append(bool((z == i).all()))
        done.append(i)

    threads = [threading.Thread(target=work, args=[i]) for i in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert sorted(done) == [0, 1, 2, 3] and all(map(all, results.values()))


# ---------------------------------------------------------------- what is kept

@triton.jit
def shapes_kernel(x_ptr, HALF: tl.constexpr, FLOAT: tl.constexpr):
    rows = tl.arange(0, 16)
    tl.store(x_ptr + rows, rows * 2**28 + 2**30)         # 32 bits: it wraps around, as on a GPU
    wide = tl.zeros([HALF, 2], tl.int32) + tl.zeros([HALF, 1], tl.int32) + tl.zeros([1, 2], tl.int64)
    tl.static_assert(wide.dtype == tl.int64 and wide.shape[0] == HALF and wide.numel == 16)
    if FLOAT:
        tl.zeros([HALF / 1], tl.float32)                 # a type with a shape of 8 is known by now, and this is 8.0


def test_what_is_kept_of_types_and_shapes_changes_nothing():
    x = torch.zeros(16, dtype=torch.int32)
    for FLOAT in (False, True):
        shapes = pytest.raises(Exception, match="must have type .constexpr.int") if FLOAT else contextlib.nullcontext()
        with shapes:
            shapes_kernel[(1,)](x, 8, FLOAT)
    assert x.tolist() == [(i * 2**28 + 2**30 + 2**31) % 2**32 - 2**31 for i in range(16)]
