"""The CUDA programs give right results, notice wrong ones, and move what the formulas say."""
import itertools
import re

import pytest

from helpers import cuda

PROGRAMS = {                                             # kernels of each, the one called last in each check, and sizes
    "vec_add.cu": [(1,), (3,), (17,), (256,), (257,), (1000, 5)],
    "matrix_add_mul.cu": [(1, 1, 1), (17, 1, 33), (32, 32, 32), (33, 65, 31), (64, 40, 96, 9)],
    "attention.cu": [(1, 1, 1), (17, 1, 2), (1, 17, 1), (64, 64, 1), (65, 33, 2, 7), (32, 300, 1)],
}
CASES = [(program, sizes) for program, many in PROGRAMS.items() for sizes in many]


@pytest.mark.parametrize("program, sizes", CASES)
def test_emulated_program_passes(program, sizes):
    printed = cuda.run(program, *sizes, emulate=True)
    lines = [line for line in printed.splitlines() if not line.startswith("[gpu]")]
    assert all(line.endswith(": PASS") for line in lines[1:])
    assert len(lines) - 1 == {"vec_add.cu": 2, "matrix_add_mul.cu": 4, "attention.cu": 3}[program]


def test_the_emulator_claims_no_time():
    timed = [line for line in cuda.run("vec_add.cu", 100, emulate=True).splitlines() if " ms" in line or "GB/s" in line]
    assert timed == []
    assert cuda.run("vec_add.cu", 100, emulate=True).count("time not measured (emulated)") == 3


ADD = "c[i] = a[i] + b[i];"
ADD_MATRIX = "if (row < M && col < N) c[row * N + col] = a[row * N + col] + b[row * N + col];"
WRONG = [                                          # program, a statement of it, what replaces it, and which check fails
    ("vec_add.cu", f"if (i < n) {ADD}", "if (i < n) c[i] = a[i] - b[i];", "vec_add"),
    ("vec_add.cu", f"if (i < n) {ADD}", f"if (i + 1 < n) {ADD}", "vec_add"),
    ("vec_add.cu", f"for (; i < n; i++) {ADD}", ";", "vec_add_float4"),
    ("matrix_add_mul.cu", ADD_MATRIX, ADD_MATRIX.replace(" + b[row * N + col]", ""), "matrix_add"),
    ("matrix_add_mul.cu", "sum += a[row * K + k] * b[k * N + col];", "sum += a[row * K + k] * b[col];", "matmul_naive"),
    ("matrix_add_mul.cu", "sum += a_tile[y][k] * b_tile[k][x];", "sum += a_tile[y][k] * b_tile[x][k];", "matmul_tiled"),
    ("attention.cu", "l = alpha * l;", ";", "flash attention, o"),
    ("attention.cu", "acc[d] = alpha * acc[d];", ";", "flash attention, o"),
    ("attention.cu", "s[j] = key0 + j < N_k ? scale * s[j] : -INFINITY;", "s[j] = scale * s[j];", "flash attention, o"),
    ("attention.cu", "lse[row] = m + logf(l);", "lse[row] = m + log2f(l);", "flash attention, lse"),
    ("attention.cu", "s[j] = expf(s[j] - m) / l;", "s[j] = expf(s[j] - m);", "standard attention, o"),
    ("attention.cu", "o[row * D + d] = sum;", "o[row * D + d] = sum + 1e-4f;", "standard attention, o"),
]
SIZES = {"vec_add.cu": (1001,), "matrix_add_mul.cu": (40, 33, 64), "attention.cu": (40, 70, 1)}


BARRIERS = {"vec_add.cu": 0, "matrix_add_mul.cu": 2, "attention.cu": 9}          # how many each has


def with_mutants(program):
    """The program with every wrong statement in it, and barriers that can be left out: MUTANT holds the number of the
    statement that replaces the right one, or "barrier" and the number of the barrier that is skipped."""
    text = cuda.show(program)
    for number, (where, right, wrong, _) in enumerate(WRONG):
        if where == program:
            assert right in text
            text = text.replace(right, f'if (mutant == "{number}") {{ {wrong} }} else {{ {right} }}', 1)
    numbers = itertools.count()
    text = re.sub(r"__syncthreads\(\);", lambda m: f'if (mutant != "barrier {next(numbers)}") __syncthreads();', text)
    assert next(numbers) == BARRIERS[program]
    return text.replace('#include "harness.cuh"', '#include "harness.cuh"\n'
                        'static const std::string mutant = getenv("MUTANT");')


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_kernel_fails(number, monkeypatch):
    program, _, _, says = WRONG[number]
    monkeypatch.setenv("MUTANT", str(number))
    with pytest.raises(cuda.CudaError, match=rf"ended with status 1:(.|\n)*\n{says}: element \d+ is .*: FAIL"):
        cuda.run(with_mutants(program), *SIZES[program], emulate=True)


@pytest.mark.parametrize("program, barrier", [(program, i) for program in BARRIERS for i in range(BARRIERS[program])])
def test_every_barrier_is_needed(program, barrier, monkeypatch):
    """Leave out one __syncthreads() of a program, any one: the emulator names the race, whatever the results are."""
    monkeypatch.setenv("MUTANT", f"barrier {barrier}")
    printed = cuda.run(with_mutants(program), 40, 50, 40 if program == "matrix_add_mul.cu" else 1, emulate=True, check=False)
    assert "with no __syncthreads() in between: a race" in printed


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_a_wrong_statement_nothing_fails(program, monkeypatch):
    monkeypatch.setenv("MUTANT", "none")
    assert "FAIL" not in cuda.run(with_mutants(program), *SIZES[program], emulate=True)


@pytest.mark.parametrize("program, arguments, sentence", [
    ("vec_add.cu", ["0"], 'n must be a whole number from 1 to 4294967296, not "0".'),
    ("vec_add.cu", ["-3"], 'n must be a whole number from 1 to 4294967296, not "-3".'),
    ("vec_add.cu", ["10x"], 'not "10x".'),
    ("vec_add.cu", [""], 'not "".'),
    ("vec_add.cu", ["99999999999999999999999"], 'not "99999999999999999999999".'),
    ("vec_add.cu", ["1", "2", "3"], "3 arguments are too many; usage: vec_add [n] [seed]"),
    ("vec_add.cu", ["1000000000"], "These sizes need 11.18 GiB of GPU memory, and 0.12 GiB are free."),
    ("matrix_add_mul.cu", ["8", "0"], "N must be a whole number from 1 to 32768"),
    ("matrix_add_mul.cu", ["32768", "32768", "32768"], "These sizes need 20.00 GiB"),
    ("attention.cu", ["8", "8", "0"], "heads must be a whole number from 1 to 65535"),
    ("attention.cu", ["100000", "100000"], "GiB of GPU memory"),
])
def test_bad_arguments_are_one_sentence(program, arguments, sentence):
    with pytest.raises(cuda.CudaError) as caught:
        cuda.run(program, *arguments, emulate=True)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{program} ended with status 2:"
    assert sentence in lines[-1] and len([line for line in lines if not line.startswith("[gpu]")]) == 1


def test_counted_traffic_of_vec_add():
    n = 1000                                             # 31 full warps and one of 8 threads
    counts = cuda.traffic("vec_add.cu", n)
    one, four = counts["vec_add"], counts["vec_add_float4"]
    assert one["loads"] == 2 * n and one["load_bytes"] == 8 * n and one["stores"] == n and one["store_bytes"] == 4 * n
    assert one["load_sectors"] == 2 * n // 8 and one["store_sectors"] == n // 8
    assert one["load_requests"] == 2 * 32 and one["store_requests"] == 32
    assert four["load_bytes"] == 8 * n and four["load_sectors"] == one["load_sectors"]
    assert four["loads"] == 2 * n // 4 and four["load_requests"] == 2 * 8
    assert one["threads"] == 1024 and one["launches"] == 1 and one["barriers"] == 0


def test_counted_traffic_of_matrices():
    n, tile = 64, 32
    counts = cuda.traffic("matrix_add_mul.cu", n, n, n)
    rows, columns = counts["matrix_add"], counts["matrix_add_columns"]
    assert rows["load_sectors"] == 2 * n * n // 8 and rows["store_sectors"] == n * n // 8
    assert columns["load_sectors"] == 2 * n * n and columns["store_sectors"] == n * n        # a sector for each element
    assert columns["load_bytes"] == rows["load_bytes"] and columns["load_requests"] == rows["load_requests"]
    naive, tiled = counts["matmul_naive"], counts["matmul_tiled"]
    assert naive["loads"] == 2 * n**3 and naive["stores"] == n * n
    assert naive["arrays"]["a"]["load_sectors"] == n**3 // 32           # all lanes of a warp want the same element of a
    assert naive["arrays"]["b"]["load_sectors"] == n**3 // 8                 # and neighbouring ones of b
    assert tiled["loads"] == 2 * n**3 // tile and tiled["load_sectors"] == 2 * n**3 // tile // 8
    assert tiled["shared_loads"] == 2 * n**3 and tiled["shared_stores"] == tiled["loads"]
    assert tiled["shared_load_wavefronts"] == 2 * n**3 // 32                 # no bank conflict
    assert tiled["barriers"] == (n // tile)**2 * 2 * (n // tile)


def test_counted_traffic_of_attention():
    """Flash reads q once, k and v once for each block of queries; only the standard way moves the N_q x N_k matrix."""
    n_q, n_k, heads, d, block_m = 128, 96, 2, 64, 64
    counts = cuda.traffic("attention.cu", n_q, n_k, heads)
    flash = counts["flash_attention"]
    assert flash["loads"] == heads * (n_q * d + n_q // block_m * 2 * n_k * d)
    assert flash["stores"] == heads * n_q * (d + 1)
    scores = heads * n_q * n_k
    assert counts["attention_scores"]["stores"] == scores == counts["attention_softmax"]["stores"]
    assert counts["attention_softmax"]["loads"] == 3 * scores
    scratch = counts["attention_softmax"]["arrays"]["scratch"]
    reductions = 2 * heads * n_q                                 # each adds 127 pairs; then 128 threads read the result
    assert scratch["shared_loads"] == reductions * (2 * 127 + 128)
    warps = 2 * (2 + 1 + 5) + 4                                             # pairs: 64 threads, 32, then 16, 8, 4, 2, 1
    assert scratch["shared_load_requests"] == reductions * warps == scratch["shared_load_wavefronts"]
    assert counts["attention_output"]["arrays"]["p"]["loads"] == scores * (d // 32)
    assert counts["attention_scores"]["arrays"]["k_tile"]["shared_load_wavefronts"] == scores * d // 32


def test_padding_removes_bank_conflicts():
    text = cuda.show("attention.cu").replace("k_tile[TILE][TILE + 1]", "k_tile[TILE][TILE]")
    k_tile = cuda.traffic(text, 32, 32, 1)["attention_scores"]["arrays"]["k_tile"]
    assert k_tile["shared_load_wavefronts"] == 32 * k_tile["shared_load_requests"]


@pytest.mark.gpu
@pytest.mark.parametrize("program", PROGRAMS)
def test_gpu_and_emulator_print_the_same(program):
    def lines(sizes, emulate):
        return [x if x[:5] != "[gpu]" else "" for x in cuda.run(program, *sizes, emulate=emulate).splitlines()]
    for sizes in PROGRAMS[program]:
        assert lines(sizes, False) == lines(sizes, True)
