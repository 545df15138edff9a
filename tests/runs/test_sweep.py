"""Sweeps: folders, restarts, failures, workers, a search; their summary."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

from fed_a2v.config.compose import ConfigError, compose_settings, conf_dir
from fed_a2v.config.messages import explain_composition
from fed_a2v.install import install_hint
from fed_a2v.runs.compare import FAILURE, SweepJob
from fed_a2v.runs.lock import FolderInUseError
from fed_a2v.runs.sweep import LONGEST_NAME, SWEEP, job_folder, run_job
from fed_a2v.runs.sweep_plot import plot_sweep
from tests.command import fed_a2v
from tests.refusals import refused

COMMAND = str(Path(sys.executable).parent / "fed-a2v")
# A run of a second.
FAST = (
    *("experiment=quick", "rounds=1", "report=false", "adapters.hidden_width=16", "site.epochs=1"),
    *("finetune.first_steps=5", "dataset.clips_per_class=4", "share.min_clips=1"),
)


def in_a_process(*words, cwd):
    return subprocess.run([COMMAND, *words], cwd=cwd, capture_output=True, text=True, timeout=280)


def swept(folder, *words, code=0, run=fed_a2v):
    """Run a sweep in `folder`, and return what it said and the rows of its table."""
    done = run("train", "-m", *FAST, f"hydra.sweep.dir={folder}", *words, cwd=folder.parent)
    assert done.returncode == code, done.stderr
    with (folder / "summary.csv").open(newline="") as file:
        return done, list(csv.DictReader(file))


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_the_default_folders_of_runs_that_start_in_one_second_differ(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    OmegaConf.register_new_resolver("now", lambda form: "12-00-00", replace=True, use_cache=True)
    try:
        configs = [OmegaConf.load(conf_dir() / "config.yaml") for _ in range(2)]
        chosen = [OmegaConf.select(config, key) for config in configs for _ in range(2)]
    finally:
        setup_globals()  # Hydra's own clock
    assert len(set(chosen)) == 2
    assert chosen[0] == chosen[1], "the same run asks twice"
    assert all(Path(folder).is_dir() for folder in chosen)


def test_a_job_in_whose_folder_another_process_works_leaves_nothing_there(tmp_path):
    settings = compose_settings(FAST)

    def run(settings, folder):
        raise FolderInUseError("another")

    with pytest.raises(FolderInUseError):
        run_job(settings, tmp_path, run)
    assert not (tmp_path / FAILURE).exists()


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A sweep in which the jobs with 40 sites fail, and what a second start of it, larger, leaves."""
    folder = tmp_path_factory.mktemp("sweep") / "mine"
    words = ("partition=classes", "partition.classes_per_site=1", "generator=none,gaussian")
    first = swept(folder, *words, "partition.sites=2,40", code=1)
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    second = swept(folder, *words, "partition.sites=2,3,40", code=1)
    return folder, first, files, second


def test_a_failed_job_does_not_stop_the_others_and_its_reason_is_told(grid):
    folder, (done, rows), _, _ = grid
    assert [(row["generator"], row["partition.sites"], row["status"]) for row in rows] == [
        *(("gaussian", "2", "done"), ("gaussian", "40", "failed"), ("none", "2", "done"), ("none", "40", "failed")),
    ]
    assert all(("partition.sites=40" in row["reason"]) == (row["status"] == "failed") for row in rows)
    assert "2 of 4" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in next(folder.glob(f"*/{FAILURE}")).read_text()


def test_a_sweep_leaves_a_table_and_a_picture(grid):
    folder, (done, _), _, _ = grid
    assert (folder / "summary.md").read_text().startswith("| job | status |")
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert f"Plot: {folder / 'summary.png'}" in done.stdout


def test_a_sweep_started_again_does_only_what_is_not_done(grid):
    folder, _, files, (done, rows) = grid
    assert len(files) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    assert done.stderr.count("Round 1/1: accuracy") == 2, "the jobs with 3 sites are new"
    assert [row["status"] for row in rows] == ["done", "done", "failed"] * 2


def test_two_workers_give_the_numbers_of_one(tmp_path):
    words = ("generator=none,gaussian",)
    _, one = swept(tmp_path / "one", *words)
    _, two = swept(tmp_path / "two", *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", run=in_a_process)
    for row in [*one, *two]:
        row.pop("seconds")
    assert one == two


def test_the_optuna_sweeper_finds_the_best_accuracy_in_spite_of_a_failure(tmp_path):
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    space = ("generator=choice(none,gaussian)", "partition.sites=choice(40,5)", "partition.classes_per_site=1")
    done, rows = swept(tmp_path / "search", *words, "hydra.sweeper.sampler.seed=7", *space, code=1)
    best = (tmp_path / "search" / "optimization_results.yaml").read_text()
    assert {row["status"] for row in rows} == {"done", "failed"}
    assert f"best_value: {max(float(row['accuracy']) for row in rows if row['accuracy'] != '-')}" in best
    assert f"Best found: generator={'gaussian' if 'generator: gaussian' in best else 'none'} partition.sites=5" in (
        done.stdout
    )
    failed = [row["status"] for row in rows].count("failed")
    assert f"{failed} of {len(rows)}" in done.stderr


# A job


@pytest.fixture
def job(tmp_path):
    """Run a job in a folder, with a stand-in for training that writes what a run writes."""
    runs = []

    def run(*overrides, fails=None):
        from fed_a2v.config.compose import to_yaml

        def train(settings, folder):
            runs.append(settings)
            if fails:
                raise fails
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(to_yaml(settings.as_dict()))
            (folder / "results.json").write_text(json.dumps({"accuracy": 0.5}))
            return {"accuracy": 0.5}

        return run_job(compose_settings(list(overrides)), tmp_path / "sweep" / "job", train)

    run.runs = runs
    run.folder = tmp_path / "sweep" / "job"
    return run


def test_a_job_is_skipped_where_its_results_are_those_of_the_same_settings(job):
    assert job("rounds=2") == job("rounds=2", "wandb.mode=disabled") == {"accuracy": 0.5}
    assert len(job.runs) == 1


def test_a_job_with_changed_settings_starts_again(job):
    job("rounds=2")
    job("rounds=3")
    assert [settings.resume for settings in job.runs] == ["auto", "never"]


def test_an_unfinished_job_is_resumed(job):
    job("rounds=2")
    (job.folder / "results.json").write_text('{"accuracy": 0.')
    job("rounds=2")
    assert [settings.resume for settings in job.runs] == ["auto", "auto"]


def test_jobs_form_a_group_at_wandb_named_after_the_sweep(job):
    job()
    assert job.runs[0].wandb.group == "sweep"
    job("wandb.group=mine", "rounds=2")
    assert job.runs[1].wandb.group == "mine"


def test_a_failure_leaves_its_reason_until_the_job_is_run_again(job):
    with pytest.raises(ZeroDivisionError):
        job(fails=ZeroDivisionError("by zero\nand more"))
    assert (job.folder / FAILURE).read_text().startswith("ZeroDivisionError: by zero\n\nTraceback")
    job()
    assert not (job.folder / FAILURE).exists()


def test_of_an_error_that_a_user_can_mend_the_message_is_the_reason(job):
    with pytest.raises(ConfigError):
        job(fails=ConfigError("rounds=0: at least 1"))
    assert (job.folder / FAILURE).read_text().startswith("rounds=0: at least 1\n\nTraceback")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [("generator=vae,seed=1", "generator=vae,seed=1"), ("", "job")],
)
def test_a_short_name_says_what_the_job_is(overrides, name):
    assert job_folder(overrides) == name


def test_long_and_odd_names_become_short_plain_and_distinct():
    texts = ("dataset.path=/a/b", "dataset.path=/a_b", "x" * 300, "x" * 301, "a=" + "è" * 300, "a=[1,2],b=1", "a=\n")
    names = {job_folder(text) for text in texts}
    assert len(names) == len(texts)
    assert all(len(name.encode()) <= LONGEST_NAME and not set("/[]\n'") & set(name) for name in names)


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        ("dataset.root=/data/x/ESC-50,seed=1", "dataset.root=ESC-50,seed=1-"),
        ("dataset.path='/my data/one/e.npz',seed=0", "dataset.path=one_e.npz,seed=0-"),
        ("dataset.train_folds=[1,2],seed=1", "dataset.train_folds=1,2,seed=1-"),
        ("dataset.root=/,seed=1", "dataset.root=,seed=1-"),
    ],
)
def test_of_a_path_the_name_has_its_last_part(overrides, start):
    name = job_folder(overrides)
    assert name.startswith(start)
    assert len(name) == len(start) + 8


# What varies


def given(tmp_path, monkeypatch, *words):
    """The names of the jobs of a sweep that trains nothing."""
    from fed_a2v.commands import train

    monkeypatch.setattr(
        "fed_a2v.federation.simulation.run_in_process", lambda settings, folder, *a, **k: finished(folder)
    )
    monkeypatch.chdir(tmp_path)
    train.run(["-m", *words, "hydra.sweep.dir=sweep"])
    return sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())


def finished(folder):
    folder.mkdir(parents=True, exist_ok=True)
    results = {"accuracy": 0.5, "rounds": 1}
    (folder / "results.json").write_text(json.dumps(results))
    return results


def test_jobs_are_named_by_what_varies_and_the_rest_is_in_a_file(tmp_path, monkeypatch):
    names = given(tmp_path, monkeypatch, *FAST, "generator=none,gaussian", "seed=0,1")
    assert names == [f"generator={name},seed={seed}" for name in ("gaussian", "none") for seed in (0, 1)]
    sweep = OmegaConf.load(tmp_path / "sweep" / SWEEP)
    assert sweep.same == list(FAST)
    assert sweep.varied == ["generator=none,gaussian", "seed=0,1"]
    more = given(tmp_path, monkeypatch, *FAST, "generator=none,gaussian,vae", "seed=0")
    assert set(more) == {*names, "generator=vae,seed=0"}, "the old ones keep their names"


def test_a_search_over_options_is_named_by_them(tmp_path, monkeypatch):
    names = given(tmp_path, monkeypatch, *FAST, "generator=glob(gauss*)", "seed=3")
    assert names == ["generator=gaussian"]


def test_the_folder_of_a_sweep_with_other_settings_is_refused(tmp_path, monkeypatch):
    given(tmp_path, monkeypatch, *FAST, "seed=0,1")
    with refused(ConfigError, "sweep has jobs with rounds=1", "rounds=3", "--out"):
        given(tmp_path, monkeypatch, *FAST[:1], *FAST[2:], "rounds=3", "seed=0,1")
    # What does not affect the results may change, and what is the same in other words.
    given(tmp_path, monkeypatch, *FAST, "seed=1,2", "wandb.mode=disabled", "site.batch_size=32")


def test_jobs_share_a_database_of_mlflow_in_the_folder_of_the_sweep(job, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    job("tracking.mlflow=true")
    assert job.runs[0].tracking.mlflow_uri == f"sqlite:///{job.folder.parent / 'mlflow.db'}"
    job("tracking.mlflow=true", "tracking.mlflow_uri=http://localhost:5000", "rounds=2")
    assert job.runs[1].tracking.mlflow_uri == "http://localhost:5000"


# The picture


def done(accuracy, **overrides):
    return SweepJob("job", "done", overrides, {"accuracy": accuracy}, "")


def test_nothing_to_compare_makes_no_picture(tmp_path):
    assert plot_sweep([done(0.5, seed="0")], tmp_path / "x.png") is None
    assert plot_sweep([SweepJob("job", "failed", {"a": "1"}, {}, "")], tmp_path / "x.png") is None
    assert not (tmp_path / "x.png").exists()


def test_a_job_that_was_scored_on_some_of_the_clips_is_an_open_dot(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn, save = [], figures.Figure.savefig
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    partly = done(1.0, seed="1")
    jobs = [done(0.5, seed="0"), SweepJob(*vars(partly).values())]
    jobs[1].results.update({"sites_evaluated": 3, "sites_total": 5})
    plot_sweep(jobs, tmp_path / "x.png")
    dots = [line for line in drawn[0].axes[0].lines if line.get_marker() == "o"]
    assert [(line.get_ydata()[0], line.get_fillstyle()) for line in dots] == [(0.5, "full"), (1.0, "none")]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw jobs, and return the axes."""
    figures = pytest.importorskip("matplotlib.figure")
    kept, save = [], figures.Figure.savefig
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k)))

    def draw(jobs):
        assert plot_sweep(jobs, tmp_path / "x.png") == tmp_path / "x.png"
        return kept[-1].axes

    return draw


def squares(axes):
    """The means in a panel."""
    return [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "s" and len(line.get_ydata())]


def test_only_seeds_of_the_same_setting_have_a_mean(drawn):
    values = {("vae", "8"): (0.6, 0.7), ("vae", "16"): (0.8, 0.9), ("none", "8"): (0.1, 0.2)}
    jobs = [
        done(accuracy, generator=name, width=width, seed=str(seed))
        for (name, width), accuracies in values.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    for axes in drawn(jobs):
        assert sorted(squares(axes)) == pytest.approx([0.15, 0.65, 0.85])
        assert axes.get_legend() is not None


def test_the_axis_neither_cuts_an_interval_nor_makes_little_look_like_much(drawn):
    (axes,) = drawn([done(0.800, generator="vae"), done(0.802, generator="none")])
    low, high = axes.get_ylim()
    assert high - low >= 0.1
    assert squares(axes) == [], "single jobs have no interval"
    (axes,) = drawn([done(0.1, seed="0"), done(0.9, seed="1")])
    assert axes.get_ylim()[0] <= 0
    assert axes.get_ylim()[1] >= 1


def test_without_matplotlib_a_message_replaces_the_plot(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot_sweep([done(0.5, seed="0"), done(0.6, seed="1")], tmp_path / "x.png") is None
    assert install_hint("plots") in caplog.text


@pytest.mark.parametrize("option", ["joblib", "optuna"])
def test_a_missing_extra_is_named(option):
    error = ValueError(f"In 'hydra/config': Could not find 'hydra/launcher/{option}'\n\nAvailable options:\n\tbasic\n")
    assert install_hint("sweeps") in explain_composition(error, [f"hydra/launcher={option}"])
