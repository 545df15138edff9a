import pytest

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.simulation import run_in_process
from tests.pipelines import tiny_clip, tiny_flux, tiny_stable_diffusion

# A run of a second or two with few classes; the T5 side of FLUX is wide.
FAST = (
    *("experiment=quick", "rounds=1", "generator=gaussian", "adapters.hidden_width=32", "partition.sites=2"),
    *("dataset.classes=[dog,rain,sea_waves]", "dataset.clips_per_class=8", "share.min_clips=1"),
    *("finetune.first_steps=5", "site.epochs=1", "report=false"),
)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals in a fraction of a second."""
    monkeypatch.setattr("fed_a2v.images.evaluation.RESAMPLES", 100)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folders of the tiny models: sd, flux and clip."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "sd": tiny_stable_diffusion(folder / "sd"),
        "flux": tiny_flux(folder / "flux"),
        "clip": tiny_clip(folder / "clip"),
    }


@pytest.fixture(scope="session")
def image_words(models):
    """Overrides that make the tiny models draw and judge."""

    def words(kind):
        return [
            *(f"images.model={models[kind]}", f"images.clip.model={models['clip']}", "images.clip.revision=null"),
            *("images.revision=null", "images.steps=2", "images.size=16", "images.device=cpu"),
        ]

    return words


@pytest.fixture(scope="session")
def image_settings(image_words):
    """The settings of a tiny image model, with further overrides."""

    def settings(kind, *overrides):
        words = [f"images={kind}", f"adapters={kind}", *image_words(kind), *overrides]
        return compose_settings(words).images

    return settings


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a finished run with the prompts of `kind`; the same words give the same run to every test."""
    runs = {}

    def run(kind, *words):
        key = (kind, *words)
        if key not in runs:
            folder = tmp_path_factory.mktemp("runs") / kind
            run_in_process(compose_settings([*FAST, f"adapters={kind}", *words]), folder)
            runs[key] = folder
        return runs[key]

    return run
