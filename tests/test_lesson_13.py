"""benchmark_attention of lesson 13: what it prints without a GPU, and with one whose clock is made up."""
import contextlib
import re

import pytest
import torch

import books
from helpers import bench, bench_attention, device, lessons

CONFIG = dict(seq_len=160, d_model=128, num_heads=2, head_dim=64)
NAMES = ["standard", "v1", "v2", "v3", "v3 fp8", "SDPA flash", "SDPA cudnn", "SDPA efficient"]

pytestmark = pytest.mark.skipif(not device.INTERPRETED, reason="on a GPU the notebook runs it for real")


@pytest.fixture
def lesson():
    return lessons.claims


def printed(lesson, capsys, **change):
    lesson.benchmark_attention(CONFIG | change)
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if not line.startswith("[gpu]")], [line for line in lines if line.startswith("[gpu]")]


def test_sizes_and_checks(lesson, capsys):
    facts, times = printed(lesson, capsys)
    assert facts[0] == f"q, k, v and o: 2 x 160 x 64 each, {4 * 2 * 160 * 64 * 2 / 1e6:.1f} MB together in float16"
    assert facts[1] == f"scores: 2 x 160 x 160, {2 * 160 * 160 * 2 / 1e6:.1f} MB"
    assert facts[2] == f"operations: {4 * 2 * 160 * 160 * 64 / 1e9:.1f} GFLOP"
    assert facts[3:] == [f"{name:8} right within 2e-3 on 128 tokens: True" for name in NAMES[:4]]
    assert times == [f"[gpu] {name:14} no GPU here, and so no time" for name in NAMES]


def test_a_wrong_kernel_is_not_called_right(lesson, capsys, monkeypatch):
    monkeypatch.setattr(lesson, "v2", lambda: lambda q, k, v: 1.01 * bench_attention.reference.torch_attention(q, k, v))
    facts, _ = printed(lesson, capsys)
    assert [line.endswith("True") for line in facts[3:]] == [True, True, False, True]


def test_numbers_that_do_not_add_up(lesson):
    with pytest.raises(ValueError, match="4 heads of 64 features are 256, and d_model is 512"):
        lesson.benchmark_attention(dict(seq_len=128, d_model=512, num_heads=4, head_dim=64))


@pytest.fixture
def gpu(lesson, monkeypatch):
    """As on a GPU, on which a call of any kernel takes 2 ms; PyTorch's backends are PyTorch's own choice."""
    monkeypatch.setattr(device, "INTERPRETED", False)
    monkeypatch.setattr(bench_attention, "sdpa_kernel", lambda backend: contextlib.nullcontext())
    def timing(fn):
        fn()
        return dict(median_ms=2.0, q1_ms=1.5, q3_ms=2.5, peak_bytes=10**6)
    monkeypatch.setattr(lesson.measure, "timing", timing)


def test_times_on_a_gpu(lesson, capsys, gpu):
    facts, times = printed(lesson, capsys, seq_len=256)
    rate = 4 * 2 * 256**2 * 64 / 2 / 1e9
    assert [line.split("  ")[0] for line in times] == [f"[gpu] {name}" for name in NAMES]
    assert all(line.endswith(f"2.000 ms (1.500 to 2.500) {rate:6.0f} TFLOP/s {1.0:10.1f} MB") for line in times)
    assert facts[3:] == [f"{name:8} right within 2e-3 on 128 tokens: True" for name in NAMES[:4]]


def test_memory_that_runs_out_and_wrong_results_on_a_gpu(lesson, capsys, gpu, monkeypatch):
    def no_memory(q, k, v, **options):
        if q.shape[2] > 128:
            raise torch.OutOfMemoryError("tried to allocate")
        return bench_attention.reference.torch_attention(q, k, v)
    monkeypatch.setattr(lesson, "v1", lambda: no_memory)
    _, times = printed(lesson, capsys)
    assert re.fullmatch(r"\[gpu\] v1 +out of memory", times[1]) and "2.000 ms" in times[2]
    monkeypatch.setattr(lesson, "v1", lambda: lambda q, k, v: torch.zeros_like(q))
    with pytest.raises(AssertionError, match="v1 is off by 1.0e\\+00: not timed"):
        printed(lesson, capsys)


# ---------------------------------------------------------------- what the lesson says of the records

ROWS = {name: bench.recorded(name)["rows"] for name in ("lengths_and_batches", "table_8192", "types", "flash_attention_v3",
                                                        "backward", "first_call")}
PROSE = " ".join(books.prose("claims").split())


def found(record, value, *keys):
    """{the row's values at keys: its value} of a record, without what failed."""
    return {tuple(r.get(key) for key in keys): r[value] for r in ROWS[record] if value in r}


MS = found("lengths_and_batches", "median_ms", "name", "batch", "N")
TIMES, PEAK = (found("table_8192", value, "name", "heads") for value in ("median_ms", "peak_bytes"))
KINDS = {value: found("types", value, "name", "dtype", "N") for value in ("tflops", "largest_difference", "relative_error")}
FIRST = found("first_call", "first_ms", "name", "cache") | {(name, "steady"): ms for (name, _), ms in
                                                           found("first_call", "median_ms", "name", "cache").items()}
CEILINGS = bench.recorded("flash_attention_v3")["ceilings"]
E_SAYS = {"standard": 142.3, "v1, 1-D grid": 98.7, "v1": 85.2, "v2": 73.9, "v3": 61.4}


def ahead(name, lengths):
    return [MS["standard", B, N] / ms for (who, B, N), ms in MS.items() if who == name and N in lengths and ("standard", B, N) in MS]


def grown(name, N):
    """How the time grows from N to 2 * N, for each batch."""
    return [MS[name, B, 2 * N] / MS[name, B, N] for B in (1, 2, 4, 8)]


def beside(record, ours, peer, longest=False):
    """Our TFLOP/s over a peer's, at all sizes or at N = 16384."""
    rates = found(record, "tflops", "name", "N", "D", "is_causal")
    return [rate / rates[peer, *size] for (name, *size), rate in rates.items()
            if name == ours and (peer, *size) in rates and (size[0] == 16384 or not longest)]


def of_roof(name):
    """Shares of the matrix product without a mask at D = 128, in percent."""
    return [100 * r["tflops"] / CEILINGS["matmul_tflops"] for r in ROWS["flash_attention_v3"]
            if (r["name"], r["D"], r["is_causal"]) == (name, 128, False)]


LONG = [1024 * 2**i for i in range(6)]
SAYS = [f"{1e3 * min(MS['v3', B, N] for B in (1, 2, 4, 8) for N in (128, 256, 512)):.0f} to "
        f"{1e3 * max(MS['v3', B, N] for B in (1, 2, 4, 8) for N in (128, 256, 512)):.0f} us, scattered",
        f"it is {books.span(ahead('v3', LONG))} times as fast as standard attention",
        f"From 2048 tokens on v3 is at {books.span(ahead('v3', [2048, 4096, 8192]))}",
        f"v3's time grows {books.span(grown('v3', 8192))} times, that of standard attention, whose rate rises, {books.span(grown('standard', 8192))} times",
        f"true of v2 ({books.span(ahead('v2', [512]))})",
        f"v3 {books.span(ahead('v3', [128, 256, 512]))}, v2 up to {max(ahead('v2', [128, 256, 512])):.1f}",
        f"from 1024 to 4096 | {books.span(ahead('v3', [1024, 2048, 4096]))} |", f"above 4096 | {books.span(ahead('v3', [8192, 16384, 32768]))} |",
        f"Our times are {min(E_SAYS[n] / ms for (n, _), ms in TIMES.items() if n in E_SAYS):.0f} to "
        f"{round(max(E_SAYS[n] / ms for (n, _), ms in TIMES.items() if n in E_SAYS), -1):.0f} times shorter",
        f"({TIMES['v1', 1]:.2f} against {TIMES['v1, 1-D grid', 1]:.2f} ms)", f"with {PEAK['standard', 8] / 1e9:.1f} GB for 8 heads",
        f"by {TIMES['v3', 2] / TIMES['v2', 2] - 1:.0%} and {TIMES['v3', 8] / TIMES['v2', 8] - 1:.0%}",
        f"v3 has {TIMES['SDPA cudnn', 1] / TIMES['v3', 1]:.0%} and {TIMES['SDPA cudnn', 2] / TIMES['v3', 2]:.0%} of its speed",
        f"{TIMES['standard', 8]:.1f} to {TIMES['v3', 8]:.2f} ms, {PEAK['standard', 8] / 1e9:.1f} GB to {PEAK['v3', 8] / 1e6:.1f} MB (8 heads)",
        f"FP8 needs {PEAK['v3 fp8', 2] / 1e6:.0f} MB",
        "**float32.** " + " and ".join(f"{KINDS['largest_difference']['v3', 'float32', N]:.1e}".replace("e-0", "e-") for N in (512, 8192)),
        "v3 does {:.0f} TFLOP/s at 8192 tokens, standard attention {:.0f}, PyTorch's efficient kernel {:.0f}".format(
            *(KINDS["tflops"][name, "float32", 8192] for name in ("v3", "standard", "SDPA efficient"))),
        f"{KINDS['largest_difference']['v3', 'float16', 512]:.1e} at A's size".replace("e-0", "e-"),
        f"{KINDS['tflops']['v3 fp8', 'float8_e4m3fn', 8192] / KINDS['tflops']['v3', 'float16', 8192]:.1f} times v3's speed, and an error "
        f"of {KINDS['relative_error']['v3 fp8', 'float8_e4m3fn', 8192]:.0%}",
        "the kernel alone does {:.0f} TFLOP/s there, with quantization it is {:.0f}".format(
            *(found("flash_attention_v3", "tflops", "name", "N", "D", "is_causal")[name, 512, 128, False] for name in ("v3 fp8 kernel", "v3 fp8"))),
        f"v3 reaches {books.span(of_roof('v3'), 0)}% of a matrix product, cuDNN {books.span(of_roof('SDPA cudnn'), 0)}%",
        f"v3 is {books.span(beside('flash_attention_v3', 'v3', 'SDPA flash', True), 2)} times as fast as PyTorch's FlashAttention-2, and has "
        f"{books.span(beside('flash_attention_v3', 'v3', 'SDPA cudnn', True), 2)} of cuDNN's speed",
        f"ours is {books.span(beside('backward', 'ours', 'SDPA flash', True), 2)} times as fast as FlashAttention-2, and far behind cuDNN: "
        f"{books.span(beside('backward', 'ours', 'SDPA cudnn', True), 2)}",
        f"{books.span(beside('flash_attention_v3', 'v3', 'SDPA flash'), 2)} and {books.span(beside('flash_attention_v3', 'v3', 'SDPA cudnn'), 2)} forward, "
        f"{books.span(beside('backward', 'ours', 'SDPA flash'), 2)} and {books.span(beside('backward', 'ours', 'SDPA cudnn'), 2)} backward",
        "fastest in {} of these {} cases".format(*(lambda all: (sum(r < 1 for r in all), len(all)))(
            beside("flash_attention_v3", "v3", "SDPA cudnn") + beside("backward", "ours", "SDPA cudnn"))),
        f"takes {FIRST['v2', 'empty'] / 1e3:.2f} s the first time",
        f"{FIRST['v2', 'steady']:.3f} ms later: {FIRST['standard', 'steady'] / FIRST['v2', 'steady']:.1f} times *faster*"]


@pytest.mark.parametrize("words", SAYS)
def test_prose_and_records_agree(words):
    assert words in PROSE
