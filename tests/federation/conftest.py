import shutil

import pytest

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.simulation import run_in_process
from tests.federation.helpers import FAST, Federation, Finished


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """Run the fast experiment with overrides; the same overrides give the same finished run to every test."""
    runs = {}

    def run(*overrides):
        if overrides not in runs:
            folder = tmp_path_factory.mktemp("run")
            runs[overrides] = Finished(folder, run_in_process(compose_settings([*FAST, *overrides]), folder))
        return runs[overrides]

    return run


@pytest.fixture
def run_in(tmp_path):
    """Run the fast experiment with overrides, in a named folder of this test's own."""

    def run(name, *overrides):
        folder = tmp_path / name
        return Finished(folder, run_in_process(compose_settings([*FAST, *overrides]), folder))

    return run


@pytest.fixture
def copied_run(finished_run, tmp_path):
    """A finished run with overrides, in a folder of this test's own, to be resumed or changed."""

    def run(name, *overrides):
        first = finished_run(*overrides)
        return Finished(shutil.copytree(first.folder, tmp_path / name), first.results)

    return run


@pytest.fixture(scope="session")
def honest_row():
    """The row of a first round in which all goes well."""
    return Federation().start().round()
