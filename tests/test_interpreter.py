"""The strict interpreter: what is no element of a tensor is neither read nor written, and is named."""
import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from helpers import device, traffic

if not device.INTERPRETED:
    pytest.skip("kernels run on the GPU", allow_module_level=True)
from helpers.interpreter import strict


@triton.jit
def copy_kernel(x_ptr, z_ptr, first, n, BLOCK: tl.constexpr):
    lanes = first + tl.arange(0, BLOCK)
    tl.store(z_ptr + tl.arange(0, BLOCK), tl.load(x_ptr + lanes, mask=lanes < n), mask=lanes < n)


def problem(kernel, *arguments, **options):
    """"" or what the strict interpreter says of a launch of one program."""
    with strict():
        try:
            kernel[(1,)](*arguments, **options)
        except Exception as error:
            return str(error).split("'")[1]
    return ""


def copied(x, first, n, room=64):
    return problem(copy_kernel, x, torch.zeros(room), first, n, BLOCK=64)


memory = torch.arange(400.)
IN, OUT = "", "the kernel loads "


@pytest.mark.parametrize("x,first,n,says", [
    (memory[:40], 0, 40, IN), (memory[:40], 0, 41, "element 40 of x_ptr, which has 40"),
    (memory[100:140], 0, 41, "element 40 of x_ptr, which has 40"),           # the storage goes on: a guard
    (memory[100:140], -1, 40, "element -1 of x_ptr, which has 40"),
    (memory[100:164], 0, 64, IN), (memory[7], 0, 1, IN), (memory[7], 0, 2, "element 1 of x_ptr, which has 1"),
    (memory[:40].view(5, 8), 0, 40, IN), (memory[:40].view(5, 8), 0, 44, "element [5, 0] of x_ptr, which has 5 x 8"),
    (memory[:40].reshape(1, 5, 8), 0, 44, "element [0, 5, 0] of x_ptr, which has 1 x 5 x 8"),
    (memory[:40].view(5, 8).T, 0, 40, IN),
    (memory[:40].view(5, 8).T, 0, 41, "element [0, 5] of x_ptr, which has 8 x 5"),
    (memory.as_strided((5, 8), (10, 1)), 0, 8, IN),
    (memory.as_strided((5, 8), (10, 1)), 0, 9, "element [0, 8] of x_ptr, which has 5 x 8"),     # a gap behind each row
    (memory[:40:2], 0, 1, IN), (memory[:40:2], 0, 2, "what lies between the elements of x_ptr, whose strides are [2]"),
    (memory[:5].expand(8, 5), 0, 5, IN), (memory[:5].expand(8, 5), 0, 6, "element [0, 5] of x_ptr, which has 8 x 5"),
    (memory.as_strided((5, 8), (1, 1)), 0, 12, IN),                          # windows that overlap
    (memory.as_strided((5, 8), (1, 1)), 0, 13, "element 12 of x_ptr, which has 12"),
    (memory[:0], 0, 0, IN), (torch.empty(0), 0, 1, "element 0 of x_ptr, which has 0")])
def test_what_is_loaded(x, first, n, says):
    assert copied(x, first, n) == (f"{OUT}{says} (copy_kernel)" if says else "")


def test_what_is_stored():
    assert copied(memory[:64], 0, 64) == ""
    assert copied(memory[:64], 0, 64, room=60) == "the kernel stores element 60 of z_ptr, which has 60 (copy_kernel)"


def test_neighbours_in_one_tensor_are_told_apart():
    """q, k and v are often slices of one tensor, and what lies behind q is k."""
    q, k = torch.zeros(2, 64)
    assert problem(copy_kernel, q, k, 8, 72, BLOCK=64).startswith("the kernel loads element 64 of x_ptr, which has 64 ")


@triton.jit
def pair_kernel(pair, sum_ptr):
    tl.atomic_add(sum_ptr + 3, tl.load(pair[1][0] + 2))


def test_tuples_and_atomics():
    ends = torch.arange(3.)
    assert problem(pair_kernel, (ends, (ends,)), torch.zeros(4)) == ""
    assert problem(pair_kernel, (ends, (ends[1:],)), torch.zeros(4)) == (
        "the kernel loads element 2 of pair[1][0], which has 2 (pair_kernel)")
    assert problem(pair_kernel, (ends, (ends,)), torch.zeros(3)) == (
        "the kernel changes element 3 of sum_ptr, which has 3 (pair_kernel)")


@triton.jit
def descriptor_kernel(x, z_ptr, M, N, BLOCK: tl.constexpr):
    z = tl.make_tensor_descriptor(z_ptr, [M, N], [N, 1], [BLOCK, BLOCK])
    z.store([0, 0], x.load([0, 0]))


def test_descriptors():
    """A tile may hang over the edge of what is described; the description may not be larger than the tensor."""
    x = torch.randn(400).as_strided((12, 16), (20, 1))
    for rows, says in ((12, ""), (13, "the kernel loads element [12, 0] of x, which has 12 x 16 (descriptor_kernel)")):
        described = TensorDescriptor(x, [rows, 16], [20, 1], [16, 16])
        assert problem(descriptor_kernel, described, torch.zeros(rows, 16), rows, 16, BLOCK=16) == says
    described = TensorDescriptor(x, [12, 16], [20, 1], [16, 16])
    said = problem(descriptor_kernel, described, torch.zeros(11, 16), 12, 16, BLOCK=16)
    assert "stores element [11, 0] of z_ptr, which has 11 x 16" in said


@triton.jit
def far_kernel(addresses_ptr, z_ptr):
    x = tl.load(addresses_ptr).to(tl.pointer_type(tl.float32))
    tl.store(z_ptr + tl.arange(0, 4), tl.load(x + tl.arange(0, 4)))


def test_a_pointer_from_memory_leads_into_any_tensor():
    x, z = torch.ones(4), torch.zeros(4)
    assert problem(far_kernel, torch.tensor([x.data_ptr()]), z) == "" and z.tolist() == [1, 1, 1, 1]
    said = problem(far_kernel, torch.tensor([8]), z)
    assert said == "the kernel loads an address outside of all tensors (far_kernel)"


@triton.jit
def wide_kernel(x_ptr, z_ptr, i):
    tl.store(z_ptr, tl.load(x_ptr.to(tl.pointer_type(tl.int32)) + i))


def test_elements_read_as_a_wider_type():
    x, z = torch.ones(6, dtype=torch.int16), torch.zeros(1, dtype=torch.int32)
    assert problem(wide_kernel, x, z, 2) == ""
    assert problem(wide_kernel, x[:5], z, 2) == "the kernel loads element 5 of x_ptr, which has 5 (wide_kernel)"


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
    with strict(), traffic.count() as moved:
        copy_kernel[(1,)](x, z, 0, 60, BLOCK=64)
        with pytest.raises(Exception, match="element 64 of x_ptr"):
            copy_kernel[(1,)](x, z, 32, 70, BLOCK=64)
    with traffic.count() as again, strict():
        copy_kernel[(1,)](x, z, 0, 60, BLOCK=64)
    assert again.rows == {key: traffic.Moved(60, 240, 4) for key in again.rows} and moved.total("store").elements == 60
    copy_kernel[(1,)](x, z, 0, 64, BLOCK=64)             # outside of both: as ever


def test_a_launcher_can_be_called_again():
    launch, x = copy_kernel[(1,)], torch.ones(64)
    with strict():
        for _ in range(2):
            launch(x, torch.zeros(64), 0, 64, BLOCK=64)
    launch(x, torch.zeros(64), 0, 64, BLOCK=64)
