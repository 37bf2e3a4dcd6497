"""Timelines: copies and computation with 1, 2 and 3 stages."""
import matplotlib.pyplot as plt

from helpers.plotting import HBM, INK, KEY, VALUE, ink_on

TILES, COPY, WORK = 5, 1.6, 1.0                          # a copy takes longer than the work on its tile


def timeline(stages):
    """(copies, works): when each begins. A copy needs a free stage; the work on a tile needs its copy. Copies overlap."""
    copies, works, free = [], [], [0.0] * stages
    for tile in range(TILES):
        copies.append(free[tile % stages])
        begin = max(copies[-1] + COPY, works[-1] + WORK if works else 0)
        works.append(begin)
        free[tile % stages] = begin + WORK
    return copies, works


def box(ax, x, y, width, height, colour, text):
    ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=colour, edgecolor="white"))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8, color=ink_on(colour))


def finish(ax, title, end, height):
    """A title, a line where the work ends, and no frame but the left side."""
    ax.plot([end, end], height, color=HBM, linewidth=1, linestyle="--")
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    for side in ("top", "right", "bottom"):
        ax.spines[side].set_visible(False)


def pipeline():
    """Three timelines below each other: each tile's copy, and the work on it."""
    fig, axes = plt.subplots(3, 1, figsize=(6.4, 4.4), sharex=True)
    for ax, stages in zip(axes, (1, 2, 3)):
        copies, works = timeline(stages)
        for tile, (copy, work) in enumerate(zip(copies, works)):
            lane = 1 + tile % stages * 0.5
            box(ax, copy, lane, COPY, 0.42, KEY, f"copy {tile}")
            box(ax, work, 0.2, WORK, 0.62, VALUE, f"tile\n{tile}")
        finish(ax, f"num_stages = {stages}", works[-1] + WORK, (0, 2.5))
        ax.set(ylim=(0, 2.6), xlim=(0, TILES * (COPY + WORK) + 0.1), xticks=[])
        ax.set_yticks([0.51, 1.5], ["compute", "copy"])
    axes[-1].set_xlabel("time")
    return fig
