"""Draws figures/*.svg and writes the README's measurements. Run by `make figures`; the same bytes each time, for a test."""
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import matplotlib.pyplot as plt  # noqa: E402

import readme  # noqa: E402
from draw_memory import attention_tiling, memory_hierarchy  # noqa: E402
from draw_pipeline import overlap, pipeline  # noqa: E402
from draw_softmax import online_softmax  # noqa: E402
from draw_tiles import causal_blocks, grid_to_tiles  # noqa: E402
from helpers import ROOT  # noqa: E402
from helpers.plotting import BAD, HBM, INK, KEY, OUTPUT, QUERY, VALUE  # noqa: E402

PARTS = [
    ("I  The GPU", QUERY, ["00 start here", "01 vector add, CUDA", "02 matrices, CUDA", "03 vector add, Triton",
                           "04 softmax, Triton", "05 matmul, Triton"]),
    ("II  The algorithm", KEY, ["06 attention, memory", "07 online softmax", "08 blocked, in NumPy"]),
    ("III  The kernel", VALUE, ["09 v1: one kernel", "10 v2: causal, heads", "11 gradients", "12 backward, Triton",
                                "13 prefetching", "14 v3: eight bits"]),
    ("IV  Hopper", OUTPUT, ["15 v4: warps with roles"]),
    ("V  At work", BAD, ["17 in a model"]),
    ("VI  The truth", HBM, ["21 measuring", "22 claims"]),
]


def road():
    """The map of the course: six parts in two rows, lessons from top to bottom."""
    fig, ax = plt.subplots(figsize=(7.2, 5.2))
    for place, (part, colour, lessons) in enumerate(PARTS):
        x, top = place % 3, -7.2 * (place // 3)
        ax.text(x + 0.02, top + 0.3, part, fontsize=11, fontweight="bold", color=INK, va="bottom")
        for y, lesson in enumerate(lessons):
            ax.add_patch(plt.Rectangle((x, top - y - 0.62), 0.9, 0.72, facecolor="white", edgecolor=colour, linewidth=2))
            ax.text(x + 0.45, top - y - 0.26, lesson, ha="center", va="center", fontsize=10, color=INK)
        if x:
            ax.annotate("", (x, top - 0.26), (x - 0.1, top - 0.26), arrowprops=dict(arrowstyle="->", color=INK))
    ax.set(xlim=(-0.05, 2.95), ylim=(-9, 0.9))
    ax.axis("off")
    return fig


DRAWINGS = {make.__name__: make for make in (road, memory_hierarchy, attention_tiling, online_softmax, causal_blocks,
                                             grid_to_tiles, pipeline, overlap, readme.headline)}


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
