"""Timelines: copies and computation with 1, 2 and 3 stages, products and exponentials of two loops."""
import matplotlib.pyplot as plt

from helpers.plotting import HBM, INK, KEY, OUTPUT, QUERY, VALUE, ink_on

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


def in_turn():
    """[(row, begin, what)] of a loop that starts values, then the next scores, and waits for both. Each takes a unit of time."""
    return [(row, 3 * tile + step, f"{what} {tile}") for tile in range(4)
            for step, (row, what) in enumerate(((1, "scores"), (0, "exp"), (1, "values")))]


def ahead():
    """The same for a loop that starts the scores of a tile and the values of the one before, and waits for the scores."""
    found = [(1, 0, "scores 0"), (0, 1, "exp 0")]
    for tile in range(1, 4):
        found += [(1, 2 * tile, f"scores {tile}"), (1, 2 * tile + 1, f"values {tile - 1}"), (0, 2 * tile + 1, f"exp {tile}")]
    return found + [(1, 8, "values 3")]


def overlap():
    """Two timelines below each other: what the matrix unit and the exponential unit do for one group of warps."""
    fig, axes = plt.subplots(2, 1, figsize=(6.4, 3.4), sharex=True)
    colours = {"scores": QUERY, "values": VALUE, "exp": OUTPUT}
    for ax, (title, loop) in zip(axes, (("v3: values, then the next scores; wait for both", in_turn()),
                                        ("v4: scores first; wait for all but the last", ahead()))):
        for row, begin, what in loop:
            box(ax, begin, row, 1, 0.8, colours[what.split()[0]], what.replace(" ", "\n"))
        finish(ax, title, 1 + max(begin for _, begin, _ in loop), (-0.1, 2))
        ax.set(ylim=(-0.1, 2), xlim=(0, 12.1), yticks=[0.4, 1.4], yticklabels=["exponentials", "products"], xticks=[])
    axes[-1].set_xlabel("time")
    return fig
