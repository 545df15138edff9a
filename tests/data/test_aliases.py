import pytest

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.data.aliases import ClassNames
from tests.refusals import refused


def labels(names, classes, extra=None):
    return ClassNames(extra or {}).labels(names, classes)


def test_the_three_data_sets_call_one_class_by_different_names():
    classes = ["dog", "crying_baby", "chainsaw", "fireworks"]
    assert labels(["dog", "crying_baby", "chainsaw"], classes) == {"dog": 0, "crying_baby": 1, "chainsaw": 2}
    assert labels(["dog", "baby_cry", "fireworks"], classes) == {"dog": 0, "baby_cry": 1, "fireworks": 3}
    assert labels(["dog barking", "baby crying", "chainsawing trees"], classes) == {
        "dog barking": 0,
        "baby crying": 1,
        "chainsawing trees": 2,
    }


def test_an_alias_works_both_ways_and_the_own_name_goes_first():
    assert labels(["dog"], ["dog barking"]) == {"dog": 0}
    assert labels(["dog barking", "dog"], ["dog", "dog barking"]) == {"dog barking": 1, "dog": 0}


def test_spelling_does_not_matter_and_unknown_names_have_no_label():
    assert labels(["Dog_Barking", "organ"], ["DOG"]) == {"Dog_Barking": 0}


def test_names_with_commas_are_names():
    assert labels(["vehicle horn, car horn, honking"], ["car_horn"]) == {"vehicle horn, car horn, honking": 0}


def test_the_users_aliases_extend_and_override():
    extra = {"Meowing": "cat", "dog barking": "dog barking"}
    assert labels(["meowing", "dog barking"], ["cat", "dog"], extra) == {"meowing": 0}


def test_a_file_of_aliases_is_read_into_the_settings(tmp_path):
    file = tmp_path / "aliases.yaml"
    file.write_text("meowing: cat\n")
    assert compose_settings([f"dataset.aliases={file}"]).dataset.aliases == {"meowing": "cat"}
    assert compose_settings(["dataset.aliases={meowing: cat}"]).dataset.aliases == {"meowing": "cat"}


@pytest.mark.parametrize("content", [None, "- cat", "a: ["])
def test_a_file_that_is_no_table_is_an_error(tmp_path, content):
    file = tmp_path / "aliases.yaml"
    if content is not None:
        file.write_text(content)
    with refused(ConfigError, "dataset.aliases", file):
        compose_settings([f"dataset.aliases={file}"])
