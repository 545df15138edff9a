"""The benchmarks of the server's memory: the server accepts what their made-up sites send, so they measure its work."""

import sys
from importlib import import_module

import pytest

from tests.flower import REPOSITORY


@pytest.fixture(scope="module")
def benchmarks():
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        yield import_module
    finally:
        sys.path.remove(str(REPOSITORY / "benchmarks"))


def test_the_growth_with_sites_is_measured_on_accepted_replies(benchmarks):
    found = benchmarks("scale").measure(3, 2)
    assert found["sites"] == 3
    assert found["payload"] > found["stays"] > 0
    assert found["peak"] > 1e8
    assert all(found[name] >= 0 for name in ("reading", "averaging", "step"))


def test_the_memory_of_a_round_is_measured_on_accepted_replies(benchmarks, monkeypatch):
    memory = benchmarks("memory")
    monkeypatch.setattr(memory, "SITES", 2)
    before, peak, bank = memory.measure(["adapters=compact", "targets=random"])
    assert peak >= before > 100
    assert bank > 0


def test_a_refused_reply_ends_the_benchmark(benchmarks):
    row = {"round": 2, "rejected": 1, "rejections": ["losses are []"], "failures": 0, "failure_reasons": []}
    with pytest.raises(SystemExit, match="round 2"):
        benchmarks("common").require_no_refusals([row])
