"""The README's figure, sentence and table, from the recorded measurements."""
import re
import textwrap

from helpers import plotting, records

N = 16384                                                # the length of the table
BEGIN, END = "<!-- from here on written by figures/readme.py -->", "<!-- up to here -->"
PASSES = {"forward": ("forward", "v4"), "backward": ("backward", "v4")}      # record, and our name in it
if all(r["name"] != "v4" for r in records.load("backward")["rows"]):         # measured before v4 had a backward pass
    PASSES["backward"] = "backward", "ours"
COLUMNS = {"standard": "standard", "SDPA efficient": "efficient", "SDPA flash": "FlashAttention-2",
           "SDPA cudnn": "cuDNN"}
LINES = {"standard": plotting.HBM, "SDPA flash": plotting.KEY, "SDPA cudnn": plotting.VALUE, "ours": plotting.QUERY}


def speeds(way: str) -> dict:
    """{(name, D, is_causal): {N: TFLOP/s}} of a pass, D up to 128; our kernel is called "ours", what failed is left out."""
    record, ours = PASSES[way]
    found = {}
    for r in records.load(record)["rows"]:
        if "error" not in r and r["D"] <= 128:
            name = "ours" if r["name"] == ours else r["name"]
            found.setdefault((name, r["D"], r["is_causal"]), {})[r["N"]] = r["tflops"]
    return found


def headline():
    """Four panels: forward and backward, without a mask and causal, D = 128; TFLOP/s against length."""
    found = {way: speeds(way) for way in PASSES}
    fig = plotting.speed_panels({f"{way}, {'causal' if is_causal else 'no mask'}":
                                 {name: found[way][name, 128, is_causal] for name in LINES}
                                 for way in PASSES for is_causal in (False, True)}, LINES)
    for ax in fig.axes[::2]:
        ax.set_ylabel("TFLOP/s, float16, D = 128")
    plotting.provenance(fig, records.load(PASSES["forward"][0]))
    return fig


def table() -> str:
    """TFLOP/s at N = 16384 of every kernel, forward and backward, as a Markdown table."""
    head = [f"TFLOP/s at N = {N}", *COLUMNS.values(), "**ours**", "ours / FlashAttention-2", "ours / cuDNN"]
    lines = ["| " + " | ".join(head) + " |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    for way in PASSES:
        found = speeds(way)
        for D in (64, 128):
            for is_causal in (False, True):
                at = {name: found.get((name, D, is_causal), {}).get(N) for name in (*COLUMNS, "ours")}
                cells = [f"{at[name]:.0f}" if at[name] else "out of memory" for name in COLUMNS]
                ratios = [f"{at['ours'] / at[name]:.2f}" for name in ("SDPA flash", "SDPA cudnn")]
                label = f"{way}, D = {D}" + (", causal" if is_causal else "")
                lines.append("| " + " | ".join([label, *cells, f"**{at['ours']:.0f}**", *ratios]) + " |")
    return "\n".join(lines)


def ratios(way: str, peer: str) -> list:
    """Our speed over a peer's, at every size that was recorded for both."""
    found = speeds(way)
    return [speed / found[peer, D, is_causal][length] for (name, D, is_causal), line in found.items() if name == "ours"
            for length, speed in line.items() if length in found[peer, D, is_causal]]


def sentence() -> str:
    """How our kernels compare over all recorded sizes, lowest to highest."""
    found, words, measured = {way: records.load(record) for way, (record, _) in PASSES.items()}, [], []
    for way, r in found.items():
        flash, cudnn = (f"{min(them):.2f} to {max(them):.2f} times as fast as {what}" for them, what in (
            (ratios(way, "SDPA flash"), "PyTorch's FlashAttention-2"), (ratios(way, "SDPA cudnn"), "cuDNN")))
        words.append(f"{way} {flash} and {cudnn}")
        versions = f"torch {r['torch']} and triton {r['triton']}"
        measured.append(f"{way} on {r['date']} at commit {r['commit']} with {versions}")
    beside = [ratio for way in PASSES for ratio in ratios(way, "SDPA cudnn")]
    return textwrap.fill(
        f"On an {found['forward']['device']}, in float16, with 16384 tokens in all, a hidden size of 2048, and N from "
        f"512 to {N}, the course's kernels are {', '.join(words)}. cuDNN is ahead in {sum(r < 1 for r in beside)} of "
        f"{len(beside)} cases. \"Standard\" is attention as the formula has it, with its n x n matrix; under a causal "
        "mask it computes the masked half as well. \"Efficient\" is PyTorch's memory-efficient attention. Measured "
        f"with `make bench`: {', '.join(measured)}.", width=130, break_on_hyphens=False)


def block() -> str:
    """What stands in the README between BEGIN and END."""
    alt = ("TFLOP/s against sequence length on an H200 in four panels, forward and backward, without a mask and "
           "causal: the course's kernel beside PyTorch's FlashAttention-2, cuDNN and standard attention. The table "
           "below has the numbers at the right end.")
    return f"{BEGIN}\n\n![{alt}](figures/headline.svg)\n\n{sentence()}\n\n{table()}\n\n{END}"


def readme(text: str) -> str:
    """The README's text with the block written anew. ValueError if its two markers are not there."""
    parts = re.split(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, flags=re.DOTALL)
    if len(parts) != 2:
        raise ValueError(f"README.md has {len(parts) - 1} places between {BEGIN!r} and {END!r}, expected one")
    return block().join(parts)
