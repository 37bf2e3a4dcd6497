"""Three versions of a notebook become one, cell by cell: as it was handed out, as the reader has it, and the new one.

Never by lines, which would leave marks of a conflict in its JSON. Only Python's own library is used.
"""
import difflib
import json
import re
import uuid

ALIKE = 0.6                                              # from here on two texts are versions of one


def text(cell):
    return "".join(cell["source"])


def alike(one, other):
    """Are two cells versions of one: of a kind, and with the same first function, the same heading, or similar text?"""
    if one["cell_type"] != other["cell_type"]:
        return False
    names = [re.findall(r"^(?:def|class) (\w+)|^(#+ .+)", text(cell), re.MULTILINE)[:1] for cell in (one, other)]
    if names[0] or names[1]:
        return names[0] == names[1]
    texts = difflib.SequenceMatcher(None, text(one), text(other), autojunk=False)
    return texts.quick_ratio() >= ALIKE and texts.ratio() >= ALIKE


def pairs(old, new):
    """{place in old: place in new} of the cells that are versions of one another, in order: first those with equal text,
    then, between them, those that are alike."""
    found = {}
    texts = [[(cell["cell_type"], text(cell)) for cell in cells] for cells in (old, new)]
    for tag, a, b, c, d in difflib.SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
        if tag == "equal":
            found |= zip(range(a, b), range(c, d))
        for i in range(a, b) if tag == "replace" else ():
            j = next((j for j in range(c, d) if alike(old[i], new[j])), None)
            if j is not None:
                found[i], c = j, j + 1
    return found


def same(old, mine):
    """{place in old: place in mine} of the cells that have kept their id, which JupyterLab keeps; `pairs` if none has."""
    ids = {cell.get("id"): place for place, cell in enumerate(mine)}
    kept = {place: ids[cell["id"]] for place, cell in enumerate(old) if cell.get("id") in ids}
    return kept or pairs(old, mine)


def merged(old, mine, new):
    """The cells of a notebook that was handed out as `old`, has become `mine`, and is `new` now; and sentences on what
    both have changed.

    The cells of the new version, in its order. One that the reader changed stays as it is, and so does one that nobody
    changed, for its outputs; cells that the reader added follow the cell that they followed.
    """
    told, mine_of, new_of = [], same(old, mine), pairs(old, new)
    cells, added = {}, {}                                # place in new: the cell; and the reader's cells behind it
    for place, where in new_of.items():
        was, now = old[place], new[where]
        cells[where] = now
        if place in mine_of:
            ours = mine[mine_of[place]]
            if text(ours) != text(was) or text(now) == text(was):
                cells[where] = ours | {"id": now["id"], "metadata": now["metadata"]}
            if text(was) not in (text(ours), text(now)) and text(ours) != text(now):
                told.append(f"yours is kept, and the new version has another: {title(now)}")
    theirs = {where: place for place, where in mine_of.items()}
    behind = -1                                          # the place in new that the reader's next cell follows
    for where, cell in enumerate(mine):
        if where in theirs:
            behind = new_of.get(theirs[where], behind)
            if theirs[where] not in new_of and text(cell) != text(old[theirs[where]]):
                added.setdefault(behind, []).append(cell)
                told.append(f"yours is kept, and the new version has none: {title(cell)}")
        else:
            added.setdefault(behind, []).append(cell)
    result = list(added.get(-1, []))
    for where, cell in enumerate(new):
        result += [cells.get(where, cell), *added.get(where, [])]
    seen = set()
    for cell in result:
        if cell["id"] in seen:
            cell["id"] = uuid.uuid4().hex[:8]
        seen.add(cell["id"])
    return result, told


def title(cell):
    """The first function, class or heading of a cell, else its first line; shortened."""
    lines = text(cell).strip().splitlines() or ["an empty cell"]
    return f"`{next((line for line in lines if re.match('def |class |#+ ', line)), lines[0])[:60]}`"


def notebooks(old, mine, new):
    """`merged` for whole notebooks as JSON text: the text of the merged one, and the sentences."""
    three = [json.loads(each) for each in (old, mine, new)]
    for number, notebook in enumerate(three):
        for place, cell in enumerate(notebook["cells"]):
            cell.setdefault("id", f"{number}-{place}")
    cells, told = merged(*(notebook["cells"] for notebook in three))
    return json.dumps(three[2] | {"cells": cells}, indent=1, sort_keys=True, ensure_ascii=False) + "\n", told
