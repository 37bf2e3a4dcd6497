"""Draws figures/*.svg and writes the README's measurements: `make figures`. The same bytes each time, for a test."""
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import matplotlib.pyplot as plt

import readme
from draw_decoding import block_table, split_keys
from draw_memory import attention_tiling, memory_hierarchy
from draw_overlap import overlap
from draw_pipeline import pipeline
from draw_softmax import online_softmax
from draw_tiles import causal_blocks, grid_to_tiles
from helpers import ROOT
from helpers.plotting import HBM, INK, KEY, OUTPUT, QUERY, SRAM, VALUE

PARTS = [                                                # a row each: what it is called, its colour, its lessons
    ("The GPU", QUERY, ["00\nstart here", "01\nvector add\nCUDA", "02\nmatrices\nCUDA", "03\nvector add\nTriton",
                        "04\nsoftmax\nTriton", "05\nmatmul\nTriton"]),
    ("The algorithm", KEY, ["06\nattention,\nmemory", "07\nonline\nsoftmax", "08\nblocks\nin NumPy"]),
    ("The kernel", VALUE, ["09\nv1: one\nkernel", "10\nv2: causal,\nheads", "11\ngradients", "12\nbackward\nTriton",
                           "13\nprefetch", "14\nv3: FP8"]),
    ("Hopper", SRAM, ["15\nv4: special\nwarps", "16\nbackward\non Hopper"]),
    ("At work", OUTPUT, ["17\nin a\nmodel", "18\nmasks,\nscores", "19\ndecoding", "20\nmany\nGPUs"]),
    ("The truth", HBM, ["21\nmeasuring", "22\nclaims"]),
]


def road():
    """The map of the course: six parts, a row each, their lessons from left to right."""
    fig, ax = plt.subplots(figsize=(7.2, 4.7))
    for y, (part, colour, lessons) in enumerate(PARTS):
        number = ("I", "II", "III", "IV", "V", "VI")[y]
        ax.text(-0.15, -y, f"{number}\n{part}", fontsize=10.5, fontweight="bold", color=INK, ha="right", va="center")
        for x, lesson in enumerate(lessons):
            ax.add_patch(plt.Rectangle((x, -y - 0.4), 0.86, 0.8, facecolor="white", edgecolor=colour, linewidth=2.5))
            ax.text(x + 0.43, -y, lesson, ha="center", va="center", fontsize=9, color=INK)
            if x:
                ax.annotate("", (x, -y), (x - 0.14, -y), arrowprops=dict(arrowstyle="->", color=INK))
    ax.set(xlim=(-1.35, 5.9), ylim=(0.45 - len(PARTS), 0.45))
    ax.axis("off")
    return fig


DRAWINGS = {make.__name__: make for make in (road, memory_hierarchy, attention_tiling, online_softmax, causal_blocks,
                                             grid_to_tiles, pipeline, overlap, split_keys, block_table,
                                             readme.headline)}


def draw(folder: Path):
    """Write every drawing into folder as SVG, without dates or random ids."""
    plt.rcParams.update({"svg.hashsalt": "figures", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    for name, make in DRAWINGS.items():
        fig = make()
        fig.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        plt.close(fig)


if __name__ == "__main__":
    draw(ROOT / "figures")
    (ROOT / "README.md").write_text(readme.readme((ROOT / "README.md").read_text()))
