"""What lesson 11's kernels compile to: registers, shared memory, and the instructions that they are there for."""
import re

import pytest
import triton

from helpers import compiled, lessons

LESSON = "fp8"
lesson = getattr(lessons, LESSON)
KEPT = 227 * 1024                                        # bytes of shared memory that a Hopper GPU lends a program


def tensors(dtype, D, N, is_causal, rows, BLOCK_N, BLOCK_D):
    """What launch_v3 and launch_ws hand over alike: descriptors with `rows` queries a tile, pointers, numbers."""
    fp8 = dtype == "fp8"
    element, o = ("fp8e4nv", "fp16") if fp8 else (dtype, dtype)
    shapes = dict(q=(rows, BLOCK_D), k=(BLOCK_N, BLOCK_D), v=(BLOCK_D, BLOCK_N) if fp8 else (BLOCK_N, BLOCK_D))
    return {f"{x}_desc": f"tensordesc<{element}{[1, 1, *shape]}>" for x, shape in shapes.items()} | {
        f"{x}_scales": "*fp32" if fp8 else None for x in "qkv"} | dict(
        o_ptr="*" + o, lse_ptr="*fp32", o_strides=[16 * N * D, N * D, D, 1], heads=16, group=1, N_q=N, N_k=N, scale=0.1, D=D,
        IS_CAUSAL=is_causal, FP8=fp8)


def request(dtype, D, N, is_causal, capability, tiles=None):
    """The arguments of compiled.compile_kernel for a call of launch_v3 with N queries and keys."""
    fp8, sizes = dtype == "fp8", dict(tiles or lesson.tiles_v3(D, N, is_causal, dtype == "fp8", capability))
    launch = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    BLOCK_D = lesson.width(D, fp8)
    arguments = tensors(dtype, D, N, is_causal, sizes["BLOCK_M"], sizes["BLOCK_N"], BLOCK_D)
    arguments |= dict(BLOCK_D=BLOCK_D, EVEN=not is_causal and N % 128 == 0, DOT="fp8e4nv" if fp8 else dtype, **sizes)
    return dict(lesson=LESSON, kernel="flash_attention_v3_kernel", arguments=arguments, capability=capability, **launch)


def cases():
    """(dtype, D, N, is_causal, capability): the kernels that the table of tiles leads to, each once.

    On a Blackwell GPU and for bfloat16 those with a causal mask, which need the most registers, stand for the others.
    """
    found = {}
    for capability, dtype in ((90, "fp16"), (90, "fp8"), (90, "bf16"), (100, "fp16"), (100, "fp8")):
        for D in (32, 64, 128, 256):
            for N, is_causal in ((4096, True), (16384, True), (4096, False), (4000, False), (16384, False), (10_000, False)):
                if is_causal or (capability == 90 and dtype != "bf16"):
                    tiles, even = lesson.tiles_v3(D, N, is_causal, dtype == "fp8", capability), N % 128 == 0
                    key = (capability, dtype, D, is_causal, even, *tiles.items())
                    found.setdefault(key, (dtype, D, N, is_causal, capability))
    return list(found.values())


CASES = cases()


@pytest.fixture(scope="module")
def compiled():
    return dict(zip(CASES, compiled.compile_kernels([request(*case) for case in CASES]), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_compiles_without_spills(compiled, case):
    dtype, *_, capability = case
    made = compiled[case]
    assert made["stack"] == 0 and made["shared"] <= KEPT
    matrix = {(90, False): "HGMMA", (90, True): "QGMMA", (100, False): "UTCHMMA", (100, True): "UTCQMMA"}
    assert {matrix[capability, dtype == "fp8"], "UTMALDG"} <= set(re.findall(r"\b[A-Z0-9]+\b", made["sass"]))


def test_compiles_for_an_older_gpu():
    tiles = dict(BLOCK_M=64, BLOCK_N=64, num_warps=4, num_stages=2)
    made = compiled.compile_kernel(**request("fp16", 64, 4096, True, 80, tiles))
    assert "HMMA" in made["sass"] and "UTMALDG" not in made["sass"] and made["shared"] <= 163 * 1024


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype,D", [("fp16", 64), ("fp16", 128), ("fp16", 256), ("bf16", 128), ("fp8", 128)])
def test_specialized_compiles_without_spills(dtype, D, is_causal):
    fp8, N = dtype == "fp8", 16384
    tiles = lesson.tiles_ws(D, N, N, is_causal, fp8)
    BLOCK_N = tiles.pop("BLOCK_N")
    arguments = tensors(dtype, D, N, is_causal, 64, BLOCK_N, D) | dict(counter="*i32", items=2048, **tiles)
    made = compiled.compile_kernel(LESSON, "flash_attention_ws_kernel", arguments)
    spilled = 8 if triton.__version__.startswith("3.6.") and D == 64 and not is_causal else 0     # bytes, in one consumer
    assert made["stack"] <= spilled and made["shared"] <= KEPT
    assert {"QGMMA" if fp8 else "HGMMA", "UTMALDG", "USETMAXREG"} <= set(re.findall(r"\b[A-Z0-9]+\b", made["sass"]))
