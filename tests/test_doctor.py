"""`fed-a2v doctor`: its checks, its findings and its exit code."""

import socket
import tomllib
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fed_a2v import doctor
from fed_a2v.cli import main
from fed_a2v.config.compose import compose_settings
from fed_a2v.data.site import class_names
from fed_a2v.doctor import Finding, examine, exit_code
from fed_a2v.encoders.audio import load_encoder
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.server.resources import resource_estimate
from fed_a2v.federation.server.step_factory import make_space, make_step
from fed_a2v.install import install_hint

SMALL = ("adapters.hidden_width=16", "generator=none")


@pytest.fixture(autouse=True)
def _flower_as_it_should_be(monkeypatch):
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")


def found(subject, *overrides):
    return [finding for finding in examine([*SMALL, *overrides]) if finding.subject == subject]


def test_every_subject_is_looked_at_and_the_built_in_experiment_has_no_error():
    findings = examine(SMALL)
    subjects = {finding.subject for finding in findings}
    assert subjects >= {
        *("versions", "disk", "memory", "flower", "ports", "settings", "device", "W&B", "cache", "data", "encoder"),
        *("network", "server"),
    }
    assert not [finding for finding in findings if finding.level == "error"]
    assert all(finding.remedy for finding in findings if finding.level != "fine")


def test_an_extra_that_is_not_installed_is_named_with_the_command(monkeypatch):
    gone = {"transformers", "hydra-joblib-launcher", "tensorboard"}
    monkeypatch.setattr(doctor, "installed_version", lambda package: None if package in gone else "1.0")
    (finding,) = found("extras")
    assert (finding.level, finding.remedy) == ("fine", install_hint("hf", "sweeps", "tensorboard"))


@pytest.mark.parametrize("port", ["abc", "0", "70000"])
def test_a_wrong_port_is_named(port, monkeypatch):
    monkeypatch.setenv(doctor.PORT_VARIABLE, port)
    (finding,) = (finding for finding in found("flower") if finding.level == "error")
    assert f"{doctor.PORT_VARIABLE}={port}" in finding.what


def test_the_encoder_is_loaded_once(monkeypatch):
    loaded = []

    def load(settings):
        loaded.append(settings.name)
        return load_encoder(settings)

    monkeypatch.setattr("fed_a2v.encoders.audio.load_encoder", load)
    examine([*SMALL, "encoder=logmel"])
    assert loaded == ["logmel"]


def test_every_extra_of_a_run_is_looked_for():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - {"all", "docs", "dev"}
    for extra, package in doctor.EXTRAS.items():
        assert any(needed.startswith(package) for needed in project["optional-dependencies"][extra])


@pytest.mark.parametrize(
    ("overrides", "subject", "named"),
    [
        (["generator.latent_dimm=3"], "settings", "latent_dimm"),
        (["rounds=0"], "settings", "rounds"),
        (["device=cuda:7"], "device", "device=cuda:7"),
        (["dataset=esc50", "dataset.root=/no/such/folder"], "data", "/no/such/folder"),
        (["dataset=embeddings", "dataset.path=/no/such.npz"], "data", "/no/such.npz"),
    ],
)
def test_what_would_stop_a_run_is_an_error_that_names_it(overrides, subject, named):
    errors = [finding for finding in examine([*SMALL, *overrides]) if finding.level == "error"]
    assert any(finding.subject == subject and named in finding.what and finding.remedy for finding in errors)
    assert exit_code(errors) == 2


@pytest.fixture
def sounds(tmp_path):
    """Four classes of six clips each."""
    for place, name in enumerate(("clock", "dog", "rain", "siren")):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for number in range(6):
            noise = np.random.default_rng((place, number)).normal(0, 0.1, 1_600)
            soundfile.write(tmp_path / "sounds" / name / f"{number}.wav", noise, 16_000)
    return tmp_path / "sounds"


def of(sounds, *overrides):
    """Words for these recordings."""
    words = [*SMALL, "dataset=folder", f"dataset.root={sounds}", "dataset.clip_seconds=0.1", "partition.sites=4"]
    return [*words, *overrides]


def subjects(findings):
    return {(finding.subject, finding.level) for finding in findings}


def test_good_recordings_are_counted_and_listened_to(sounds):
    findings = examine(of(sounds))
    (data,) = (finding for finding in findings if finding.subject == "data")
    assert "4 classes, 24 clips, 20 for train, 4 for test" in data.what
    assert ("clips", "fine") in subjects(findings)
    assert exit_code(findings) == 0


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["dataset.classes=[dog,doggo]"], "'doggo'"),
        (["partition.sites=9"], "partition.sites=9"),
        (["partition=iid", "partition.min_clips=30"], "30 training clips"),
        (["dataset.test_fold=8"], "dataset.test_fold"),
        (["dataset.validation_folds=[2]", "dataset.train_folds=[2]"], "dataset.validation_folds"),
        (["partition=iid", "partition.sites=8", "share.min_clips=5"], "share.min_clips=5"),
    ],
)
def test_what_train_refuses_of_readable_data_is_an_error(sounds, overrides, named):
    words = of(sounds, *overrides)
    with pytest.raises(SystemExit) as end, chdir(sounds.parent):
        main(["train", "rounds=1", *words])
    assert end.value.code == 2
    errors = [finding for finding in examine(words) if finding.level == "error"]
    assert any(named in finding.what and finding.remedy for finding in errors)


def test_clips_that_cannot_be_decoded_are_errors_and_with_skip_bad_warnings(sounds):
    for name in ("dog", "rain"):
        for number in range(6):
            (sounds / name / f"{number}.wav").write_bytes(b"no sound")
    words = of(sounds)
    errors = [finding for finding in examine(words) if finding.level == "error"]
    assert len(errors) == doctor.MOST_CLIPS
    assert all(finding.subject == "clips" and finding.remedy for finding in errors)
    assert str(sounds / "dog" / "0.wav") in errors[0].what
    assert ("clips", "error") not in subjects(examine([*words, "dataset.skip_bad=true"]))


def test_a_table_without_its_sounds_is_an_error(tmp_path):
    (tmp_path / "meta").mkdir()
    rows = [f"{fold}-{name}-{number}.wav,{fold},{name}" for name in "ab" for fold in range(1, 6) for number in range(4)]
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,category", *rows]))
    words = [*SMALL, "dataset=esc50", f"dataset.root={tmp_path}", "partition.sites=2"]
    (error,) = (finding for finding in examine(words) if finding.level == "error")
    assert (error.subject, "40 of 40" in error.what) == ("clips", True)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_no_numbers_are_an_error(tmp_path, bad):
    values = np.ones((20, 4))
    values[7] = bad
    np.savez(tmp_path / "x.npz", embeddings=values, category=np.array(["a", "b"] * 10), fold=np.arange(20) % 5 + 1)
    words = [*SMALL, "dataset=embeddings", f"dataset.path={tmp_path / 'x.npz'}", "partition.sites=2"]
    (error,) = (finding for finding in examine(words) if finding.level == "error")
    assert (error.subject, "row-00007" in error.what) == ("clips", True)


def test_the_cost_of_a_round_is_estimated_for_embeddings_too(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        embeddings=np.random.default_rng(0).normal(size=(20, 2, 24)),
        category=np.array(["a", "b"] * 10),
        fold=np.arange(20) % 5 + 1,
    )
    words = ["dataset=embeddings", f"dataset.path={tmp_path / 'x.npz'}", "partition.sites=2"]
    assert ("network", "fine") in subjects(examine([*SMALL, *words]))
    (wrong,) = found("resources", *words, "generator=vae", "generator.latent_dim=wide")
    assert (wrong.level, "generator.latent_dim" in wrong.what) == ("error", True)


def test_what_train_warns_of_is_a_warning(sounds):
    (sounds / "empty").mkdir()
    (sounds / "dog" / "film.mp4").touch()
    told = [finding.what for finding in found("data", *of(sounds)) if finding.level == "warning"]
    assert any("empty" in what for what in told)
    assert any("dog/film.mp4" in what for what in told)


def test_flowers_dependency_installation_is_a_warning_with_the_remedy(monkeypatch):
    monkeypatch.delenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION")
    (finding, *_) = found("flower")
    assert finding.level == "warning"
    assert "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1" in finding.remedy


def test_a_superlink_that_runs_already_and_taken_ports_are_warnings(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(port))
        monkeypatch.setattr(doctor, "SUPERLINK_PORTS", (port,))
        assert str(port) in found("flower")[-1].what
        ports = found("ports")[0]
        assert ports.level == "warning"
        assert str(port) in ports.what
        assert "flower-superlink --help" in ports.remedy


def test_wandb_online_without_an_account_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    (finding,) = found("W&B")
    assert finding.level == "warning"
    assert "wandb login" in finding.remedy
    assert "wandb.mode=offline" in finding.remedy
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert found("W&B")[0].level == "fine"


def test_the_exit_code_is_that_of_the_worst_finding():
    fine, warning, error = (Finding("x", level, "y") for level in ("fine", "warning", "error"))
    assert [exit_code(each) for each in ([fine], [fine, warning], [warning, error])] == [0, 1, 2]


def test_the_command_prints_a_line_a_finding_when_piped_and_exits_with_the_code(capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", *SMALL, "dataset=esc50", "dataset.root=/no/such/folder"])
    assert end.value.code == 2
    lines = capsys.readouterr().out.splitlines()
    (data,) = (line for line in lines if line.startswith("error\tdata\t"))
    assert "dataset.root" in data.split("\t-> ")[1]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("finetune.enabled=false",),
        ("share.dtype=int8",),
        ("finetune.from_nodes_adapters=true",),
        ("aggregation.mode=none", "finetune.from_nodes_adapters=true"),
        ("share=statistics", "adapters=closed_form", "projection.columns=64"),
        ("share=statistics", "projection.columns=64"),
    ],
)
def test_the_estimated_bytes_are_those_that_are_sent(tmp_path, overrides):
    from fed_a2v.federation.simulation import run_in_process
    from fed_a2v.storage.files import read_jsonl

    settings = compose_settings(["experiment=quick", "rounds=1", "generator=none", "report=false", *overrides])
    prompts = prompt_set(settings, class_names(settings.dataset))
    space = make_space(settings) if settings.shares_sums else None
    told = resource_estimate(settings, make_step(settings, prompts, (1, 512), space), (1, 512))
    run_in_process(settings, tmp_path)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    sites = settings.partition.sites
    least = 0.5 if settings.share.dtype == "int8" else 0.95  # of compressed weights the estimate is the most
    assert least * told.up <= row["bytes_up"] / sites <= 1.05 * told.up
    assert row["bytes_down"] / sites == pytest.approx(told.down, rel=0.05)
    assert row["bytes_registration"] / sites <= told.prototypes * 1.05
