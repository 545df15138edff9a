"""The page's text: what is in it, that it is true, and that no name from a data set becomes markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_a2v.commands import report as command
from fed_a2v.config.compose import compose_settings
from fed_a2v.core import projection
from fed_a2v.report import figures, page
from fed_a2v.report.collect import Collection, ReportError, collect
from fed_a2v.report.page import render, write_report
from fed_a2v.report.record import RunRecord
from fed_a2v.report.reproduce import overrides_of
from fed_a2v.report.styles import COLOURS, LONGEST_LABEL, clean, label, symbol
from fed_a2v.runs.checkpoint import same_results
from fed_a2v.runs.folder import RunFolder
from fed_a2v.storage.files import write_json
from tests.report.conftest import CLASSES, drawn_map, written_run
from tests.report.test_browser import contrast


class Outline(HTMLParser):
    """The elements of a page, and the text outside its scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.silent = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs if name != "class")))
        self.silent = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.silent = False

    def handle_data(self, data):
        if not self.silent:
            self.text.append(data)


@pytest.fixture(scope="module")
def text(run_folder):
    return "\n".join(Outline(render(collect([run_folder]))).text)


def test_the_headline_has_accuracy_before_and_after(text):
    assert re.search(r"Accuracy\s+0\.900\s+after round 4", text)
    assert re.search(r"Before the server step\s+0\.700\s+in round 4; the step adds \+0\.200", text)


def shown(folder):
    """The page's text, white space in it as one space."""
    return " ".join(" ".join(Outline(render(collect([folder]))).text).split())


def test_each_gain_of_the_server_step_is_named_for_what_it_is(tmp_path):
    # Accuracies 0.7, 0.8 after the step and 0.4, 0.5 before it; without it 0.6, 0.7.
    written_run(tmp_path / "FedAvg", rounds=2, overrides=["finetune.enabled=false"])
    folder = written_run(tmp_path / "vae", rounds=2, lead=0.1)
    text = shown(folder)
    assert "Before the server step 0.500 in round 2; the step adds +0.300" in text
    assert "Gain of the first round +0.300" in text
    assert "Gain over FedAvg +0.100 the same run without the server step, after round 2" in text
    in_round, over = figures.gain_plot(collect([folder])).views
    assert list(in_round.figure.data[0].y) == pytest.approx([0.3, 0.3])
    assert list(over.figure.data[0].y) == pytest.approx([0.1, 0.1])
    text = shown(tmp_path)
    assert "0.800 - 0.500 0.950 +0.300 +0.300 +0.100" in text, "side by side"
    assert "0.700 - 0.500 0.950 - - -" in text, "FedAvg has no server step"
    written_run(tmp_path / "vae", rounds=2, lead=0.1, seed=1, overrides=["site.epochs=3"])
    assert "Gain over FedAvg" not in shown(folder), "another experiment's FedAvg is no measure"


def test_accuracies_have_their_intervals_and_the_step_its_test(tmp_path):
    folder = RunFolder(written_run(tmp_path / "mine", rounds=2))
    more = {"accuracy_low": 0.4, "accuracy_high": 0.875, "accuracy_before_low": 0.25, "accuracy_before_high": 0.75}
    more |= {"server_step/better": 6, "server_step/worse": 1, "server_step/p": 0.125}
    rows = [row | more for row in folder.rows()]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = shown(folder.path)
    assert "Accuracy 0.700 95 % 0.400 to 0.875; after round 2, on 16 test clips" in text
    assert "Before the server step 0.500 95 % 0.250 to 0.750; in round 2" in text
    assert "Among the nearest five 0.950" in text, "a row of an earlier version has no interval there"
    assert (
        "in round 1: 6 test clips better, 1 worse (McNemar's test: p = 0.12, no difference shown); in round 2" in text
    )
    assert "There are only 16 test clips" in text
    found = collect([folder.path])
    assert "0.700 0.400 to 0.875 0.500 0.950" in shown_several(found)
    _, area, _ = figures.accuracy_plot(found).views[0].figure.data
    assert list(area.y) == [0.875, 0.875, 0.4, 0.4]
    config = folder.path / "config.yaml"
    config.write_text(config.read_text().replace("finetune:\n  enabled: true", "finetune:\n  enabled: false"))
    assert "test clips better" not in shown(folder.path), "without a server step nothing changes"


@pytest.mark.parametrize("key", ["accuracy_low", "server_step/p", "test_clips"])
def test_intervals_that_are_no_numbers_are_an_error_that_names_the_folder(tmp_path, key):
    folder = RunFolder(written_run(tmp_path / "mine", rounds=1))
    more = {"accuracy_low": 0.4, "accuracy_high": 0.875, "server_step/better": 6, "server_step/worse": 1}
    (row,) = folder.rows()
    folder.metrics.write_text(json.dumps(row | more | {"server_step/p": 0.125} | {key: "<b>"}) + "\n")
    with pytest.raises(ReportError, match="mine"):
        write_report([folder.path], tmp_path / "report.html")


def test_figures_that_cover_some_of_the_test_clips_are_marked_everywhere(tmp_path):
    folder = written_run(tmp_path / "mine", lead=0.1, partly=(3, 4))
    text = shown(folder)
    assert "Accuracy 1.000 after round 4, on 8 of 16 test clips, 3 of 5 sites" in text
    assert "Best round 0.800 round 2, on 16 test clips" in text
    assert "mine: The figures of the last round, 4, cover only 8 of 16 test clips, 3 of 5 sites." in text
    assert "not all sites were evaluated in round 3." in text
    found = collect([folder])
    after = figures.accuracy_plot(found).views[0].figure.data[0]
    assert list(after.customdata) == ["", "", *[" on 8 of 16 test clips, 3 of 5 sites"] * 2]
    table = figures.accuracy_plot(found).table
    assert [row[table.header.index("test clips")] for row in table.rows][2] == "8 of 16 test clips, 3 of 5 sites"
    classes = figures.class_plot(found).table
    assert {row[classes.header.index("test clips")] for row in classes.rows} == {"2 of 4"}
    sites = figures.sites_plot(found).table
    assert [row[sites.header.index("not evaluated")] for row in sites.rows] == ["2", "2", "0", "0", "0"]
    side_by_side = shown_several(found)
    assert "1.000 on 8 of 16" in side_by_side
    written_run(tmp_path / "FedAvg", overrides=["finetune.enabled=false"])
    assert "Gain over FedAvg" not in shown(folder), "accuracies on different clips do not compare"


def shown_several(found):
    return " ".join(" ".join(Outline(render(Collection(found.runs * 2))).text).split())


def test_if_no_round_evaluated_all_sites_the_best_round_has_a_note(tmp_path):
    text = shown(written_run(tmp_path / "mine", rounds=2, partly=(1, 2)))
    assert "Best round 0.700 round 2, on 8 of 16 test clips, 3 of 5 sites" in text
    assert "No round evaluated all sites" in text


def test_t5_has_its_figures_and_a_notice_if_it_is_far_behind(tmp_path, run_folder):
    folder = written_run(tmp_path / "mine", t5=True)
    text = shown(folder)
    assert "T5: accuracy 0.250 after round 4; cosine 0.125, CLIP's 0.700" in text
    assert "T5 is far behind CLIP: cosine 0.125 against 0.700" in text
    found = collect([folder])
    views = {view.label: view.figure for view in figures.accuracy_plot(found).views}
    assert list(views["T5: cosine"].data[0].y) == [0.125] * 4
    bars = {view.label: view.figure for view in figures.class_plot(found).views}
    assert set(bars["T5: accuracy"].data[0].x) == {0.25}
    assert "T5:" not in shown(run_folder)


def test_the_headline_has_the_baselines_of_a_comparison(comparison):
    text = "\n".join(Outline(render(collect([comparison / "vae"]))).text)
    assert re.search(r"pooled\s+0\.900\s+this run \+0\.000", text)


def test_several_runs_have_a_table_and_the_settings_in_which_they_differ(comparison):
    text = "\n".join(Outline(render(collect([comparison]))).text)
    assert "3 runs" in text
    assert re.search(r"vae\s+0\.900\s+-\s+0\.700", text)
    assert "finetune.enabled" in text


def test_a_sweep_shows_the_settings_in_which_its_runs_differ_and_no_consequence_of_them(tmp_path):
    for seed in range(3):
        written_run(tmp_path / str(seed), overrides=[f"seed={seed}"])
    table = page._differences(collect([tmp_path]).runs)
    assert (table.header, table.rows) == (("run", "seed"), (("0", "0"), ("1", "1"), ("2", "2")))


def test_runs_of_other_options_differ_in_the_option_only(comparison):
    table = page._differences(collect([comparison]).runs)
    assert [dict(zip(table.header, row, strict=True)) for row in table.rows] == [
        {"run": "vae", "finetune.enabled": "true", "generator": "vae"},
        {"run": "FedAvg", "finetune.enabled": "false", "generator": "vae"},
        {"run": "prototypes", "finetune.enabled": "true", "generator": "none"},
    ]


def test_how_to_reproduce_has_the_commit_and_what_is_not_in_it(tmp_path):
    folder = written_run(tmp_path / "mine")
    found = {"fed_a2v": "9.9", "commit": "c0ffee", "uncommitted_changes": False}
    found |= {"constraints_sha256": "abc123", "not_as_in_constraints": ["numpy 1.0"], "packages_sha256": "def456"}
    write_json(folder / "environment.json", found)
    text = shown(folder)
    assert "git checkout c0ffee fed-a2v train" in text
    assert all(each in text for each in ("9.9", "abc123", "numpy 1.0", "def456"))
    write_json(folder / "environment.json", found | {"uncommitted_changes": True})
    assert "git checkout" not in shown(folder)
    assert "uncommitted changes" in shown(folder)


def test_the_weakest_classes_have_their_clips_and_their_usual_mistake(tmp_path):
    folder = written_run(tmp_path / "mine")
    (run,) = collect([folder]).runs
    first = min(CLASSES, key=lambda name: run.evaluation["classes"][name]["accuracy"])
    other = CLASSES[(CLASSES.index(first) + 1) % len(CLASSES)]
    weak = page._weakest(run)[0]
    assert weak.name == first
    assert weak.figures.endswith(f"most often taken for {other}")


def test_errors_are_listed_with_their_numbers(text):
    assert re.search(r"weight 0: not finite <script>alert\(1\)</script>\s+rejected\s+mine\s+1", text)


def test_an_unfinished_run_has_a_notice(tmp_path):
    folder = RunFolder(tmp_path / "young")
    folder.start("rounds: 5\n")
    folder.append({"round": 1})
    assert "young has not finished: round 1 of 5." in render(collect([folder.path]))


@pytest.mark.parametrize("cut", [0, 2])
def test_capped_sites_of_a_weighted_mean_have_a_notice(cut):
    row = {"round": 1, "aggregation/capped_sites": cut}
    text = " ".join(Outline(render(Collection([RunRecord("mine", Path(), [row])]))).text)
    assert ("aggregation.max_site_share" in text, f"{cut} sites" in text) == (cut > 0, cut > 0)


@pytest.mark.parametrize("lost", [[], ["dog", "sea waves"]])
def test_lost_classes_are_counted_and_named_at_the_top(lost):
    run = RunRecord("mine", Path(), [{"round": 1, "lost_classes": lost}], {"share": {"min_clips": 7}})
    text = " ".join(Outline(render(Collection([run]))).text)
    assert ("the server step lacks 2 classes" in text) == ("dog, sea waves" in text) == bool(lost)


def test_it_shows_all_settings_the_environment_and_the_command(text, run_folder):
    assert "validation_frequency" in text
    assert "scikit-learn" in text
    command = re.search(r"fed-a2v train (.*)", text)[1]
    again, run = (
        compose_settings(words).model_dump(by_alias=True) for words in (command, ["experiment=quick", "rounds=4"])
    )
    assert same_results(again, run)


def test_the_same_run_gives_the_same_page(run_folder):
    assert render(collect([run_folder])) == render(collect([run_folder]))


def test_it_is_well_below_the_limit(report):
    assert report.stat().st_size < 3_000_000


def test_colours_have_contrast_on_both_backgrounds():
    for colour in COLOURS:
        assert contrast(colour, "#ffffff") >= 3, colour
        assert contrast(colour, "#14171a") >= 3, colour


def test_seventy_classes_look_different():
    looks = {(COLOURS[k % len(COLOURS)], symbol(k)) for k in range(70)}
    assert len(looks) == 70


def test_every_figure_is_valid_for_plotly_and_has_its_numbers(comparison):
    found = collect([comparison])
    plots = [plot for group in page._groups(found, None) for plot in group.plots]
    assert len(plots) == 11
    for plot in plots:
        assert plot.table.rows
        assert all(len(row) == len(plot.table.header) for row in plot.table.rows)
        for view in plot.views:
            assert view.figure.data
            go.Figure(json.loads(view.figure.to_json()))


def test_many_runs_share_figures_and_the_page_says_which_are_left_out(run_folder):
    (run,) = collect([run_folder]).runs
    runs = [RunRecord(f"run {k}", run.folder, run.rows, run.config, {}, run.evaluation, {}, run.map) for k in range(15)]
    html = render(Collection(runs))
    assert "Figures of single runs show the first 12 of 15" in html
    assert len(figures.map_plot(Collection(runs)).views) == 12


# Names from data sets


@settings(max_examples=settings.default.max_examples // 2)  # a page takes long to parse
@given(st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=4, unique=True), st.text(max_size=20))
def test_no_name_becomes_markup(names, reason):
    """Whatever classes, sites and reasons are called, the page has the same elements as with plain names."""
    assert elements(names, reason) == elements([f"class {k}" for k in range(len(names))], "reason")


def elements(names, reason):
    rows = [
        {
            "round": 1,
            "accuracy": 0.5,
            "accuracy_before": 0.4,
            "rejections": [f"!{reason}"],
            "failure_reasons": [],
            "sites": {f"!{names[0]}": "replied"},
            "bytes_up": 1,
            "bytes_down": 1,
            "seconds/sites": 1.0,
        }
    ]
    classes = {name: {"accuracy": 0.5, "clips": 1, "sites": 1, "test_clips": 2} for name in names}
    evaluation = {"round": 1, "classes": classes, "confusion": {names[0]: {names[0]: 1, names[1]: 1}}}
    found = drawn_map(names, np.random.default_rng(0), real=2, synthetic=2)
    run = RunRecord(f"!{names[0]}", None, rows, {}, {"python": names[1]}, evaluation, {}, found)
    with patch.object(page, "_library", lambda: page.Library("", "")):  # two megabytes are slow to parse
        html = render(Collection([run], [RunRecord(names[1], None, [{"round": 1, "accuracy": 0.5}])]))
    html.encode()
    return Outline(html).elements


@given(st.text(max_size=60))
def test_plotly_gets_no_markup_and_no_lines(name):
    shown = label(name)
    assert not set("<>\n\r\x00") & set(shown)
    assert re.sub("&(amp|lt|gt);", "", shown).count("&") == 0
    plain = shown.strip("\u2068\u2069").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain == clean(name)


def test_right_to_left_names_do_not_turn_their_neighbours():
    assert label("כלב") == "\u2068כלב\u2069"
    assert label("dog") == "dog"


def test_long_names_are_cut_on_axes_only():
    assert label("a" * 300, LONGEST_LABEL) == "a" * (LONGEST_LABEL - 1) + "…"
    assert label("<" * 30, 5) == "&lt;&lt;&lt;&lt;…"
    assert label("a" * 300) == "a" * 300


# The command to reproduce a run


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=quick"],
        ["experiment=class_incremental", "dataset.root=/data"],
        ["experiment=esc50_50x1", "dataset.root='/data/my sounds/it\\'s'"],
        ["generator=gaussian", "seed=3", "partition=dirichlet", "partition.alpha=0.1", "share=mean"],
        ["generator=none", "dataset.classes=[dog,'sea waves']", "dataset.unseen=0", "loss.mse=1e-3"],
        ["generator=vae_per_class", "wandb.mode=disabled", "cache_dir=somewhere", "report=false"],
    ],
)
def test_the_overrides_compose_to_the_same_settings(overrides):
    wanted = compose_settings(overrides)
    config = wanted.as_dict()
    again = compose_settings(overrides_of(config))
    assert same_results(again.as_dict(), config)
    assert (again.dataset, again.device, again.threads) == (wanted.dataset, wanted.device, wanted.threads)


def test_settings_of_another_version_give_no_command():
    assert overrides_of({"rounds": 5}) is None
    config = compose_settings([]).as_dict()
    assert overrides_of(config | {"unheard_of": 1}) is None


# The command and the run's own report


def test_the_command_writes_into_the_run_or_where_it_is_told(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(projection, "umap_layout", lambda coordinates: coordinates[:, :2])
    run = written_run(tmp_path / "run")
    command.run([str(run)])
    assert "UMAP" in (run / "report.html").read_text()
    assert capsys.readouterr().out == f"Report: {run / 'report.html'}\n"
    command.run([str(run), str(run_folder), "--out", str(tmp_path / "deep" / "both.html")])
    assert "2 runs" in (tmp_path / "deep" / "both.html").read_text()


def test_a_failed_report_leaves_the_old_one(run_folder, tmp_path):
    out = write_report([run_folder], tmp_path / "report.html")
    before = out.read_bytes()
    with pytest.raises(ReportError):
        write_report([tmp_path / "nowhere"], out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_report_of_a_run_with_sums_says_what_left_the_sites_and_has_no_prototypes(tmp_path):
    words = ("share=statistics", "projection.columns=64", "site.epochs=0", "generator=gaussian")
    folder = RunFolder(written_run(tmp_path / "run", overrides=words, trouble=False))
    rows = folder.rows()
    rows[0] |= {"bytes_registration": 50_000, "bytes_down_registration": 10**6}
    rows[1] |= {"machine/site_clips_per_second": 412.0, "machine/peak_memory": 5.5e8}
    folder.metrics.write_text("".join(f"{json.dumps(row | {'bytes_up': 0})}\n" for row in rows))
    text = " ".join("".join(Outline(write_report([folder.path], tmp_path / "report.html").read_text()).text).split())
    assert re.search(r"Clips/s\s*412\D.*Peak memory\s*550 MB", text)
    assert "64 public columns, 10.0 kB once; then nothing more of them." in text
    assert "Rounds 2 to 4 added" in text
    assert "Round 0: the registration" in text
    # Traffic: 4 x 3 MB down, and the registration.
    assert "13.1 MB" in text
    shown = text.partition("Settings")[0] if "Settings" not in text[:200] else text
    assert "held-out prototypes" not in shown
    assert "the sites' prototypes" not in shown
