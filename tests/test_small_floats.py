"""bfloat16 and float8 in Triton's interpreter: every kind of operation gives what PyTorch gives, bit for bit."""
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from helpers import device

if not device.INTERPRETED:
    pytest.skip("kernels run on the GPU", allow_module_level=True)

EIGHT = [torch.float8_e4m3fn, torch.float8_e5m2]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")            # NumPy's, on inf, NaN and large numbers


def every(dtype):
    """All values of a type of 8 or 16 bits, infinities and NaN included."""
    bits = torch.arange(2**(8 * dtype.itemsize))
    return bits.to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype)


def numbers(dtype=torch.bfloat16, n=4096, seed=0):
    """Random numbers of many sizes, with ties, infinities, zeros of both signs and NaN among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator) * 2.0**torch.randint(-20, 20, [n], generator=generator)
    x[:9] = torch.tensor([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)])
    return x.to(dtype)


def same(got, want):
    """Equal to the last bit and in type; one NaN is as good as another."""
    assert got.dtype == want.dtype and got.shape == want.shape
    got, want = got.double(), want.double()
    wrong = ~((got == want) & (got.signbit() == want.signbit()) | got.isnan() & want.isnan())
    assert not wrong.any(), (got[wrong][:5], want[wrong][:5])


# ---------------------------------------------------------------- casts

@triton.jit
def cast_kernel(x_ptr, z_ptr, n, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z_ptr + lanes, tl.load(x_ptr + lanes, mask=lanes < n).to(z_ptr.dtype.element_ty), mask=lanes < n)


def cast(x, dtype):
    z = torch.empty(len(x), dtype=dtype)
    cast_kernel[(triton.cdiv(len(x), 2048),)](x, z, len(x), 2048)
    return z


def ties(dtype, fine):
    """Every finite value of a type, what lies half way to the next one, and a little to each side of that: in `fine`."""
    x = every(dtype).double()
    x = x[x.isfinite()].unique()
    half = (x[1:] + x[:-1]) / 2
    around = torch.cat([x, half, torch.nextafter(half.to(fine), torch.tensor(9e9).to(fine)).double(),
                        torch.nextafter(half.to(fine), torch.tensor(-9e9).to(fine)).double()]).to(fine)
    return torch.cat([around, torch.tensor([np.nan, np.inf, -np.inf, -0.0]).to(fine)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_rounds_to_the_nearest_and_ties_to_even(dtype):
    x = ties(dtype, torch.float32)
    same(cast(x, dtype), x.to(dtype))


@pytest.mark.parametrize("fine", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", EIGHT)
def test_eight_bits_round_to_the_nearest_and_end_at_the_largest(dtype, fine):
    x = ties(dtype, fine if fine != torch.bfloat16 else torch.float32).to(fine)
    most = torch.finfo(dtype).max
    same(cast(x, dtype), x.float().clamp(-most, most).to(dtype))
    assert cast(torch.tensor([1.99, 500, -np.inf, 2**-9, np.nan]), torch.float8_e4m3fn).float().tolist()[:4] == [
        2.0, 448.0, -448.0, 2**-9]


@pytest.mark.parametrize("source", [torch.bfloat16, *EIGHT])
@pytest.mark.parametrize("to", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_value_is_read_right(source, to):
    same(cast(every(source), to), every(source).to(to))


@pytest.mark.parametrize("to", [torch.int32, torch.int64, torch.bool])
def test_to_integers_and_back(to):
    x = torch.tensor([0.0, 1, -1, 2.75, -2.75, 300, -0.0, 65536]).bfloat16()
    same(cast(x, to), x.to(to))
    n = torch.arange(-3000, 3000).to(torch.int32)
    same(cast(n, torch.bfloat16), n.to(torch.bfloat16))


@triton.jit
def truncate_kernel(x_ptr, z_ptr):
    tl.store(z_ptr, tl.load(x_ptr).to(tl.bfloat16, fp_downcast_rounding="rtz"))


def test_other_roundings_and_other_types_are_refused():
    with pytest.raises(Exception, match="the interpreter rounds to nearest"):
        truncate_kernel[(1,)](torch.ones(1), torch.ones(1, dtype=torch.bfloat16))
    x = triton.reinterpret(torch.zeros(8, dtype=torch.uint8), tl.float8e4b15)
    with pytest.raises(Exception, match="fp8e4b15: of the types of 8 bits, fp8e4nv and fp8e5 are computed here"):
        cast_kernel[(1,)](x, torch.zeros(8), 8, 8)


# ---------------------------------------------------------------- arithmetic

@triton.jit
def operation_kernel(x_ptr, y_ptr, z_ptr, n, HOW: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + lanes, mask=lanes < n), tl.load(y_ptr + lanes, mask=lanes < n)
    if HOW == "+":
        z = x + y
    if HOW == "-":
        z = x - y
    if HOW == "*":
        z = x * y
    if HOW == "/":
        z = (x / y).to(x.dtype)
    if HOW == "+ 1.5":
        z = x + 1.5
    if HOW == "-x":
        z = -x
    if HOW == "abs":
        z = tl.abs(x)
    if HOW == "<":
        z = x < y
    if HOW == ">=":
        z = x >= y
    if HOW == "==":
        z = x == y
    if HOW == "where":
        z = tl.where(x > y, x, y)
    if HOW == "maximum":
        z = tl.maximum(x, y)
    if HOW == "full":
        z = x + tl.full([BLOCK], 1.5, x.dtype)
    if HOW == "zeros":
        z = x + tl.zeros([BLOCK], x.dtype)
    if HOW == "bits":
        z = x.to(tl.int16, bitcast=True).to(tl.bfloat16, bitcast=True)
    if HOW == "float32":
        z = x + y.to(tl.float32)
    tl.store(z_ptr + lanes, z, mask=lanes < n)


OPERATIONS = {
    "+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y, "/": lambda x, y: x / y,
    "+ 1.5": lambda x, y: x + 1.5, "-x": lambda x, y: -x, "abs": lambda x, y: x.abs(),
    "<": lambda x, y: x < y, ">=": lambda x, y: x >= y, "==": lambda x, y: x == y,
    "where": lambda x, y: torch.where(x > y, x, y), "full": lambda x, y: x + 1.5, "zeros": lambda x, y: x + 0.0,
    "bits": lambda x, y: x, "float32": lambda x, y: x + y.float(),
    "maximum": lambda x, y: torch.fmax(x, y)}


@pytest.mark.parametrize("how", OPERATIONS)
def test_operations(how):
    x, y = numbers(seed=1), numbers(seed=2).roll(3)
    y[2000:3000] = x[2000:3000]
    if how == "maximum":                                 # what becomes of NaN is an option of it
        x, y = x.nan_to_num(), y.nan_to_num()
    want = OPERATIONS[how](x, y)
    z = torch.empty_like(want)
    operation_kernel[(1,)](x, y, z, len(x), how, 4096)
    if how == "-x":
        z, want = z + 0.0, want + 0.0                    # Triton computes 0 - x
    same(z, want)


def test_one_and_one_is_two():
    x = torch.ones(3, dtype=torch.bfloat16)
    z = torch.empty_like(x)
    operation_kernel[(1,)](x, x, z, 3, "+", 4)
    assert z.tolist() == [2, 2, 2]


# ---------------------------------------------------------------- reductions and products

@triton.jit
def reduce_kernel(x_ptr, z_ptr, ROWS: tl.constexpr, N: tl.constexpr, HOW: tl.constexpr):
    rows = tl.arange(0, ROWS)
    x = tl.load(x_ptr + rows[:, None] * N + tl.arange(0, N)[None, :])
    if HOW == "sum":
        z = tl.sum(x, axis=1)
    if HOW == "max":
        z = tl.max(x, axis=1)
    if HOW == "min":
        z = tl.min(x, axis=1)
    if HOW == "argmax":
        z = tl.argmax(x, axis=1)
    if HOW == "sort":
        z = tl.max(tl.sort(x), axis=1)
    if HOW == "own":
        z = tl.reduce(x, 1, larger)
    tl.store(z_ptr + rows, z)


@triton.jit
def larger(a, b):
    return tl.where(a > b, a, b)


@pytest.mark.parametrize("how", ["sum", "max", "min", "argmax", "sort", "own"])
def test_reductions(how):
    x = torch.randint(-60, 60, [8, 32], generator=torch.Generator().manual_seed(0)).bfloat16() / 8
    x[:, 5] = torch.arange(8) + 20.0                     # the largest
    want = {"sum": x.double().sum(1), "min": x.amin(1), "argmax": x.argmax(1)}.get(how, x.amax(1))
    want = want.to(torch.int32 if how == "argmax" else torch.bfloat16)
    z = torch.empty_like(want)
    reduce_kernel[(1,)](x, z, 8, 32, how)
    same(z, want)


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    place = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    c = tl.dot(tl.load(a_ptr + place), tl.load(b_ptr + place), input_precision="ieee")
    tl.store(c_ptr + place, c.to(c_ptr.dtype.element_ty))


@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, *EIGHT])
def test_dot(dtype, to):
    a, b = (torch.randint(-8, 8, [32, 32], generator=torch.Generator().manual_seed(i)).to(dtype) for i in (0, 1))
    c = torch.empty(32, 32, dtype=to)
    dot_kernel[(1,)](a, b, c, 32)
    same(c, (a.float() @ b.float()).to(to))              # whole numbers: the sums are exact


# ---------------------------------------------------------------- memory

@triton.jit
def undefined_kernel(x_ptr, z_ptr, n, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    tl.store(z_ptr + lanes, tl.load(x_ptr + lanes, mask=lanes < n))
    tl.store(z_ptr + BLOCK + lanes, tl.load(x_ptr + lanes, mask=lanes < n, other=3.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_masked_lanes(dtype):
    x, z = torch.ones(2).to(dtype), torch.zeros(8).to(dtype)
    undefined_kernel[(1,)](x, z, 2, 4)
    assert z.float().isnan().tolist() == 2 * [False] + 2 * [True] + 4 * [False] and z[4:].tolist() == [1, 1, 3, 3]


@triton.jit
def atomic_kernel(x_ptr, z_ptr):
    tl.atomic_add(z_ptr + tl.arange(0, 4) % 2, tl.load(x_ptr + tl.arange(0, 4)))


def test_atomics_are_right_or_refused():
    z = torch.zeros(2, dtype=torch.float16)
    atomic_kernel[(3,)](torch.tensor([1.0, 2, 3, 4]).half(), z)
    assert z.tolist() == [12, 18]
    with pytest.raises(Exception, match="no atomic operation for bf16: change a float32"):
        atomic_kernel[(1,)](torch.ones(4).bfloat16(), torch.zeros(2).bfloat16())
