"""On a GPU: every part works there, and gives what it gives on the CPU. Skipped where there is none."""

import numpy as np
import pytest
import torch

from fed_a2v.cli import main
from fed_a2v.config.compose import compose_settings
from fed_a2v.encoders.audio import load_encoder
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.load import load_run
from fed_a2v.pooled import pooled_rows
from fed_a2v.runs.checkpoint import load_state
from fed_a2v.storage.files import read_jsonl
from tests.federation.helpers import FAST, assert_same
from tests.models import tiny_ast, tiny_clap, tiny_clip_text, tiny_t5

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

NAMES = ("dog", "rain", "sea_waves")
GENERATORS = {
    "none": (),
    "gaussian": (),
    "noise": (),
    "gmm": (),
    "vae": ("generator.training_epochs=20", "generator.holdout=0.34", "generator.validation_frequency=1"),
    "vae_per_class": ("generator.training_epochs=20",),
    "multimodal": ("generator.training_epochs=20",),
    "vae_t5": ("generator.training_epochs=20", "adapters=flux", "adapters.t5_tokens=4", "adapters.t5_width=64"),
    "gan": ("generator.training_epochs=20",),
    "flow": ("generator.training_epochs=20",),
}
# Both devices draw the same random numbers and round differently, which some steps of training make larger.
NEARLY = {"rtol": 0.03, "atol": 0.03}


def run(folder, *words, device="cuda"):
    """Run the fast experiment and return its rows."""
    run_in_process(compose_settings([*FAST, f"device={device}", *words]), folder)
    return read_jsonl(folder / "metrics.jsonl")


def tensors(state):
    """All tensors of a nested structure."""
    if isinstance(state, torch.Tensor):
        return [state]
    inside = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for each in inside for tensor in tensors(each)]


def figures(row):
    """What there is of a row's losses, and its cosine."""
    names = ("loss", "cosine", "server/generator_loss", "server/adapter_finetuning_loss")
    return {name: row[name] for name in names if row[name] is not None}


def assert_nearly(rows, others):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        assert figures(row) == pytest.approx(figures(other), rel=0.03, abs=0.03)
        assert row["accuracy"] == pytest.approx(other["accuracy"], abs=0.15)


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_run_with_each_generator_is_nearly_the_run_on_the_cpu(generator, tmp_path):
    words = (f"generator={generator}", *GENERATORS[generator])
    assert_nearly(run(tmp_path / "gpu", *words), run(tmp_path / "cpu", *words, device="cpu"))
    assert all(tensor.device.type == "cpu" for tensor in tensors(load_state(tmp_path / "gpu")))


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_run_gives_the_same_bits_again_and_after_a_stop(generator, tmp_path):
    words = (f"generator={generator}", *GENERATORS[generator])
    run(tmp_path / "one", *words, "rounds=2")
    run(tmp_path / "again", *words, "rounds=1")
    run(tmp_path / "again", *words, "rounds=2", "resume=auto")
    one, again = (load_state(tmp_path / name)["components"] for name in ("one", "again"))
    assert_same(one, again)


@pytest.mark.parametrize(
    "words",
    [
        ("adapters=sd", "generator=gaussian"),
        ("adapters=flux", "adapters.t5_tokens=4", "adapters.t5_width=64", "generator=gaussian"),
        ("adapters=bilinear", "dataset.unseen=[dog,rain]"),
        ("adapters=compact", "generator=vae", "generator.training_epochs=5"),
        ("share=samples",),
        ("share=mean",),
        ("finetune.enabled=false",),
        ("aggregation.mode=trimmed", "generator=gaussian"),
        ("aggregation.mode=krum", "generator=gaussian"),
        ("aggregation.mode=kd", "generator=gaussian"),
        ("scenario=class_incremental", "generator=vae_per_class", "generator.training_epochs=5"),
        ("scenario=class_incremental", "generator=flow", "generator.training_epochs=5"),
    ],
    ids=" ".join,
)
def test_other_shapes_of_a_run_are_nearly_those_of_the_cpu(words, tmp_path):
    assert_nearly(run(tmp_path / "gpu", *words), run(tmp_path / "cpu", *words, device="cpu"))


@pytest.mark.parametrize("generator", ["vae", "vae_per_class", "flow"])
@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_with_another_device(generator, first, then, tmp_path):
    words = (f"generator={generator}", *GENERATORS[generator])
    run(tmp_path / "two", *words, "rounds=1", device=first)
    rows = run(tmp_path / "two", *words, "rounds=2", "resume=auto", device=then)
    assert_nearly(rows, run(tmp_path / "one", *words, "rounds=2", device=then))


@pytest.mark.parametrize("generator", [name for name in GENERATORS if name != "none"])
def test_a_run_is_loaded_onto_the_gpu(generator, tmp_path):
    run(tmp_path, f"generator={generator}", *GENERATORS[generator])
    there, here = load_run(tmp_path, device="cuda"), load_run(tmp_path)
    made, wanted = (loaded.generator.sample("dog", 5, seed=1) for loaded in (there, here))
    assert made.device.type == "cuda"
    torch.testing.assert_close(made.cpu(), wanted, **NEARLY)
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    prompts = there.prompts(sound, rate=16_000).clip
    assert prompts.device.type == "cuda"
    torch.testing.assert_close(prompts.cpu(), here.prompts(sound, rate=16_000).clip, **NEARLY)


def test_pooled_training_is_nearly_that_of_the_cpu():
    there, here = (pooled_rows(compose_settings([*FAST, f"device={device}"])) for device in ("cuda", "cpu"))
    for row, other in zip(there, here, strict=True):
        assert row["accuracy"] == pytest.approx(other["accuracy"], abs=0.07)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tokens", ["cls", "mean", 3, "full"])
@pytest.mark.parametrize(("name", "make"), [("ast", tiny_ast), ("clap", tiny_clap)])
def test_an_encoder_embeds_a_batch_as_the_cpu_does_clip_by_clip(name, make, tokens, precision, model_folder):
    words = [f"encoder={name}", f"encoder.model={model_folder(make)}", "encoder.revision=null"]
    words += [f"encoder.tokens={tokens}", "encoder.batch_size=3"]
    gpu = load_encoder(compose_settings([*words, "encoder.device=auto", f"encoder.precision={precision}"]).encoder)
    cpu = load_encoder(compose_settings([*words, "encoder.device=cpu", "encoder.precision=float32"]).encoder)
    sounds = np.random.default_rng(0).normal(0, 0.1, (7, 3 * gpu.sample_rate)).astype(np.float32)
    made, wanted = gpu.encode(sounds), cpu.encode(sounds)
    assert made.shape == wanted.shape
    assert made.dtype == np.float32
    rounding = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.15}[precision]
    assert np.abs(made - wanted).max() < rounding * np.abs(wanted).max()


def test_text_targets_are_those_of_the_cpu(model_folder, tmp_path):
    words = ["adapters=flux", "adapters.t5_width=64", "targets=t5", 'targets.t5.subfolder=""']
    for side, make in (("clip", tiny_clip_text), ("t5", tiny_t5)):
        words += [f"targets.{side}.model={model_folder(make)}", f"targets.{side}.precision=float32"]
    made, wanted = (
        prompt_set(compose_settings([*words, f"targets.device={device}", f"cache_dir={tmp_path / device}"]), NAMES)
        for device in ("auto", "cpu")
    )
    torch.testing.assert_close(made.clip, wanted.clip, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(made.t5, wanted.t5, rtol=1e-3, atol=1e-3)


def test_the_doctor_names_a_gpu_that_is_not_used(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "experiment=quick"])
    assert torch.cuda.get_device_name() in capsys.readouterr().out
