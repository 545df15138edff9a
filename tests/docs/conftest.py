"""The hooks of the documentation, as modules."""

import importlib.util

import pytest

from tests.docs.blocks import REPOSITORY


@pytest.fixture(scope="session")
def settings_reference():
    """The hook that makes the page of all settings."""
    place = REPOSITORY / "docs" / "hooks" / "settings_reference.py"
    spec = importlib.util.spec_from_file_location("settings_reference", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
