"""A newer version of the course, with the reader's work kept: `make update`.

Git brings the files, and a notebook that the reader changed is merged (merge.py). Only Python's own library is used,
because an update may come before a new set-up.
"""
import shutil
import subprocess
import sys
import time
from pathlib import Path

from helpers import ROOT
from helpers.desk import merge


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
            results[name] = merge.notebooks(old, mine, git("show", f"{target}:{name}", folder=folder))
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
