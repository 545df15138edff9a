"""The benchmarks of the server's memory: the server accepts what their made-up sites send, so they measure its work."""

import pytest


@pytest.mark.parametrize("variant", ["mean", "statistics"])
def test_the_growth_with_sites_is_measured_on_accepted_replies(benchmark_module, variant):
    found = benchmark_module("scale").measure(variant, 3, 2)
    assert found["sites"] == 3
    assert found["payload"] > found["stays"] > 0
    assert found["peak"] > 1e8
    assert all(found[name] >= 0 for name in ("reading", "step", "round"))


def test_the_memory_of_a_round_is_measured_on_accepted_replies(benchmark_module, monkeypatch):
    memory = benchmark_module("memory")
    monkeypatch.setattr(memory, "SITES", 2)
    before, peak, bank = memory.measure(["adapters=compact", "targets=random"])
    assert peak >= before > 100
    assert bank > 0


def test_a_refused_reply_ends_the_benchmark(benchmark_module):
    row = {"round": 2, "rejected": 1, "rejections": ["losses are []"], "failures": 0, "failure_reasons": []}
    with pytest.raises(SystemExit, match="round 2"):
        benchmark_module("common").require_no_refusals([row])
