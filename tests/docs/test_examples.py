"""The examples in the documentation: complete, and with the described results."""

import importlib
import sys
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest
import soundfile
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import cache_dir
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.uncertainty import wilson_interval
from fed_a2v.data.errors import DataError
from fed_a2v.data.index import class_names, known_audio_shape, list_clips, open_source
from fed_a2v.data.site import load_clips
from fed_a2v.encoders.audio import load_encoder
from fed_a2v.federation.server.aggregation.base import make_rule
from fed_a2v.federation.server.step_factory import make_generator
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.storage.files import read_jsonl
from tests.docs.blocks import REPOSITORY
from tests.refusals import refused

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def generator_settings(target, *words):
    return compose_settings(["generator=custom", f"generator._target_={target}", *words])


@pytest.fixture
def linear():
    settings = generator_settings("linear_generator.LinearGenerator", "+generator.ridge=1e-4")
    return make_generator(settings, (2, 6), 16, ("a", "b", "c"))


@pytest.fixture
def rows():
    """Three classes, two prototypes each, with known means and a deviation of 0.1 within the groups."""
    random = torch.Generator().manual_seed(0)
    means = torch.randn(3, 2, 6, generator=random)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    variances = torch.full((6, 2, 6), 0.01)
    return PrototypeBatch(means[labels], labels, torch.full((6,), 4.0), variances, ("a", "b", "c"))


def test_the_linear_generator_draws_each_class_around_its_mean(linear, rows):
    random = torch.Generator().manual_seed(1)
    conditions = torch.randn(3, 16, generator=random)
    assert linear.ridge == 1e-4
    assert linear.fit(rows, conditions, 1, 0.0, random) == []
    samples = linear.sample_classes(conditions, 400, random)
    assert samples.shape == (3, 400, 2, 6)
    assert torch.allclose(samples.mean(dim=1), rows.embeddings[::2], atol=0.05)
    assert torch.allclose(samples.std(dim=1), torch.full((3, 2, 6), 0.1), atol=0.02)


def test_the_linear_generator_comes_back_from_its_checkpoint(linear, rows):
    random = torch.Generator().manual_seed(1)
    conditions = torch.randn(3, 16, generator=random)
    linear.fit(rows, conditions, 1, 0.0, random)
    again = make_generator(generator_settings("linear_generator.LinearGenerator"), (2, 6), 16)
    again.load_checkpoint(linear.checkpoint())
    one, two = (each.sample(5, conditions[0], random=torch.Generator().manual_seed(2)) for each in (linear, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ["linear_generator.LinearGenerator", "+generator.rigde=1"],
            ("generator.rigde", "LinearGenerator", "generator.ridge"),
        ),
        (["linear_generator.Nothing"], ("generator._target_=linear_generator.Nothing",)),
        (["no_such_module.Generator"], ("generator._target_=no_such_module.Generator", "PYTHONPATH")),
        (["torch.nn.Linear"], ("generator._target_=torch.nn.Linear", "fed_a2v.core.generators.base.Generator")),
        (
            ["fed_a2v.core.prototype_bank.PrototypeBank"],
            ("generator._target_=fed_a2v.core.prototype_bank.PrototypeBank",),
        ),
    ],
)
def test_a_wrong_class_or_argument_is_named(words, named):
    with refused(ConfigError, *named):
        make_generator(generator_settings(*words), (2, 6), 16)


def test_a_class_that_is_no_generator_is_refused(tmp_path, monkeypatch):
    (tmp_path / "almost.py").write_text("class Almost:\n    def __init__(self, **shapes): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with refused(ConfigError, "generator._target_=almost.Almost", "fed_a2v.core.generators.base.Generator"):
        make_generator(generator_settings("almost.Almost"), (2, 6), 16)


def test_custom_without_a_class_says_what_is_missing():
    with refused(ConfigError, "generator=custom", "generator._target_=MODULE.CLASS"):
        compose_settings("generator=custom")


def encoder_of(target, *words):
    return load_encoder(compose_settings(["encoder=custom", f"encoder._target_={target}", *words]).encoder)


def test_the_band_energy_encoder_finds_the_bands_and_stretches_with_sound():
    encoder = encoder_of("band_energy_encoder.BandEnergyEncoder", "+encoder.arguments.stretches=2")
    time = np.arange(encoder.sample_rate) / encoder.sample_rate
    tone = np.where(time < 0.5, np.sin(2 * np.pi * 400 * time), 0).astype(np.float32)
    low, high = tone, np.sin(2 * np.pi * 4000 * time).astype(np.float32)
    embeddings = encoder.encode(np.stack([low, high]))
    assert embeddings.shape == (2, encoder.tokens, encoder.width) == (2, 2, 96)
    means = embeddings[:, :, : encoder.bands]
    assert means[0, 0].argmax() < means[1, 0].argmax()
    assert means[0, 0].max() > means[0, 1].max() + 5, "the second half is silent"
    assert np.array_equal(embeddings[1:], encoder.encode(high[None])), "no clip depends on another"
    assert encoder.fingerprint != encoder_of("band_energy_encoder.BandEnergyEncoder").fingerprint


@pytest.fixture
def speaker():
    """The overrides of the encoder with real pretrained weights."""
    try:
        distribution("Resemblyzer")
    except PackageNotFoundError:
        pytest.skip("the package with the weights is missing: make dev, or pip install --no-deps Resemblyzer==0.1.4")
    return ["encoder=custom", "encoder._target_=speaker_encoder.SpeakerEncoder"]


def test_real_weights_tell_the_built_in_sounds_apart(speaker, tmp_path):
    """From pretrained weights to the figures, in a federation; chance is 0.1."""
    settings = compose_settings(["experiment=quick", "rounds=2", "generator=gaussian", "report=false", *speaker])
    results = run_in_process(settings, tmp_path / "run", output="quiet")
    assert wilson_interval(results["accuracy"], results["test_clips"])[0] > 0.4
    assert known_audio_shape(settings.dataset, settings.encoder) is None
    embeddings = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir)).embeddings
    assert embeddings.shape[1:] == (1, 512)
    assert 0 < float(embeddings.std(dim=0).median()) < 1


def test_real_weights_tell_real_sounds_apart(speaker, real_data, tmp_path):
    """Ten classes of ESC-50 at five sites; chance is 0.1."""
    words = ["experiment=quick", "rounds=2", "generator=gaussian", "report=false", "dataset=esc50", *speaker]
    words += [f"dataset.root={real_data / 'esc50'}", "dataset.test_folds=[4]", "dataset.max_clips_per_class=16"]
    classes = "dog,rooster,rain,sea_waves,crying_baby,siren,church_bells,clock_alarm,vacuum_cleaner,crickets"
    results = run_in_process(
        compose_settings([*words, f"dataset.classes=[{classes}]"]), tmp_path / "run", output="quiet"
    )
    assert wilson_interval(results["accuracy"], results["test_clips"])[0] > 0.3


def test_pretrained_embeddings_are_of_the_clip_alone_and_weights_are_those_of_the_release(speaker, monkeypatch):
    encoder = load_encoder(compose_settings(speaker).encoder)
    random = np.random.default_rng(0)
    clips = 0.1 * random.standard_normal((2, 30_000)).astype(np.float32)
    both = encoder.encode(clips)
    assert both.shape == (2, encoder.tokens, encoder.width) == (2, 1, 512)
    assert np.array_equal(both[1:], encoder.encode(clips[1:]))
    assert encoder.encode(clips[:0]).shape == (0, 1, 768)
    assert np.isfinite(encoder.encode(np.zeros((1, 100), np.float32))).all()
    monkeypatch.setattr("speaker_encoder.DIGEST", "0" * 64)
    with refused(ConfigError, "speaker_encoder.SpeakerEncoder", "pretrained.pt"):
        load_encoder(compose_settings(speaker).encoder)


def test_missing_weights_are_named_with_the_command_that_installs_them(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    module = importlib.import_module("speaker_encoder")
    monkeypatch.setattr(module, "distribution", missing)
    with refused(ConfigError, "pip install --no-deps Resemblyzer==0.1.4"):
        encoder_of("speaker_encoder.SpeakerEncoder")


@pytest.mark.parametrize(
    ("target", "words", "named"),
    [
        ("band_energy_encoder.BandEnergyEncoder", ["+encoder.arguments.band=3"], ("'band'",)),
        ("band_energy_encoder.encode", [], ("'encode'",)),
        ("band_energy_encoder.np", [], ()),
        ("collections.Counter", [], ("encode",)),
        ("no_such_module.Encoder", [], ("PYTHONPATH",)),
    ],
)
def test_a_wrong_encoder_is_named(target, words, named):
    with refused(ConfigError, f"encoder._target_={target}", *named):
        encoder_of(target, *words)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["encoder=custom"], ("encoder=custom", "encoder._target_=MODULE.CLASS")),
        (["encoder._target_=my.Encoder"], ("encoder=logmel", "encoder._target_=my.Encoder", "null")),
    ],
)
def test_a_class_and_encoder_custom_belong_together(words, named):
    with refused(ConfigError, *named):
        compose_settings(words)


@pytest.fixture
def sounds(tmp_path):
    """Two recordings of a dog, cut into two clips each, and three clips of rain."""
    for number in range(7):
        soundfile.write(tmp_path / f"{number}.wav", np.full(800, 0.1), 8000)
    clips = [(0, "dog", "a"), (1, "dog", "a"), (2, "dog", "b"), (3, "dog", "b"), *((n, "rain", n) for n in (4, 5, 6))]
    lines = ["file,label,recording", *(f"{number}.wav,{label},{recording}" for number, label, recording in clips)]
    (tmp_path / "sounds.csv").write_text("\n".join(lines))
    return tmp_path


def data_set(root, *words):
    target = "dataset._target_=table_of_sounds.TableOfSounds"
    return compose_settings(["dataset=custom", target, f"dataset.root={root}", *words]).dataset


def test_the_table_of_sounds_lists_its_clips_and_keeps_a_recording_in_one_fold(sounds):
    records = list_clips(data_set(sounds))
    assert [(record.key, record.category) for record in records][:2] == [("0.wav", "dog"), ("1.wav", "dog")]
    assert class_names(data_set(sounds)) == ("dog", "rain")
    assert records[0].fold == records[1].fold != records[2].fold == records[3].fold
    assert open_source(data_set(sounds), 0).waveform("0.wav", 8000, 0.1).shape == (800,)


def test_the_table_of_sounds_is_read_again_when_it_changes(sounds):
    assert len(list_clips(data_set(sounds))) == 7
    (sounds / "sounds.csv").write_text("file,label,recording\n4.wav,rain,4")
    assert len(list_clips(data_set(sounds))) == 1
    (sounds / "sounds.csv").write_text("file,label\n4.wav,rain")
    with refused(DataError, sounds / "sounds.csv", "'recording'"):
        list_clips(data_set(sounds))


def test_a_wrong_data_set_is_named(sounds):
    with refused(ConfigError, "dataset._target_=table_of_sounds.TableOfSounds", "'tabel'"):
        list_clips(data_set(sounds, "+dataset.arguments.tabel=x.csv"))
    with refused(ConfigError, "dataset._target_=collections.Counter", "content, mtime_key, records, watched, waveform"):
        list_clips(compose_settings("dataset=custom dataset._target_=collections.Counter").dataset)
    with refused(ConfigError, "dataset=custom", "dataset._target_=MODULE.CLASS"):
        compose_settings("dataset=custom")
    with refused(ConfigError, "dataset._target_=my.DataSet", "dataset=custom"):
        compose_settings("dataset._target_=my.DataSet")


def test_the_similarity_loss_takes_the_place_of_the_vaes_own():
    words = ["generator.loss._target_=similarity_loss.SimilarityLoss", "+generator.loss.similarity=0.5"]
    loss = make_generator(compose_settings(words), (1, 6), 16).loss
    assert (type(loss).__name__, loss.similarity) == ("SimilarityLoss", 0.5)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(4, 3)
    assert float(loss(x, x, zeros, zeros, 0)) == pytest.approx(0, abs=1e-6)
    assert float(loss(-x, x, zeros, zeros, 0)) > 1
    assert float(loss(x, x, zeros + 1, zeros, 50)) > float(loss(x, x, zeros + 1, zeros, 10)) > 0, "annealed"


def test_the_geometric_median_is_not_moved_by_one_site_of_ten():
    settings = compose_settings(
        [
            "aggregation=custom",
            "aggregation._target_=geometric_median.GeometricMedian",
            "+aggregation.arguments.steps=50",
        ]
    )
    rule = make_rule(settings.aggregation)
    random = torch.Generator().manual_seed(0)
    common = torch.randn(3, 4, generator=random)
    sites = [[common + 0.01 * torch.randn(3, 4, generator=random), torch.ones(2)] for _ in range(9)]
    sites.append([1000 * torch.randn(3, 4, generator=random), torch.zeros(2)])
    matrix, vector = rule.combine(sites, [1] * 10, [torch.zeros(3, 4), torch.zeros(2)])
    assert (matrix - common).abs().max() < 0.05
    torch.testing.assert_close(vector, torch.ones(2), atol=1e-3, rtol=0)


def test_momentum_goes_on_in_the_direction_of_earlier_rounds_and_survives_a_resume():
    words = ["aggregation._target_=server_momentum.ServerMomentum", "+aggregation.arguments.momentum=0.5"]
    settings = compose_settings(["aggregation=custom", *words]).aggregation
    rule, resumed = make_rule(settings), make_rule(settings)
    first = rule.combine(iter([[torch.tensor([1.0])], [torch.tensor([3.0])]]), [10, 30], [torch.zeros(1)])
    assert first[0].item() == 2.0, "the plain mean, as there is no velocity yet"
    resumed.load_state_dict(rule.state_dict())
    for each in (rule, resumed):
        second = each.combine(iter([[torch.tensor([3.0])], [torch.tensor([5.0])]]), [10, 30], first)
        assert second[0].item() == 2.0 + 2.0 + 0.5 * 2.0


def test_the_worst_class_and_the_mean_over_classes_are_metrics_of_every_round(tmp_path):
    words = ["experiment=quick", "rounds=1", "generator=none", "report=false"]
    results = run_in_process(compose_settings([*words, "+metrics.worst._target_=worst_class.WorstClass"]), tmp_path)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    accuracies = list(row["per_class"].values())
    assert row["accuracy_worst_class"] == min(accuracies)
    assert row["accuracy_over_classes"] == pytest.approx(sum(accuracies) / len(accuracies))
    assert row["accuracy"] == results["accuracy"]


def test_the_accuracy_file_has_every_round_of_a_resumed_run(tmp_path):
    words = [
        "experiment=quick",
        "generator=none",
        "report=false",
        "+callbacks.mine._target_=accuracy_file.AccuracyFile",
    ]
    run_in_process(compose_settings([*words, "rounds=1"]), tmp_path)
    run_in_process(compose_settings([*words, "rounds=2"]), tmp_path)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    expected = [["round", "accuracy"], *([str(row["round"]), f"{row['accuracy']:.4f}"] for row in rows)]
    assert [line.split(",") for line in (tmp_path / "accuracy.csv").read_text().split()] == expected


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_on_the_page_and_says_how_it_is_run(path):
    pages = [(REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("extending.md", "aggregation.md")]
    assert any(f'--8<-- "examples/{path.name}"' in page for page in pages)
    module = importlib.import_module(path.stem)
    assert "fed-a2v train" in module.__doc__


def test_the_interface_that_the_page_names_is_there():
    assert {"fit", "sample", "sample_classes", "posterior", "conditions_from", "training_state"} <= set(dir(Generator))
