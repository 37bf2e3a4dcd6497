"""What three loops of the warp-specialized kernel do, from runs in the simulator: order and overlap, not times."""
import matplotlib.pyplot as plt
import torch

from helpers import lessons, simulator
from helpers.plotting import HBM, INK, KEY, OUTPUT, QUERY, VALUE, ink_on

LESSON = "warp_specialization"
WAIT = "        s = warpgroup_mma_wait(1, deps=[s])                                # all but the last product\n"
FREE = [("    mbarrier.wait(rings.turns.index(PART), (i + 1 + (PART > 0)) & 1)\n", "    pass\n"),      # nobody waits for a turn
        ("    mbarrier.arrive(rings.turns.index((PART + 1) % rings.turns.shape[0]))\n", "    pass\n")]
LOOPS = {                                                # what a loop changes in the lesson
    "all products are waited for, then exponentials": [
        *FREE, (WAIT, "        acc, s, p = warpgroup_mma_wait(0, deps=[acc, s, p])\n")],
    "scores are waited for, values run beside the exponentials": FREE,
    "v4: the same, and the consumers start their products by turns": [],
}
COLOURS = {"start_scores": QUERY, "start_values": VALUE, "softmax": OUTPUT, "fetch": KEY}
NAMES = {"start_scores": "scores", "start_values": "values", "softmax": "exp"}
LANES = [("producer", "copies"), ("consumer 1", "exponentials"), ("consumer 1", "products"), ("consumer 0", "exponentials"),
         ("consumer 0", "products")]
TILES, FIRST, END = 7, 2, 4 * 1024 + 900                 # tiles of keys; the first that is drawn; where the axis ends


def events_of(changes):
    """The events of one block of 2 x 64 queries, D = 128, in a lesson with these changes."""
    module = lessons.variant(LESSON, *changes)
    q, k, v = torch.zeros(1, 1, 128, 128).half(), *torch.zeros(2, 1, 1, 128 * TILES, 128).half()
    with simulator.schedule() as events:
        module.launch_ws(q, k, v, False, 0.1, tiles=dict(PARTS=2, BLOCK_N=128, STAGES=2))
    return [event for event in events[0] if event.function in COLOURS and event.label != "64"]


def numbered(events):
    """(event, number of its tile), counted for each lane and function."""
    seen = {}
    for event in sorted(events, key=lambda event: event.begin):
        key = event.partition, event.function, event.label[:1] if event.unit == "copies" else ""
        yield event, seen.setdefault(key, 0)
        seen[key] += 1


def overlap():
    """Three panels, a loop each; rows for the products and exponentials of two consumers, and for the copies."""
    fig, axes = plt.subplots(len(LOOPS), 1, figsize=(7.2, 6.6), sharex=True)
    for ax, (title, changes) in zip(axes, LOOPS.items()):
        found = list(numbered(events_of(changes)))
        begin = min(event.begin for event, tile in found if event.function == "start_scores" and tile == FIRST)
        for event, tile in found:
            y, text = LANES.index((event.partition, event.unit)), NAMES.get(event.function, event.label[0])
            x, width, colour = event.begin - begin, event.end - event.begin, COLOURS[event.function]
            ax.add_patch(plt.Rectangle((x, y), width, 0.8, facecolor=colour, edgecolor="white"))
            if width / 4 < x + width / 2 < END - width / 4:                  # not on a box of which less than that is seen
                ax.text(x + width / 2, y + 0.4, f"{text}\n{tile}", ha="center", va="center", fontsize=7, color=ink_on(colour),
                        clip_on=True)
        ax.set_title(title, fontsize=10, loc="left", color=INK)
        ax.set(ylim=(-0.1, len(LANES)), xlim=(0, END), xticks=[])
        ax.set_yticks([i + 0.4 for i in range(len(LANES))], [" ".join(lane) for lane in LANES], fontsize=8)
        for side in ("top", "right", "bottom"):
            ax.spines[side].set_visible(False)
    axes[-1].set_xlabel("order in a simulated run; lengths are the simulator's, not measured", color=HBM)
    return fig
