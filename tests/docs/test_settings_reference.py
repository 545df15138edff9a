"""The page of all settings is complete and correct."""

import pytest

from fed_a2v.config.compose import compose_settings, conf_dir
from tests.config.test_compose import NEEDS


@pytest.fixture(scope="module")
def keys(settings_reference):
    """Every key of the page but the generators' own, by name."""
    listed = [
        *settings_reference.run_keys(),
        *(
            key
            for name, model in settings_reference.sections().items()
            for key in settings_reference.section_keys(name, model)
        ),
        *(key for section in settings_reference.COMPONENTS for key in settings_reference.component_keys(section)),
    ]
    return {key.name: key for key in listed}


def leaves(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_key_of_the_configuration_is_on_the_page(settings_reference):
    page = settings_reference.reference()
    for path in sorted((conf_dir() / "generator").glob("[!_]*.yaml")):
        words = [f"generator={path.stem}", *NEEDS.get(f"generator={path.stem}", [])]
        composed = dict(leaves(compose_settings(words).model_dump(by_alias=True)))
        missing = [key for key in composed if f"`{key}`" not in page and not key.endswith("loss._target_")]
        assert not missing, path.stem


def test_every_key_has_a_type_and_a_meaning(settings_reference, keys):
    every = [*keys.values(), *(key for own in settings_reference.generator_keys().values() for key in own)]
    assert len(every) > 100
    assert [key.name for key in every if not key.type or not key.meaning] == []


def test_the_values_are_those_that_a_run_without_overrides_has(settings_reference, keys):
    composed = dict(leaves(compose_settings().model_dump(by_alias=True)))
    for name, key in keys.items():
        if name in composed:  # else it is a key of a section that a run without overrides has not
            assert key.default == settings_reference.as_typed(composed[name]), name
    assert keys.keys() >= composed.keys() - {key for key in composed if key.startswith("generator.")}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rounds", "integer, at least 1"),
        ("finetune.synthetic_share", "number, at least 0, at most 1"),
        ("wandb.mode", "`offline`, `online`, `disabled`"),
        ("wandb.entity", "text or null"),
        ("targets.clip", "section or null"),
        ("targets.clip.model", "text"),
        ("dataset.train_folds", "list of integer or null"),
        ("dataset.test_fold", "integer, at least 1 or null"),
    ],
)
def test_types_and_ranges_are_told_in_words(keys, name, told):
    assert keys[name].type == told


def test_a_generators_own_keys_come_with_the_meaning_that_its_class_gives(settings_reference):
    own = {key.name: key for key in settings_reference.generator_keys()["multimodal"]}
    assert own["generator.condition_dropout"].type == "number"
    assert "one part only" in own["generator.condition_dropout"].meaning
    assert own["generator.learning_rate"].meaning == "learning rate of AdamW", "taken from the class that it refers to"
    assert own["generator.loss.beta_schedule"].type == "`constant`, `linear`, `cyclical`"
    assert "+generator.ema" in own, "an argument that no file sets"


def test_every_option_of_every_group_is_listed_with_what_it_is(settings_reference):
    page = settings_reference.reference()
    for path in sorted(conf_dir().glob("*/[!_]*.yaml")):
        if path.parent.name in settings_reference.sections():
            line = next(
                (line for line in page.splitlines() if line.startswith(f"* `{path.parent.name}={path.stem}`: ")), ""
            )
            assert len(line.split(": ", 1)[-1]) > 10, path
