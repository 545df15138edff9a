"""A run in one line and as HTML; nothing in its folder becomes markup."""

import json
import re
from html import unescape

import pytest

from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.summary import run_html, run_line

CLASSES = ("dog", "rain")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished run of two rounds in `runs/mine` of the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "mine"
    path.mkdir(parents=True)
    rows = [{"round": number, "accuracy": number / 4, "test_clips": 40, "test_clips_total": 40} for number in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {"rounds": 2, "accuracy": 0.5, "accuracy_low": 0.35, "accuracy_high": 0.65, "test_clips": 40}
    (path / "results.json").write_text(json.dumps(results))
    (path / "report.html").write_text("")
    return RunFolder(path)


def cells(folder, round_number=2, classes=CLASSES, generator="vae"):
    """The rows of the table, as text without markup."""
    shown = run_html(folder, round_number, 2, classes, generator)
    pairs = re.findall(r"<tr><th[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>", shown)
    return {name: unescape(re.sub(r"<[^>]*>", "", cell)) for name, cell in pairs}


def test_accuracy_comes_first_with_its_interval_and_clips(folder):
    found = cells(folder)
    assert next(iter(found)) == "Accuracy"
    assert all(figure in found["Accuracy"] for figure in ("0.500", "95 %: 0.350 to 0.650", "40 test clips"))
    assert (found["Classes"], found["Generator"], found["Rounds"]) == ("2: dog, rain", "vae", "2")
    assert 'href="runs/mine/report.html"' in run_html(folder, 2, 2, CLASSES, "vae")
    assert run_line(folder, 2, 2, CLASSES) == "<run mine: accuracy 0.500, round 2 of 2, 2 classes>"


def test_an_earlier_round_shows_its_own_accuracy(folder):
    found = cells(folder, round_number=1)
    assert found["Accuracy"] == "0.250 (40 test clips)"
    assert found["Rounds"] == "1 of 2"
    assert "accuracy 0.250, round 1 of 2" in run_line(folder, 1, 2, CLASSES)


def test_an_accuracy_on_some_of_the_clips_says_so(folder):
    folder.results.write_text(json.dumps({"rounds": 2, "accuracy": 1.0, "test_clips": 8, "test_clips_total": 40}))
    assert cells(folder)["Accuracy"] == "1.000 (8 of 40 test clips)"


@pytest.mark.parametrize(
    "content",
    ["{", '{"rounds": 2, "accuracy": "<b>high</b>"}', f'{{"rounds": 2, "accuracy": {10**400}}}', '{"rounds": 2}', "[]"],
)
def test_results_that_cannot_be_read_are_not_shown(folder, content):
    folder.results.write_text(content)
    folder.metrics.write_text("")
    folder.report.unlink()
    found = cells(folder)
    assert (found["Accuracy"], found["Report"]) == ("unknown", "none")
    assert run_line(folder, 2, 2, CLASSES) == "<run mine: round 2 of 2, 2 classes>"


def test_names_are_text(tmp_path):
    path = tmp_path / '"><script>alert(1)</script>\n\x1b[31m'.replace("/", "_")
    path.mkdir()
    (path / "report.html").write_text("")
    shown = run_html(RunFolder(path), 1, 1, ("<img src=x onerror=alert(1)>", "\u202edog"), "<b>")
    assert set(re.findall(r"</?(\w+)", shown)) == {"table", "tr", "th", "td", "a", "code"}
    assert len(re.findall(r'"', shown)) == 2 * len(re.findall(r'\w="', shown)), "no attribute ends early"
    line = run_line(RunFolder(path), 1, 1, ("dog",))
    for text in (shown, line):
        assert not {"\n", "\x1b", "\u202e"} & set(text)


def test_a_report_that_is_a_link_out_of_the_folder_is_not_linked(folder, tmp_path):
    folder.report.unlink()
    (tmp_path / "other.html").write_text("")
    (folder.path / "report.html").symlink_to(tmp_path / "other.html")
    assert cells(folder)["Report"] == "none"
