"""The built site in a real browser, opened from its folder and from a server: `make test-book`."""
import functools
import http.server
import io
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pypdf
import pytest
from playwright.sync_api import sync_playwright

SITE = Path(__file__).resolve().parent.parent / "build" / "book"
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if "_static" not in path.parts)
LESSONS = [page for page in PAGES if page.startswith("notebooks/")]
NAMES = "chromium", "chromium-browser", "google-chrome", "chrome"


def lesson(topic):
    """The page of a lesson, whatever its number."""
    return next(page for page in LESSONS if page.endswith(f"_{topic}.html"))


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, f"no browser: install one of {', '.join(NAMES)}"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.getuid() == 0 else [])


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="session", params=["folder", "server"])
def address(request):
    """Where the site begins: once its folder, once a plain server."""
    if request.param == "folder":
        yield SITE.as_uri()
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def open_page(browser, address):
    """open_page(path, **options of the browser's context): a page; in the end nothing went wrong or left the machine."""
    wrong = []

    def opened(path, **options):
        page = browser.new_context(**options).new_page()
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
        page.on("request", lambda request: request.url.startswith((address, "data:", "blob:"))
                or wrong.append(f"left the site: {request.url}"))
        page.goto(f"{address}/{path}", wait_until="load")
        return page
    yield opened
    for context in browser.contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("path", PAGES)
def test_page_on_a_small_screen(open_page, path):
    page = open_page(path, viewport=dict(width=390, height=800))
    page.wait_for_function("!window.MathJax || MathJax.startup.promise.then(() => true)")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert page.locator("[data-mjx-error]").count() == 0
    for image in page.locator("article img").all():
        assert len(image.get_attribute("alt") or "") > 12, image.get_attribute("src")[:100]
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_search(open_page):
    page = open_page("search.html?q=rescale")
    page.wait_for_selector("ul.search li a")
    assert any("_online_softmax" in a.get_attribute("href") for a in page.locator("ul.search li a").all())


def test_search_box_leads_to_results(open_page):
    page = open_page("index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("warp specialization")
    page.keyboard.press("Enter")
    page.wait_for_selector("ul.search li a")
    assert "_warp_specialization" in page.locator("ul.search").inner_html()


def test_folds_are_closed_and_open(open_page):
    page = open_page(lesson("online_softmax"))
    folds = page.locator("details")
    assert folds.count() > 6 and page.locator("details[open]").count() == 0
    solution = folds.filter(has=page.locator("summary", has_text="Solution")).first
    code = solution.locator("pre")
    assert not code.is_visible()
    solution.locator("summary").click()
    assert code.is_visible() and "def safe_softmax" in code.inner_text()


def test_formulas_are_set(open_page):
    page = open_page(lesson("online_softmax"))
    page.wait_for_selector("mjx-container svg")
    assert page.locator("mjx-container").count() == page.locator("span.math, div.math").count() > 20


def test_dark_follows_the_system_and_figures_keep_their_ground(open_page):
    page = open_page(lesson("vector_add_cuda"), color_scheme="dark")
    paper, *grounds = (element.evaluate("element => getComputedStyle(element).backgroundColor")
                       for element in [page.locator("body"), *page.locator("article .cell_output img").all()])
    def light(colour):
        return min(map(int, re.findall(r"\d+", colour)[:3]))
    assert light(paper) < 60
    assert grounds and all("rgba" not in ground and light(ground) > 180 for ground in grounds)


def test_a_term_leads_to_its_entry(open_page):
    page = open_page(lesson("vector_add_cuda"))
    page.locator("a.term", has_text="coalesced").click()
    page.wait_for_url("**/glossary.html#coalesced")
    page.wait_for_selector("section#coalesced h2")


def test_cheat_sheet_prints_on_one_page(open_page):
    page = open_page("book/cheat_sheet.html")
    page.wait_for_selector("mjx-container svg")
    printed = pypdf.PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True)))
    assert len(printed.pages) == 1
    text = printed.pages[0].extract_text()
    assert "acc = alpha[:, None] * acc + p @ v_j" in text and "gl.warp_specialize" in text


# ---------------------------------------------------------------- without a browser

class Links(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.targets = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.targets += [attributes[name] for name in ("href", "src") if attributes.get(name)]


def test_links_within_the_site_lead_somewhere():
    pages = {page: Links(SITE / page) for page in PAGES}
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            place, anchor = urldefrag(target)
            if urlsplit(target).scheme:
                continue
            path = os.path.normpath(os.path.join(os.path.dirname(page), unquote(place.split("?")[0]))) if place else page
            if not (SITE / path).is_file() or anchor and path in pages and unquote(anchor) not in pages[path].ids:
                broken.append(f"{page}: {target}")
    assert broken == []


def test_every_lesson_has_a_page_and_a_row():
    rows = (SITE / "book" / "lessons.html").read_text(encoding="utf-8")
    saved = {f"notebooks/{path.stem}.html" for path in (SITE.parents[1] / "notebooks").glob("[0-9]*.ipynb")}
    assert set(LESSONS) == saved
    assert all(f'href="../{page}"' in rows for page in LESSONS)


def test_next_leads_through_all_lessons():
    page, seen = "index.html", []
    for _ in LESSONS:
        following = re.search(r'<a class="right-next"\s+href="([^"]+)"', (SITE / page).read_text(encoding="utf-8"))[1]
        page = os.path.normpath(os.path.join(os.path.dirname(page), following))
        seen.append(page)
    assert seen == LESSONS
