import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.names import clean_name


@pytest.mark.parametrize("name", ["Crying_Baby", "crying-baby", " crying  baby ", "crying_-baby"])
def test_spelling_does_not_make_another_class(name):
    assert clean_name(name) == "crying baby"


@given(st.text())
def test_cleaning_twice_changes_nothing(name):
    assert clean_name(clean_name(name)) == clean_name(name)
