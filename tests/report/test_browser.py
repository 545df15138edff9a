"""The report in a real browser."""

import csv
import io
from itertools import pairwise

import pytest

from fed_a2v.report.page import write_report
from fed_a2v.storage.plain_text import csv_cell
from tests.report.conftest import CLASSES, written_run

pytestmark = pytest.mark.browser

PLOTS = (
    "accuracy",
    "gain",
    "losses",
    "validation",
    "network",
    "classes",
    "confusion",
    "map",
    "bytes",
    "seconds",
    "sites",
)
DRAWN = """() => Object.fromEntries([...document.querySelectorAll("figure[data-plot]")].map(figure => [
    figure.dataset.plot, figure.querySelectorAll(".plot .main-svg .trace, .plot .main-svg .hm").length]))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["report", "report_of_three"])
def test_every_plot_is_drawn_without_a_complaint_or_a_request(which, scheme, opened, request):
    path = request.getfixturevalue(which)
    page = opened(path, color_scheme=scheme)
    drawn = page(DRAWN)
    assert set(drawn) == set(PLOTS)
    assert all(drawn.values()), drawn
    assert page.complaints == []
    assert page.requests == [path.as_uri()]
    assert page("() => document.getElementById('problem').hidden")


def test_every_view_of_every_plot_can_be_drawn(report_of_three, opened):
    page = opened(report_of_three)
    radios = page.page.locator("fieldset.views input")
    assert radios.count() > 20
    for index in range(radios.count()):
        radios.nth(index).check(force=True)
    page.page.wait_for_timeout(200)
    assert all(page(DRAWN).values())
    assert page.complaints == []


def test_the_page_blocks_all_requests(report, opened):
    page = opened(report)
    assert page("() => fetch('https://example.org').then(() => 'fetched', () => 'refused')") == "refused"
    assert page("() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
                "document.head.append(s); return window.ran }") is None  # fmt: skip
    assert not any("example.org" in url for url in page.requests)


@pytest.mark.parametrize("width", [320, 390])
@pytest.mark.parametrize("which", ["report", "report_of_three"])
def test_on_a_phone_nothing_stands_out_to_the_side(which, width, opened, request):
    page = opened(
        request.getfixturevalue(which),
        viewport={"width": width, "height": 700},
        is_mobile=True,
        has_touch=True,
    )
    assert page("() => document.documentElement.scrollWidth") == width
    widest = page(
        "() => Math.max(...[...document.querySelectorAll('.plot')].map(p => p.getBoundingClientRect().right))"
    )
    assert widest <= width
    assert page("() => document.querySelector('.plot')._fullLayout.dragmode") is False  # a finger scrolls the page


def test_plots_follow_the_colour_scheme_while_the_page_is_open(report, opened):
    page = opened(report, color_scheme="light")
    ink = "() => document.querySelector('.plot')._fullLayout.font.color"
    light = page(ink)
    page.page.emulate_media(color_scheme="dark")
    page.until(f"() => ({ink})() !== '{light}'")
    assert page(ink) == page("() => getComputedStyle(document.documentElement).getPropertyValue('--text').trim()")
    assert page("() => getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"


def test_text_has_contrast_in_both_schemes(report, opened):
    for scheme in ("light", "dark"):
        page = opened(report, color_scheme=scheme)
        colours = page("""() => { const style = getComputedStyle(document.documentElement);
            return Object.fromEntries(["--back", "--card", "--text", "--soft", "--accent"].map(
                name => [name, style.getPropertyValue(name)])) }""")
        for ink in ("--text", "--soft", "--accent"):
            for ground in ("--back", "--card"):
                assert contrast(colours[ink].strip(), colours[ground].strip()) >= 4.5, (scheme, ink, ground)


def test_the_keyboard_alone_reaches_and_works_everything(report, opened):
    page = opened(report)
    focused = "() => document.activeElement.outerHTML.slice(0, 60)"
    page.page.keyboard.press("Tab")
    assert 'class="skip"' in page(focused)
    page.page.keyboard.press("Enter")
    page.page.keyboard.press("Tab")
    assert 'name="view-accuracy"' in page(focused)
    page.page.keyboard.press("ArrowRight")
    page.until("() => document.querySelector('#accuracy .plot')._fullLayout.yaxis.title.text !== 'Accuracy'")
    page.page.keyboard.press("Tab")
    assert 'class="plot' in page(focused)
    page.page.keyboard.press("ArrowRight")
    page.page.wait_for_selector("#accuracy .hoverlayer text")
    for _ in range(10):  # Plotly's own buttons, which are seen once the plot has the focus
        page.page.keyboard.press("Tab")
        if "modebar" not in page(focused):
            break
        page.until("() => getComputedStyle(document.activeElement.closest('.modebar')).opacity === '1'")
    assert "Numbers" in page(focused)
    page.page.keyboard.press("Enter")
    assert page("() => document.querySelector('#accuracy details').open")
    table = page.page.locator("#accuracy details table")
    assert table.is_visible()
    assert "0.600" in table.inner_text() or "0.6" in table.inner_text()


def test_a_class_can_be_singled_out_on_the_map(report, opened):
    page = opened(report)
    page.page.select_option("#map select", "rain")
    page.until("() => document.querySelector('#map .plot').data.some(trace => trace.opacity < 0.5)")
    shown = page("() => document.querySelector('#map .plot').data.map(t => [t.meta, t.opacity])")
    assert {name for name, opacity in shown if opacity == 1} == {"rain"}
    labels = page("() => [...document.querySelectorAll('#map .annotation-text')].map(node => node.textContent)")
    assert labels == ["rain"]


@pytest.mark.parametrize("width", [390, 1280])
def test_names_on_the_map_cover_no_other_name(width, tmp_path, opened):
    folder = written_run(tmp_path / "mine", classes=[f"a sound of kind {k}" for k in range(12)])
    page = opened(write_report([folder], tmp_path / "report.html"), viewport={"width": width, "height": 800})
    boxes = page("""() => [...document.querySelectorAll("#map .annotation-text")].map(each => {
        const {left, right, top, bottom} = each.getBoundingClientRect(); return [left, top, right, bottom] })""")
    assert len(boxes) > 2
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)
    assert page.complaints == []


def test_the_legend_of_the_map_has_every_class_with_its_symbol_and_highlights_it(report, opened):
    page = opened(report)
    buttons = page.page.locator("#map ul.legend button")
    assert buttons.all_inner_texts() == sorted(CLASSES)
    symbols = page("() => [...document.querySelectorAll('#map ul.legend path')].map(p => p.getAttribute('d'))")
    assert len(set(symbols)) == len(CLASSES)
    buttons.nth(2).click()
    page.until("() => document.querySelector('#map ul.legend [aria-pressed=true]')?.textContent === 'rain'")
    assert page("() => document.querySelector('#map select').value") == "rain"
    assert page("() => document.activeElement.textContent") == "rain"
    buttons.nth(2).click()
    page.until("() => !document.querySelector('#map ul.legend [aria-pressed=true]')")


def test_the_numbers_of_every_figure_can_be_downloaded(report, opened):
    page = opened(report)
    assert page.page.locator("[data-csv]:visible").count() == len(PLOTS)
    for name in ("accuracy", "classes", "sites"):  # a browser asks before it takes ten files from a page
        with page.page.expect_download() as download:
            page.page.locator(f"[data-csv={name}]").click()
        assert download.value.suggested_filename == f"{name}.csv"
        header, *rows = read_csv(download.value)
        assert rows
        assert all(len(row) == len(header) for row in rows)
        if name == "accuracy":
            assert (header, rows[0]) == (["round", "before", "after"], ["1", "0.4", "0.6"])
    assert page.complaints == []


def test_a_downloaded_name_is_no_formula(tmp_path, opened):
    names = ("=1+1", "+cmd", 'a "b", c', "-1")
    page = opened(write_report([written_run(tmp_path / "mine", classes=names)], tmp_path / "report.html"))
    with page.page.expect_download() as download:
        page.page.locator("[data-csv=classes]").click()
    assert {row[0] for row in read_csv(download.value)} == {"class", *map(csv_cell, names)}


@pytest.mark.parametrize("which", ["report", "report_of_three"])
def test_no_table_is_cut_off_below(which, opened, request):
    page = opened(request.getfixturevalue(which))
    page("() => document.querySelectorAll('details').forEach(each => { each.open = true })")
    cut = page("() => [...document.querySelectorAll('.table, pre')].filter(e => e.scrollHeight > e.clientHeight + 1)"
               ".map(e => e.ariaLabel || e.textContent.slice(0, 40))")  # fmt: skip
    assert cut == []


def test_plots_have_names_for_those_who_do_not_see_them(report, opened):
    page = opened(report)
    assert page("() => [...document.querySelectorAll('.plot')].every(p => p.getAttribute('role') === 'img' && "
                "p.getAttribute('aria-label').length > 20 && p.tabIndex === 0)")  # fmt: skip
    assert page("() => document.querySelectorAll('figure details table').length") == len(PLOTS)
    levels = page("() => [...document.querySelectorAll('h1,h2,h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_strange_names_are_shown_as_they_are(tmp_path, opened):
    names = (
        "<img src=x onerror=alert(1)>",
        "</script><script>alert(2)</script>",
        '<a href="https://example.org">link</a> & co',
        "צליל של כלב",
        "犬の鳴き声 🐕",
        "%{x} {{ 7 * 7 }} ${y}",
        "2024-01-01",
        "1",
        "a" * 300,
    )
    folder = written_run(tmp_path / "run <b>", classes=names)
    path = write_report([folder], tmp_path / "report.html")
    page = opened(path, viewport={"width": 390, "height": 700})
    assert page.complaints == []
    assert page.requests == [path.as_uri()]
    assert all(page(DRAWN).values())
    assert page("() => document.querySelectorAll('img, svg a, #content a').length") == 0
    assert page("() => document.documentElement.scrollWidth") == 390
    cells = page("() => [...document.querySelectorAll('#classes tbody th')].map(cell => cell.textContent)")
    assert set(cells) == set(names)
    ticks = page("() => [...document.querySelectorAll('#classes .ytick text')].map(tick => tick.textContent)")
    assert names[5] in ticks
    assert "1" in ticks
    assert "</script><script>alert(…"[:20] in " ".join(ticks)


def read_csv(download):
    return list(csv.reader(io.StringIO(download.path().read_text(encoding="utf-8"))))


def contrast(one, other):
    """The ratio of two colours' luminances, as WCAG has it."""
    high, low = sorted(map(luminance, (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
