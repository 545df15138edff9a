"""Hints to install: commands that exist, and no package that no index has."""

import re
from importlib import metadata

import pytest

from fed_a2v import install
from fed_a2v.errors import ConfigError
from fed_a2v.install import install_hint, require
from tests.flower import REPOSITORY
from tests.refusals import refused


def test_in_a_checkout_the_hint_names_its_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    assert install_hint("hf", "plots") == "pip install -c constraints.txt -e '.[hf,plots]'"
    monkeypatch.chdir(tmp_path)
    assert install_hint("hf") == f"pip install -c {REPOSITORY}/constraints.txt -e '{REPOSITORY}[hf]'"


def test_without_a_checkout_it_names_the_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(install, "ROOT", tmp_path)
    needed = ["torch>=2.5", 'pandas>=2; extra == "notebook"', "optuna>=2.10,<3; extra == 'sweeps'"]
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    assert install_hint("notebook", "sweeps") == "pip install 'pandas>=2' 'optuna>=2.10,<3'"


def test_a_missing_package_is_named_with_its_user_and_the_hint():
    require("json", "hf", "encoder=ast")
    with refused(ConfigError, "encoder=ast", "no_such_package", install_hint("hf")):
        require("no_such_package", "hf", "encoder=ast")


@pytest.mark.parametrize("folder", ["fed_a2v", "docs", "conf", "examples", "README.md"])
def test_no_text_installs_the_project_from_an_index(folder):
    files = [REPOSITORY / folder] if folder.endswith(".md") else (REPOSITORY / folder).rglob("*")
    found = [
        path
        for path in files
        if path.suffix in (".py", ".md", ".yaml", ".ipynb")
        and re.search(r"fed[-_]a2v\[|pip install '?fed[-_]a2v", path.read_text(encoding="utf-8"))
    ]
    assert found == []
