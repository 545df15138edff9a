"""Prototypes that the other sites contradict."""

import pytest
import torch

from fed_a2v.core.contradiction import contradicted_classes
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics


def at(name, value, count=6):
    """Prototypes of a class that lie at a place."""
    means = torch.full((2, 1, 4), float(value))
    return ClassStatistics(name, count, AudioPrototypes(means, torch.full((2,), 3), torch.zeros_like(means)))


def honest_sites(number=3, classes=2, off=0.1):
    """Sites that agree, but for a little, about classes that lie 10 apart."""
    return {
        f"s{site}": [at(f"class {label}", 10 * label + off * site, count=6) for label in range(classes)]
        for site in range(number)
    }


def contradicted(**sites):
    return contradicted_classes((site, each) for site, classes in sites.items() for each in classes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, False), (4.0, False), (6.0, False), (6.5, False), (7.0, True), (10.0, True), (1e3, False)],
)
def test_a_class_is_contradicted_if_the_median_of_another_is_twice_as_near(value, expected):
    """The medians lie at 0 and 10: the distances are value and 10 - value."""
    found = contradicted(**honest_sites(5, off=0.0), x=[at("class 0", value)])
    assert found == ({("x", "class 0")} if expected else set())


def test_of_two_sites_none_is_contradicted():
    assert not contradicted(a=[at("class 0", 0), at("class 1", 10)], b=[at("class 0", 10), at("class 1", 0)])


@pytest.mark.parametrize(("classes", "all_left_out"), [(8, True), (7, False)])
def test_a_site_with_no_class_near_its_median_is_contradicted_as_a_whole(classes, all_left_out):
    # Between two medians, a little nearer to the wrong one: of no class alone could it be said.
    swapped = [at(f"class {label}", 10 * label + (5.5 if label < classes - 1 else -5.5)) for label in range(classes)]
    found = contradicted(**honest_sites(4, classes), x=[*swapped, at("only here", 500)])
    assert found == ({("x", prompt.name) for prompt in [*swapped, at("only here", 0)]} if all_left_out else set())
