"""What every file and every lesson keeps to, whatever it is about."""
import ast
import json
import re
import subprocess
import sys

import nbformat
import pytest

import books
from helpers import ROOT, lessons

IMPORTS = ['import sys', 'sys.path.insert(0, "..")                  # the course\'s folder, which holds helpers/']
TAGS = {"nbval-ignore-output", "raises-exception"}
UNCOMPARED = 4                                           # cells of a lesson that nbval may leave uncompared
TOPICS = [name.split("_", 1)[1] for name in books.NAMES]
# lesson 9, lesson_09 and 09_topic, but not the name of a notebook's file
NUMBERED = re.compile(r"[Ll]esson[s]?[ _]?\d|\b\d\d_[a-z]\w*\b(?!\.ipynb)")

every_lesson = pytest.mark.parametrize("name", books.NAMES)


def code_cells(name):
    return [cell for cell in books.read(name).cells if cell.cell_type == "code"]


def exported(cell):
    return cell.source.startswith(lessons.MARK)


def printed(cell):
    """What the outputs of a cell say in words, without what stands in for a figure."""
    data = [output.get("data", {}) for output in cell.outputs]
    return "\n".join(output.get("text", "") or ("" if "text/html" in shown else shown.get("text/plain", ""))
                     for output, shown in zip(cell.outputs, data))


# ---------------------------------------------------------------- all code

def complaints(*paths):
    """ruff's, as sentences, without those on variables that only a reader's solution will use."""
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--config", "tests/ruff.toml", "--no-cache",
                           "--output-format", "json", *map(str, paths)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = []
    for each in json.loads(done.stdout):
        file, cell = each["filename"].removeprefix(f"{ROOT}/"), each["cell"]
        stub = cell and "NotImplementedError" in nbformat.read(each["filename"], as_version=4).cells[cell - 1].source
        if not (stub and each["code"] == "F841"):
            place = f"{file}{f' cell {cell}' if cell else ''}:{each['location']['row']}"
            found.append(f"{place} {each['code']} {each['message']}")
    return found


@pytest.mark.parametrize("folder", ["helpers", "tests", "figures", "CUDA", "notebooks", "book"])
def test_ruff(folder):
    assert complaints(folder) == []


def test_ruff_on_exported_cells_alone(tmp_path):
    """A lesson's module has what it needs, without the rest of its notebook."""
    for topic in TOPICS:
        if any(map(exported, code_cells(lessons.notebook(topic).stem))):
            (tmp_path / f"{topic}.py").write_text(lessons.source(topic))
    assert complaints(tmp_path) == []


def test_ruff_sees_what_is_undefined_unused_or_defined_twice(tmp_path):
    (tmp_path / "x.py").write_text("import os\n\n\ndef f():\n    a = b\n\n\ndef f():\n    pass\n")
    assert sorted(line.split()[1] for line in complaints(tmp_path)) == ["F401", "F811", "F821", "F841"]


def test_no_lesson_number_in_code():
    files = [path for folder in ("helpers", "tests", "figures", "CUDA", "book") for path in (ROOT / folder).rglob("*.py")
             if path.name != "test_lint.py"]
    code = {str(path.relative_to(ROOT)): path.read_text() for path in files}
    code |= {name: "\n".join(cell.source for cell in code_cells(name)) for name in books.NAMES}
    assert {file: NUMBERED.findall(text) for file, text in code.items() if NUMBERED.search(text)} == {}


# ---------------------------------------------------------------- a lesson as a whole

@every_lesson
def test_is_valid(name):
    nbformat.validate(books.read(name))


@every_lesson
def test_begins_with_title_and_import_cell(name):
    title, imports = books.read(name).cells[:2]
    assert re.match(rf"# {name[:2]} · \S", title.source)
    for part in ("**You will**", "**Needs**", "**Time**"):
        assert part in title.source
    first, second, *between, last = imports.source.splitlines()
    assert [first, second] == IMPORTS and last == "print(device.describe())"
    assert all(re.match(r"from helpers[.\w]* import \w|import \w", line) for line in between)


@every_lesson
def test_ends_with_recap_and_references(name):
    assert "\n## Recap\n" in books.prose(name) and "\n## References\n" in books.prose(name)


@every_lesson
def test_is_of_a_size_to_be_read(name):
    prose = re.sub(r"(?s)<details>.*?</details>|\$\$.*?\$\$|!\[.*?\]\(.*?\)", "", books.prose(name))
    lines = [line for line in prose.split("## References")[0].splitlines() if not line.lstrip().startswith("|")]
    assert len(" ".join(lines).split()) <= 1850
    assert 15 <= len(books.read(name).cells) <= 46
    exports = [line for c in code_cells(name) if exported(c) for line in c.source.splitlines() if line.strip()]
    assert len(exports) <= 370                           # some 250, more where small kernels come before a large one


@every_lesson
def test_links_lead_to_lessons_and_to_the_ones_beside_it(name):
    linked = set(re.findall(r"\]\((\d\d_\w+)\.ipynb[^)]*\)", books.prose(name)))
    place = books.NAMES.index(name)
    assert linked <= set(books.NAMES)
    assert linked >= set(books.NAMES[max(place - 1, 0):place + 2]) - {name}
    if place == 0:
        assert linked == set(books.NAMES[1:])


@every_lesson
def test_exercises_say_how_hard_and_how_long(name):
    headings = re.findall(r"(?m)^#+ +Exercise.*$", books.prose(name))
    minutes = 0
    for heading in headings:
        said = re.fullmatch(rf"### Exercise {int(name[:2])}\.\d · .+ \((easy|medium|hard), (\d+) minutes\)", heading)
        assert said, heading
        minutes += int(said[2])
    promised = re.findall(r"\d+", re.search(r"\*\*Time\*\*(.*)", books.prose(name))[1])
    assert max(map(int, promised)) >= minutes


@every_lesson
def test_lines_of_prose_are_short(name):
    free = re.compile(r"\s*(\||<|!\[|http)")             # tables, tags, images, and addresses
    assert [line for line in books.prose(name).splitlines() if len(line) > 140 and not free.match(line)] == []


@every_lesson
def test_modules_that_prose_names_exist(name):
    for named in re.findall(r"`helpers[./]([\w./]+)", books.prose(name)):
        path = ROOT / "helpers" / named.removesuffix(".py").replace(".", "/")
        assert path.exists() or path.with_suffix(".py").exists(), named


@every_lesson
def test_linked_figures_exist_and_have_alt_text(name):
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", books.prose(name)):
        assert (books.NOTEBOOKS / target).is_file() and len(alt) > 20, target
    assert not re.search(r"<img(?![^>]*\balt=\"\w)[^>]*>", books.prose(name))
    for cell in code_cells(name):
        for data in (output.get("data", {}) for output in cell.outputs):
            assert "image/png" not in data, cell.source          # plotting.show makes HTML with an alt text
            for image in re.findall(r"<img[^>]*>", data.get("text/html", "")):
                assert re.search(r' alt="[^"]{20,}"', image), cell.source


@every_lesson
def test_a_double_click_does_not_lay_a_solution_open(name):
    hidden = [cell for cell in books.read(name).cells if "<summary>Solution" in cell.source]
    assert all(cell.metadata.get("editable") is False for cell in hidden)


@every_lesson
def test_no_placeholder_is_left(name):
    assert not re.search(r"PLACEHOLDER|TODO|FIXME", "\n".join(cell.source for cell in books.read(name).cells))


@every_lesson
def test_metadata_names_no_machine(name):
    text = (books.NOTEBOOKS / f"{name}.ipynb").read_text()
    assert not re.search(r"/home/|/root/|/tmp/|site-packages", text)
    assert set(json.loads(text)["metadata"]) == {"kernelspec", "language_info"}


# ---------------------------------------------------------------- its code cells

@every_lesson
def test_was_run_from_top_to_bottom(name):
    counts = [cell.execution_count for cell in code_cells(name)]
    assert counts == list(range(1, len(counts) + 1))


@every_lesson
def test_code_cells_are_short(name):
    for cell in code_cells(name):
        assert len(cell.source.splitlines()) <= 40, cell.source
        assert max(map(len, cell.source.splitlines())) <= 120, cell.source
        assert not cell.source.rstrip().endswith(";"), cell.source


@every_lesson
def test_outputs_are_short_and_hold_no_stderr_no_error_no_address(name):
    for cell in code_cells(name):
        assert max(map(len, printed(cell).splitlines()), default=0) <= 100, printed(cell)
        assert not re.search(r"0x[0-9a-f]{6,}", printed(cell)), cell.source
        for output in cell.outputs:
            assert output.get("name") != "stderr", cell.source
            assert output.output_type != "error" or "raises-exception" in cell.metadata.get("tags", []), cell.source


@every_lesson
def test_few_cells_are_left_uncompared(name):
    tags = [tag for cell in code_cells(name) for tag in cell.metadata.get("tags", [])]
    assert set(tags) <= TAGS
    assert tags.count("nbval-ignore-output") <= UNCOMPARED


def bound(source):
    """{(name, what it was imported as, or None)} of the names that a cell binds at its outermost level."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add((node.name, None))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", "")
            found |= {((each.asname or each.name).split(".")[0], f"{module} {each.name}") for each in node.names}
        else:
            found |= {(each.id, None) for each in ast.walk(node)
                      if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return found


@every_lesson
def test_an_exported_name_means_one_thing(name):
    cells = code_cells(name)
    ours = set().union(*(bound(cell.source) for cell in cells if exported(cell)))
    others = set().union(*(bound(cell.source) for cell in cells if not exported(cell)))
    clash = {name for name, _ in ours} & {name for name, _ in others}
    assert {name for name in clash if {b for b in ours if b[0] == name} != {b for b in others if b[0] == name}} == set()
