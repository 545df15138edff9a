"""Building the server step and its generator from settings."""

import numpy as np
import pytest
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.core.public_space import is_orthonormal
from fed_a2v.data.errors import DataError
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.server.step_factory import check_buildable, make_generator, make_space, make_step, model_bytes
from tests.federation.helpers import assert_same
from tests.models import tiny_clap
from tests.refusals import refused

CLASSES = ("dog", "rain", "siren")
SHAPE = (1, 24)


def build(*overrides, shape=SHAPE, space=None):
    settings = compose_settings(["adapters.hidden_width=16", *overrides])
    return make_step(settings, prompt_set(settings, CLASSES), shape, space)


def space_of(*overrides):
    return make_space(compose_settings(["share=statistics", "dataset=synth", *overrides]))


def test_the_public_space_is_of_the_kind_that_the_settings_name(tmp_path, model_folder):
    """The log-mel encoder's embeddings have 512 columns; of two texts there is one direction, the rest is random."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "head.npz", weight=random.normal(size=(9, 512)).astype(np.float32))
    np.save(tmp_path / "matrix.npy", random.normal(size=(512, 6)).astype(np.float32))
    texts = [
        "projection=text",
        "encoder=clap",
        f"encoder.model={model_folder(tiny_clap)}",
        "dataset.classes=[dog,rain]",
    ]
    spaces = [
        space_of("projection=random", "projection.columns=6"),
        space_of("projection=random", "projection.columns=6", "seed=1"),
        space_of("projection=head", f"projection.path={tmp_path / 'head.npz'}", "projection.columns=6"),
        space_of("projection=file", f"projection.path={tmp_path / 'matrix.npy'}", "projection.columns=6"),
        space_of(*texts, "projection.columns=6"),
    ]
    assert [tuple(space.matrix.shape) for space in spaces] == [*4 * [(512, 6)], (32, 6)]
    assert all(is_orthonormal(space.matrix) for space in spaces)
    assert len({space.digest for space in spaces}) == 5


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((9, 512)), ["projection=head", "equal"]),
        (np.full((9, 512), np.nan), ["projection=head", "NaN"]),
        (np.eye(30), ["projection=head", "30", "512", "projection.path"]),
        (np.eye(9), ["projection.columns=20", "width 9"]),
    ],
    ids=["zeros", "NaN", "another width", "fewer columns"],
)
def test_a_head_that_does_not_fit_is_refused(tmp_path, array, named):
    np.savez(tmp_path / "head.npz", weight=array)
    with refused(ConfigError, *named):
        space_of("projection=head", f"projection.path={tmp_path / 'head.npz'}", "projection.columns=20")


def test_a_random_space_needs_the_width_of_the_embeddings():
    with refused(ConfigError, "projection=random", "projection.path"):
        space_of("projection=random", "encoder=ast", "encoder.model=nobody/has-this")
    with refused(ConfigError, "projection.columns=600", "512"):
        space_of("projection=random", "projection.columns=600")


def test_the_same_seed_makes_the_same_adapters_and_generator_whatever_was_drawn_before():
    torch.manual_seed(1)
    first = build()
    torch.manual_seed(2)
    assert_same(first.state_dict(), build().state_dict())


def test_another_seed_makes_others():
    first, second = build("seed=0"), build("seed=1")
    assert not torch.equal(first.adapters.weights()[0], second.adapters.weights()[0])
    mine, other = (next(p for p in step.generator.parameters() if p.dim() > 1) for step in (first, second))
    assert not torch.equal(mine, other)


def test_building_leaves_torchs_own_random_numbers_alone():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    build()
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize(
    ("overrides", "clip", "t5"),
    [
        ([], (3, 1, 768), None),
        (["adapters=sd"], (3, 77, 768), None),
        (["adapters=flux"], (3, 1, 768), (3, 17, 4096)),
        (["adapters.clip_width=512"], (3, 1, 512), None),
    ],
)
def test_prompts_have_the_shapes_that_the_adapters_need(overrides, clip, t5):
    prompts = prompt_set(compose_settings(overrides), CLASSES)
    assert prompts.names == CLASSES
    assert tuple(prompts.clip.shape) == clip
    assert (prompts.t5 if t5 is None else tuple(prompts.t5.shape)) == t5


@pytest.mark.parametrize("audio", [(1, 24), (3, 10)])
@pytest.mark.parametrize("name", ["vae", "gaussian"])
def test_adapters_and_generator_fit_the_embeddings_and_the_prompts(audio, name):
    step = build(f"generator={name}", "adapters.clip_width=40", shape=audio)
    assert step.adapters.audio_width == audio[1]
    wanted = {"input_dim": audio[1], "sequence_length": audio[0], "visual_dim": 40}
    assert wanted.items() <= step.generator.dimensions.items()
    assert step.adapters(torch.zeros(2, *audio)).clip.shape == (2, 1, 40)


def test_without_a_generator_there_is_none():
    assert build("generator=none").generator is None


def test_the_adapters_of_flux_keep_the_budget_of_eight_million_weights():
    settings = compose_settings("adapters=flux")
    step = make_step(settings, prompt_set(settings, CLASSES), (1, 512))
    assert step.adapters(torch.zeros(1, 1, 512)).t5.shape == (1, 17, 4096)
    assert sum(weight.numel() for weight in step.adapters.weights()) <= 8_000_000


def test_the_step_obeys_the_settings():
    step = build(
        "seed=3",
        "aggregation.max_age=4",
        "generator.holdout=0.25",
        "generator.training_epochs=6",
        "generator.min_steps=13",
        "generator.augmentation_noise=0.7",
        "generator.synthetic_samples_per_class=8",
        "generator.validation_frequency=9",
        "finetune.enabled=false",
        "finetune.first_steps=11",
        "finetune.steps=12",
        "finetune.synthetic_share=0.13",
        "finetune.from_nodes_adapters=true",
        "finetune.rollback=false",
        "finetune.learning_rate=0.14",
        "finetune.weight_decay=0.15",
        "finetune.batch_size=16",
    )
    made = step.settings
    assert (made.seed, made.max_age, made.holdout) == (3, 4, 0.25)
    assert (made.training_epochs, made.min_steps) == (6, 13)
    assert (made.augmentation_noise, made.synthetic_samples_per_class, made.validation_frequency) == (0.7, 8, 9)
    assert (made.finetune, made.first_steps, made.steps, made.synthetic_share) == (False, 11, 12, 0.13)
    assert (made.from_nodes_adapters, made.rollback) == (True, False)
    optimiser = made.optimiser
    assert (optimiser.learning_rate, optimiser.weight_decay, optimiser.batch_size) == (0.14, 0.15, 16)


def test_augmentation_switched_off_adds_no_noise():
    assert build("generator.augmentation=false").settings.augmentation_noise == 0


def test_an_argument_that_the_generators_class_does_not_know_is_refused_with_the_nearest():
    settings = compose_settings("+generator.laten_dim=3")
    with refused(ConfigError, "generator.laten_dim", "ConditionedVAEGenerator", "generator.latent_dim"):
        make_generator(settings, SHAPE, 768)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("generator.latent_dim=0", ("generator=vae", "latent_dim=0")),
        ("generator.loss.beta_schedule=sideways", ("generator.loss.beta_schedule", "'sideways'", "'linear'")),
        ("+generator.loss.beta_mx=1", ("generator.loss.beta_mx", "generator.loss.beta_max")),
        ("generator.hidden_dim=2.5", ("generator.hidden_dim", "2.5")),
        ("generator._target_=no.such.Module", ("generator._target_=no.such.Module",)),
    ],
)
def test_a_value_that_the_generators_class_refuses_is_an_error_of_the_settings(override, named):
    with refused(ConfigError, *named):
        make_generator(compose_settings([override]), SHAPE, 768)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("device=xpu:7", ("device=xpu:7", "device=cpu")),
        ("partition.sites=11", ("partition.sites=11", 10, "partition.classes_per_site")),
        ("dataset.unseen=6", ("partition.sites=5", 4, "partition.classes_per_site")),
        ("dataset.classes=[dog,rain]", ("partition.sites=5", 2, "partition.classes_per_site")),
        ("partition.classes_per_site=11", ("partition.classes_per_site=11", 10)),
        ("dataset.unseen=9", ("dataset.unseen", 10)),
        ("dataset=esc50 dataset.root=/nowhere", ("/nowhere",)),
        ("generator.granularity=per_group", ("granularity=per_group", "groups", "{NAME: [CLASS, ...], ...}")),
        ("generator.latent_dim=0", ("latent_dim=0",)),
        ("generator.latent_dim=wide", ("generator.latent_dim", "'wide'")),
        ("generator.granularity=per_class generator.latent_dim=wide", ("generator.latent_dim", "'wide'")),
    ],
)
def test_what_cannot_be_built_is_found_before_any_data_is_read(override, named):
    with refused((ConfigError, DataError), *named):
        check_buildable(compose_settings(override))


@pytest.mark.parametrize(
    "overrides",
    [
        *("", "generator=none", "generator.granularity=per_class", "generator=flow"),
        "partition.sites=20 partition.classes_per_site=1",
        "partition.sites=20 partition=iid",
        "partition=own dataset=esc50 dataset.classes=[dog,rain]",
    ],
)
def test_what_can_be_built_passes_the_check(overrides):
    check_buildable(compose_settings(overrides))


def test_a_users_own_loss_takes_the_place_of_the_vaes():
    settings = compose_settings(
        "generator.loss._target_=tests.federation.server.test_step_factory.OwnLoss +generator.loss.weight=3"
    )
    generator = make_generator(settings, SHAPE, 768)
    assert isinstance(generator.loss, OwnLoss)
    assert generator.loss.weight == 3


class OwnLoss(torch.nn.Module):
    def __init__(self, weight, **others):
        super().__init__()
        self.weight = weight


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("+generator.parts=[{_target_:os.system,command:x}]", ("generator.parts[0]._target_=os.system",)),
        ("+generator.loss.inner={_target_:os.system}", ("generator.loss.inner._target_=os.system",)),
        ("+generator.loss.inner=[{a:{_target_:os.system}}]", ("generator.loss.inner[0].a._target_=os.system",)),
        ("generator.loss._target_=subprocess.Popen", ("generator.loss._target_=subprocess.Popen", "torch.nn")),
        ("generator._target_=subprocess.Popen", ("generator._target_=subprocess.Popen", "Generator")),
        ("generator._target_=os.system", ("generator._target_=os.system",)),
    ],
)
def test_a_custom_class_needs_the_right_base_class_and_plain_arguments(override, named):
    with refused(ConfigError, *named):
        make_generator(compose_settings([override]), SHAPE, 768)


def test_the_size_of_what_settings_describe_is_found_without_allocating_it():
    small = compose_settings("experiment=quick")
    prompts = prompt_set(small, CLASSES)
    step = make_step(small, prompts, (1, 512))
    wanted = sum(each.nbytes for model in (step.adapters, step.generator) for each in model.state_dict().values())
    assert model_bytes(small, prompts, (1, 512)) == wanted
    before = torch.random.get_rng_state()
    large = compose_settings("experiment=quick generator.hidden_dim=1000000 generator.granularity=per_class")
    assert model_bytes(large, prompts, (1, 512)) > 10**12
    assert torch.equal(torch.random.get_rng_state(), before)
