"""Whole runs with AST or CLAP at the sites, and CLIP's and T5's prompts as targets: tiny models of those classes."""

import pytest
import torch
from rich.console import Console

from fed_a2v import load_run
from fed_a2v.commands.targets import run as targets_command
from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.client.local_training import Site
from fed_a2v.federation.simulation import run_in_process
from tests.models import tiny_ast, tiny_clap, tiny_clip_text, tiny_t5

CLASSES = ["clock_tick", "dog", "helicopter", "rain"]
SHORT = (
    "experiment=quick",
    "report=false",
    "partition.sites=2",
    "adapters.hidden_width=64",
    "finetune.first_steps=40",
    "finetune.steps=20",
    "finetune.batch_size=12",
    "site.batch_size=12",
    "generator=gaussian",
    "share.min_clips=1",
)


@pytest.fixture(scope="module")
def flux(model_folder):
    """AST at the sites, and both text models of FLUX in its own widths of T5 and of the prompts."""
    return (
        "encoder=ast",
        f"encoder.model={model_folder(tiny_ast)}",
        "encoder.tokens=mean",
        "adapters=flux",
        "targets=t5",
        f"targets.clip.model={model_folder(tiny_clip_text)}",
        f"targets.t5.model={model_folder(tiny_t5, width=4096)}",
        'targets.t5.subfolder=""',
        "targets.t5.precision=float32",
    )


@pytest.fixture(scope="module")
def sd(model_folder):
    """CLAP at the sites, two tokens a clip, and CLIP's 77 tokens of Stable Diffusion."""
    return (
        "encoder=clap",
        f"encoder.model={model_folder(tiny_clap)}",
        "encoder.tokens=2",
        "adapters=sd",
        "targets=clip",
        f"targets.clip.model={model_folder(tiny_clip_text)}",
    )


def trained(folder, *overrides):
    """A finished run, loaded."""
    settings = compose_settings([*SHORT, *overrides])
    with (folder.parent / "said.txt").open("w") as said:
        run_in_process(settings, folder, Console(file=said))
    run = load_run(folder)
    assert sum(row["rejected"] + row["failures"] for row in run.metrics) == 0
    return run


def synthesised(clips=8):
    return (f"dataset.classes=[{','.join(CLASSES)}]", f"dataset.clips_per_class={clips}")


def test_ast_to_flux_on_the_built_in_sounds(flux, tmp_path):
    run = trained(tmp_path / "run", *flux, *synthesised(12))
    assert run.results["accuracy"] >= 0.5  # chance is 0.25
    audio = run.generator.sample("dog", 3)
    assert audio.shape == (3, 1, 32)
    clip, t5 = run.step.adapters(audio)
    assert (clip.shape, t5.shape) == ((3, 1, 64), (3, 17, 4096))
    # T5 learns, too: the outputs are nearer to their own class's prompt than to the others'.
    centred = run.targets.t5 - run.targets.t5.mean(dim=0)
    cosines = torch.nn.functional.cosine_similarity(
        (t5.mean(dim=0) - run.targets.t5.mean(dim=0)).flatten()[None], centred.flatten(1)
    )
    assert run.classes[int(cosines.argmax())] == "dog"


def test_clap_to_stable_diffusion_on_the_built_in_sounds(sd, tmp_path):
    run = trained(tmp_path / "run", *sd, *synthesised(4))
    audio = run.generator.sample("rain", 2)
    assert audio.shape == (2, 2, 32)
    assert torch.allclose(audio.norm(dim=-1), torch.ones(2, 2), atol=0.5)
    assert run.step.adapters(audio).clip.shape == (2, 77, 64)
    assert run.results["accuracy"] is not None


def test_sites_that_read_the_targets_from_a_file_get_the_same_run(flux, model_folder, tmp_path):
    narrow = ("adapters.t5_width=64", f"targets.t5.model={model_folder(tiny_t5)}")
    words = (*flux, *narrow, *synthesised(4), "rounds=1")
    with_models = trained(tmp_path / "models", *words)
    targets_command([str(tmp_path / "t.npz"), *words])
    encoder = [word for word in words if not word.startswith("targets")]
    from_file = trained(tmp_path / "file", *encoder, "targets=file", f"targets.path={tmp_path / 't.npz'}")
    for a, b in zip(with_models.step.adapters.weights(), from_file.step.adapters.weights(), strict=True):
        assert torch.equal(a, b)


def test_a_site_keeps_the_prompts_in_its_own_cache(sd, tmp_path):
    settings = compose_settings([*SHORT, *sd[3:], *synthesised(4), f"cache_dir={tmp_path / 'servers'}"])
    Site(settings.model_copy(update={"cache_dir": str(tmp_path / "own")}), CLASSES, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["embeddings", "encoders", "targets"]


@pytest.mark.real_data
@pytest.mark.parametrize("model", ["flux", "sd"])
def test_real_clips(real_data, model, flux, sd, tmp_path):
    folders = ("train_folds=[1,2,3]", "test_folds=[4]")
    words = ("dataset=esc50", f"dataset.root={real_data / 'esc10_tiny'}", *(f"dataset.{folds}" for folds in folders))
    run = trained(tmp_path / "run", *{"flux": flux, "sd": sd}[model], *words)
    # Fold 4 has one clip of eight classes; the other two are candidates, too.
    assert (len(run.classes), run.results["test_clips"], len(run.metrics[-1]["per_class"])) == (10, 8, 8)
