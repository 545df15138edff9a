"""Runs that differ only in seed and test fold become one, their mean."""

import pytest

from fed_a2v.report import figures
from fed_a2v.report.collect import collect
from fed_a2v.report.page import render
from fed_a2v.report.record import merged
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.intervals import CROSSED, summarise
from fed_a2v.storage.files import write_json
from tests.report.conftest import written_run


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A sweep over three seeds: accuracies 0.9, 0.8 and 1.0 after the last round."""
    folder = tmp_path_factory.mktemp("sweep")
    for seed, lead in enumerate((0.0, -0.1, 0.1)):
        written_run(folder / f"seed={seed}", seed=seed, lead=lead, overrides=[f"seed={seed}"], trouble=False)
    return folder


def test_seeds_are_one_arm_with_their_mean_and_their_range(seeds):
    (arm,) = collect([seeds]).arms
    assert (arm.label, len(arm.members)) == ("3 seeds", 3)
    assert arm.last["accuracy"] == pytest.approx(0.9)
    assert (arm.last["accuracy_low"], arm.last["accuracy_high"]) == pytest.approx((0.8, 1.0))
    assert (arm.last["round"], arm.last["test_clips"]) == (4, 16)
    classes = [run.evaluation["classes"]["dog"]["accuracy"] for run in arm.members]
    assert arm.evaluation["classes"]["dog"]["accuracy"] == pytest.approx(sum(classes) / 3)
    assert arm.evaluation["classes"]["dog"]["accuracy_high"] == max(classes)


def test_other_settings_are_other_arms(seeds, tmp_path):
    for seed in (0, 1):
        written_run(tmp_path / f"wide,seed={seed}", overrides=[f"seed={seed}", "site.epochs=7"])
    arms = collect([seeds, tmp_path]).arms
    assert [(arm.label, len(arm.members)) for arm in arms] == [
        ("site.epochs=2, 3 seeds", 3),
        ("site.epochs=7, 2 seeds", 2),
    ]


def test_the_same_seed_twice_is_no_repetition(run_folder):
    (run,) = collect([run_folder]).runs
    assert merged([run, run]) == [run, run]


def test_a_round_that_a_run_lacks_is_left_out(tmp_path):
    for seed, rounds in enumerate((4, 4)):
        written_run(tmp_path / f"seed={seed}", rounds=rounds, overrides=[f"seed={seed}"])
    short = tmp_path / "seed=1" / "metrics.jsonl"
    short.write_text("".join(short.read_text().splitlines(keepends=True)[:2]))
    (arm,) = collect([tmp_path]).arms
    assert [row["round"] for row in arm.rows] == [1, 2]


def test_figures_have_a_line_and_an_area_for_an_arm_and_tables_every_run(seeds):
    found = collect([seeds])
    line, area, before = figures.accuracy_plot(found).views[0].figure.data
    assert list(line.y) == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert area.fill == "toself"
    assert list(area.y) == pytest.approx([0.7, 0.8, 0.9, 1.0, 0.8, 0.7, 0.6, 0.5])
    assert before.name.endswith("before the server step")
    bars = figures.gain_plot(found).views[0].figure.data[0]
    assert list(bars.error_y.array) == pytest.approx([0.1] * 4)
    (classes,) = figures.class_plot(found).views[0].figure.data
    assert len(classes.error_x.array) == 4
    assert len(figures.map_plot(found).views) == 3
    html = render(found)
    assert all(f"seed={seed}" in html for seed in range(3))


def test_arms_of_a_cross_validation_are_means_too(tmp_path):
    rows = {}
    for seed in (0, 1):
        for arm, lead in (("prototypes", 0.0), ("vae", 0.1)):
            words = ["generator=none"] * (arm == "prototypes")
            folder = written_run(
                tmp_path / f"seed-{seed}" / arm, lead=lead + seed / 10, overrides=[*words, f"seed={seed}"]
            )
            rows.setdefault(arm, []).append(RunFolder(folder).rows())
        write_json(tmp_path / f"seed-{seed}" / "comparison.json", {arm: each[seed] for arm, each in rows.items()})
    summary = summarise([(None, 0), (None, 1)], rows, 0.0)
    write_json(tmp_path / "comparison.json", {CROSSED: summary})
    found = collect([tmp_path])
    (arm,), (baseline,) = found.arms, found.baselines
    assert (arm.label, baseline.label, len(baseline.members)) == ("vae, 2 seeds", "prototypes", 2)
    assert baseline.last["accuracy"] == pytest.approx(0.95)
    assert (arm.last["accuracy_low"], arm.last["accuracy_high"]) == pytest.approx((1.0, 1.1))
    assert "prototypes" in {trace.name for trace in figures.accuracy_plot(found).views[0].figure.data}
