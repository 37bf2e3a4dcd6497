"""The course as a static site: `make book`. Pages are the README, the saved notebooks and book/*.md, read where they lie.

Nothing is executed, and the pages load nothing from elsewhere.
"""
import importlib.util
import json
import re
import shutil
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
PARTS = {"I": "The GPU", "II": "The algorithm", "III": "The kernel", "IV": "Hopper", "V": "At work", "VI": "The truth"}

project = "FlashAttention from the ground up"
author = "its authors"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CUDA/README.md", "notebooks/*.ipynb", "book/*.md"]
exclude_patterns = [".*", "build"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]
smartquotes = False                                      # the pages say what the notebooks say

html_theme = "sphinx_book_theme"
html_title = project
html_copy_source = False
html_show_sphinx = False
html_favicon = "static/favicon.svg"
html_css_files = ["book.css"]
html_js_files = ["folder.js"]
html_theme_options = {"home_page_in_toc": True, "show_navbar_depth": 1, "use_download_button": False,
                      "show_toc_level": 2, "navbar_persistent": []}
html_context = {"default_mode": "auto"}                  # light or dark, as the reader's system is
# MathJax with its glyphs in one file, from a package that holds it: formulas are set without a request
html_static_path = ["static", *(str(Path(folder) / "static/mathjax/tex-svg.js") for folder in
                                importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations)]
mathjax_path = "tex-svg.js"


def prose(lesson):
    """The text of a lesson's markdown cells."""
    cells = json.loads((ROOT / "notebooks" / f"{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def contents():
    """The table of contents: parts and their lessons as the README's map has them, and what does not belong to one."""
    parts = {}
    for part, lesson in re.findall(r"^\| *([IV]*) *\| *\[.*?\]\((notebooks/\w+)\.ipynb\)",
                                   (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        if part or not parts:
            here = parts.setdefault(f"{part} · {PARTS[part]}" if part else "Begin", [])
        here.append(lesson)
    parts["To look up"] = ["book/lessons", "book/cheat_sheet", "book/glossary"]
    parts["More"] = ["CUDA/README", "CONTRIBUTING", "CHANGELOG"]
    return "".join("\n\n```{{toctree}}\n:hidden:\n:caption: {}\n{}\n```".format(part, "\n".join(pages))
                   for part, pages in parts.items())


def table():
    """A row for each lesson: minutes, what it needs, and its exercises."""
    rows = ["| lesson | minutes | needs | exercises |", "| --- | ---: | --- | --- |"]
    for lesson in LESSONS:
        text = prose(lesson)
        title = re.match(r"# (.*)", text)[1]
        needs, minutes = re.search(r"\*\*Needs\*\*\s+(.+?)\.?\s+\*\*Time\*\*\s+(\d+)", text, re.DOTALL).groups()
        needs = re.sub(r"\]\((\w+\.ipynb)\)", r"](../notebooks/\1)", " ".join(needs.split()))
        exercises = re.findall(r"(?m)^### Exercise [\d.]+ · (.+) \((\w+), (\d+) minutes\)", text)
        told = "<br>".join(f"{name} ({level}, {time})" for name, level, time in exercises)
        rows.append(f"| [{title}](../notebooks/{lesson}.ipynb) | {minutes} | {needs} | {told} |")
    return "\n".join(rows)


def read(app, docname, source):
    """Complete the two pages that list the lessons."""
    if docname == root_doc:
        source[0] += contents()
    if docname == "book/lessons":
        source[0] += table()


def terms(app):
    """{term: its anchor} from the glossary's headings, which may give several words for a thing."""
    return {word: section["ids"][0] for section in app.env.get_doctree("book/glossary").findall(nodes.section)
            for word in section[0].astext().split(", ")}


def link_terms(app, doctree, docname):
    """In a lesson, make the first place at which a term stands, in words or as code, a link to the glossary."""
    if not docname.startswith("notebooks/"):
        return
    code = terms(app)
    words = {word.lower(): anchor for word, anchor in code.items() if len(word) > 1}
    known = re.compile(r"(?<![\w-])({})(?:s|es)?(?![\w-])".format("|".join(
        map(re.escape, sorted(words, key=len, reverse=True)))), re.IGNORECASE)
    page, seen = app.builder.get_relative_uri(docname, "book/glossary"), {None}

    def link(anchor, node):
        seen.add(anchor)
        return nodes.reference("", "", node, refuri=f"{page}#{anchor}", internal=True, classes=["term"])

    for node in [node for node in doctree.findall() if isinstance(node, (nodes.Text, nodes.literal))
                 and isinstance(node.parent, (nodes.paragraph, nodes.entry, nodes.emphasis, nodes.strong))
                 and not isinstance(node.parent.parent, nodes.reference)]:
        if isinstance(node, nodes.literal):
            anchor = code.get(node.astext())
            if anchor not in seen:
                node.parent.replace(node, link(anchor, node.deepcopy()))
            continue
        pieces, at = [], 0
        for hit in known.finditer(node):
            anchor = words[hit[1].lower()]
            if anchor not in seen:
                pieces += [nodes.Text(node[at:hit.start()]), link(anchor, nodes.Text(hit[0]))]
                at = hit.end()
        if pieces:
            node.parent.replace(node, [*pieces, nodes.Text(node[at:])])


def front_page(app, exception):
    """The site opens at index.html."""
    if exception is None and app.builder.name == "html":
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app):
    app.connect("source-read", read)
    app.connect("doctree-resolved", link_terms)
    app.connect("build-finished", front_page)
