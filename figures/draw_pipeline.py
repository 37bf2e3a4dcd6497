"""The drawing of lesson 11: copies and computation with 1, 2 and 3 stages."""
import matplotlib.pyplot as plt

from helpers.plotting import HBM, INK, KEY, VALUE

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


def pipeline():
    """Three timelines below each other: each tile's copy, and the work on it."""
    fig, axes = plt.subplots(3, 1, figsize=(8.6, 4.2), sharex=True)
    for ax, stages in zip(axes, (1, 2, 3)):
        copies, works = timeline(stages)
        for tile, (copy, work) in enumerate(zip(copies, works)):
            lane = 1 + tile % stages * 0.5
            ax.add_patch(plt.Rectangle((copy, lane), COPY, 0.42, facecolor=KEY, edgecolor="white"))
            ax.text(copy + COPY / 2, lane + 0.21, f"copy {tile}", ha="center", va="center", fontsize=8, color=INK)
            ax.add_patch(plt.Rectangle((work, 0.2), WORK, 0.62, facecolor=VALUE, edgecolor="white"))
            ax.text(work + WORK / 2, 0.51, f"tile {tile}", ha="center", va="center", fontsize=8, color="white")
        end = works[-1] + WORK
        ax.plot([end, end], [0, 2.5], color=HBM, linewidth=1, linestyle="--")
        ax.set(ylim=(0, 2.6), xlim=(0, TILES * (COPY + WORK) + 0.1), yticks=[0.51, 1.5], yticklabels=["compute", "copy"], xticks=[])
        ax.set_title(f"num_stages = {stages}", fontsize=10, loc="left", color=INK)
        for side in ("top", "right", "bottom"):
            ax.spines[side].set_visible(False)
    axes[-1].set_xlabel("time")
    return fig
