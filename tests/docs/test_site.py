"""The documentation builds without a warning, its links lead somewhere, and it needs no network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import fed_a2v
from fed_a2v.callbacks.base import Callback
from fed_a2v.core.generators.base import Generator
from fed_a2v.federation.server.aggregation.base import AggregationRule
from fed_a2v.federation.server.metrics.base import Metric
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
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("mp3", "faq.html#can-it-read-mp3"),
        ("citation", "faq.html#how-do-i-cite"),
        ("windows", "faq.html#does-it-work-on-windows"),
        ("own recordings", "tutorial.html"),
        ("load_run", "api.html"),
    ],
)
def test_the_search_finds_what_newcomers_look_for(browser, site, words, page):
    opened = browser.new_page()
    opened.goto((site / "index.html").as_uri())
    opened.locator("input.md-search__input").press_sequentially(words)
    opened.wait_for_selector(".md-search-result__item")
    links = opened.locator(".md-search-result__link").evaluate_all("links => links.map(link => link.href)")
    assert any(f"/{page}" in link for link in links)


@pytest.mark.browser
def test_the_filter_leaves_the_settings_with_all_of_its_words(browser, site):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((site / "settings.html").as_uri())
    keys, field = page.locator("article td:first-child"), page.locator(".settings-filter input")
    every = keys.all_inner_texts()
    assert page.inner_text(".settings-filter output").split()[0] == str(len(every)) > "100"
    field.fill("learning_rate adamw")
    shown = "elements => elements.filter(each => each.offsetParent).map(each => each.id || each.innerText)"
    left = keys.evaluate_all(shown)
    assert "site.learning_rate" in left
    assert all("learning_rate" in key for key in left)
    headings = page.locator("article h2").evaluate_all(shown)
    assert {"site", "generator", "finetune"} <= {*headings}
    assert "wandb" not in headings
    field.fill("")
    assert page.locator("#wandb").is_visible()


def test_the_reference_of_python_has_all_that_is_public_and_nothing_private(pages):
    anchors = {anchor for path, page in pages.items() if path.name.startswith("api") for anchor in page.anchors}
    documented = {anchor for anchor in anchors if anchor.startswith("fed_a2v.")}
    assert {f"fed_a2v.{name}" for name in fed_a2v.__all__ if name != "__version__"} <= documented
    assert not [name for name in documented if any(part.startswith("_") for part in name.split("."))]
    for base in (Generator, AggregationRule, Metric, Callback):
        public = {name for name in vars(base) if not name.startswith("_") and callable(getattr(base, name))}
        assert {f"{base.__module__}.{base.__name__}.{name}" for name in public} <= documented


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
