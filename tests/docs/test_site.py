"""The documentation builds without a warning, its links lead somewhere, and it needs no network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.blocks import REPOSITORY


class Page(HTMLParser):
    """The links of a page, what it loads by itself, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if anchor := given.get("id") or (given.get("name") if tag == "a" else None):
            self.anchors.add(anchor)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source", "audio") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; building it fails at the first warning."""
    folder = tmp_path_factory.mktemp("site")
    mkdocs = Path(sys.executable).parent / "mkdocs"
    command = [mkdocs, "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_every_page_of_the_folder_is_built(site):
    for source in (REPOSITORY / "docs").rglob("*.md"):
        assert (site / source.relative_to(REPOSITORY / "docs").with_suffix(".html")).is_file()


def test_every_link_within_the_site_leads_to_a_page_and_an_anchor(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            lost = parts.fragment and target.suffix == ".html" and parts.fragment not in pages[target].anchors
            if not target.is_file() or (lost and not parts.fragment.startswith("__")):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_what_a_page_loads_is_there_and_nothing_comes_from_elsewhere(site, pages):
    for path, page in pages.items():
        for link in page.loads:
            parts = urlsplit(link)
            assert not parts.netloc, f"{path.name}: {link}"
            assert parts.scheme == "data" or (path.parent / unquote(parts.path)).is_file(), f"{path.name}: {link}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?https?:|@import", sheet.read_text(encoding="utf-8")), sheet.name


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_every_page_opens_from_the_disk_without_an_error_or_a_request(browser, pages, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark")
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    for path in pages:
        page.goto(path.as_uri())
        page.wait_for_selector("article h1")
        fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert fits, f"{path.name} is wider than the screen"
    assert not wrong
    context.close()


@pytest.mark.browser
def test_the_search_works_from_the_disk(browser, site):
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    # Typed key by key: the search reads its field when a key comes up, and a value set at once can pass it by.
    page.locator("input.md-search__input").press_sequentially("contrastive")
    page.wait_for_selector(".md-search-result__item")
    assert "All settings" in page.inner_text(".md-search-result__list")


@pytest.mark.browser
def test_equations_are_pictures_in_the_colour_of_the_text(browser, site):
    page = browser.new_context(color_scheme="dark").new_page()
    page.goto((site / "method.html").as_uri())
    drawn = page.locator(".equation svg")
    assert drawn.count() >= 8
    sizes = [drawn.nth(number).bounding_box() for number in range(drawn.count())]
    assert all(15 < size["height"] < 120 and size["width"] > 50 for size in sizes)
    colour = "element => getComputedStyle(element).fill"
    text = page.locator("article p").first.evaluate("element => getComputedStyle(element).color")
    assert drawn.first.evaluate(colour) == text


def test_the_settings_are_on_their_page(site):
    text = (site / "settings.html").read_text(encoding="utf-8")
    assert "<code>generator.latent_dim</code>" in text
    assert "<!-- all settings -->" not in text


LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|\b(?:href|src)=\"([^\"]+)\"")
TOP_PAGES = sorted(REPOSITORY.glob("*.md"))


def anchors_of(page):
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TOP_PAGES, ids=lambda page: page.name)
def test_every_relative_link_of_the_pages_outside_the_site_leads_somewhere(page):
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        link = next(filter(None, match.groups()))
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place) if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors_of(target), f"{page.name}: {link}"
