"""The page of all settings is complete, and says what the settings say."""

import importlib.util

import pytest

from fed_a2v.config import compose_settings, conf_dir

from .blocks import REPOSITORY


@pytest.fixture(scope="module")
def hook():
    place = REPOSITORY / "docs" / "hooks" / "settings_reference.py"
    spec = importlib.util.spec_from_file_location("settings_reference", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def keys(hook):
    """Every key of the page but the generators' own, by name."""
    listed = [
        *hook.run_keys(),
        *(key for name, model in hook.sections().items() for key in hook.section_keys(name, model)),
    ]
    return {key.name: key for key in listed}


def leaves(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_key_of_the_configuration_is_on_the_page(hook):
    page = hook.reference()
    for path in sorted((conf_dir() / "generator").glob("*.yaml")):
        composed = dict(leaves(compose_settings(f"generator={path.stem}").model_dump(by_alias=True)))
        missing = [key for key in composed if f"`{key}`" not in page and not key.endswith("loss._target_")]
        assert not missing, path.stem


def test_every_key_has_a_type_and_a_meaning(hook, keys):
    every = [*keys.values(), *(key for own in hook.generator_keys().values() for key in own)]
    assert len(every) > 100
    assert [key.name for key in every if not key.type or not key.meaning] == []


def test_the_values_are_those_that_a_run_without_overrides_has(hook, keys):
    composed = dict(leaves(compose_settings().model_dump(by_alias=True)))
    for name, key in keys.items():
        assert key.default == hook.as_typed(composed[name]), name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rounds", "integer, at least 1"),
        ("finetune.synthetic_share", "number, at least 0, at most 1"),
        ("wandb.mode", "`offline`, `online`, `disabled`"),
        ("wandb.entity", "text or null"),
        ("dataset.train_folds", "list of integer"),
    ],
)
def test_types_and_ranges_are_told_in_words(keys, name, told):
    assert keys[name].type == told


def test_a_generators_own_keys_come_with_the_meaning_that_its_class_gives(hook):
    own = {key.name: key for key in hook.generator_keys()["multimodal"]}
    assert own["generator.condition_dropout"].type == "number"
    assert "one part only" in own["generator.condition_dropout"].meaning
    assert own["generator.learning_rate"].meaning == "of AdamW", "taken from the class that it refers to"
    assert own["generator.loss.beta_schedule"].type == "`constant`, `linear`, `cyclical`"
    assert "+generator.ema" in own, "an argument that no file sets"


def test_every_option_of_every_group_is_listed_with_what_it_is(hook):
    page = hook.reference()
    for path in sorted(conf_dir().glob("*/*.yaml")):
        if path.parent.name in hook.sections():
            line = next(
                (line for line in page.splitlines() if line.startswith(f"* `{path.parent.name}={path.stem}`: ")), ""
            )
            assert len(line.split(": ", 1)[-1]) > 10, path
