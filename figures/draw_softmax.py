"""The online softmax of one row as a filmstrip."""
import matplotlib.pyplot as plt
import numpy as np

from helpers.plotting import BAD, INK, KEY, VALUE

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
        ax.text(i, s + 0.12, f"{s:g}", ha="center", fontsize=9, color=INK)
    ax.axhline(frame["m"], color=BAD, linewidth=1.4, zorder=0)
    ax.text(5.55, frame["m"] + 0.16, f"m = {frame['m']:g}", ha="right", fontsize=10, color=BAD, fontweight="bold",
            bbox=dict(facecolor="white", edgecolor="none", pad=1))
    ax.set(xlim=(-0.6, 5.6), ylim=(0, 6.2), xticks=[], yticks=[])
    ax.set_title(f"block {place + 1}", loc="center", fontweight="bold", color=INK)


def _weights(ax, place, frame):
    """The weights against this m; where the maximum rose, what the old ones were before alpha shrank them."""
    for i, p in enumerate(frame["p"]):
        ax.bar(i, p, 0.8, color=VALUE if i // BLOCK == place else "#9FD8C5", edgecolor=INK, linewidth=0.8)
        label = f"{p:.3f}".rstrip("0").rstrip(".")
        ax.text(i, p + 0.03, label, ha="center", fontsize=8, color=INK)
    if frame["alpha"] != 1:
        for i, p in enumerate(frame["old"]):
            ax.bar(i, p, 0.8, fill=False, edgecolor=BAD, linewidth=1.2, linestyle="--")
    ax.set(xlim=(-0.6, 5.6), ylim=(0, 1.25), xticks=[], yticks=[])


def online_softmax():
    """Three frames, one for each block of two scores: the running maximum, the weights, and what m, l and acc become."""
    frames = list(_frames())
    fig, axes = plt.subplots(3, 3, figsize=(8.6, 5.9), height_ratios=[3, 2.6, 1.5])
    remarks = ["nothing was there before", "m rose by 2: the past shrinks", "m stayed, and so does the past"]
    for place, (frame, remark) in enumerate(zip(frames, remarks)):
        _scores(axes[0, place], place, frame)
        _weights(axes[1, place], place, frame)
        acc = ", ".join(f"{x:.4f}" for x in frame["acc"])
        axes[2, place].text(0.02, 0.95, f"alpha = {frame['alpha']:.4f}\nl = {frame['l']:.4f}\nacc = [{acc}]\n{remark}",
                            fontsize=10, va="top", linespacing=1.5, color=INK)
        axes[2, place].axis("off")
    axes[0, 0].set_ylabel("scores", color=INK)
    axes[1, 0].set_ylabel("weights exp(s - m)", color=INK)
    o = frames[-1]["acc"] / frames[-1]["l"]
    p = np.exp(SCORES - SCORES.max())
    assert np.allclose(o, p @ VALUES / p.sum())          # the strip ends where the softmax over the whole row does
    fig.supxlabel(f"at the end: o = acc / l = [{o[0]:.4f}, {o[1]:.4f}], the softmax over all six scores at once", fontsize=10,
                  color=INK, fontweight="bold")
    return fig
