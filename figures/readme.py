"""The README's pictures, sentences and tables, from the recorded measurements."""
import re
import statistics
import textwrap

import matplotlib.pyplot as plt

from helpers import plotting, records

N, D = 16384, 128                                        # the length in the table, the head dimension in the pictures
BATCHES, KEY_HEADS, KEYS = (1, 16, 64), 8, 32768         # the cases in the table of decoding
BEGIN, END = "<!-- from here on written by figures/readme.py -->", "<!-- up to here -->"
PASSES = {"forward": ("forward", "v4"), "backward": ("backward", "v4"), "decoding": ("decoding", "ours")}
CASES = {way: ("batch", "kv_heads", "N") if way == "decoding" else ("D", "is_causal", "N") for way in PASSES}
RIVALS = {"SDPA flash": "FlashAttention-2", "SDPA cudnn": "cuDNN", "FlashAttention-4": "FlashAttention-4"}
COLUMNS = {"forward": {"standard": "standard", **RIVALS}, "backward": {"standard": "standard", **RIVALS}, "decoding": RIVALS}
COLOURS = {"standard": plotting.HBM, "FlashAttention-2": plotting.KEY, "cuDNN": plotting.VALUE,
           "FlashAttention-4": plotting.OUTPUT, "ours": plotting.QUERY}


def speeds(way: str, wide=False) -> dict:
    """{name: {case: TFLOP/s, or GB/s of decoding}} of a pass; our newest kernel is called "ours", what failed is left out.
    D is 64 or 128, or 256 if it is to be wide.

    A case is (D, is_causal, N), of decoding (batch, key heads, keys).
    """
    (record, ours), found = PASSES[way], {}
    for r in records.load(record)["rows"]:
        if "error" not in r and (r["D"] > 128) == wide and (r["name"] != "ours" or ours == "ours"):     # or it is an older one
            name = "ours" if r["name"] == ours else r["name"]
            case = tuple(r[key] for key in CASES[way])
            found.setdefault(name, {})[case] = r["tflops" if "tflops" in r else "gb_per_s"]
    return found


def headline():
    """Three panels: forward and backward, causal, and decoding, each against length."""
    fig, axes = plt.subplots(1, 3, figsize=(9.6, 3), width_ratios=(1, 1, 1.05))
    copy = records.load("decoding")["ceilings"]["copy_gb_per_s"]
    named = {}
    for ax, way in zip(axes, PASSES):
        part, unit = ((BATCHES[1], KEY_HEADS), copy / 100) if way == "decoding" else ((D, True), 1)
        points = {}
        for name, label in {**COLUMNS[way], "ours": "ours"}.items():
            line = {case[2]: speed / unit for case, speed in speeds(way)[name].items() if case[:2] == part}
            points[label] = list(line), list(line.values())
        lengths = points["ours"][0]
        ticks = [n for n in (512, 2048, 8192, 32768, 131072) if n in lengths]
        ax.set(xscale="log", title=f"{way}, {'causal' if unit == 1 else f'batch {BATCHES[1]}'}", xlabel="N")
        ax.set_xticks(ticks, [f"{n // 1024}k" if n > 1000 else n for n in ticks])
        ax.minorticks_off()
        named[ax] = plotting.lines(ax, points, COLOURS, labels=False)
    axes[1].sharey(axes[0])
    axes[0].set_ylabel(f"TFLOP/s, D = {D}")
    axes[2].set(xlabel="keys", ylabel="GB/s, % of a copy's")
    for ax in axes[1:]:
        plotting.label_ends(ax, named[ax], COLOURS)
    axes[0].set_ylim(axes[1].get_ylim())
    plotting.provenance(fig, records.load("forward"))
    return fig


def ratios(way: str, peer: str, wide=False) -> list:
    """Our speed over a peer's, in every case that was recorded for both."""
    found = speeds(way, wide)
    return [speed / found[peer][case] for case, speed in found["ours"].items() if case in found[peer]]


def sentences() -> str:
    """What the course's kernels reach, and what not: the median of all cases, least and most."""
    def beside(way):
        found = {name: ratios(way, peer) for peer, name in RIVALS.items()}
        *first, last = (f"{statistics.median(them):.2f} times as fast as {name} ({min(them):.2f} to {max(them):.2f})"
                        for name, them in found.items())
        return f"{', '.join(first)} and {last}"

    def ahead(peer):
        found = {way: ratios(way, peer) for way in PASSES}
        *first, last = (f"{sum(r < 1 for r in them)} of {len(them)} {way}" for way, them in found.items())
        return f"{RIVALS[peer]} is ahead in {', '.join(first)} and {last}"
    least = min(ratios("forward", "FlashAttention-4", wide=True))
    share = max(speeds("decoding")["ours"].values()) / records.load("decoding")["ceilings"]["copy_gb_per_s"]
    return textwrap.fill(
        f"On an {records.load('forward')['device']}, in float16, with heads of 64 and 128, the course's forward pass is "
        f"{beside('forward')}: the median of all cases, their least and most. Its backward pass is {beside('backward')}. "
        f"Decoding, one query for each sequence, it reads keys and values with up to {share:.0%} of a copy's GB/s, and is "
        f"{beside('decoding')}. What it does not reach: {ahead('FlashAttention-4')}, {ahead('SDPA cudnn')} cases; with "
        f"heads of 256 its forward pass has down to {least:.2f} of FlashAttention-4's speed; and no other card was measured.",
        width=130, break_on_hyphens=False)


def fine_print() -> str:
    """What the words in the tables mean, and where and when it was measured."""
    ways = {}                                            # {where and when: what was measured there and then}
    for way, (name, _) in PASSES.items():
        r = records.load(name)
        place = f"on {r['date']} at commit {r['commit'][:12]} with torch {r['torch']} and triton {r['triton']}"
        ways.setdefault(place, []).append(way)
    measured = [f"{', '.join(found)} {place}" for place, found in ways.items()]
    return textwrap.fill(
        f"Forward and backward have 16384 tokens in all, a hidden size of 2048, and N from 512 to {N}; decoding has 32 "
        "heads of 128, and GB/s of its keys and values. \"Standard\" is attention as the formula has it, with its n x n "
        "matrix; under a causal mask it computes the masked half as well. FA-2 and FA-4 are FlashAttention-2 "
        "and 4; FA-2 and cuDNN are PyTorch's, FA-4 is the package flash-attn; the last columns are ours over theirs. "
        f"Measured with `make bench`: {'; '.join(measured)}.", width=130, break_on_hyphens=False)


def table(way: str, title: str, cases: dict) -> str:
    """The speeds of a pass as a Markdown table, a row for each {label: case}."""
    columns = COLUMNS[way]
    head = [title, *columns.values(), "**ours**", *(f"/ {name}" for name in RIVALS.values())]
    head = [name.replace("FlashAttention", "FA") for name in head]
    lines = ["| " + " | ".join(head) + " |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    found = speeds(way)
    for label, case in cases.items():
        at = {name: found.get(name, {}).get(case) for name in (*columns, "ours")}
        cells = [f"{at[name]:.0f}" if at[name] else "out of memory" for name in columns]
        compared = [f"{at['ours'] / at[name]:.2f}" for name in RIVALS]
        lines.append("| " + " | ".join([label, *cells, f"**{at['ours']:.0f}**", *compared]) + " |")
    return "\n".join(lines)


def tables() -> str:
    """TFLOP/s at N = 16384, forward, backward, and GB/s of decoding."""
    found = []
    for way in ("forward", "backward"):
        cases = {f"{way}, D = {d}{', causal' * is_causal}": (d, is_causal, N)
                 for d in (64, 128) for is_causal in (False, True)}
        found.append(table(way, f"TFLOP/s at N = {N}", cases))
    cases = {f"decoding, {B} sequence{'s' * (B > 1)}": (B, KEY_HEADS, KEYS) for B in BATCHES}
    rest = found[1].split("\n", 2)[2]                        # its head is that of the first
    return f"{found[0]}\n{rest}\n\n" + table("decoding", f"GB/s, {KEY_HEADS} key heads, {KEYS} keys", cases)


def block() -> str:
    """What stands in the README between BEGIN and END."""
    alt = ("Three panels, measured on an H200. TFLOP/s against sequence length, forward and backward, causal: the "
           "course's kernel beside FlashAttention-2, cuDNN, FlashAttention-4 and standard attention. Share of a copy's "
           "bandwidth against the number of keys, decoding. The tables below have the numbers.")
    return f"{BEGIN}\n\n![{alt}](figures/headline.svg)\n\n{sentences()}\n\n{tables()}\n\n{fine_print()}\n\n{END}"


def readme(text: str) -> str:
    """The README's text with the block written anew. ValueError if its two markers are not there."""
    parts = re.split(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, flags=re.DOTALL)
    if len(parts) != 2:
        raise ValueError(f"README.md has {len(parts) - 1} places between {BEGIN!r} and {END!r}, expected one")
    return block().join(parts)
