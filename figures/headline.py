"""Draws figures/headline.svg and writes the README's table, both from the recorded measurements. Run by `make figures`."""
import re
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("svg")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import matplotlib.pyplot as plt  # noqa: E402

from helpers import ROOT, bench, plotting  # noqa: E402

N = 16384                                                # the length of the table
BEGIN, END = "<!-- from here on written by figures/headline.py -->", "<!-- up to here -->"
PASSES = {"forward": ("flash_attention_v3", "v3"), "backward": ("backward", "ours")}     # record, and our name in it
COLUMNS = {"standard": "standard", "SDPA efficient": "efficient", "SDPA flash": "FlashAttention-2", "SDPA cudnn": "cuDNN"}
LINES = {"standard": plotting.HBM, "SDPA flash": plotting.KEY, "SDPA cudnn": plotting.VALUE, "ours": plotting.QUERY}


def speeds(way: str) -> dict:
    """{(name, D, is_causal): {N: TFLOP/s}} of a pass; our kernel is called "ours", what failed is left out."""
    record, ours = PASSES[way]
    found = {}
    for r in bench.recorded(record)["rows"]:
        if "error" not in r:
            name = "ours" if r["name"] == ours else r["name"]
            found.setdefault((name, r["D"], r["is_causal"]), {})[r["N"]] = r["tflops"]
    return found


def figure():
    """Four panels: forward and backward, without a mask and causal, D = 128; TFLOP/s against length."""
    found = {way: speeds(way) for way in PASSES}
    fig = plotting.speed_panels({f"{way}, {'causal' if is_causal else 'no mask'}":
                                 {name: found[way][name, 128, is_causal] for name in LINES}
                                 for way in PASSES for is_causal in (False, True)}, LINES)
    fig.axes[0].set_ylabel("TFLOP/s, float16, D = 128")
    plotting.provenance(fig, bench.recorded("flash_attention_v3"))
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
    return [speed / found[peer, *case][length] for (name, *case), line in found.items() if name == "ours"
            for length, speed in line.items() if length in found[peer, *case]]


def sentence() -> str:
    """How our kernels compare over all recorded sizes, lowest to highest."""
    records = {way: bench.recorded(record) for way, (record, _) in PASSES.items()}
    measured = ", ".join(f"{way} on {r['date']} at commit {r['commit']} with torch {r['torch']} and triton {r['triton']}"
                         for way, r in records.items())
    span = lambda way, peer: f"{min(ratios(way, peer)):.2f} to {max(ratios(way, peer)):.2f}"
    words = [f"{way} {span(way, 'SDPA flash')} times as fast as PyTorch's FlashAttention-2 and {span(way, 'SDPA cudnn')} times as fast "
             "as cuDNN" for way in PASSES]
    beside = [ratio for way in PASSES for ratio in ratios(way, "SDPA cudnn")]
    return textwrap.fill(
        f"On an {records['forward']['device']}, in float16, with 16384 tokens in all, a hidden size of 2048, and N from 512 to {N}, the "
        f"course's kernels (forward from lesson 11, backward from lesson 10) are {words[0]}, {words[1]}. cuDNN is ahead in "
        f"{sum(ratio < 1 for ratio in beside)} of {len(beside)} cases. \"Standard\" is attention as the formula has it, with its "
        "n x n matrix; under a causal mask it computes the masked half as well. \"Efficient\" is PyTorch's memory-efficient "
        f"attention. Measured with `make bench`: {measured}.",
        width=130, break_on_hyphens=False)


def block() -> str:
    """What stands in the README between BEGIN and END."""
    alt = ("TFLOP/s against sequence length on an H200 in four panels, forward and backward, without a mask and causal: the course's "
           "kernel beside PyTorch's FlashAttention-2, cuDNN and standard attention. The table below has the numbers at the right end.")
    return f"{BEGIN}\n\n![{alt}](figures/headline.svg)\n\n{sentence()}\n\n{table()}\n\n{END}"


def readme(text: str) -> str:
    """The README's text with the block written anew. ValueError if its two markers are not there."""
    parts = re.split(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, flags=re.DOTALL)
    if len(parts) != 2:
        raise ValueError(f"README.md has {len(parts) - 1} places between {BEGIN!r} and {END!r}, expected one")
    return block().join(parts)


def draw(folder: Path):
    """Write headline.svg into folder, without dates or random ids."""
    plt.rcParams.update({"svg.hashsalt": "figures", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    fig = figure()
    fig.savefig(folder / "headline.svg", metadata={"Date": None, "Creator": None})
    plt.close(fig)


if __name__ == "__main__":
    draw(ROOT / "figures")
    (ROOT / "README.md").write_text(readme((ROOT / "README.md").read_text()))
