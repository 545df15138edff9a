"""The node configuration: a misspelt key is refused by name and never ignored."""

import pytest

from fed_a2v.config.compose import ConfigError
from fed_a2v.data.datasets.synth import write_wavs
from fed_a2v.federation.client import message_handler as node_module
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.node_config import read_node_config
from tests.federation.helpers import SITES, Federation
from tests.refusals import refused


def test_every_key_is_read():
    given = {
        "site": "north",
        "dataset": "esc50",
        "data-dir": "/data",
        "cache-dir": "/cache",
        "device": "cuda:1",
        "encoder-model": "/models/ast",
        "targets": "/t.npz",
        "min-clips": 8,
        "ledger": "/ledger.json",
        "max-epsilon": 8.0,
        "max-delta": 1e-6,
        "privacy-ledger": "/privacy",
        "noise-sites": 40,
        "allow-scores": True,
        "allow-code": "sounds.Table sounds.Encoder",
        "max-seconds": 3600.0,
        "max-epochs": 5,
        "max-threads": 4,
        "max-memory": 8.0,
        "withdraw": True,
        "require-secure-sums": True,
        "min-sites": 5,
        "partition-id": 0,
        "num-partitions": 2,
    }
    read = read_node_config(given)
    assert read.model_dump(by_alias=True) == given
    assert read.name == "north"
    assert read_node_config({"partition-id": 3, "num-partitions": 5}).name == "3"
    assert read_node_config({"site": 7}).name == "7"
    nothing = read_node_config({})
    assert (nothing.name, nothing.min_clips, nothing.device) == (None, None, None)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("min_clips", "min-clips"),
        ("minclips", "min-clips"),
        ("min-clip", "min-clips"),
        ("share.min_clips", "min-clips"),
        ("data_dir", "data-dir"),
        ("Device", "device"),
        ("target", "targets"),
        ("name-of-nothing", "num-partitions"),
        ("xyz", "min-clips"),  # like none: all are named
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_is_named(slip, meant):
    with refused(ConfigError, f"unknown key {slip}", meant):
        read_node_config({"site": "north", slip: 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("min-clips", value) for value in (-1, 0, "three", "8", 8.0, True)),
        *(("device", value) for value in ("gpu", "cuda:x", 0)),
        *(("dataset", value) for value in ("esc51", 1)),
        ("site", 1.5),
        ("site", False),
        ("partition-id", "0"),
    ],
)
def test_a_wrong_value_is_refused_by_key_and_value(key, value):
    with refused(ConfigError, f"{key} = {value!r}"):
        read_node_config({key: value})


def test_a_smallest_number_of_sites_needs_secure_sums():
    with refused(ConfigError, "min-sites", "require-secure-sums=true"):
        read_node_config({"min-sites": 5})


def test_all_errors_are_reported_without_paths():
    with refused(ConfigError, "min_clips", "device = 'gpu'", "data-dir") as caught:
        read_node_config({"min_clips": "/secret/1", "device": "gpu", "data-dir": ["/secret/2"], "targets": "/secret/3"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"min_clips": 9}, {"min-clips": -1}, {"min-clips": "three"}])
def test_a_site_with_a_misspelt_key_computes_nothing_and_reports_the_reason(monkeypatch, wrong):
    worked = []
    honest = node_module.Site

    class Watched(honest):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            worked.append(self.name)

    monkeypatch.setattr(node_module, "Site", Watched)
    configs = [{"cache-dir": ""}, {"targets": "", **wrong}, {}, {}, {}]
    federation = Federation(node_configs=configs).start()
    row = federation.round()
    assert SITES[1] not in worked
    assert SITES[1] not in federation.strategy.step.bank.entries
    assert set(worked) == {SITES[0], *SITES[2:]}
    assert row["sites"][SITES[1]] == "failed"
    (key,) = wrong
    assert row["failure_reasons"]
    assert all("ConfigError" in reason and key in reason for reason in row["failure_reasons"])


def test_a_node_with_a_misspelt_key_does_not_report_its_name(tmp_path):
    write_wavs(tmp_path / "sounds", clips_per_class=4, seed=0)
    client = A2VClient({"site": "north", "min_clips": 8, "data-dir": str(tmp_path / "sounds")})
    for ask in (
        lambda: client.get_properties({}),
        lambda: client.fit([], {"task": "register"}),
        lambda: client.evaluate([], {}),
    ):
        with refused(ConfigError, "min_clips", "min-clips") as caught:
            ask()
        assert str(tmp_path) not in str(caught.value)
