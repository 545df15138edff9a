"""Adapters exported from a run, loaded without the program that trained them, and the page that shows how."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import fed_a2v.adapter
from fed_a2v import A2VAdapter, load_run
from fed_a2v.adapter import AdapterError
from fed_a2v.cli import main
from fed_a2v.commands.runs import check_one_run
from fed_a2v.config.compose import compose_settings
from fed_a2v.core.uncertainty import wilson_interval
from fed_a2v.data.datasets.synth import RATE, synthesise
from fed_a2v.data.sounds import RunError
from fed_a2v.encoders.logmel import LogMelEncoder
from fed_a2v.errors import ConfigError
from fed_a2v.export import export_run
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.model_card import markdown, model_card
from fed_a2v.storage.untrusted import UntrustedFileError
from tests.models import tiny_ast
from tests.pipelines import tiny_flux, tiny_stable_diffusion
from tests.refusals import refused

FAST = (
    *(
        "experiment=quick",
        "rounds=1",
        "generator=none",
        "adapters.hidden_width=16",
        "partition.sites=2",
        "report=false",
    ),
    *("dataset.classes=[dog,rain,sea_waves]", "dataset.clips_per_class=8", "share.min_clips=1", "site.epochs=1"),
    *("finetune.first_steps=5", "~callbacks.embedding_map"),
)
SUMS = ("share=statistics", "projection=random", "projection.columns=32", "site.epochs=0")
PAGE = Path(__file__).parents[1] / "docs" / "export.md"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A loaded run for some overrides; the same ones give the same run to every test."""
    made = {}

    def run(*words):
        if words not in made:
            folder = tmp_path_factory.mktemp("runs") / "mine"
            run_in_process(compose_settings([*FAST, *words]), folder, output="quiet")
            made[words] = load_run(folder)
        return made[words]

    return run


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """The folder of an export; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("exports") / "mine"
    export_run(runs(), folder)
    return folder


@pytest.fixture
def own(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "own"))


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds") / "dog.wav"
    soundfile.write(path, synthesise("dog", 3, seed=0), RATE, subtype="FLOAT")
    return path


# The same numbers as the run


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("adapters=sd",),
        ("adapters=flux",),
        ("adapters=bilinear",),
        SUMS,
        (*SUMS, "adapters=closed_form"),
    ],
    ids=lambda words: " ".join(words) or "compact",
)
def test_an_exported_adapter_gives_the_prompts_of_its_run(words, runs, wav, tmp_path):
    run = runs(*words)
    export_run(run, tmp_path / "mine")
    adapter = A2VAdapter.from_pretrained(tmp_path / "mine")
    prompts, expected = adapter(wav), run.prompts(wav)
    assert torch.equal(prompts.clip, expected.clip)
    assert (prompts.t5 is None) == (expected.t5 is None)
    if expected.t5 is not None:
        assert torch.equal(prompts.t5, expected.t5)
    assert adapter.classify(wav) == run.classify(wav)
    waveform, rate = soundfile.read(wav, dtype="float32")
    assert torch.equal(adapter(waveform, rate).clip, expected.clip)
    assert torch.equal(adapter.class_prompts("Sea waves").clip[0], run.targets.clip[2])
    assert adapter.class_prompts().clip.shape == run.targets.clip.shape


def test_the_prompts_have_the_names_of_a_pipelines_arguments(runs, exported, tmp_path, wav):
    compact = A2VAdapter.from_pretrained(exported)([wav, wav])
    assert compact.pooled_prompt_embeds.shape == (2, 768)
    assert compact.prompt_embeds is None
    export_run(runs("adapters=flux"), tmp_path / "flux")
    flux = A2VAdapter.from_pretrained(tmp_path / "flux")(wav).to(torch.bfloat16)
    assert (flux.pooled_prompt_embeds.shape, flux.prompt_embeds.shape) == ((1, 768), (1, 17, 4096))
    assert flux.prompt_embeds.dtype == flux.pooled_prompt_embeds.dtype == torch.bfloat16
    export_run(runs("adapters=sd"), tmp_path / "sd")
    sd = A2VAdapter.from_pretrained(tmp_path / "sd")(wav)
    assert sd.prompt_embeds.shape == (1, 77, 768)
    assert sd.pooled_prompt_embeds is None


def test_another_type_of_numbers_is_that_of_the_whole_module(exported, wav):
    assert A2VAdapter.from_pretrained(exported).to(torch.float64)(wav).clip.dtype == torch.float64


@pytest.fixture(scope="module")
def of_embeddings(tmp_path_factory):
    """A run on a file of embeddings, which are squares, and the embeddings."""
    folder = tmp_path_factory.mktemp("embeddings")
    random = np.random.default_rng(0)
    labels, folds = np.repeat(np.arange(3), 10), np.tile(np.arange(1, 6), 6)
    embeddings = (np.eye(3)[labels] @ random.random((3, 6)) + 0.1 * random.random((30, 6))).astype(np.float32) ** 2
    names = np.array(["a", "b", "c"])[labels]
    np.savez(folder / "e.npz", embeddings=embeddings, category=names, fold=folds, filename=np.arange(30).astype(str))
    words = [word for word in FAST if not word.startswith("dataset.")]
    words += ["dataset=embeddings", f"dataset.path={folder / 'e.npz'}", "dataset.square_root=always"]
    run_in_process(compose_settings(words), folder / "run", output="quiet")
    return load_run(folder / "run"), torch.from_numpy(embeddings)[:, None]


def test_adapters_of_embeddings_take_embeddings_as_the_encoder_gives_them(of_embeddings, tmp_path, wav):
    run, embeddings = of_embeddings
    export_run(run, tmp_path / "mine")
    adapter = A2VAdapter.from_pretrained(tmp_path / "mine")
    expected = run.adapt(run.inputs(embeddings.sqrt())).clip
    torch.testing.assert_close(adapter(embeddings).clip, expected)
    assert torch.equal(adapter(embeddings.numpy()).clip, adapter(embeddings).clip)
    assert len(adapter.classify(embeddings, top=2)) == 30
    with refused(AdapterError, "embeddings (B, S, Da)"):
        adapter(wav)
    with refused(RunError, "(30, 1, 5)", "(B, 1, 6)"):
        adapter(embeddings[..., :5])
    with refused(RunError, "int64"):
        adapter(embeddings.long())
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "embeddings (B, 1, 6)" in card
    assert "adapter(embeddings)" in card
    assert " dataset.path=PATH " in card


# Without the program that trained it

WITHOUT = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flwr", "hydra", "wandb", "ray", "transformers", "sklearn"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""


def test_the_ten_lines_of_the_page_need_neither_flower_nor_hydra_nor_wandb(exported, wav, tmp_path):
    lines = re.search("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    assert len(lines.splitlines()) <= 10
    shutil.copytree(exported, tmp_path / "my-adapter")
    (tmp_path / "sounds" / "audio").mkdir(parents=True)
    shutil.copy(wav, tmp_path / "sounds" / "audio" / "1-00000-A-0.wav")
    code = f"{WITHOUT}\n{lines}\nprint('fed_a2v.federation' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    *scores, shape, federation = done.stdout.splitlines()
    assert {line.split()[1] for line in scores} == {"dog", "rain", "sea_waves"}
    assert (shape, federation) == ("torch.Size([1, 768])", "False")


# Encoders that have a model


def test_a_model_that_is_not_the_programs_own_is_used_only_if_the_user_names_it(runs, tmp_path, wav, monkeypatch):
    model = tiny_ast(tmp_path / "ast")
    words = ("encoder=ast", f"encoder.model={model}", "encoder.revision=null", "encoder.device=cpu")
    run = runs(*words)
    export_run(run, tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["encoder"]["model"] is None
    assert str(tmp_path) not in (tmp_path / "mine" / "config.json").read_text()
    assert str(tmp_path) not in (tmp_path / "mine" / "README.md").read_text()
    adapter = A2VAdapter.from_pretrained(tmp_path / "mine")
    monkeypatch.setattr("fed_a2v.encoders.audio.load_encoder", lambda settings: pytest.fail(str(settings)))
    with refused(AdapterError, "encoder=ast", "from_pretrained"):
        adapter(wav)
    monkeypatch.undo()
    again = A2VAdapter.from_pretrained(tmp_path / "mine", encoder=model)
    assert torch.equal(again(wav).clip, run.prompts(wav).clip)


def test_the_programs_own_model_is_used_by_its_name_and_revision(own):
    own_encoder = compose_settings(["encoder=ast"]).encoder
    changed(own, encoder={"name": "ast", "model": own_encoder.model, "revision": own_encoder.revision, "tokens": "cls",
                          "precision": "float32", "fingerprint": None}, audio_shape=[1, 512])  # fmt: skip
    seen = []

    def load(settings):
        seen.append(settings)
        return LogMelEncoder()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fed_a2v.encoders.audio.load_encoder", load)
        A2VAdapter.from_pretrained(own)(np.zeros(100, np.float32), 16_000)
    assert seen == [own_encoder]


def test_an_encoder_of_ones_own_is_given_as_an_object(own, wav):
    changed(own, encoder={"name": "custom", "fingerprint": "logmel-2"})
    with refused(AdapterError, "'logmel-2'", "encoder=OBJECT"):
        A2VAdapter.from_pretrained(own)(wav)
    expected = A2VAdapter.from_pretrained(own, encoder=LogMelEncoder())(wav)
    assert expected.clip.shape == (1, 1, 768)
    other = SimpleNamespace(name="other", tokens=1, width=512, sample_rate=16_000, fingerprint="other-1")
    with refused(AdapterError, "'other-1'", "'logmel-2'"):
        A2VAdapter.from_pretrained(own, encoder=other)
    with refused(AdapterError, "(1, 64)", "(1, 512)"):
        A2VAdapter.from_pretrained(own, encoder=SimpleNamespace(**{**vars(other), "width": 64}))


# Folders are data


def changed(folder, **values):
    """The configuration of an exported folder with other values."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"extra": 1}, "extra"),
        ({"_target_": "os.system"}, "_target_"),
        ({"encoder": {"name": "custom", "_target_": "os.system"}}, "encoder._target_"),
        ({"classes": []}, "classes"),
        ({"classes": ["dog", "dog", "rain"]}, "classes"),
        ({"classes": ["dog", 1, "rain"]}, "classes.1"),
        ({"format": 2}, "format"),
        ({"hidden_width": 0}, "hidden_width"),
        ({"hidden_width": 10**30}, "hidden_width"),
        ({"hidden_width": 2**20}, "MB"),
        ({"clip_seconds": 1e9}, "clip_seconds"),
        ({"audio_shape": [10**9, 512]}, "audio_shape"),
        ({"audio_shape": [1, 2**20]}, "MB"),
        ({"audio_shape": [1, 511]}, "adapters.audio_mean"),
        ({"hidden_width": 15}, "adapters.clip"),
        ({"clip_shape": [1, 767]}, "(3, 1, 767)"),
        ({"t5_shape": [1, 1]}, "MB"),
        ({"space_columns": 16}, "adapters"),
        ({"closed_form": True}, "MB"),
        ({"classes": ["dog", "rain", "\ud800"]}, "config.json"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused_by_its_key(values, name, own):
    with pytest.raises((AdapterError, UntrustedFileError)) as error:
        A2VAdapter.from_pretrained(changed(own, **values))
    assert name in str(error.value)
    assert str(own) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda tensors: tensors.pop("adapters.audio_mean"), "adapters.audio_mean"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), "more"),
        (lambda tensors: tensors.pop("clip_prompts"), "clip_prompts"),
        (lambda tensors: tensors.update({"adapters.audio_std": tensors["adapters.audio_std"].half()}), "float16"),
        (lambda tensors: tensors["adapters.audio_std"].fill_(torch.nan), "adapters.audio_std"),
        (lambda tensors: tensors["clip_prompts"].fill_(torch.inf), "clip_prompts"),
    ],
    ids=["one less", "one more", "no prompts", "half", "NaN", "infinite"],
)
def test_weights_that_do_not_fit_are_refused(change, name, own):
    tensors = load_file(own / "model.safetensors")
    change(tensors)
    save_file(tensors, own / "model.safetensors")
    with refused(AdapterError, own / "model.safetensors", name):
        A2VAdapter.from_pretrained(own)


def test_a_space_that_is_not_orthonormal_is_refused(runs, tmp_path):
    export_run(runs(*SUMS), tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["adapters.space_matrix"] *= 2
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    with refused(AdapterError, tmp_path / "a", "adapters.space_matrix"):
        A2VAdapter.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 1000, b"\xff" * 10_000_000, b"\x80\x02pickle"], ids=["", "0", "f", "p"]
)
def test_files_that_are_no_safetensors_are_refused(content, own):
    (own / "model.safetensors").write_bytes(content)
    with refused(AdapterError, own / "model.safetensors"):
        A2VAdapter.from_pretrained(own)


def test_a_configuration_that_is_no_json_or_too_large_is_refused(own):
    for content in (b"{", b"[" * 100_000, b" " * 2_000_000, b"[]", b'"a"'):
        (own / "config.json").write_bytes(content)
        with pytest.raises((AdapterError, UntrustedFileError)) as error:
            A2VAdapter.from_pretrained(own)
        assert str(own / "config.json") in str(error.value)


def test_a_pickle_beside_it_is_not_read(own):
    (own / "model.safetensors").unlink()
    torch.save({}, own / "pytorch_model.bin")
    with refused(AdapterError, own, "model.safetensors"):
        A2VAdapter.from_pretrained(own)


def test_a_card_that_is_a_link_out_of_the_folder_is_not_read(own, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (own / "README.md").unlink()
    (own / "README.md").symlink_to(tmp_path / "secret")
    assert A2VAdapter.from_pretrained(own).card is None


@pytest.mark.parametrize("card", ["---\nlicense: [\n---\n", "---\n- a\n---\n"])
def test_a_card_that_is_none_is_left_out(card, own, tmp_path):
    (own / "README.md").write_text(card)
    A2VAdapter.from_pretrained(own).save_pretrained(tmp_path / "again")
    assert ModelCard.load(tmp_path / "again" / "README.md").data.library_name == "fed_a2v"


def test_a_folder_of_the_hubs_cache_has_its_card(exported, tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    shutil.copytree(exported, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    assert A2VAdapter.from_pretrained(snapshot).card == (exported / "README.md").read_text()


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with refused(AdapterError, tmp_path, "config.json", "fed-a2v export"):
        A2VAdapter.from_pretrained(tmp_path)
    with refused(AdapterError, tmp_path / "absent"):
        A2VAdapter.from_pretrained(tmp_path / "absent")
    with refused(AdapterError, "nobody/nothing"):
        A2VAdapter.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)


# The hub


def test_a_repository_is_downloaded_file_by_file(exported, monkeypatch, wav):
    asked = []

    def download(name, part, **options):
        asked.append((name, part, options["revision"]))
        return str(exported / part)

    monkeypatch.setattr(fed_a2v.adapter, "hf_hub_download", download)
    adapter = A2VAdapter.from_pretrained("me/sounds", revision="v1")
    assert asked == [("me/sounds", part, "v1") for part in ("config.json", "model.safetensors", "README.md")]
    assert adapter(wav).clip.shape == (1, 1, 768)


def test_what_is_pushed_is_what_was_exported(exported, monkeypatch):
    pushed = {}

    class Hub:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, folder_path, **_):
            pushed.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    A2VAdapter.from_pretrained(exported).push_to_hub("me/sounds")
    assert pushed.keys() == {"config.json", "model.safetensors", "README.md"}
    for name, content in pushed.items():
        assert content.strip() == (exported / name).read_bytes().strip(), name


# The model card


def test_the_card_has_the_runs_figures_with_intervals(runs, exported):
    results = runs().results
    card = ModelCard.load(exported / "README.md")
    low, high = wilson_interval(results["accuracy"], results["test_clips"])
    assert f"| {results['accuracy']:.3f} | {low:.3f} to {high:.3f} |" in card.text
    assert f"On {results['test_clips']} test clips" in card.text
    assert card.data.eval_results[0].metric_value == pytest.approx(results["accuracy"], abs=1e-4)
    assert card.data.library_name == "fed_a2v"
    assert {"dog", "rain", "sea_waves"} <= set(re.split(r"[ ,.:]+", card.text))


def test_the_licence_is_the_exporters_or_the_datas_or_unknown(runs, tmp_path, monkeypatch):
    run = runs()
    assert ModelCard.load(_exported(run, tmp_path / "a")).data.license == "unknown"
    assert ModelCard.load(_exported(run, tmp_path / "b", "cc-by-4.0")).data.license == "cc-by-4.0"
    monkeypatch.setattr("fed_a2v.model_card._data_sets", lambda config: ["esc50"])
    card = ModelCard.load(_exported(run, tmp_path / "c"))
    assert card.data.license == "cc-by-nc-3.0"
    assert "esc50: cc-by-nc-3.0" in card.text
    monkeypatch.setattr("fed_a2v.model_card._data_sets", lambda config: ["esc50", "folder"])
    assert ModelCard.load(_exported(run, tmp_path / "d")).data.license == "unknown"
    with refused(ConfigError, "My licence\n---"):
        export_run(run, tmp_path / "e", "My licence\n---")
    assert not (tmp_path / "e").exists()


def _exported(run, folder, licence=None):
    export_run(run, folder, licence)
    return folder / "README.md"


def test_the_card_says_what_left_the_sites(runs, tmp_path):
    noise = (*SUMS, "privacy=dp", "privacy.epsilon=8", "dataset.square_root=never", "partition.sites=1")
    means = _exported(runs(), tmp_path / "a").read_text()
    assert "no epsilon" in means
    assert "weights of the adapters that it trained" in means
    one_shot = _exported(runs(*SUMS), tmp_path / "b").read_text()
    assert "no epsilon" in one_shot
    assert "32 public columns" in one_shot
    assert "that it trained" not in one_shot
    private = _exported(runs(*noise), tmp_path / "c").read_text()
    assert re.search(r"epsilon [\d.]+, delta", private)
    assert "no epsilon" not in private


def test_names_cannot_break_out_of_the_card():
    assert "\n" not in markdown("a\n# b")
    assert markdown("a|`b`<c>") == r"a\|\`b\`\<c\>"


@pytest.mark.parametrize(
    ("key", "value"),
    [("accuracy", "0.5"), ("accuracy", 1.5), ("accuracy_at_5", -1), ("test_clips", 10**400), ("privacy/epsilon", [8])],
)
def test_a_figure_that_is_none_is_not_in_a_card(key, value, runs, tmp_path):
    folder = Path(shutil.copytree(runs().folder.path, tmp_path / "run"))
    rows = [json.loads(line) | {key: value} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with refused(UntrustedFileError, key, "metrics.jsonl"):
        model_card(load_run(folder), "mine")


def test_any_name_of_a_folder_is_a_string_in_the_card(runs):
    card = model_card(runs(), 'a"b\n# c')
    assert 'from_pretrained("a\\"b\\n# c")' in card.text
    assert "\n# c" not in card.text


# The command


def test_the_command_writes_a_folder_once(runs, tmp_path, capsys):
    run = str(runs().folder.path)
    main(["export", run, "--to", str(tmp_path / "new" / "mine")])
    assert str(tmp_path / "new" / "mine") in capsys.readouterr().out.replace("\n", "")
    assert sorted(path.name for path in (tmp_path / "new" / "mine").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert (tmp_path / "new" / "mine" / "model.safetensors").stat().st_mode & 0o044
    before = (tmp_path / "new" / "mine" / "README.md").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["export", run, "--out", str(tmp_path / "new" / "mine"), "--license", "mit"])
    assert ended.value.code == 2
    assert str(tmp_path / "new" / "mine") in capsys.readouterr().err.replace("\n", "")
    assert (tmp_path / "new" / "mine" / "README.md").read_bytes() == before


def test_an_export_that_fails_leaves_nothing(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(A2VAdapter, "_save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        export_run(runs(), tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


# Documentation


@pytest.mark.parametrize(
    ("kind", "pipeline", "make"),
    [("sd", "StableDiffusionPipeline", tiny_stable_diffusion), ("flux", "FluxPipeline", tiny_flux)],
    ids=["sd", "flux"],
)
def test_the_snippets_with_image_models_run(kind, pipeline, make, runs, tmp_path, wav, monkeypatch):
    """As printed, with a tiny model in place of the published one, on the CPU."""
    import diffusers

    snippet = next(block for block in re.findall("```py\n(.*?)```", PAGE.read_text(), re.DOTALL) if pipeline in block)
    cls, folder = getattr(diffusers, pipeline), make(tmp_path / "model")
    original = cls.from_pretrained.__func__

    def load(self, name, **options):
        return original(self, folder, **options)

    def small(self, *arguments, **options):
        assert not arguments
        options |= {"num_inference_steps": 1, "height": 16, "width": 16}
        return call(self, **options)

    call = cls.__call__
    monkeypatch.setattr(cls, "from_pretrained", classmethod(load))
    monkeypatch.setattr(cls, "__call__", small)
    monkeypatch.chdir(tmp_path)
    export_run(runs(f"adapters={kind}"), tmp_path / "my-adapter")
    shutil.copy(wav, "dog.wav")
    code = snippet.replace('"cuda"', '"cpu"').replace("torch.float16", "torch.float32")
    code = code.replace("torch.bfloat16", "torch.float32")
    exec(compile(code, str(PAGE), "exec"), {})
    assert (tmp_path / "dog.png").is_file()


def test_a_folder_of_several_runs_names_those_in_it(tmp_path):
    for name in ("FedAvg", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "comparison.json").write_text("{}")
    with refused(ConfigError, "choose one", str(tmp_path / "FedAvg"), str(tmp_path / "vae")):
        check_one_run(tmp_path)
