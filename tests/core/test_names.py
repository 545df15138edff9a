import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.names import clean_name, composed, plain_name
from tests.refusals import refused


@pytest.mark.parametrize("name", ["Crying_Baby", "crying-baby", " crying  baby ", "crying_-baby"])
def test_spellings_of_a_class_have_the_same_clean_name(name):
    assert clean_name(name) == "crying baby"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_the_same_however_its_accents_are_written(form):
    assert composed(unicodedata.normalize(form, "Café")) == "Caf\u00e9"
    assert clean_name(unicodedata.normalize(form, "CAFÉ_Ö")) == "caf\u00e9 \u00f6"


@given(st.text())
def test_cleaning_twice_changes_nothing(name):
    assert clean_name(clean_name(name)) == clean_name(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" north ", "north"),
        ("cafe\u0301", "caf\u00e9"),
        ("\uff4eorth 2", "north 2"),
        ("\u5317\u306e\u30e9\u30dc", "\u5317\u306e\u30e9\u30dc"),
        ("\u0441\u0435\u0432\u0435\u0440", "\u0441\u0435\u0432\u0435\u0440"),
    ],
)
def test_plain_name_normalises_unicode(text, name):
    assert plain_name(text) == name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "name"),
        ("  ", "name"),
        ("n\u043erth", "Cyrillic and Latin"),
        ("\u0391lpha", "Greek and Latin"),
        ("north\u200b", "U+200B"),
        ("north\x1b[31m", "U+001B"),
        ("nor\nth", "U+000A"),
        ("\u202ehtron", "U+202E"),
    ],
)
def test_a_name_with_invisible_or_mixed_characters_is_refused(text, named):
    with refused(ValueError, named):
        plain_name(text)


@given(st.text())
def test_plain_name_is_idempotent(text):
    try:
        name = plain_name(text)
    except ValueError:
        return
    assert plain_name(name) == name
