import csv
import io
import json

import pytest

from fed_a2v.runs.compare import differing, distinct, natural, run_rows, seeds_table, summary_table, sweep_jobs
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.sweep import summarise
from tests.refusals import refused
from tests.runs.test_table import PARTLY


def job(folder, number, overrides, results=None):
    hydra = folder / str(number) / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "overrides.yaml").write_text("".join(f"- {word}\n" for word in overrides) or "[]\n")
    if results is not None:
        text = results if isinstance(results, str) else json.dumps(results)
        (folder / str(number) / "results.json").write_text(text)


def test_a_sweep_lists_its_jobs_in_numeric_order_and_says_which_failed_or_are_missing(tmp_path):
    for number in (10, 9, 0, 2):
        job(tmp_path, number, ["rounds=3", f"seed={number}"], {"accuracy": number / 100, "per_class": {"dog": 1}})
    job(tmp_path, 1, ["rounds=3", "seed=1"])
    job(tmp_path, 3, ["rounds=3", "+seed=3"], '{"accuracy": 0.')
    table = summary_table(sweep_jobs(tmp_path))
    assert table.header == ("job", "status", "seed", "accuracy")
    assert [row[0] for row in table.rows] == [str(number) for number in range(11)]
    status = {row[0]: row[1] for row in table.rows}
    assert {name for name, value in status.items() if value == "done"} == {"0", "2", "9", "10"}
    assert {name for name, value in status.items() if value == "failed"} == {"1", "3"}
    assert {name for name, value in status.items() if value == "missing"} == {"4", "5", "6", "7", "8"}
    assert table.rows[10] == ("10", "done", "10", "0.1000")
    assert table.rows[3] == ("3", "failed", "3", "-")


def test_a_sweep_leaves_its_summary_as_csv_and_markdown(tmp_path):
    job(tmp_path, 0, ["generator=vae", "share=mean"], {"accuracy": 0.851234567, "rounds": 5})
    job(tmp_path, 1, ["generator=none", "share=mean"], {"accuracy": 0.5, "rounds": 5})
    summarise(tmp_path)
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "job": "0",
        "status": "done",
        "generator": "vae",
        "accuracy": "0.851234567",
        "rounds": "5",
    }
    table = summary_table(sweep_jobs(tmp_path)).markdown()
    assert (tmp_path / "summary.md").read_text() == table
    assert "| 0 | done | vae | 0.8512 |\n" in table


def test_a_job_that_was_scored_on_some_of_the_clips_says_so_and_has_t5s_figure(tmp_path):
    job(tmp_path, 0, ["seed=0"], {"accuracy": 1.0, "t5/accuracy": 0.25} | PARTLY)
    job(tmp_path, 1, ["seed=1"], {"accuracy": 0.5, "t5/accuracy": 0.75})
    table = summary_table(sweep_jobs(tmp_path))
    assert table.header == ("job", "status", "seed", "accuracy", "t5/accuracy")
    assert [row[3:] for row in table.rows] == [("1.0000 on 48 of 80", "0.2500"), ("0.5000", "0.7500")]
    first = next(csv.DictReader(io.StringIO(summary_table(sweep_jobs(tmp_path), full=True).csv())))
    assert (first["accuracy"], first["test_clips"], first["test_clips_total"]) == ("1.0", "48", "80")


def test_a_folder_without_jobs_is_an_error_that_names_it(tmp_path):
    with refused(FileNotFoundError, tmp_path, ".hydra/overrides.yaml"):
        sweep_jobs(tmp_path)


# Rows of several runs


def test_keys_differ_by_value_and_type_and_a_missing_one_is_none():
    runs = [{"seed": 0, "sets": [1], "none": None, "same": 1}, {"seed": "0", "sets": [1, 2], "same": 1, "more": {}}]
    assert differing(runs) == ["seed", "sets", "more"]
    assert differing(runs[:1]) == differing([]) == []


@pytest.mark.parametrize(
    "ordered",
    [
        ["-1", "0.003", "0.02", "1e1", "99", "none", "vae"],
        ["seed=9", "seed=10"],
        ["lr=0.003", "lr=0.02,seed=9", "lr=0.02,seed=10"],
        ["", "1", "\u00b2"],
    ],
)
def test_numbers_stand_by_size_and_before_words(ordered):
    assert sorted({*ordered}, key=natural) == ordered


def test_jobs_stand_in_the_order_of_the_overrides_that_differ(tmp_path):
    for name, rate in (("a", "0.1"), ("b", "0.02"), ("c", "1e-3")):
        job(tmp_path, name, ["rounds=3", f"site.learning_rate={rate}"])
    assert [each.overrides["site.learning_rate"] for each in sweep_jobs(tmp_path)] == ["1e-3", "0.02", "0.1"]


def test_a_row_of_a_run_has_the_settings_that_differ_and_the_results(tmp_path):
    folders = [RunFolder(tmp_path / name) for name in ("one", "two")]
    for folder, section in zip(
        folders, ("generator: {name: vae, loss: {beta: 1}}", "generator: {name: none}"), strict=True
    ):
        folder.start(f"rounds: 2\n{section}\n")
        folder.write_results({"accuracy": 0.5})
    assert run_rows(folders) == [
        {"generator.name": "vae", "generator.loss.beta": 1, "accuracy": 0.5},
        {"generator.name": "none", "generator.loss.beta": None, "accuracy": 0.5},
    ]


# Seeds together


def test_the_seeds_of_a_setting_are_one_row(tmp_path):
    for number, (name, seed, accuracy) in enumerate(
        [("none", 0, 0.2), ("none", 1, 0.4), ("vae", 0, 0.5), ("vae", 1, 0.7), ("vae", 2, None)]
    ):
        words = [f"generator={name}", f"seed={seed}"]
        job(tmp_path, number, words, None if accuracy is None else {"accuracy": accuracy, "accuracy_before": 0.1})
    jobs = sweep_jobs(tmp_path)
    table = seeds_table(jobs)
    assert table.header == ("generator", "seeds", "accuracy", "95 %")
    assert table.rows == (
        ("none", "2", "0.300 ± 0.141", "0.000 to 1.000"),
        ("vae", "2 of 3", "0.600 ± 0.141", "0.000 to 1.000"),
    )
    full = seeds_table(jobs, full=True)
    assert full.header[:6] == ("generator", "seeds", "accuracy", "accuracy/deviation", "accuracy/low", "accuracy/high")
    assert all(len(row) == len(full.header) for row in full.rows)
    assert float(full.rows[0][2]) == pytest.approx(0.3)


def test_without_several_seeds_there_is_nothing_to_put_together(tmp_path):
    for number, name in enumerate(("none", "vae")):
        job(tmp_path, number, [f"generator={name}", "seed=0"], {"accuracy": 0.5})
    assert seeds_table(sweep_jobs(tmp_path)) is None


def test_of_one_seed_the_mean_has_no_spread(tmp_path):
    job(tmp_path, 0, ["generator=none", "seed=0"], {"accuracy": 0.5})
    job(tmp_path, 1, ["generator=vae", "seed=1"], {"accuracy": 0.5} | PARTLY)
    assert seeds_table(sweep_jobs(tmp_path)).rows == (
        ("none", "1", "0.500", "-"),
        ("vae", "0 of 1", "-", "-"),
    ), "a job on some of the clips is no seed of the mean"


def test_a_job_under_its_old_and_its_new_name_counts_once(tmp_path):
    for name in ("seed=0", "generator=vae,seed=0"):
        job(tmp_path, name, ["generator=vae", "seed=0"], {"accuracy": 0.5})
    assert len(sweep_jobs(tmp_path)) == 1


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["/data/one/e.npz", "/data/two b/e.npz"], ["one", "two b"]),
        (["/data/one", "/data/two"], ["one", "two"]),
        (["/a", "/a/b"], ["/a", "b"]),
        (["/a/b", "/a/b"], ["/a/b", "/a/b"]),
        (["1", "/a/b"], ["1", "/a/b"]),
        (["-", "/a/b"], ["-", "/a/b"]),
        (["0.0010974717865865648", "0.5", "none"], ["0.001097", "0.5", "none"]),
        (["0.12345678", "0.12345679"], ["0.12345678", "0.12345679"]),
    ],
)
def test_of_paths_what_differs_is_shown(values, wanted):
    found = distinct(values)
    assert [found[value] for value in values] == wanted


def test_quotes_of_the_command_line_are_no_part_of_a_value(tmp_path):
    for number, place in enumerate(("/my data/a", "/my data/b")):
        job(tmp_path, number, [f"\"dataset.root='{place}'\""], {"accuracy": 0.5})
    jobs = sweep_jobs(tmp_path)
    assert [each.overrides["dataset.root"] for each in jobs] == ["/my data/a", "/my data/b"]
    assert [row[2] for row in summary_table(jobs).rows] == ["a", "b"]
