"""Fixtures of all tests: a separate cache, no W&B account, and the folder of real data."""

import functools
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

import hypothesis
import pytest
from absl import logging as absl_logging

from fed_a2v.config import own_class

# Property tests draw the same examples in every run, so that none passes or fails by luck; `make test-long` draws new
# ones, and many more of them.
_ALWAYS = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}
hypothesis.settings.register_profile("suite", max_examples=50, derandomize=True, **_ALWAYS)
hypothesis.settings.register_profile("long", max_examples=2000, **_ALWAYS)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

# Read once, at the first import of huggingface_hub: no test may wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"


# Its handler closes its stream whenever a library sets up logging anew, such as Hydra; that must not be pytest's.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


# A minute or more each. They come first, so that no process of `make test` is left with one at the end.
_SLOWEST = (
    *("docs/test_commands.py", "server/test_trainer.py", "cache/test_export.py", "runs/test_sweep.py"),
    *("tests/test_cli.py", "tests/test_commands.py", "tests/test_compare.py", "tests/test_load.py"),
    "tests/test_hostile_folders.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not str(item.path).endswith(_SLOWEST))


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_user(tmp_path_factory):
    """Embeddings are cached in a temporary folder, and W&B finds neither an account nor other settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FED_A2V_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(tmp_path_factory.mktemp("wandb")))
        # Plain output of subprocesses, whatever terminal the tests run in.
        patch.setenv("NO_COLOR", "1")
        patch.setenv("COLUMNS", "200")
        yield


@pytest.fixture(autouse=True)
def _no_class_of_another_test(monkeypatch):
    """What a process has loaded of users' classes decides how an error is reported."""
    monkeypatch.setattr(own_class, "_loaded", {})


@pytest.fixture(scope="session")
def real_data():
    """The folder of real clips and embeddings; its tests are skipped without it."""
    folder = os.environ.get("FED_A2V_DATA")
    if not folder:
        pytest.skip("FED_A2V_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def benchmark_module():
    """Import a file of `benchmarks/` by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield import_module


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The folder of a tiny model: `model_folder(tiny_ast, width=64)`; each is made once."""

    @functools.cache
    def made(make, **options):
        return make(tmp_path_factory.mktemp(make.__name__), **options)

    return made


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; its tests are skipped without it.

    For one file of tests: while it is open, its event loop runs, and no other can be started.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=240_000)
        # Pages may be slow if other programs run.
        running.on("context", lambda context: context.set_default_timeout(240_000))
        yield running
        running.close()
