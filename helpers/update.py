"""A newer version of the course, with the reader's work kept: `make update`.

Git brings the files. A notebook that the reader changed is merged cell by cell, from three versions of it: as it was
handed out, as it is now, and the new one. Never by lines, which would leave marks of a conflict in its JSON. Only
Python's own library is used, because an update may come before a new set-up.
"""
import difflib
import json
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALIKE = 0.6                                              # from here on two texts are versions of one


class Refused(Exception):
    """The update cannot be made, and nothing was changed. The message says why."""


def git(*arguments, folder=ROOT):
    """What a git command prints; Refused with its message if it fails."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Refused((done.stderr or done.stdout).strip())
    return done.stdout


def newest(folder=ROOT):
    """The branch that updates come from."""
    for name in ("@{upstream}", "origin/HEAD"):
        try:
            return git("rev-parse", "--abbrev-ref", "--verify", name, folder=folder).strip()
        except Refused:
            pass
    raise Refused("this copy of the course does not know where it came from: updates need a folder made by `git clone`")


def handed_out(names, folder=ROOT):
    """{name: text} of files as the course handed them out: at the version that the reader began from or updated to."""
    try:
        version = git("merge-base", "HEAD", newest(folder), folder=folder).strip()
    except Refused:
        version = "HEAD"
    found = {}
    for name in names:
        try:
            found[name] = git("show", f"{version}:{name}", folder=folder)
        except Refused:                                  # no such file then, or no git here
            pass
    return found


# ---------------------------------------------------------------- cells

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


def merge(old, mine, new):
    """`merged` for whole notebooks as JSON text: the text of the merged one, and the sentences."""
    notebooks = [json.loads(each) for each in (old, mine, new)]
    for number, notebook in enumerate(notebooks):
        for place, cell in enumerate(notebook["cells"]):
            cell.setdefault("id", f"{number}-{place}")
    cells, told = merged(*(notebook["cells"] for notebook in notebooks))
    return json.dumps(notebooks[2] | {"cells": cells}, indent=1, sort_keys=True, ensure_ascii=False) + "\n", told


# ---------------------------------------------------------------- files

def update(folder=ROOT, say=print):
    """Bring the newest version into a clone. Raises Refused, with nothing changed, if that cannot be."""
    target = newest(folder)
    git("fetch", "--quiet", folder=folder)
    base = git("merge-base", "HEAD", target, folder=folder).strip()
    if base == git("rev-parse", target, folder=folder).strip():
        say("There is nothing new.")
        return
    changed = git("diff", "--name-only", "--no-renames", base, folder=folder).split()
    arrived = git("diff", "--name-only", "--no-renames", base, target, folder=folder).split()
    both = [name for name in changed if name in arrived and (folder / name).exists()]
    other = [name for name in both if not name.endswith(".ipynb")]
    if other:
        raise Refused(f"you and the new version both changed {', '.join(other)}. Keep a copy of yours elsewhere, bring "
                      f"back the original, `git checkout {base[:12]} -- {other[0]}`, and try again")
    results = {}
    for name in both:
        old, mine = git("show", f"{base}:{name}", folder=folder), (folder / name).read_text(encoding="utf-8")
        if git("ls-tree", target, name, folder=folder):
            results[name] = merge(old, mine, git("show", f"{target}:{name}", folder=folder))
        else:
            results[name] = mine, ["the new version has no such notebook"]
    backup = folder / "backups" / time.strftime("%Y-%m-%d_%H%M%S")
    for name in changed:
        if (folder / name).exists():
            (backup / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, backup / name)
    _bring(folder, target, results)
    say(f"Updated to {git('log', '-1', '--format=%h of %as', target, folder=folder).strip()}.")
    for name, (_, told) in results.items():
        say(f"{name}: your cells were kept" + "".join(f"\n    {sentence}" for sentence in told))
    if results:
        say("Is one of them open in JupyterLab? Then load it anew: File, Reload Notebook from Disk.")
    if backup.exists():
        say(f"What you had is in {backup.relative_to(folder)}.")


def _bring(folder, target, results):
    """Let git bring the files, with the reader's notebooks out of its way, and write the merged ones."""
    mine = {name: (folder / name).read_text(encoding="utf-8") for name in results}
    try:
        for name in results:
            git("checkout", "--quiet", "HEAD", "--", name, folder=folder)
        ahead = git("rev-list", f"{target}..HEAD", folder=folder)
        if ahead:                                        # the reader commits: a merge, of which the notebooks are ours
            _begin_merge(target, folder)
        else:
            git("merge", "--quiet", "--ff-only", target, folder=folder)
        for name, (content, _) in results.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
        if ahead:
            git("add", "--", *results, folder=folder)
            git("commit", "--quiet", "--message", f"Update from {target}", folder=folder)
    except Refused:
        subprocess.run(["git", "merge", "--abort"], cwd=folder, capture_output=True)
        for name, content in mine.items():
            (folder / name).write_text(content, encoding="utf-8")
        raise


def _begin_merge(target, folder):
    """git merge without its commit. It fails over notebooks, which is no matter, or because it could not begin."""
    try:
        git("merge", "--quiet", "--no-ff", "--no-commit", target, folder=folder)
    except Refused:
        if not Path(git("rev-parse", "--path-format=absolute", "--git-path", "MERGE_HEAD", folder=folder).strip()).exists():
            raise


if __name__ == "__main__":
    try:
        update()
    except Refused as reason:
        sys.exit(f"Nothing was changed: {reason}")
