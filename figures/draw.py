"""Draws figures/*.svg. Run by `make figures`; the same bytes each time, so that a test can compare."""
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import matplotlib.pyplot as plt  # noqa: E402

from draw_memory import attention_tiling, memory_hierarchy  # noqa: E402
from draw_pipeline import overlap, pipeline  # noqa: E402
from draw_softmax import online_softmax  # noqa: E402
from draw_tiles import causal_blocks, grid_to_tiles  # noqa: E402
from helpers.plotting import INK, KEY, OUTPUT, QUERY, VALUE  # noqa: E402

PARTS = [
    ("I  The GPU", QUERY, ["00 start here", "01 vector add, CUDA", "02 matrices, CUDA", "03 vector add, Triton",
                           "04 softmax, matmul"]),
    ("II  The algorithm", KEY, ["05 attention, memory", "06 online softmax", "07 FlashAttention, NumPy"]),
    ("III  The kernel", VALUE, ["08 v1: one kernel", "09 v2: causal, heads", "10 backward", "11 v3: FP8, prefetch"]),
    ("IV  The real thing", OUTPUT, ["12 in a model", "13 benchmarks"]),
]


def road():
    """The map of the course: four parts, a column each, lessons from top to bottom."""
    fig, ax = plt.subplots(figsize=(9.6, 3.2))
    for x, (part, colour, lessons) in enumerate(PARTS):
        ax.text(x + 0.02, 0.3, part, fontsize=11, fontweight="bold", color=INK, va="bottom")
        for y, lesson in enumerate(lessons):
            ax.add_patch(plt.Rectangle((x, -y - 0.62), 0.9, 0.72, facecolor="white", edgecolor=colour, linewidth=2))
            ax.text(x + 0.45, -y - 0.26, lesson, ha="center", va="center", fontsize=9, color=INK)
        if x:
            ax.annotate("", (x, -0.26), (x - 0.1, -0.26), arrowprops=dict(arrowstyle="->", color=INK))
    ax.set(xlim=(-0.05, 4), ylim=(-4.8, 0.8))
    ax.axis("off")
    return fig


DRAWINGS = {make.__name__: make for make in (road, memory_hierarchy, attention_tiling, online_softmax, causal_blocks,
                                             grid_to_tiles, pipeline, overlap)}


def draw(folder: Path):
    """Write every drawing into folder as SVG, without dates or random ids."""
    plt.rcParams.update({"svg.hashsalt": "figures", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    for name, make in DRAWINGS.items():
        fig = make()
        fig.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        plt.close(fig)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parent)
