import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.names import clean_name, composed


@pytest.mark.parametrize("name", ["Crying_Baby", "crying-baby", " crying  baby ", "crying_-baby"])
def test_spelling_does_not_make_another_class(name):
    assert clean_name(name) == "crying baby"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_the_same_however_its_accents_are_written(form):
    assert composed(unicodedata.normalize(form, "Café")) == "Caf\u00e9"
    assert clean_name(unicodedata.normalize(form, "CAFÉ_Ö")) == "caf\u00e9 \u00f6"


@given(st.text())
def test_cleaning_twice_changes_nothing(name):
    assert clean_name(clean_name(name)) == clean_name(name)
