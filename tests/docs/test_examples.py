"""The examples in the documentation: complete, and as good as it says."""

import importlib
import sys

import pytest
import torch

from fed_a2v.config import ConfigError, compose_settings
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.prompts import PrototypeRows
from fed_a2v.federation.build import make_generator

from .blocks import REPOSITORY

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
    return PrototypeRows(means[labels], labels, torch.full((6,), 4.0), variances, ("a", "b", "c"))


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
    ("words", "message"),
    [
        (
            ["linear_generator.LinearGenerator", "+generator.rigde=1"],
            "unknown key generator.rigde .* did you mean generator.ridge?",
        ),
        (["linear_generator.Nothing"], "generator._target_=linear_generator.Nothing: "),
        (["no_such_module.Generator"], "generator._target_=no_such_module.Generator: "),
        (["torch.nn.Linear"], "generator=custom: "),
        (["fed_a2v.core.prompts.PromptBank"], "generator=custom: "),
    ],
)
def test_a_wrong_class_or_argument_is_named(words, message):
    with pytest.raises(ConfigError, match=message):
        make_generator(generator_settings(*words), (2, 6), 16)


def test_a_class_that_is_no_generator_is_refused(tmp_path, monkeypatch):
    (tmp_path / "almost.py").write_text("class Almost:\n    def __init__(self, **shapes): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="almost.Almost is no generator; derive it from .*base.Generator"):
        make_generator(generator_settings("almost.Almost"), (2, 6), 16)


def test_custom_without_a_class_says_what_is_missing():
    with pytest.raises(ConfigError, match="generator=custom needs generator._target_=MODULE.CLASS"):
        compose_settings("generator=custom")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_on_the_page_and_says_how_it_is_run(path):
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    assert f'--8<-- "examples/{path.name}"' in page
    module = importlib.import_module(path.stem)
    assert "fed-a2v train" in module.__doc__


def test_the_interface_that_the_page_names_is_there():
    assert {"fit", "sample", "sample_classes", "posterior", "conditions_from", "training_state"} <= set(dir(Generator))
