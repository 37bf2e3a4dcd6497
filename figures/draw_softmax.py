"""The online softmax of one row as a filmstrip."""
import matplotlib.pyplot as plt
import numpy as np

from helpers.plotting import BAD, HBM, INK, KEY, VALUE, as_ink

SCORES = np.array([1.0, 3.0, 5.0, 2.0, 4.0, 3.0])
VALUES = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [4.0, 0.0], [1.0, 3.0], [0.0, 2.0]])
BLOCK = 2


def _frames():
    """Run the recurrence; for each block what it found: m, alpha, l, acc and the weights of all scores so far."""
    m, l, acc = -np.inf, 0.0, np.zeros(2)
    for j in range(0, len(SCORES), BLOCK):
        s, v_j = SCORES[j:j + BLOCK], VALUES[j:j + BLOCK]
        m_new = max(m, s.max())
        alpha = np.exp(m - m_new)
        p = np.exp(s - m_new)
        l = alpha * l + p.sum()
        acc = alpha * acc + p @ v_j
        yield dict(old=np.exp(SCORES[:j] - m), m=m_new, alpha=alpha, l=l, acc=acc, p=np.exp(SCORES[:j + BLOCK] - m_new))
        m = m_new


def _scores(ax, place, frame):
    """The scores as bars: the block at hand in full colour, past ones pale, those to come as outlines; a line at m."""
    for i, s in enumerate(SCORES):
        at_hand, past = i // BLOCK == place, i // BLOCK < place
        ax.bar(i, s, 0.8, color=KEY if at_hand else "#F6D9A0" if past else "white", edgecolor=INK, linewidth=0.8,
               linestyle="-" if at_hand or past else ":")
        ax.text(i, s + 0.12, f"{s:g}", ha="center", fontsize=9.5, color=INK)
    ax.axhline(frame["m"], color=BAD, linewidth=1.4, zorder=3)
    ax.text(-0.55, frame["m"] + 0.15, f"m = {frame['m']:g}", fontsize=10, color=as_ink(BAD), fontweight="bold")
    ax.set(xlim=(-0.6, 5.6), ylim=(0, 6.2), xticks=[], yticks=[])
    ax.set_title(f"block {place + 1}", loc="center", fontweight="bold", color=INK)


def _weights(ax, place, frame):
    """The weights against this m, above the value that each multiplies; dashed, what they were before m rose."""
    for i, p in enumerate(frame["p"]):
        before = frame["old"][i] if frame["alpha"] != 1 and i < len(frame["old"]) else p
        ax.bar(i, p, 0.8, color=VALUE if i // BLOCK == place else "#9FD8C5", edgecolor=INK, linewidth=0.8)
        if before != p:
            ax.bar(i, before, 0.8, fill=False, edgecolor=BAD, linewidth=1.2, linestyle="--")
        height = p if p + 0.25 < before else max(p, before)                  # inside of the dashed outline or above it
        weight = f"{p:.3f}".rstrip("0").rstrip(".").removeprefix("0")
        ax.text(i, height + 0.04, weight, ha="center", fontsize=8.5, color=INK)
    for i, (first, second) in enumerate(VALUES):
        ax.text(i, -0.08, f"{first:g}\n{second:g}", ha="center", va="top", fontsize=9.5,
                color=as_ink(VALUE) if i // BLOCK == place else INK if i // BLOCK < place else HBM,
                fontweight="bold" if i // BLOCK == place else "normal")
    ax.set(xlim=(-0.6, 5.6), ylim=(-0.5, 1.25), xticks=[], yticks=[])
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.spines["bottom"].set_visible(False)


def online_softmax():
    """Three frames, one for each block of two scores: the running maximum, the weights, what m, l and acc become."""
    frames = list(_frames())
    fig, axes = plt.subplots(3, 3, figsize=(7.4, 6.2), height_ratios=[2.8, 3, 1.5])
    remarks = ["nothing was there before", "m rose by 2: the past shrinks", "m stayed, and so does the past"]
    for place, (frame, remark) in enumerate(zip(frames, remarks)):
        _scores(axes[0, place], place, frame)
        _weights(axes[1, place], place, frame)
        acc = ", ".join(f"{x:.4f}" for x in frame["acc"])
        axes[2, place].text(0.02, 0.95, f"alpha = {frame['alpha']:.4f}\nl = {frame['l']:.4f}\nacc = [{acc}]\n{remark}",
                            fontsize=9.5, va="top", linespacing=1.5, color=INK)
        axes[2, place].axis("off")
    axes[0, 0].set_ylabel("scores", color=INK)
    axes[1, 0].set_ylabel("values v   weights exp(s - m)", color=INK, loc="bottom")
    o = frames[-1]["acc"] / frames[-1]["l"]
    p = np.exp(SCORES - SCORES.max())
    assert np.allclose(o, p @ VALUES / p.sum())          # the strip ends where the softmax over the whole row does
    fig.supxlabel(f"at the end: o = acc / l = [{o[0]:.4f}, {o[1]:.4f}], the softmax over all six scores at once",
                  fontsize=10, color=INK, fontweight="bold")
    return fig
