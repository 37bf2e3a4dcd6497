"""Drawings of tiles: which of them a causal mask leaves, and which program of the grid works on which."""
import matplotlib.pyplot as plt

from helpers.plotting import HBM, INK, KEY, OUTPUT, QUERY, SRAM, VALUE, as_ink, ink_on

KINDS = {"full": dict(facecolor=SRAM), "partial": dict(facecolor=SRAM, hatch="///"), "skipped": dict(facecolor="white")}


def _kind(i, j, BLOCK_M, BLOCK_N):
    """Whether queries see all, some or none of the keys in tile (i, j)."""
    first_row, last_row = i * BLOCK_M, (i + 1) * BLOCK_M - 1
    first_key, last_key = j * BLOCK_N, (j + 1) * BLOCK_N - 1
    return "skipped" if first_key > last_row else "full" if last_key <= first_row else "partial"


def _causal(ax, N, BLOCK_M, BLOCK_N):
    rows, columns = N // BLOCK_M, N // BLOCK_N
    kinds = {(i, j): _kind(i, j, BLOCK_M, BLOCK_N) for i in range(rows) for j in range(columns)}
    for (i, j), kind in kinds.items():
        ax.add_patch(plt.Rectangle((j * BLOCK_N, i * BLOCK_M), BLOCK_N, BLOCK_M, edgecolor=INK, linewidth=0.8,
                                   linestyle=":" if kind == "skipped" else "-", **KINDS[kind]))
        x, y = (j + 0.5) * BLOCK_N, (i + 0.5) * BLOCK_M
        if kind == "partial":
            x, y = (j + 0.38) * BLOCK_N, (i + 1) * BLOCK_M - 10
        ax.text(x, y, kind, ha="center", va="center", fontsize=8, color=INK,           # clear of the diagonal
                bbox=dict(facecolor=SRAM, edgecolor="none", pad=1.2) if kind == "partial" else None)
    ax.plot([0, N], [0, N], color=INK, linewidth=2)
    counts = [sum(k == kind for k in kinds.values()) for kind in KINDS]
    ax.set_title(f"BLOCK_M = {BLOCK_M}, BLOCK_N = {BLOCK_N}", loc="center", fontweight="bold", color=INK)
    ax.set_xlabel(f"keys\n{counts[0]} full, {counts[1]} partial, {counts[2]} skipped of {len(kinds)}", color=INK)
    ax.set(xlim=(-2, N + 2), ylim=(N + 2, -2), aspect="equal", xticks=range(0, N + 1, BLOCK_N),
           yticks=range(0, N + 1, BLOCK_M))
    for spine in ax.spines.values():
        spine.set_visible(False)


def causal_blocks():
    """The causal score matrix in tiles, for square blocks and for tall ones: full, partial and skipped."""
    fig, axes = plt.subplots(1, 2, figsize=(7.4, 4))
    _causal(axes[0], 384, 64, 64)
    _causal(axes[1], 384, 128, 64)
    axes[0].set_ylabel("queries", color=INK)
    return fig


N, D, BLOCK_M, BLOCK_N, BLOCK_V = 200, 128, 64, 64, 64
CHOSEN = (1, 1)                                          # the program whose reads and writes are shown


def _matrix(ax, left, name, colour, pieces, chosen):
    """An [N, D] matrix at `left`: its pieces (row, column, rows, columns, label) outlined, the chosen ones filled."""
    ax.text(left + D / 2, -14, name, ha="center", fontsize=12, fontweight="bold", color=as_ink(colour))
    for row, column, height, width, label in pieces:
        inside = (row, column) in chosen
        ax.add_patch(plt.Rectangle((left + column, row), width, height, facecolor=colour if inside else "white",
                                   edgecolor=INK, linewidth=0.8))
        ax.text(left + column + width / 2, row + BLOCK_M / 2, label, ha="center", va="center", fontsize=9,
                color=ink_on(colour) if inside and row + BLOCK_M <= N else INK,
                fontweight="bold" if inside else "normal",
                bbox=None if row + BLOCK_M <= N else dict(facecolor="white", edgecolor="none", pad=1.5))
    ax.add_patch(plt.Rectangle((left, N), D, -(-N // BLOCK_M) * BLOCK_M - N, facecolor="white", edgecolor=HBM,
                               hatch="////", linewidth=0.8, linestyle=":", zorder=0))


def _pieces(height, width, label):
    """The blocks of an [N, D] matrix, height x width, the last row of them cut off at N."""
    return [(row, column, min(height, N - row), width, label(row // height, column // width))
            for row in range(0, N, height) for column in range(0, D, width)]


def grid_to_tiles():
    """The 2-D grid of v1: which output tile each program writes, and what one of them reads to do so."""
    i, j = CHOSEN
    fig, ax = plt.subplots(figsize=(7.4, 4.1))
    all_keys = set(range(0, N, BLOCK_N))
    _matrix(ax, 0, "o", OUTPUT, _pieces(BLOCK_M, BLOCK_V, lambda a, b: f"({a}, {b})"), {(i * BLOCK_M, j * BLOCK_V)})
    _matrix(ax, 210, "q", QUERY, _pieces(BLOCK_M, D, lambda a, b: f"queries {a}"), {(i * BLOCK_M, 0)})
    _matrix(ax, 370, "k", KEY, _pieces(BLOCK_N, D, lambda a, b: f"step {a + 1}"), {(row, 0) for row in all_keys})
    _matrix(ax, 530, "v", VALUE, _pieces(BLOCK_N, BLOCK_V, lambda a, b: f"step {a + 1}" if b == j else ""),
            {(row, j * BLOCK_V) for row in all_keys})
    ax.annotate("", (140, 96), (200, 96), arrowprops=dict(arrowstyle="-|>", color=INK, linewidth=1.5))
    ax.text(170, 86, "writes", ha="center", fontsize=9, color=INK)
    ax.text(170, 122, f"program\n({i}, {j})", ha="center", va="center", fontsize=9, fontweight="bold", color=INK)
    ax.text(434, -38, f"program ({i}, {j}) reads", ha="center", fontsize=10.5, fontweight="bold", color=INK)
    ax.text(64, -38, "the grid of programs", ha="center", fontsize=10.5, fontweight="bold", color=INK)
    for x, text in ((64, f"program_id(0) = {i}: rows {i * BLOCK_M} to {(i + 1) * BLOCK_M - 1}\n"
                         f"program_id(1) = {j}: columns {j * BLOCK_V} to {(j + 1) * BLOCK_V - 1}"),
                    (274, "its queries, all features,\nonce"), (434, "all keys, all features,\na block a step"),
                    (594, "all values, its features,\na block a step")):
        ax.text(x, 272, text, ha="center", va="top", fontsize=9, color=INK)
    ax.text(330, 322, f"N = {N}, D = {D}, BLOCK_M = BLOCK_N = BLOCK_V = {BLOCK_M}; hatched: rows beyond N, masked",
            ha="center", fontsize=9, color=INK)
    ax.set(xlim=(-40, 665), ylim=(328, -50), aspect="equal")
    ax.axis("off")
    return fig
