"""Runs loaded in Python, and the page that shows how."""

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import fed_a2v.load
from fed_a2v import compare_runs, load_run, train
from fed_a2v.cli import main
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.plugins import UntrustedCodeError
from fed_a2v.config.schema import cache_dir
from fed_a2v.core.adapters import prompt_centre
from fed_a2v.core.metrics import retrieval
from fed_a2v.data.datasets.synth import RATE, synthesise
from fed_a2v.data.errors import BadClipError
from fed_a2v.data.site import class_names, load_clips
from fed_a2v.data.sounds import RunError, mono
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.images.subjects import of_classes
from fed_a2v.install import install_hint
from fed_a2v.runs.checkpoint import load_state, save_state
from fed_a2v.runs.folder import RunFolder
from fed_a2v.storage.torch_files import CheckpointError
from fed_a2v.storage.untrusted import UntrustedFileError
from tests.refusals import refused

FAST = (
    *("experiment=quick", "report=false", "adapters.hidden_width=64"),
    *("finetune.first_steps=30", "finetune.steps=10"),
)
PAGE = Path(__file__).parents[1] / "docs" / "notebook.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of two rounds on the built-in sounds; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    run_in_process(compose_settings(FAST), folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "gaussian"
    run_in_process(compose_settings([*FAST, "generator=gaussian"]), folder)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return load_run(folder)


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds") / "dog.wav"
    soundfile.write(path, synthesise("dog", 3, seed=0), RATE, subtype="FLOAT")
    return path


@pytest.fixture
def own(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "own"))


# Loading


def test_the_attributes_are_those_of_the_folder(run, folder):
    settings = compose_settings(FAST)
    assert run.settings == settings
    assert run.config["generator"]["name"] == "vae"
    assert run.classes == class_names(settings.dataset)
    assert [row["round"] for row in run.metrics] == [1, 2]
    assert run.results["accuracy"] == run.metrics[-1]["accuracy"]
    expected = prompt_set(settings, run.classes)
    assert torch.equal(run.targets.clip, expected.clip)
    assert expected.t5 is None
    assert run.targets.t5 is None


def test_importing_the_package_imports_no_torch():
    code = """
import sys, fed_a2v
assert dir(fed_a2v) == sorted(fed_a2v.__all__), dir(fed_a2v)
assert not {"torch", "hydra", "pandas"} & sys.modules.keys()
for name in fed_a2v.__all__:
    assert getattr(fed_a2v, name), name
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_loaded_run_scores_its_test_clips_as_the_run_did(run):
    """Adapters, class prompts and scale of the embeddings are together those of the run."""
    settings = run.settings
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
    rows = torch.from_numpy(clips.rows("test"))
    outputs = run.adapt(clips.embeddings[rows]).clip
    centre = prompt_centre(run.targets.clip)
    scores = torch.nn.functional.cosine_similarity(
        (outputs - centre).flatten(1)[:, None], (run.targets.clip - centre).flatten(1)[None], dim=-1
    )
    accuracy = (scores.argmax(dim=1) == clips.labels[rows]).float().mean()
    assert float(accuracy) == pytest.approx(run.results["accuracy"])


def test_a_checkpoint_of_an_earlier_round_is_that_round(folder, run):
    first = load_run(folder / "checkpoints" / "state_round_000001.pt")
    assert first.round == 1
    assert [row["round"] for row in first.metrics] == [1]
    changed = [
        not torch.equal(one, two) for one, two in zip(first.adapters.weights(), run.adapters.weights(), strict=True)
    ]
    assert any(changed)
    with refused(RunError, folder):
        first.continue_training(1)


def test_a_folder_without_a_run_is_refused(tmp_path, folder):
    with refused(FileNotFoundError, tmp_path, "checkpoints/state_round_N.pt", "fed-a2v train"):
        load_run(tmp_path)
    with refused(FileNotFoundError, tmp_path / "absent"):
        load_run(tmp_path / "absent")
    generator = next((folder / "checkpoints").glob("vae_generator*"))
    with refused(CheckpointError, generator, "state_round_N.pt"):
        load_run(generator)


def test_settings_of_another_version_are_refused(run):
    state = {"config": run.config | {"new_key": 1}, "round": 2, "components": {}}
    with refused(CheckpointError, run.folder.path, "new_key"):
        fed_a2v.load.LoadedRun(run.folder, state, "cpu")


def test_a_run_is_loaded_without_its_data(own, tmp_path, monkeypatch):
    """The folder has the class names and prompts in it."""

    def unreachable(*_):
        raise AssertionError("the data set was read")

    monkeypatch.setattr("fed_a2v.data.index._listed", unreachable)
    assert load_run(own).classes[0] == "chainsaw"


# Untrusted folders


class OwnLoss(torch.nn.Module):
    """A custom loss that counts its instances."""

    made = 0

    def __init__(self, **_):
        super().__init__()
        OwnLoss.made += 1

    def forward(self, recon_x, x, mu, logvar, epoch):
        return (recon_x - x).square().mean()


def changed(folder, change):
    """The run's folder, with another state in place of its newest."""
    state = load_state(folder)
    change(state)
    save_state(folder, state)
    return folder


def test_code_that_a_run_names_is_not_run_unless_it_is_trusted(own, capsys):
    target = f"{OwnLoss.__module__}.{OwnLoss.__qualname__}"
    changed(own, lambda state: state["config"]["generator"].update(loss={"_target_": target}))
    before = OwnLoss.made
    with refused(UntrustedCodeError, own, f"generator.loss._target_={target}", "trust_code=True"):
        load_run(own)
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(own), "--synthetic", "1"])
    assert ended.value.code == 2
    assert target in capsys.readouterr().err
    assert OwnLoss.made == before
    assert isinstance(load_run(own, trust_code=True).step.generator.loss, OwnLoss)


@pytest.mark.parametrize(
    "extra",
    [
        {"encoder": {"name": "custom", "_target_": "subprocess.Popen", "arguments": {"args": ["true"]}}},
        {"generator": {"parts": [[{"_target_": "os.system", "command": "true"}]]}},
        {"dataset": {"arguments": {"deep": {"deeper": {"_target_": "torch.load", "weights_only": False}}}}},
    ],
    ids=["encoder", "list", "arguments"],
)
def test_code_is_found_wherever_a_run_hides_it(own, extra):
    def hide(state):
        for section, values in extra.items():
            state["config"][section] |= values

    with refused(UntrustedCodeError, own):
        load_run(changed(own, hide))


@pytest.mark.parametrize("section", ["encoder", "generator", "dataset"])
def test_code_is_found_under_the_other_name_of_its_key(own, section):
    """Typed settings take a field by its own name as well."""

    def rename(state):
        del state["config"][section]["_target_"]
        state["config"][section] |= {"target": "subprocess.Popen", "name": "custom"}

    with refused(UntrustedCodeError, own, f"{section}._target_=subprocess.Popen"):
        load_run(changed(own, rename))


@pytest.mark.parametrize(("section", "key"), [("generator", "hidden_dim"), ("adapters", "hidden_width")])
def test_settings_cannot_ask_for_more_memory_than_the_state_fills(own, section, key):
    changed(own, lambda state: state["config"][section].update({key: 10**9}))
    with refused(CheckpointError, own, "MB"):
        load_run(own)


def test_a_tensor_that_repeats_a_number_without_end_is_refused(own):
    content = torch.load(own / "checkpoints" / "state_round_000002.pt", weights_only=True)
    content["components"]["adapters"] = {"audio_mean": torch.zeros(1).expand(10**12)}
    torch.save(content, own / "checkpoints" / "state_round_000002.pt")
    assert load_run(own).round == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["components"].pop("strategy"),
        lambda state: state["components"]["strategy"].update(audio_shape="wide"),
        lambda state: state["components"].pop("bank"),
        lambda state: state["components"].update(adapters={"x": torch.zeros(2)}),
        lambda state: state.update(round="one"),
    ],
    ids=["no strategy", "no shape", "no bank", "other weights", "no round"],
)
def test_a_state_that_does_not_fit_is_an_error_of_the_file(own, change):
    state = load_state(own)
    change(state)
    with refused(CheckpointError, own):
        fed_a2v.load.LoadedRun(RunFolder(own), state, "cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda generator: generator.update(conditions=generator["conditions"][:, :2]),
        lambda generator: generator.update(conditions=generator["conditions"].flatten()),
    ],
    ids=["narrow conditions", "flat conditions"],
)
def test_a_generator_whose_parts_do_not_fit_one_another_is_an_error_of_the_file(own, change):
    state = load_state(own)
    change(state["components"]["generator"]["generator_state"])
    with refused(CheckpointError, own):
        fed_a2v.load.LoadedRun(RunFolder(own), state, "cpu")


def test_numbers_of_another_precision_are_taken_in_the_models_own(own):
    state = load_state(own)
    generator = state["components"]["generator"]["generator_state"]
    generator |= {name: tensor.double() for name, tensor in generator.items() if tensor.is_floating_point()}
    run = fed_a2v.load.LoadedRun(RunFolder(own), state, "cpu")
    assert torch.equal(run.generator.sample("dog", 2, seed=0), load_run(own).generator.sample("dog", 2, seed=0))


@pytest.mark.parametrize("value", [torch.zeros(2), "\ud800", {"a": [torch.zeros(1)]}])
def test_settings_that_are_no_plain_text_and_numbers_are_an_error_of_the_file(own, value):
    changed(own, lambda state: state["config"]["generator"].update(loss=value))
    with refused(CheckpointError, own, "settings"):
        load_run(own)


@pytest.mark.parametrize("number", ['"1"', "null", "[1]", "1.0"])
def test_a_round_without_its_number_is_an_error_of_the_file(own, number):
    (own / "metrics.jsonl").write_text(f'{{"round": {number}, "accuracy": 0.5}}\n')
    with refused(UntrustedFileError, "metrics.jsonl"):
        _ = load_run(own).metrics


def test_half_a_character_in_a_file_is_refused_by_every_reader(own):
    config = (own / "config.yaml").read_text()
    (own / "config.yaml").write_text(config.replace("project: fed_a2v", r'project: "\ud800"'))
    with refused(UntrustedFileError, own / "config.yaml"):
        compare_runs([own])


def test_links_out_of_the_folder_are_not_followed(own, folder):
    for name, use in {
        "results.json": lambda: compare_runs([own]),
        "metrics.jsonl": lambda: load_run(own).metrics,
        "targets.npz": lambda: load_run(own),
        "checkpoints": lambda: load_run(own),
    }.items():
        path = own / name
        kept = path.rename(path.with_name(f"kept {name}"))
        path.symlink_to(folder / name)
        with refused(UntrustedFileError, path, folder):
            use()
        path.unlink()
        kept.rename(path)


# Sampling


def test_samples_of_a_class_are_seeded_and_differ_between_classes(run):
    dogs = run.generator.sample("dog", 4, seed=7)
    assert dogs.shape == (4, 1, 512)
    assert torch.equal(dogs, run.generator.sample("Dog", 4, seed=7))
    assert not torch.equal(dogs, run.generator.sample("dog", 4, seed=8))
    assert len({row.numpy().tobytes() for row in dogs}) == 4
    assert torch.equal(run.generator.sample("crying_baby", 2), run.generator.sample("crying baby", 2))
    assert not torch.equal(run.generator.sample("rain", 4, seed=7), dogs)


def test_samples_of_a_class_are_taken_for_it(other):
    """The adapters find the class that a sample was drawn for more often than by chance."""
    run = load_run(other)
    centre = prompt_centre(run.targets.clip)
    right = 0
    for label, name in enumerate(run.classes):
        outputs = run.adapt(run.generator.sample(name, 10)).clip
        scores = (outputs - centre).flatten(1) @ (run.targets.clip - centre).flatten(1).T
        right += int((scores.argmax(dim=1) == label).sum())
    assert right > 50


def test_an_unknown_class_is_refused_with_the_nearest(run):
    with refused(RunError, "'roster'", "'rooster'"):
        run.generator.sample("roster")
    with refused(RunError, "'zebra'", *run.classes):
        run.class_name("zebra")


def test_a_run_without_a_generator_has_nothing_to_sample(tmp_path):
    run_in_process(compose_settings([*FAST, "generator=none", "rounds=1"]), tmp_path / "plain")
    with refused(RunError, "plain", "generator=none"):
        _ = load_run(tmp_path / "plain").generator


# Sounds to prompts


def test_a_file_a_waveform_and_a_list_give_the_same_prompts(run, wav):
    from_file = run.prompts(wav)
    assert from_file.clip.shape == (1, 1, 768)
    assert from_file.t5 is None
    waveform, rate = soundfile.read(wav, dtype="float32")
    assert torch.equal(run.prompts(waveform, rate=rate).clip, from_file.clip)
    assert torch.equal(run.prompts(np.stack([waveform, waveform], axis=1), rate=rate).clip, from_file.clip)
    several = run.prompts([wav, str(wav), wav])
    assert several.clip.shape == (3, 1, 768)
    torch.testing.assert_close(several.clip, from_file.clip.expand(3, -1, -1))
    assert run.prompts([]).clip.shape == (0, 1, 768)


def test_a_sound_gives_the_embedding_that_the_run_trained_on(run):
    settings = run.settings
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
    row = clips.keys.index("1-00000-A-0.wav")
    embedding = run.embed(synthesise("dog", 0, settings.seed), rate=RATE)
    torch.testing.assert_close(embedding[0], clips.embeddings[row])


def test_a_sound_with_values_that_no_training_clip_had_gives_numbers(folder, wav):
    run = load_run(folder)
    plain = run.embed(wav)
    assert plain.min() < 0
    run._components["strategy"]["square_root"] = True  # as if no training clip had a negative value
    torch.testing.assert_close(run.embed(wav), plain.sign() * plain.abs().sqrt())


def test_classes_of_a_sound_are_ranked_by_the_cosines_of_the_accuracy(run, wav):
    prompts = run.prompts(wav)
    ranked = run.classify(wav, top=10)
    assert {name for name, _ in ranked} == set(run.classes)
    assert [each.score for each in ranked] == sorted((each.score for each in ranked), reverse=True)
    for label, name in enumerate(run.classes):
        similarity = retrieval(prompts.clip, torch.tensor([label]), run.targets.clip).similarity
        assert dict(ranked)[name] == pytest.approx(float(similarity), abs=1e-6)
    waveform, rate = soundfile.read(wav, dtype="float32")
    assert run.classify(waveform, rate=rate, top=2) == ranked[:2]
    assert run.classify(torch.from_numpy(waveform), rate, top=1) == ranked[:1]
    assert run.classify([wav], top=3) == [ranked[:3]]
    assert run.classify(run.embed(wav), top=100) == [ranked]
    assert run.classify([]) == []
    with refused(RunError, "top=0"):
        run.classify(wav, top=0)


def test_embeddings_to_classify_may_be_arrays(run, wav):
    embeddings = run.embed([wav, wav])
    assert run.classify(embeddings.numpy(), top=3) == run.classify(embeddings, top=3)
    with refused(RunError, "(2, 1, 4)", "(B, 1, 512)"):
        run.classify(np.zeros((2, 1, 4)))


def test_prompts_lie_where_the_class_prompts_lie(run, wav):
    """The centre that comparisons take off is in them."""
    prompts, centre = run.prompts(wav).clip[0], prompt_centre(run.targets.clip)
    assert float(torch.nn.functional.cosine_similarity(prompts.flatten(), centre.flatten(), dim=0)) > 0.5


def test_sounds_that_cannot_be_used_are_refused(run, tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), 16_000)
    with refused(BadClipError, tmp_path / "empty.wav"):
        run.prompts(tmp_path / "empty.wav")
    with refused(BadClipError, tmp_path / "absent.wav"):
        run.prompts(tmp_path / "absent.wav")
    with refused(BadClipError, "(0,)"):
        run.prompts(np.zeros(0), rate=16_000)
    with refused(BadClipError, "(100,)", "3.28e+04"):
        run.prompts(np.full(100, 32_767.0), rate=16_000)
    with refused(BadClipError, "(100,)", "NaN"):
        run.prompts(np.full(100, np.nan), rate=16_000)
    with refused(RunError, "rate="):
        run.prompts(np.zeros(100))


def test_a_run_on_a_file_of_embeddings_takes_embeddings_only(tmp_path, wav):
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 4
    embeddings = np.abs(np.eye(4)[labels] @ rng.normal(size=(4, 6)) + 0.1 * rng.normal(size=(48, 6)))
    np.savez(tmp_path / "some.npz", embeddings=embeddings, target=labels, fold=np.arange(48) // 4 % 4 + 1)
    words = ["dataset=embeddings", f"dataset.path={tmp_path / 'some.npz'}", "partition.sites=2", "rounds=1"]
    experiment = [word for word in FAST if not word.startswith("experiment")]
    run_in_process(compose_settings([*experiment, *words, "wandb.mode=disabled"]), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.adapt(torch.rand(3, 1, 6)).clip.shape == (3, 1, 768)
    with refused(RunError, "`adapt`"):
        run.prompts(wav)


# Continuing and comparing


def test_continuing_gives_what_a_longer_run_gives(own, tmp_path):
    longer = run_in_process(compose_settings([*FAST, "rounds=3"]), tmp_path / "longer")
    continued = load_run(own).continue_training(rounds=1)
    assert (continued.round, continued.settings.rounds) == (3, 3)
    assert continued.results["accuracy"] == longer["accuracy"]
    for one, two in zip(continued.adapters.weights(), load_run(tmp_path / "longer").adapters.weights(), strict=True):
        assert torch.equal(one, two)


def test_a_continued_run_takes_no_cache_or_tracking_setting_from_the_folder(own, tmp_path, monkeypatch):
    """Cache, W&B and MLflow settings of an untrusted run are ignored; those of the user apply."""
    state = load_state(own)
    state["config"]["cache_dir"] = str(tmp_path / "strangers")
    state["config"]["wandb"] |= {"mode": "offline", "project": "${oc.env:HOME}"}
    state["config"]["tracking"] |= {"mlflow": True, "mlflow_uri": f"sqlite:///{tmp_path / 'theirs.db'}"}
    save_state(own, state)
    monkeypatch.setenv("FED_A2V_CACHE", str(tmp_path / "users"))
    continued = load_run(own).continue_training(rounds=1)
    assert (continued.settings.cache_dir, continued.settings.wandb.mode) == (None, "disabled")
    assert continued.settings.wandb.project == "${oc.env:HOME}"
    assert not (tmp_path / "strangers").exists()
    assert not (own / "wandb").exists()
    assert not (tmp_path / "theirs.db").exists()
    continued = continued.continue_training(1, {"cache_dir": str(tmp_path / "mine"), "report": False})
    assert (continued.round, continued.settings.cache_dir) == (4, str(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"adapters.no_such": 1}, ConfigError, ["adapters.no_such"]),
        ({"rounds": "many"}, ConfigError, ["rounds", "many"]),
        ({"rounds.many": 1}, ConfigError, ["rounds.many"]),
        ({"generator._target_": "os.system"}, UntrustedCodeError, ["os.system", "trust_code=True"]),
        ({"adapters.hidden_width": 8}, CheckpointError, ["adapters.hidden_width"]),
    ],
)
def test_impossible_changes_are_refused(own, changes, error, words):
    with refused(error, *words):
        load_run(own).continue_training(1, changes)
    assert load_run(own).round == 2


def test_the_frame_has_the_settings_that_differ_and_the_results(folder, other):
    table = compare_runs([folder, load_run(other)])
    assert list(table.index) == ["mine", "gaussian"]
    assert list(table["generator.name"]) == ["vae", "gaussian"]
    assert "dataset.name" not in table
    assert "seed" in table, "a result, though it is the same"
    assert list(table["accuracy"]) == [load_run(path).results["accuracy"] for path in (folder, other)]


def test_accuracy_and_its_interval_come_first_in_the_frame(own, other):
    results = json.loads((own / "results.json").read_text())
    (own / "results.json").write_text(json.dumps({**results, "accuracy_low": 0.25, "accuracy_high": 0.75}))
    table = compare_runs([own, other])
    assert list(table.columns[:4]) == ["accuracy", "accuracy_low", "accuracy_high", "test_clips"]
    assert table.columns[4].startswith("generator.")
    assert list(table["accuracy_low"]) == [0.25, load_run(other).results["accuracy_low"]]
    assert table.columns.is_unique


def test_a_folder_of_runs_is_compared_whole(folder, other, tmp_path):
    """Runs lie side by side, as in a comparison, or a level deeper, as in a cross-validation."""
    runs = tmp_path / "runs"
    shutil.copytree(folder, runs / "fold-10_seed-0" / "vae")
    shutil.copytree(other, runs / "fold-9_seed-0" / "gaussian")
    (runs / "fold-9_seed-0" / "link").symlink_to(folder)
    table = compare_runs(runs)
    assert list(table.index) == ["fold-9_seed-0/gaussian", "fold-10_seed-0/vae"]
    assert list(table["accuracy"]) == [load_run(path).results["accuracy"] for path in (other, folder)]
    assert list(compare_runs(str(folder)).index) == ["mine"], "a run itself"


def test_unfinished_runs_in_a_folder_are_left_out_with_a_warning(folder, own, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(folder, runs / "done")
    shutil.move(own, runs / "stopped")
    (runs / "stopped" / "results.json").unlink()
    (runs / "failed" / ".hydra").mkdir(parents=True)
    (runs / "failed" / ".hydra" / "overrides.yaml").write_text("[]")
    with pytest.warns(UserWarning, match=r"2 of 3 .*failed, stopped"):
        assert list(compare_runs(runs).index) == ["done"]
    shutil.rmtree(runs / "done")
    with refused(FileNotFoundError, runs, "failed, stopped"):
        compare_runs(runs)
    with refused(FileNotFoundError, tmp_path / "absent"):
        compare_runs(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with refused(FileNotFoundError, tmp_path / "empty", "fed-a2v compare"):
        compare_runs(tmp_path / "empty")


def test_runs_of_one_name_are_told_apart_by_their_folders(folder, tmp_path):
    same = shutil.copytree(folder, tmp_path / "mine")
    assert list(compare_runs([folder, same]).index) == [str(folder), str(same)]


def test_comparing_needs_finished_runs_and_pandas(own, monkeypatch):
    (own / "results.json").unlink()
    with refused(FileNotFoundError, own, "results.json"):
        compare_runs([own])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with refused(ConfigError, "pandas", install_hint("notebook")):
        compare_runs([own])


# Training from Python


def test_training_gives_the_run_of_the_command_and_again_the_finished_one(own, folder):
    (own / "results.json").unlink()
    first = train(FAST, own, quiet=True)
    assert (first.round, first.results["accuracy"]) == (2, load_run(folder).results["accuracy"])
    times = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    assert train(" ".join(FAST), str(own)).round == 2
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*")} == times, "a finished run is not changed"
    with refused(CheckpointError, "seed"):
        train([*FAST, "seed=1"], own, quiet=True)


def test_training_without_a_folder_takes_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train([*FAST, "rounds=1", "generator=none", "report=false"], quiet=True)
    assert run.folder.path.parent.parent == tmp_path / "outputs"
    assert run.results["rounds"] == 1


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["rouns=1"], ("rouns=1", "rounds")),
        ("seed=0,1", ("seed=0,1",)),
        (["-m", "seed=0"], ("-m", "folder")),
        (["hydra.run.dir=x"], ("hydra.run.dir=x", "folder")),
        ("generator._target_=no_such_module.Generator", ("no_such_module",)),
    ],
)
def test_wrong_overrides_leave_no_folder(overrides, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(ConfigError, *named):
        train(overrides)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_of_the_user_is_trusted_and_one_of_the_folder_is_not(own):
    """The overrides are the user's own; the settings in the folder may be somebody else's."""
    target = f"{OwnLoss.__module__}.{OwnLoss.__qualname__}"
    assert train([*FAST, "rounds=3"], own, quiet=True).trust_code is False
    words = [*FAST, f"generator.loss._target_={target}", "rounds=1"]
    assert isinstance(train(words, own.parent / "new", quiet=True).step.generator.loss, OwnLoss)


# Shapes, types and numbers


@pytest.mark.parametrize(
    ("embeddings", "named"),
    [
        (torch.zeros(3, 512), ("(3, 512)", "(B, 1, 512)", "[:, None]")),
        (torch.zeros(512), ("(512,)", "(B, 1, 512)")),
        (torch.zeros(3, 2, 512), ("(3, 2, 512)", "(B, 1, 512)")),
        (np.zeros((3, 1, 4)), ("(3, 1, 4)", "(B, 1, 512)")),
        (torch.zeros(3, 1, 512, dtype=torch.int32), ("int32", "(B, 1, 512)")),
        (torch.zeros(3, 1, 512, dtype=torch.complex64), ("complex64", "(B, 1, 512)")),
        ([[0.0] * 512], ("list", "(B, 1, 512)")),
        (None, ("NoneType", "(B, 1, 512)")),
    ],
)
@pytest.mark.parametrize("method", ["adapt", "inputs"])
def test_embeddings_of_another_shape_or_type_are_refused(run, method, embeddings, named):
    with refused(RunError, *named) as caught:
        getattr(run, method)(embeddings)
    assert "\n" not in str(caught.value)


def test_arrays_and_other_precisions_give_the_same_prompts(run):
    rows = torch.rand(2, 1, 512, dtype=torch.float64)
    expected = run.adapt(rows.float()).clip
    for given in (rows, rows.numpy()):
        assert torch.equal(run.adapt(given).clip, expected)
    assert run.adapt(torch.empty(0, 1, 512)).clip.shape == (0, 1, 768)


@pytest.mark.parametrize("sounds", [5, None, [1.0, 2.0], [None]])
def test_what_is_no_sound_is_refused(run, sounds):
    with refused(RunError, type(sounds[0] if isinstance(sounds, list) else sounds).__name__, "rate"):
        run.embed(sounds, rate=16_000)


@pytest.mark.parametrize("rate", ["16000", True, float("nan")])
def test_a_rate_that_is_no_number_is_refused(run, rate):
    with refused(RunError, repr(rate), "rate="):
        run.embed(TONE, rate=rate)


@pytest.mark.parametrize("number", [0, -1, 2.5, "8", True, None])
def test_a_number_of_samples_is_a_whole_one(run, number):
    with refused(RunError, f"num_samples={number!r}"):
        run.generator.sample("dog", number)


def test_names_seeds_and_rounds_of_another_type_are_refused(run):
    assert run.generator.sample("dog", np.int64(2), np.int64(0)).shape == (2, 1, 512)
    with refused(RunError, "seed='x'"):
        run.generator.sample("dog", 1, "x")
    with refused(RunError, "int", "chainsaw"):
        run.generator.sample(3)
    with refused(RunError, "rounds=1.5"):
        run.continue_training(1.5)


# Documentation


@pytest.mark.parametrize("name", ["train", "load_run", "compare_runs"])
def test_the_examples_in_the_docstrings_are_true(name, folder, other, wav, tmp_path, capsys):
    known = {"load_run": load_run, "compare_runs": compare_runs, "folder": folder, "other": other, "wav": wav}
    known |= {"train": train, "new_folder": tmp_path / "new"}
    doctest.run_docstring_examples(getattr(fed_a2v.load, name), known, name=name)
    assert capsys.readouterr().out == ""


def test_the_page_is_true(own, other, wav, monkeypatch):
    monkeypatch.chdir(own.parent)
    shutil.copytree(own, "outputs/mine")
    shutil.copytree(other, "outputs/gaussian")
    shutil.copy(wav, "dog.wav")
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 10
    assert failed == 0


# Waveforms as others give them

TONE = np.sin(np.linspace(0, 90, 1000)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_channels_may_come_first_or_last(channels, kind):
    stereo = np.stack([TONE * (k + 1) / channels for k in range(channels)])
    expected = stereo.mean(axis=0)
    np.testing.assert_allclose(mono(np.asarray(kind(stereo))), expected, atol=1e-6)
    np.testing.assert_allclose(mono(np.asarray(kind(stereo.T.copy()))), expected, atol=1e-6)


@pytest.mark.parametrize("type_", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float16, np.float64])
def test_integers_count_from_full_scale(type_):
    kind, half = np.dtype(type_), 2.0 ** (8 * np.dtype(type_).itemsize - 1)
    scale, zero = {"i": (half, 0.0), "u": (half, half), "f": (1.0, 0.0)}[kind.kind]
    given = np.round(0.5 * TONE.astype(np.float64) * scale + zero) if kind.kind != "f" else 0.5 * TONE
    found = mono(given.astype(type_))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 0.5 * TONE, atol=1 / half if kind.kind != "f" else 1e-3)


@pytest.mark.parametrize(
    ("waveform", "named"),
    [
        (np.zeros(0), "(0,)"),
        (np.zeros((2, 0)), "(2, 0)"),
        (np.float32(1), "()"),
        (np.zeros((2, 2, 100)), "(2, 2, 100)"),
        (np.zeros((100, 100)), "(100, 100)"),
        (np.zeros((100, 2000)), "(100, 2000)"),
        (np.array([1.0, np.nan]), "NaN or infinite"),
        (np.array([1e300, 0.0]), "NaN or infinite"),
        (np.zeros(10, np.int64), "int64"),
        (np.zeros(10, bool), "bool"),
        (np.zeros(10, complex), "complex"),
        (np.array(["a"]), "U1"),
        (np.array([None, TONE], dtype=object), "object"),
    ],
)
def test_an_invalid_waveform_is_refused(waveform, named):
    with refused(BadClipError, named):
        mono(np.asarray(waveform))


def test_a_run_accepts_tensors_and_refuses_a_missing_rate(run):
    stereo = np.stack([TONE, 0.5 * TONE])
    expected = run.embed(stereo.mean(axis=0), rate=16_000)
    assert run.embed(torch.from_numpy(stereo), rate=16_000).shape == expected.shape
    torch.testing.assert_close(run.embed(torch.from_numpy(stereo), rate=16_000), expected, atol=1e-4, rtol=1e-4)
    for rate in (None, 0, -1):
        with refused(RunError, rate):
            run.embed(TONE, rate=rate)


# A run that shares sums


SUMS = ("share=statistics", "projection.columns=24", "site.epochs=0", "generator=gaussian", "rounds=1", "report=false")


@pytest.fixture(scope="module")
def sums_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sums"
    run_in_process(compose_settings([*FAST, *SUMS]), folder)
    return folder


def test_sounds_and_samples_of_a_run_with_sums_are_rows_of_its_public_space(sums_folder, run, wav):
    sums = load_run(sums_folder)
    rows, samples = sums.embed(wav), sums.generator.sample("dog", 3)
    assert (rows.shape, samples.shape) == ((1, 1, 24), (3, 1, 24))
    torch.testing.assert_close(rows, sums.adapters.space.rows(run.embed(wav)).unsqueeze(1))
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(1, 1))
    for inputs in (rows, samples):
        assert sums.adapt(inputs).clip.shape == (len(inputs), 1, 768)
    assert torch.equal(sums.prompts(wav).clip, sums.adapt(rows).clip)
    assert sums.embed([]).shape == (0, 1, 24)
    with refused(RunError, "width 512", "24 columns", "run.inputs"):
        sums.adapt(run.embed(wav))
    assert torch.equal(run.inputs(run.embed(wav)), run.embed(wav)), "without sums these are the inputs"


def test_a_loaded_run_with_sums_scores_its_test_clips_as_the_run_did(sums_folder):
    sums = load_run(sums_folder)
    settings = sums.settings
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
    test = torch.from_numpy(clips.rows("test"))
    scores = retrieval(sums.adapt(sums.inputs(clips.embeddings[test])).clip, clips.labels[test], sums.targets.clip)
    assert scores.accuracy == pytest.approx(sums.results["accuracy"])


def test_the_classes_of_a_run_with_sums_are_their_means(sums_folder):
    sums = load_run(sums_folder)
    known = of_classes(sums.step, sums.classes[:3])
    assert [subject.name for subject in known.subjects] == list(sums.classes[:3])
    total = sums.step.sums.total
    means = torch.nn.functional.normalize(total.sums, dim=1).float()
    torch.testing.assert_close(known.embeddings[:, 0], means[:3])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda parts: parts["strategy"].update(space=None), ("does not fit",)),
        (lambda parts: parts["strategy"]["space"].__setitem__(0, torch.eye(512, 30)), ("(512, 30)", "24 columns")),
        (lambda parts: parts["strategy"]["space"].__setitem__(0, torch.ones(512, 24)), ("not orthonormal",)),
        (lambda parts: parts["strategy"]["space"][1].fill_(torch.nan), ("not finite",)),
        (lambda parts: _first(parts).update(sums=torch.zeros(10, 1)), ("10 classes", "24 columns")),
        (lambda parts: _first(parts)["sums"].fill_(torch.inf), ("does not fit",)),
    ],
)
def test_a_state_whose_space_or_sums_do_not_fit_is_refused(sums_folder, tmp_path, change, named):
    folder = Path(shutil.copytree(sums_folder, tmp_path / "own"))
    state = load_state(folder)
    change(state["components"])
    save_state(folder, state)
    with refused(CheckpointError, *named):
        load_run(folder)


def _first(parts):
    return next(iter(parts["sums"]["sites"].values()))
