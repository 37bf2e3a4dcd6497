"""What the lessons' kernels compile to, without a GPU: no spills, memory that fits, the instructions that matter."""
import inspect
import re
from dataclasses import dataclass, field

import pytest
import torch
import triton

import rings
from helpers import compiled, lessons
from helpers.lessons import (backward_hopper, backward_triton, causal_and_multihead, decoding, flash_attention_triton, fp8,
                             masks_and_scores, matmul_triton, prefetch, warp_specialization)

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SMALL, LARGE = 99 * 1024, 227 * 1024                     # bytes of shared memory a program gets: sm_86; sm_90, sm_100
MATRIX = {90: "wgmma.mma_async", 100: "tcgen05.mma"}     # what multiplies matrices, elsewhere mma.sync
LOAD, ADD = "cp.async.bulk.tensor.4d.shared", "cp.reduce.async.bulk.tensor"           # of the copy engine
ROOM, COPY = "setmaxnreg", "cp.async.cg"                 # registers for those who need them; a copy by threads


@dataclass
class Case:
    """A kernel with what a launch would pass: the parameters that `arguments` leaves out get a usual value."""
    lesson: str
    kernel: str
    capability: int
    dtype: str
    D: int
    arguments: dict = field(default_factory=dict)        # num_warps and num_stages among them
    uses: tuple = ()                                     # instructions, besides those that multiply matrices
    products: bool = True
    stack: int = 0                                       # bytes of spilled registers that are known and borne
    shared: int = LARGE

    @property
    def id(self):
        changed = [f"{name}={value}" for name, value in self.arguments.items()
                   if name in ("BLOCK", "BLOCK_M", "BLOCK_N", "IS_CAUSAL", "DROPOUT", "EVEN", "group", "FP8", "PAGE", "splits")]
        return "-".join([self.kernel, f"sm_{self.capability}", self.dtype, f"D={self.D}", *changed])

    @property
    def request(self):
        fn = getattr(getattr(lessons, self.lesson), self.kernel)
        names = inspect.signature(fn.fn).parameters
        given = {name: self.usual(name) for name in names} | self.arguments
        given = {name: value for name, value in given.items() if name in names or name.startswith("num_")}
        launch = {name: given.pop(name) for name in ("num_warps", "num_stages") if name in given}
        return dict(lesson=self.lesson, kernel=self.kernel, arguments=given, capability=self.capability, **launch)

    def usual(self, name):
        N = self.arguments.get("N_q", 4096)
        if name.endswith("_ptr"):
            return "*fp32" if name in ("lse_ptr", "delta_ptr", "dlse_ptr") else f"*{self.dtype}"
        if name.endswith("_strides"):
            return [16 * N * self.D, N * self.D, self.D, 1]
        if name.startswith("stride_"):
            return self.D if name[-1] in "nr" else 1
        return dict(heads=16, group=1, N=N, N_q=N, N_k=N, M=N, K=N, scale=0.1, dropout_p=0.0, seed=16, D=self.D,
                    DOT=self.dtype, IS_CAUSAL=True, DROPOUT=False, EVEN=False, FP8=False).get(name)


# ---------------------------------------------------------------- the cases, by lesson

# read from the source, because the interpreter is offered one of them only
MATMUL_CHOICES = [tuple(map(int, choice)) for choice in
                  re.findall(r"tile\((\d+), (\d+), (\d+), (\d), (\d)\)", lessons.source("matmul_triton"))]


def softmax_and_matmul():
    for kernel, N, BLOCK, capability in (
            ("softmax_kernel", 16384, 16384, 80), ("softmax_kernel", 4096, 4096, 90),
            ("long_softmax_kernel", 65536, 16384, 90)):
        yield Case("softmax_triton", kernel, capability, "fp32", N,
                   dict(N=N, BLOCK=BLOCK, num_warps=min(BLOCK // 512, 16)), products=False)
    usual, strides = MATMUL_CHOICES[0], dict(stride_am=4096, stride_bk=4096, stride_cm=4096, stride_bn=1, stride_cn=1)
    for dtype, capability, choice in [("fp16", 80, usual), ("fp16", 100, usual), ("bf16", 90, usual),
                                      *(("fp16", 90, choice) for choice in MATMUL_CHOICES)]:
        names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
        sizes = strides | dict(zip(names, choice), GROUP=8)
        yield Case("matmul_triton", "matmul_kernel", capability, dtype, 4096, sizes, uses=(COPY,),
                   shared=SMALL if choice == usual else LARGE)
    for capability in (80, 90):
        yield Case("matmul_triton", "matmul_kernel", capability, "fp32", 4096, strides | matmul_triton.FLOAT32_TILES)


def one_head():
    for capability, dtype, D in ((80, "fp16", 256), (80, "fp32", 256), (90, "fp16", 128), (90, "bf16", 64),
                                 (90, "fp32", 64), (100, "fp16", 128)):
        sizes = flash_attention_triton.tile_sizes(D, TYPES[dtype]) | dict(num_warps=4, num_stages=2)
        yield Case("flash_attention_triton", "flash_attention_v1_kernel", capability, dtype, D, sizes, shared=SMALL,
                   stack=32 if capability == 100 else 0)


def many_heads():
    for capability, dtype, D, group in (
            (80, "fp16", 64, 1), (86, "fp16", 128, 1), (89, "fp16", 256, 1), (80, "fp32", 256, 1), (90, "fp16", 64, 1),
            (90, "fp16", 128, 4), (90, "fp16", 256, 1), (90, "bf16", 80, 1), (90, "fp32", 64, 1), (100, "fp16", 128, 4),
            (120, "fp16", 128, 1),
            *((capability, "fp16", 256, "dropout") for capability in (86, 90, 100))):
        changes = dict(group=4, DROPOUT=True) if group == "dropout" else dict(group=group)
        sizes = causal_and_multihead.tile_sizes(D, TYPES[dtype]) | changes
        yield Case("causal_and_multihead", "flash_attention_v2_kernel", capability, dtype, D, sizes, shared=SMALL)


# bytes of spilled registers, by capability, D and what is asked: tiles that spill none were slower on an H200
DKDV_SPILLS = {(90, 128, "group"): 104, (90, 128, "both"): 176, (90, 256, ""): 8, (90, 256, "both"): 184,
               (100, 64, "both"): 56, (86, 128, "group"): 16, (89, 128, "group"): 16, (80, 256, ""): 8}
DQ_SPILLS = {(90, 128, "both"): 16, (120, 64, "both"): 16}
# what the other kernel, or another size, shows as well, and which takes long to compile
SHOWN = {("dq", 86, 128), ("dq", 86, 256), ("dkdv", 86, 256), ("dq", 89, 256), ("dq", 100, 64), ("dq", 100, 128),
         ("dq", 120, 256), ("dkdv", 120, 64), ("dq", "fp32", 256), ("dkdv", "fp32", 64)}


def backward():
    both, group = dict(group=4, DROPOUT=True), dict(group=4)
    for capability, dtype, D, changes in (
            *((capability, "fp16", D, both) for capability in (80, 90, 100) for D in (64, 128, 256)),
            *((capability, "fp16", 256, both) for capability in (86, 89, 120)), (86, "fp16", 128, group),
            *((90, "fp16", D, {}) for D in (64, 128, 256)), (80, "fp16", 256, {}), (90, "fp16", 128, group),
            (90, "bf16", 80, {}), (90, "fp32", 64, {}), (90, "fp32", 256, {}), (120, "fp16", 64, both)):
        tiles = backward_triton.backward_tiles(D, TYPES[dtype], capability // 10 * 10, plain=not changes)
        what = {0: "", 1: "group", 2: "both"}[len(changes)]
        for name, sizes, spills in zip(("dkdv", "dq"), tiles, (DKDV_SPILLS, DQ_SPILLS)):
            if (name, capability, D) in SHOWN or (name, dtype, D) in SHOWN:
                continue
            yield Case("backward_triton", f"flash_attention_{name}_kernel", capability, dtype, D, sizes | changes,
                       stack=spills.get((capability, D, what), 0),
                       shared=LARGE if capability in (90, 100) else SMALL)
    tiles, _ = backward_triton.backward_tiles(64, torch.float16, 90)
    apart = {f"{name}_strides": [16 * 4096 * 64, 4096 * 64, 1, 4096] for name in ("q", "k", "v", "do")}
    yield Case("backward_triton", "flash_attention_dkdv_kernel", 90, "fp16", 64, tiles | apart)
    for name, arguments in (("flash_attention_delta_kernel", dict(BLOCK_M=32, BLOCK_D=256)),
                            ("dropout_mask_kernel", dict(BLOCK=64, keep_ptr="*i1"))):
        yield Case("backward_triton", name, 90, "fp16", 256, arguments, products=False)


def descriptors(element, rows, BLOCK_N, BLOCK_D, turned=False):
    shapes = dict(q=(rows, BLOCK_D), k=(BLOCK_N, BLOCK_D), v=(BLOCK_D, BLOCK_N) if turned else (BLOCK_N, BLOCK_D))
    return {f"{x}_desc": f"tensordesc<{element}{[1, 1, *shape]}>" for x, shape in shapes.items()}


def by_descriptors():
    for capability, dtype, D, group, N, is_causal in (   # every row of the table of tiles, with and without masks
            (90, "fp16", 64, 1, 4096, True), (90, "fp16", 64, 1, 4096, False), (90, "fp16", 128, 1, 4096, True),
            (90, "fp16", 128, 1, 16384, True), (90, "fp16", 128, 1, 4096, False), (90, "fp16", 128, 1, 4000, False),
            (90, "fp16", 128, 1, 10_000, False), (90, "fp16", 256, 1, 4096, True), (90, "fp16", 256, 1, 4096, False),
            (90, "bf16", 128, 4, 16384, True), (100, "fp16", 64, 1, 4096, True),
            (100, "fp16", 128, 1, 16384, True), (100, "fp16", 256, 1, 4096, True)):
        sizes, BLOCK_D = prefetch.tiles_v3(D, N, is_causal), prefetch.width(D)
        made = descriptors(dtype, sizes["BLOCK_M"], sizes["BLOCK_N"], BLOCK_D) | sizes
        made |= dict(BLOCK_D=BLOCK_D, N_q=N, IS_CAUSAL=is_causal, EVEN=not is_causal and N % 128 == 0, group=group)
        yield Case("prefetch", "flash_attention_v3_kernel", capability, dtype, D, made, (LOAD,))
    sizes = dict(BLOCK_M=64, BLOCK_N=64, BLOCK_D=64, num_warps=4, num_stages=2)
    yield Case("prefetch", "flash_attention_v3_kernel", 80, "fp16", 64, descriptors("fp16", 64, 64, 64) | sizes,
               stack=240, shared=163 * 1024)


SCALES = {f"{x}_scales": "*fp32" for x in "qkv"}


def eight_bits():
    for capability, D, is_causal, group in ((90, 64, True, 1), (90, 128, False, 1), (90, 128, True, 4), (90, 256, True, 1),
                                            (100, 64, True, 1), (100, 128, True, 1), (100, 256, True, 1)):
        sizes, BLOCK_D = fp8.tiles_fp8(D, capability), prefetch.width(D, 32)
        made = descriptors("fp8e4nv", sizes["BLOCK_M"], sizes["BLOCK_N"], BLOCK_D, turned=True) | SCALES | sizes
        made |= dict(o_ptr="*fp16", BLOCK_D=BLOCK_D, IS_CAUSAL=is_causal, EVEN=not is_causal, group=group)
        yield Case("fp8", "flash_attention_fp8_kernel", capability, "fp8", D, made, (LOAD,))
    pointers = dict(y_ptr="*fp8e4nv", scales_ptr="*fp32", largest_ptr="*fp32", BLOCK=64, BLOCK_D=128)
    for kernel in ("quantize_rows_kernel", "largest_features_kernel", "quantize_features_kernel"):
        yield Case("fp8", kernel, 90, "fp16", 128, pointers, products=False)


def specialized():
    for dtype, D, is_causal, group, N in (
            ("fp16", 64, True, 1, 512), ("fp16", 64, True, 1, 2048), ("fp16", 64, True, 1, 16384),
            ("fp16", 64, False, 1, 16384), ("fp16", 128, True, 1, 16384), ("fp16", 128, False, 1, 16384),
            ("fp16", 256, True, 1, 16384), ("fp16", 256, False, 1, 16384), ("bf16", 128, True, 4, 16384),
            ("fp8", 128, True, 1, 16384), ("fp8", 128, False, 1, 16384)):
        eight, sizes = dtype == "fp8", warp_specialization.tiles_ws(D, N, N, is_causal, dtype == "fp8")
        made = descriptors("fp8e4nv" if eight else dtype, 64, sizes.pop("BLOCK_N"), D, turned=eight)
        made |= SCALES if eight else dict.fromkeys(SCALES)
        kind = "fp16" if eight else dtype              # a tile of o, in shared memory, if there is room
        made |= dict(o=f"tensordesc<{kind}[1, 1, 64, {D}]>", o_strides=None) if D <= 128 else dict(o="*fp16")
        made |= sizes | dict(N_q=N, counter="*i32", items=2048, IS_CAUSAL=is_causal, FP8=eight, group=group)
        yield Case("warp_specialization", "flash_attention_ws_kernel", 90, dtype, D, made, (LOAD, ROOM),
                   stack=8 if (D, is_causal) == (64, False) else 0)
        if (dtype, D, is_causal, group) == ("fp16", 128, True, 1):             # a partial result, for a ring of GPUs
            made = {name: x for name, x in made.items() if name != "o_strides"} | dict(o="*fp32")
            yield Case("warp_specialization", "flash_attention_ws_kernel", 90, dtype, D, made)


def masked():
    changes = {"causal": dict(MASK="causal", mask_extra=[0]), "documents": dict(MASK="documents", mask_extra=["*i32"]),
               "soft cap": dict(MASK="window", mask_extra=[0, 1024], SCORE="soft_cap", score_extra=[30.0],
                                DERIVATIVE="soft_cap_derivative"),
               "packed": dict(MASK="between", mask_extra=["*i32", "*i32"], group=4)}
    for capability, dtype, D, BLOCK, change, TMA in (
            (90, "fp16", 128, 64, "documents", True), (86, "fp16", 64, 64, "packed", False)):
        forward, backward = masks_and_scores.masked_tiles(D, TYPES[dtype], BLOCK)
        for way, size in (("forward", forward), ("dq", backward), ("dkdv", backward)):
            tile = f"tensordesc<{dtype}{[1, 1, size['BLOCK_M' if way == 'dkdv' else 'BLOCK_N'], size['BLOCK_D']]}>"
            x, shared = tile if TMA else f"*{dtype}", LARGE if capability in (90, 100) else SMALL
            made = dict(score_extra=[], SCORE=None, DERIVATIVE=None) | changes[change] | size | dict(
                k=x, v=x, q=x, do=x, lists=["*i32", "*i32", "*i32", 1, 1, 64, 64], gradients=[], SPAN=BLOCK, TMA=TMA,
                stats=f"tensordesc<fp32[1, 1, {size['BLOCK_M']}]>" if TMA else "*fp32", stats_ptr="*fp32", N_pad=4096,
                EARLY=size["num_stages"] > 2)
            yield Case("masks_and_scores", f"masked_{way}_kernel", capability, dtype, D, made,
                       (LOAD,) if TMA else (), stack=MASKED_SPILLS.get((way, capability, D), 0), shared=shared)


MASKED_SPILLS = {("dkdv", 90, 128): 64}                                     # bytes, by kernel, capability and D


def cached():
    """The splits of a cache and their merge: for each kind of cache, and for few and many packed rows."""
    for capability, dtype, D, rows, page, eight, splits in (
            (90, "fp16", 128, 4, 0, False, 16), (90, "bf16", 64, 4, 16, False, 16), (90, "fp16", 128, 4, 64, True, 16),
            (90, "fp16", 256, 64, 0, False, 16), (90, "fp32", 256, 4, 0, False, 16), (80, "fp16", 128, 64, 0, False, 16),
            (86, "fp16", 128, 4, 64, False, 16), (100, "fp16", 128, 4, 64, False, 1), (120, "fp16", 128, 4, 0, False, 16)):
        held = "*fp8e4nv" if eight else f"*{dtype}"
        strides = [4096 * 8 * D, 4096 * D, D, 1]
        sizes = D, TYPES[dtype], 1 if eight else TYPES[dtype].itemsize, rows, page, capability // 10 * 10
        made, _ = decoding.decode_tiles(*sizes)
        made |= dict(k_ptr=held, v_ptr=held, scales_ptr="*fp32" if eight else None, lengths_ptr="*i32",
                     table_ptr="*i32" if page else None, o_ptr=f"*{dtype}" if splits == 1 else "*fp32",
                     q_strides=[32 * D, D, D, 1], k_strides=strides, v_strides=strides,
                     scales_strides=[8 * 8 * 4096, 8 * 4096, 4096, 1] if eight else None, lengths_strides=[1],
                     table_strides=[64, 1] if page else None, o_strides=[32 * D, D, D, 0 if splits == 1 else D, 1],
                     kv_heads=8, group=4, N_q=rows // 4, N_max=4096, pages=4096, splits=splits, PAGE=page,
                     EARLY=splits > 1 and capability >= 90)
        yield Case("decoding", "decode_kernel", capability, dtype, D, made, shared=LARGE if capability in (90, 100) else SMALL)
    made = dict(parts_ptr="*fp32", lses_ptr="*fp32", lengths_ptr="*i32", lengths_strides=[1], N_q=1, splits=16, BLOCK_S=16,
                BLOCK_D=128, EARLY=True, num_warps=2)
    yield Case("decoding", "merge_kernel", 90, "fp16", 128, made, products=False)


def fused():
    for dtype, D, is_causal, group in (("fp16", 64, True, 1), ("fp16", 128, True, 4), ("bf16", 128, False, 1),
                                       ("fp16", 256, True, 1)):
        BLOCK_M, BLOCK_N = backward_hopper.backward_tiles_v4(D)
        made = descriptors(dtype, BLOCK_M, BLOCK_N, D) | dict(do_desc=f"tensordesc<{dtype}[1, 1, {BLOCK_M}, {D}]>")
        made |= dict(stats_desc=f"tensordesc<fp32[1, 1, 1, {BLOCK_M}]>", near=8, group=group, IS_CAUSAL=is_causal,
                     EVEN=not is_causal, num_warps=8, sum_desc=f"tensordesc<fp32[1, 1, {BLOCK_M}, {min(D, 128)}]>")
        yield Case("backward_hopper", "flash_attention_backward_kernel", 90, dtype, D, made,
                   (LOAD, ADD, ROOM), stack=80 if group > 1 else 16 if D == 64 else 0)  # outside of the loop of most turns
    made = dict(BLOCK_M=64, BLOCK_N=128, BLOCK_D=128, num_warps=8, num_stages=2, stats_ptr="*fp32", sum_ptr="*fp32", N_pad=4096)
    yield Case("backward_hopper", "one_walk_kernel", 90, "fp16", 128, made, stack=80)
    made = dict(stats_ptr="*fp32", sum_ptr="*fp32", N_pad=4096, BLOCK_M=64, BLOCK_D=128)
    yield Case("backward_hopper", "prepare_kernel", 90, "fp16", 128, made, products=False)


GROUPS = {"cache": [*cached()], "masked": [*masked(), *fused()], "backward": [*backward()],
          "forward": [*softmax_and_matmul(), *one_head(), *many_heads()],
          "descriptors": [*by_descriptors(), *eight_bits(), *specialized()]}


# ---------------------------------------------------------------- the tests

@pytest.fixture(scope="session")
def made():
    """made(group, case): what its kernel compiled to. One process compiles a group when its first is asked for."""
    known = {}

    def compiled_in_its_group(group, case):
        if group not in known:
            known[group] = compiled.compile_kernels([each.request for each in GROUPS[group]])
        return known[group][GROUPS[group].index(case)]
    return compiled_in_its_group


def first(group, **facts):
    """The first case of a group with these facts."""
    return next(case for case in GROUPS[group] if facts.items() <= (vars(case) | case.arguments).items())


# bytes that Triton 3.6 spills where newer ones spill less, by kernel and D
OLDER = {("dkdv", 64): 88, ("dkdv", 80): 24, ("dkdv", 128): 208, ("dkdv", 256): 240, ("dq", 128): 48, ("v2", 64): 32,
         ("v3", 64): 696}


def borne(case):
    """Bytes of spilled registers that are known, of Triton 3.6 and 3.7. What newer ones spill is their own affair."""
    name, version = case.kernel.removeprefix("flash_attention_").removesuffix("_kernel"), triton.__version__[:4]
    if version not in ("3.6.", "3.7."):
        return float("inf")
    return max(case.stack, OLDER.get((name, case.D), 0) if version == "3.6." else 0)


# tests/conftest.py gives the cases of one group to one process
@pytest.mark.parametrize("group,case", [pytest.param(group, case, id=f"{group}-{case.id}")
                                        for group, cases in GROUPS.items() for case in cases])
def test_compiles_without_spills(made, group, case):
    found = made(group, case)
    assert found["shared"] <= case.shared
    assert found["stack"] <= borne(case)
    assert [name for name in case.uses if name not in found["ptx"]] == []
    matrix = set(re.findall(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\.\S*?\b(e4m3|f8f6f4|b?f16|tf32)\b", found["ptx"]))
    assert bool(matrix) == (case.products and case.dtype != "fp32")        # float32 products are of full precision
    if matrix and case.lesson not in ("backward_triton", "decoding"):        # with too few rows for the large units
        assert {unit for unit, _ in matrix} == {MATRIX.get(case.capability, "mma.sync")}
        assert {kind in ("e4m3", "f8f6f4") for _, kind in matrix} == {case.dtype == "fp8"}


@pytest.mark.parametrize("group", ["forward"])
def test_softmax_compiles_to_one_reading_of_its_row(made, group):
    ptx = made(group, first(group, kernel="softmax_kernel", BLOCK=4096))["ptx"]
    assert ptx.count("ld.global") == ptx.count("ld.global.v4") == 4096 // (4 * 8 * 32)


@pytest.mark.parametrize("group", ["descriptors"])
def test_a_descriptor_compiles_to_a_parameter_of_128_bytes(made, group):
    for kernel, number in (("flash_attention_v3_kernel", 3), ("flash_attention_ws_kernel", 4)):    # with None for the scales
        found = made(group, first(group, kernel=kernel))
        assert found["ptx"][found["ptx"].index(".entry"):].split(")")[0].count(".align 64 .b8") == number
        assert "UTMALDG" in found["sass"] and "UTMALDG" not in found["ptx"]            # tiles come by the copy engine


def test_tuning_has_choices():
    assert len(MATMUL_CHOICES) == len(set(MATMUL_CHOICES)) == 5


def test_a_gluon_kernel_at_hand_is_compiled_with_all_that_it_calls():
    made = compiled.compile_gluon(warp_specialization.numbers_kernel, dict(o_ptr="*i32", N=5, STAGES=2))
    assert made["ptx"].count("mbarrier.init") == 4
    wrong = rings.module(rings.RING, ("gl.store(y_ptr", "empty = 1.5\n        gl.store(y_ptr")).ring
    with pytest.raises(RuntimeError, match="(?s)ring did not compile for sm_90: .*def consume.*empty"):
        compiled.compile_gluon(wrong, dict(x_desc="tensordesc<fp32[16, 32]>", y_ptr="*fp32", N=5))
