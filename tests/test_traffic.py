"""Counted traffic against kernels that are known by hand, blocked attention's loops, what Nsight Compute says."""
import json
import operator
import shutil
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings, strategies as st
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from helpers import device, lessons, process, reference
from helpers.bench import clock, ncu
from helpers.interpreter import traffic

interpreted = pytest.mark.skipif(not device.INTERPRETED, reason="kernels run on the GPU, the interpreter is counted")
FLASH = ("flash_attention_triton", "flash_attention_v1")


def rows(moved):
    return {key[1:]: (m.elements, m.bytes, m.masked) for key, m in moved.rows.items()}


@triton.jit
def copy_kernel(x_ptr, z_ptr, n, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z_ptr + lanes, tl.load(x_ptr + lanes, mask=lanes < n), mask=lanes < n)


@interpreted
@pytest.mark.parametrize("dtype,itemsize", [
    (torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 4), (torch.float64, 8), (torch.int8, 1), (torch.bool, 1),
    (torch.float8_e5m2, 1)], ids=str)
def test_copy(dtype, itemsize):
    x, z = torch.ones(1000).to(dtype), torch.zeros(1000).to(dtype)
    with traffic.count() as moved:
        copy_kernel[(4,)](x, z, 1000, BLOCK=256)
    found = 1000, 1000 * itemsize, 24
    assert rows(moved) == {("x_ptr", "load"): found, ("z_ptr", "store"): found}
    assert torch.equal(x.float(), z.float())
    assert moved.total("load") == traffic.Moved(1000, 1000 * itemsize, 24)
    assert moved.total("atomic") == traffic.Moved(0, 0, 0) == moved.total("load", "z_ptr")


@interpreted
def test_one_tensor_behind_two_arguments():
    x = torch.arange(512.)
    with traffic.count() as moved:
        copy_kernel[(1,)](x, x, 512, BLOCK=512)          # in place
        copy_kernel[(1,)](x[256:], x[:256], n=100, BLOCK=256)
    assert rows(moved) == {("x_ptr", "load"): (612, 2448, 156), ("z_ptr", "store"): (612, 2448, 156)}


@triton.jit
def block_pointer_kernel(x_ptr, z_ptr, M, N, BLOCK: tl.constexpr):
    x = tl.make_block_ptr(x_ptr, (M, N), (N, 1), (0, tl.program_id(0) * BLOCK), (BLOCK, BLOCK), (1, 0))
    z = tl.make_block_ptr(z_ptr, (M, N), (N, 1), (0, tl.program_id(0) * BLOCK), (BLOCK, BLOCK), (1, 0))
    for _ in range(0, M, BLOCK):
        tl.store(z, tl.load(x, boundary_check=(0, 1), padding_option="zero"), boundary_check=(0, 1))
        x, z = tl.advance(x, (BLOCK, 0)), tl.advance(z, (BLOCK, 0))


@triton.jit
def descriptor_kernel(x_ptr, z_ptr, M, N, BLOCK: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [BLOCK, BLOCK])
    z = tl.make_tensor_descriptor(z_ptr, [M, N], [N, 1], [BLOCK, BLOCK])
    for i in range(0, M, BLOCK):
        z.store([i, tl.program_id(0) * BLOCK], x.load([i, tl.program_id(0) * BLOCK]))


@interpreted
@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize("kernel", ["block_pointer_kernel", "descriptor_kernel"])
def test_tiles(kernel):
    if kernel == "block_pointer_kernel" and not hasattr(interpreter, "BlockPointerHandle"):
        pytest.skip("Triton 3.9 removed block pointers")
    x, z = torch.randn(40, 24), torch.zeros(40, 24)      # 3 x 2 tiles of 16 x 16
    with traffic.count() as moved:
        globals()[kernel][(2,)](x, z, 40, 24, BLOCK=16)
    assert torch.equal(x, z)
    assert rows(moved) == {("x_ptr", "load"): (960, 3840, 576), ("z_ptr", "store"): (960, 3840, 576)}


@triton.jit
def host_descriptor_kernel(x, z, pair):
    z.store([0, 0], x.load([0, 0]))
    tl.store(pair[1], tl.load(pair[0] + 1) + tl.load(pair[0]))


@interpreted
def test_descriptors_and_tuples_from_the_host():
    x, z, ends = torch.randn(20, 16), torch.zeros(20, 16), torch.tensor([1., 2, 3, 4])
    with traffic.count() as moved:
        host_descriptor_kernel[(1,)](TensorDescriptor(x, [20, 16], [16, 1], [32, 16]),
                                     TensorDescriptor(z, [20, 16], [16, 1], [32, 16]), (ends[1:], ends))
    assert torch.equal(x, z) and ends.tolist() == [5, 2, 3, 4]
    assert rows(moved) == {("x", "load"): (320, 1280, 192), ("z", "store"): (320, 1280, 192),
                           ("pair[0]", "load"): (2, 8, 0), ("pair[1]", "store"): (1, 4, 0)}


@triton.jit
def gather_kernel(x, z_ptr):
    rows = tl.load(z_ptr + tl.arange(0, 8)).to(tl.int32)
    x.scatter(x.gather(rows, 0), 7 - rows, 0)


@interpreted
def test_gather_and_scatter():
    x = torch.arange(128, dtype=torch.float32).reshape(8, 16)
    with traffic.count() as moved:
        gather_kernel[(1,)](TensorDescriptor(x, [8, 16], [16, 1], [1, 16]), torch.arange(8.))
    assert rows(moved) == {("z_ptr", "load"): (8, 32, 0), ("x", "load"): (128, 512, 0), ("x", "store"): (128, 512, 0)}


@triton.jit
def atomic_kernel(x_ptr, sum_ptr, lock_ptr, n, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(sum_ptr + lanes % 4, tl.load(x_ptr + lanes, mask=lanes < n, other=0), mask=lanes < n)
    tl.atomic_cas(lock_ptr, 0, 1)
    tl.atomic_max(lock_ptr, tl.program_id(0))


@interpreted
def test_atomics():
    x, sums, lock = torch.ones(50), torch.zeros(4), torch.zeros(1, dtype=torch.int32)
    with traffic.count() as moved:
        atomic_kernel[(2,)](x, sums, lock, 50, BLOCK=32)
    assert sums.sum() == 50 and lock.item() == 1
    assert rows(moved) == {("x_ptr", "load"): (50, 200, 14), ("sum_ptr", "atomic"): (50, 200, 14),
                           ("lock_ptr", "atomic"): (4, 16, 0)}


@triton.jit
def far_kernel(addresses_ptr, a_ptr, b_ptr, z_ptr):
    lanes = tl.arange(0, 4)
    x = tl.load(addresses_ptr).to(tl.pointer_type(tl.float32))
    either = tl.where(lanes < 3, a_ptr + lanes, b_ptr + lanes)
    tl.store(z_ptr + lanes, tl.load(x + lanes) + tl.load(either))


@interpreted
def test_pointers_from_memory_and_pointers_that_differ_by_lane():
    x, a, b, z = torch.ones(4), torch.arange(4.), torch.arange(10., 14), torch.zeros(4)
    with traffic.count() as moved:
        far_kernel[(1,)](torch.tensor([x.data_ptr()]), a, b, z)
    assert z.tolist() == [1, 2, 3, 14]
    assert rows(moved) == {("addresses_ptr", "load"): (1, 8, 0), ("(no argument)", "load"): (4, 16, 0),
                           ("a_ptr", "load"): (3, 12, 0), ("b_ptr", "load"): (1, 4, 0), ("z_ptr", "store"): (4, 16, 0)}


@interpreted
def test_kernels_are_told_apart_and_counts_nest():
    x = torch.ones(64)
    add = lessons.vector_add_triton.add
    with traffic.count() as outer:
        add(x, x)
        with traffic.count() as inner:
            copy_kernel[(1,)](x, x.clone(), 64, BLOCK=64)
    copy_kernel[(1,)](x, x.clone(), 64, BLOCK=64)        # after the end: nobody counts
    assert {kernel for kernel, *_ in outer.rows} == {"add_kernel", "copy_kernel"}
    assert {kernel for kernel, *_ in inner.rows} == {"copy_kernel"}
    assert outer.total("load").elements == 192 and inner.total("load").elements == 64
    assert str(inner) == ("copy_kernel, x_ptr: load 64 elements, 256 bytes\n"
                          "copy_kernel, z_ptr: store 64 elements, 256 bytes")


@interpreted
def test_an_error_ends_the_counting():
    with pytest.raises(ZeroDivisionError):
        with traffic.count() as early:
            operator.floordiv(1, 0)
    with pytest.raises(Exception, match="has no attribute"):
        with traffic.count() as late:
            copy_kernel[(1,)](torch.ones(4), torch.ones(4), 4, BLOCK="wide")
    test_copy(torch.float32, 4)
    assert not early.rows and not late.rows


@interpreted
@settings(max_examples=15, deadline=None)
@given(N=st.integers(1, 130), D=st.integers(1, 80), BLOCK_M=st.sampled_from([16, 32]),
       BLOCK_N=st.sampled_from([16, 64]), BLOCK_V=st.sampled_from([16, 64]))
def test_flash_attention_v1_moves_what_its_loops_say(N, D, BLOCK_M, BLOCK_N, BLOCK_V):
    moved = traffic.of(*FLASH, *[(N, D)] * 3, tiles=dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_V=BLOCK_V))
    T, parts = -(-N // BLOCK_M), -(-D // BLOCK_V)        # blocks of queries, blocks of features
    want = dict(q_ptr=2 * N * D * parts, k_ptr=2 * N * D * T * parts, v_ptr=2 * N * D * T)
    assert {name: moved.total("load", name).bytes for name in want} == want
    assert moved.total("load").bytes == sum(want.values())
    assert moved.total("store").bytes == moved.total("store", "o_ptr").bytes == 2 * N * D


def test_in_a_process_of_its_own(monkeypatch):
    """As on a GPU machine."""
    moved = traffic._in_a_process(*FLASH, *[(100, 64)] * 3, dtype="float16", tiles=dict(BLOCK_M=32))
    assert rows(moved) == {("q_ptr", "load"): (6400, 12800, 1792), ("k_ptr", "load"): (25600, 51200, 7168),
                           ("v_ptr", "load"): (25600, 51200, 7168), ("o_ptr", "store"): (6400, 12800, 1792)}

    def failing(*arguments, **environment):
        raise process.Failed("ValueError: q has 3 dimensions", "")
    monkeypatch.setattr(process, "call", failing)
    with pytest.raises(RuntimeError, match="flash_attention_v1 could not be counted: ValueError: q has 3 dimensions"):
        traffic._in_a_process(*FLASH, *[(1, 100, 64)] * 3, dtype="float16")


def test_refuses_when_kernels_run_on_the_gpu(monkeypatch):
    monkeypatch.setattr(device, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="kernels run on the GPU: call traffic.of"):
        with traffic.count():
            pass


# the loops of blocked attention in NumPy

lesson = lessons.flash_attention_numpy


@settings(max_examples=30, deadline=None)
@given(N=st.integers(1, 60), D=st.integers(1, 20), BLOCK_M=st.integers(1, 70), BLOCK_N=st.integers(1, 70),
       seed=st.integers(0, 99))
def test_both_loop_orders(N, D, BLOCK_M, BLOCK_N, seed):
    tensors = np.random.default_rng(seed).standard_normal((3, N, D))
    for order, formula in ((lesson.outer_over_queries, lesson.bytes_outer_over_queries(N, D, BLOCK_M)),
                           (lesson.outer_over_keys, lesson.bytes_outer_over_keys(N, D, BLOCK_N))):
        sram = lesson.SRAM(2**20)
        np.testing.assert_allclose(order(*tensors, sram, BLOCK_M, BLOCK_N), reference.attention(*tensors), atol=1e-12)
        half, sram = tensors.astype(np.float16), lesson.SRAM(2**20)
        np.testing.assert_allclose(order(*half, sram, BLOCK_M, BLOCK_N), reference.attention(*half), atol=4e-3)
        assert sram.loaded + sram.stored == formula
        assert sram.peak == lesson.sram_bytes(min(BLOCK_M, N), min(BLOCK_N, N), D)


def test_sram_refuses_a_byte_too_many():
    tensors, need = np.zeros((3, 100, 32), np.float16), lesson.sram_bytes(32, 16, 32)
    lesson.outer_over_queries(*tensors, lesson.SRAM(need), 32, 16)
    with pytest.raises(MemoryError, match=f"of {need - 1:,} in SRAM are free: choose smaller blocks"):
        lesson.outer_over_queries(*tensors, lesson.SRAM(need - 1), 32, 16)


# Nsight Compute

HEADER = ('"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",'
          '"Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"')


def printed(*rows):
    """What `ncu --csv` prints: its own messages, what the program printed, the table."""
    line = ('"{}","77","python3.12","127.0.0.1","flash_attention_v1_kernel","1","7","(128, 1, 1)","(16, 1, 1)","0",'
            '"9.0","Command line profiler metrics","{}","{}","{}"')
    return "\n".join(['==PROF== Connected to process 77 (/usr/bin/python3.12)', 'a line of the program, "quoted"',
                      '==PROF== Disconnected from process 77', HEADER, *(line.format(*row) for row in rows)]) + "\n"


def test_parse():
    table = printed((0, "dram__bytes_read.sum", "byte", "1,234,567"), (0, "dram__bytes_write.sum", "byte", "0"),
                    (10, "dram__bytes_read.sum", "byte", "9"),
                    (2, "lts__t_sectors_srcunit_tex_op_read.sum", "sector", "3,000"),
                    (2, "lts__t_bytes.sum", "byte", "n/a"), (2, "sm__cycles_active.avg", "cycle", "5"))
    assert ncu.parse(table, ncu.TRAFFIC) == [
        dict(kernel=ncu.KERNEL, dram_read_bytes=1234567, dram_write_bytes=0),
        dict(kernel=ncu.KERNEL, l2_to_sm_bytes=96000), dict(kernel=ncu.KERNEL, dram_read_bytes=9)]
    table = printed((0, "l1tex__t_sector_hit_rate.pct", "%", "12.5"))
    assert ncu.parse(table, ncu.CUDA_PROFILE) == [dict(kernel=ncu.KERNEL, l1_hit_percent=12.5)]
    with pytest.raises(ValueError, match="printed no table, but: ==ERROR== the program ended"):
        ncu.parse("==ERROR== the program ended", ncu.TRAFFIC)
    with pytest.raises(ValueError, match="lts__t_bytes.sum came in 'Kbyte'"):
        ncu.parse(printed((0, "lts__t_bytes.sum", "Kbyte", "1")), ncu.TRAFFIC)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A program in place of Nsight Compute on a GPU that counts few things, and a way to let it say something else."""
    known = [name for ours, name in ncu.TRAFFIC.items() if not ours.startswith("asked_")]
    table = [(i, name, "sector" if "sectors" in name else "byte", f"{1000 * (i + 1):,}")
             for i in range(2) for name in known]
    program = tmp_path / "ncu"
    def says(code):
        program.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
        program.chmod(0o755)
    listed = "\n".join(f"{name.split('.')[0]}  Counter" for name in known)
    says(f"if '--query-metrics' in sys.argv: print({listed!r})\n"
         f"else: assert 'smsp' not in str(sys.argv); print({printed(*table)!r})")
    monkeypatch.setattr(ncu, "LENGTHS", [64, 200])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("", (), dict(L2_cache_size=5)))
    return str(program), says


def test_traffic_with_a_stand_in_for_ncu(stand_in, monkeypatch):
    program, says = stand_in
    record = json.loads(json.dumps(ncu.measure_traffic(program)))
    keys = "N", "formula_bytes", "counted_bytes", "dram_read_bytes", "l2_to_sm_bytes"
    assert [tuple(row[key] for key in keys) for row in record["rows"]] == [(64, 32768, 32768, 1000, 32000),
                                                                          (200, 256000, 256000, 2000, 64000)]
    assert not [name for name in record["metrics"] if name.startswith("asked_")]         # not on this GPU
    monkeypatch.setattr(ncu, "LENGTHS", [64])
    with pytest.raises(ValueError, match="saw 2 launches of flash_attention_v1_kernel, expected 1"):
        ncu.measure_traffic(program)
    for ending, message in (("print('==ERROR== ERR_NVGPUCTRPERM'); sys.exit(1)", "only administrators read"),
                            ("print('out of luck'); sys.exit(9)", "ncu ended with status 9: out of luck")):
        says(ending)
        with pytest.raises(RuntimeError, match=message):
            ncu.counters(program, ncu.TRAFFIC, ["program"])


def test_the_profile_of_the_cuda_programs(monkeypatch):
    calls = []
    def counters(path, metrics, program, *options):
        calls.append((program, options))
        return [dict(kernel="vec_add", dram_percent=70.0)]
    monkeypatch.setattr(ncu, "counters", counters)
    monkeypatch.setattr(ncu.cuda, "build", lambda program, arch: f"{program}.{arch}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    rows = ncu.measure_cuda_profile("ncu")["rows"]
    assert rows[0] == dict(program="vec_add.cu", arguments=[2**28], kernel="vec_add", dram_percent=70.0)
    assert calls[1] == (["matrix_add_mul.cu.sm_90", 4096, 4096, 4096], ("--launch-count", "4"))


def test_both_records_are_written(stand_in, monkeypatch):
    program, says = stand_in
    says("print('NVIDIA (R) Nsight Compute Command Line Profiler\\nVersion 2025.3.1.0 (build 1)')")
    saved = {}
    for name, value in dict(measure_traffic=lambda ncu: dict(rows=[1]), measure_cuda_profile=lambda ncu: dict(rows=[2]),
                            save=saved.__setitem__).items():
        monkeypatch.setattr(ncu, name, value)
    monkeypatch.setattr(clock, "provenance", lambda command: dict(command=command))
    monkeypatch.setattr(device, "INTERPRETED", False)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: program)
    ncu.main()
    where = dict(command="python -m helpers.bench.ncu", ncu="2025.3.1.0")
    assert saved == dict(traffic=where | dict(rows=[1]), cuda_profile=where | dict(rows=[2]))


@pytest.mark.skipif(torch.cuda.is_available() and shutil.which("ncu") is not None, reason="it would measure")
def test_ncu_refuses_in_a_sentence():
    with pytest.raises(SystemExit, match="nothing to measure"):
        ncu.main()
