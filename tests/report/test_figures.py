"""The figures of a report: what they show, and the tables of their numbers."""

from dataclasses import replace

import numpy as np
import pytest

from fed_a2v.report import figures
from fed_a2v.report.collect import Collection, collect
from fed_a2v.report.figures.gates import GATES
from fed_a2v.report.record import RunRecord


def test_runs_and_kinds_of_points_never_differ_by_colour_alone(comparison):
    found = collect([comparison])
    lines = figures.accuracy_plot(found).views[0].figure.data
    assert len({(trace.line.dash, trace.marker.symbol, trace.mode) for trace in lines}) == len(lines)
    bars = figures.gain_plot(found).views[0].figure.data
    assert len({trace.marker.pattern.shape for trace in bars}) == len(bars)
    points = figures.map_plot(found).views[0].figure.data
    assert len({trace.marker.symbol for trace in points}) == len(points)


def test_validation_shows_baselines_intervals_and_rows(run_folder):
    plot = figures.validation_plot(collect([run_folder]))
    tstr, similarity = (view.figure.data for view in plot.views)
    assert [set(trace.y) for trace in similarity] == [{0.9}, {0.92}, {0.95}]
    assert len({(trace.line.dash, trace.marker.symbol, trace.mode) for trace in similarity}) == 3
    assert all(not trace.error_y.array for trace in similarity)
    assert list(tstr[0].error_y.arrayminus) == pytest.approx([0.1] * 4)
    assert list(tstr[0].error_y.array) == pytest.approx([0.15] * 4)
    first = dict(zip(plot.table.header, plot.table.rows[0], strict=True))
    assert list(first.values()) == ["1", "0.8 [0.7, 0.95]", "0.85", "0.9", "0.92", "0.95", "12"]


def test_gates_show_the_range_that_passes_and_have_their_verdicts(run_folder):
    found = collect([run_folder])
    (run,) = found.runs
    limits = {"tstr": [0.94], "c2st": [0.63], "nn_ratio": [0.85, 1.15]}
    for name, (value, low, high) in {
        "tstr": (0.8, 0.7, 0.9),
        "c2st": (0.6, 0.5, 0.7),
        "nn_ratio": (0.8, 0.7, 0.9),
    }.items():
        run.last.update(
            {f"generator_quality/{name}{end}": each for end, each in (("", value), ("_low", low), ("_high", high))}
        )
    run.last["generator_quality/rows"] = 50
    views = {view.label: view.figure for view in figures.validation_plot(found).views}
    for name, ends in limits.items():
        shown = views[GATES[name]]
        assert [shape.y0 for shape in shown.layout.shapes if shape.type == "line"] == ends
        bottom, top = shown.layout.yaxis.range
        assert all(bottom < end < top for end in ends)
    table = figures.gates_table(found)
    assert [row[table.header.index("verdict")] for row in table.rows] == [
        "failed",
        "passed",
        "outside the range, perhaps by chance",
    ]
    run.last["generator_quality/rows"] = 39
    assert all("39" in row[-1] for row in figures.gates_table(found).rows)


def test_figures_of_the_network_alone_have_baselines_without_a_network(run_folder):
    likelihood, gain, reconstruction = (view.figure.data for view in figures.network_plot(collect([run_folder])).views)
    assert [set(trace.y) for trace in likelihood] == [{0.2}, {0.1}]
    assert [set(trace.y) for trace in reconstruction] == [{0.3}, {0.4}]
    for traces in (likelihood, reconstruction):
        assert len({(trace.line.dash, trace.marker.symbol, trace.mode) for trace in traces}) == 2
    assert list(gain[0].error_y.array) == pytest.approx([0.05] * 4)


def test_a_value_in_a_single_round_is_visible(run_folder):
    (run,) = collect([run_folder]).runs
    similarity = figures.validation_plot(Collection([replace(run, rows=run.rows[:1])])).views[1].figure.data
    assert [list(trace.x) for trace in similarity] == [[1]] * 3
    assert all("markers" in trace.mode for trace in similarity)
    assert len({trace.marker.symbol for trace in similarity}) == 3


def test_the_figures_say_what_the_run_recorded(run_folder):
    found = collect([run_folder])
    (run,) = found.runs
    after, before = figures.accuracy_plot(found).views[0].figure.data
    assert list(after.y) == [row["accuracy"] for row in run.rows]
    assert list(before.y) == [row["accuracy_before"] for row in run.rows]
    assert list(figures.gain_plot(found).views[0].figure.data[0].y) == pytest.approx([0.2] * 4)
    bars = figures.class_plot(found).views[0].figure
    shown = dict(zip(bars.layout.yaxis.ticktext, bars.data[0].x, strict=True))
    assert shown == {name: each["accuracy"] for name, each in run.evaluation["classes"].items()}
    heat = figures.confusion_plot(found).views[0].figure.data[0]
    assert np.array(heat.z).sum(axis=1) == pytest.approx(1)
    assert np.diag(np.array(heat.z)) == pytest.approx(0.75)
    sites = figures.sites_plot(found)
    assert [(trace.name, len(trace.x)) for trace in sites.views[0].figure.data] == [("replied", 19), ("rejected", 1)]
    assert sites.table.rows[-1][:6] == ("site-004", "4", "3", "1", "0", "0 rounds ago")
    up = figures.bytes_plot(found).views[0].figure.data[0]
    assert list(up.y) == [1.0] * 4


def test_the_losses_of_a_gan_and_of_its_critic_are_views_of_their_own():
    losses = {"server/generator_loss": -0.1, "generator/generator": -0.3, "generator/class": 0.2}
    critic = {"generator/critic": -1.5, "generator/gradient_penalty": 0.4}
    rows = [{"round": number, **losses, **critic} for number in (1, 2)]
    views = figures.loss_plot(Collection([RunRecord("run", None, rows)])).views
    shown = {view.label: list(view.figure.data[0].y) for view in views}
    assert len(shown) == len(views) == 5
    assert list(shown.values()) == [[value] * 2 for value in (-0.1, 0.2, -1.5, -0.3, 0.4)]
    assert {"Generator", "Critic"} < shown.keys()


def test_the_least_accurate_class_is_first(run_folder):
    found = collect([run_folder])
    (run,) = found.runs
    plot = figures.class_plot(found)
    accuracies = [run.evaluation["classes"][row[0]]["accuracy"] for row in plot.table.rows]
    assert accuracies == sorted(accuracies)
    assert list(plot.views[0].figure.data[0].x) == accuracies


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [((0.85, 0.9), 0.825, 0.925), ((0.2, 0.8), 0.14, 0.86), ((0.0, 0.0), 0.0, 0.1), ((1.0, 1.0), 0.92, 1.02)],
)
def test_the_axis_of_an_accuracy_has_the_range_of_its_values_and_says_so(values, low, high):
    rows = [{"round": number, "accuracy": value} for number, value in enumerate(values, 1)]
    axis = figures.accuracy_plot(Collection([RunRecord("run", None, rows)])).views[0].figure.layout.yaxis
    assert axis.range == pytest.approx((low, high))
    assert (f"{low:.2f}" in axis.title.text) == (low > 0)


def test_intervals_of_the_accuracy_are_an_area_for_one_run_and_bars_for_two():
    rows = [{"round": number, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.7} for number in (1, 2)]
    one, two = RunRecord("one", None, rows), RunRecord("two", None, rows)
    line, area = figures.accuracy_plot(Collection([one])).views[0].figure.data
    assert list(area.y) == [0.7, 0.7, 0.4, 0.4]
    assert not line.error_y.array
    for line in figures.accuracy_plot(Collection([one, two])).views[0].figure.data:
        assert list(line.error_y.array) == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({}, "average of the sites' adapters"), ({"site": {"epochs": 0, "server_steps": False}}, "sites train none")],
)
def test_the_accuracy_before_the_step_is_called_an_average_only_if_sites_train(settings, words):
    rows = [{"round": 1, "accuracy": 0.5, "accuracy_before": 0.4}]
    assert words in figures.accuracy_plot(Collection([RunRecord("run", None, rows, settings)])).caption


def test_staleness_counts_the_rounds_since_the_last_good_reply():
    rows = [{"round": 1, "sites": {"a": "replied", "b": "failed"}}, {"round": 2, "sites": {"b": "failed"}}]
    table = figures.sites_plot(Collection([RunRecord("run", None, rows)])).table
    assert [row[table.header.index("last reply")] for row in table.rows] == ["1 rounds ago", "never"]


def test_without_umap_there_is_the_map_by_pca(run_folder):
    plot = figures.map_plot(collect([run_folder]), lambda coordinates: None)
    assert [view.label for view in plot.views] == ["PCA"]
