"""`flwr run`: the same experiment through Flower's own processes. It exits 0 whatever happens: the status counts."""

import json
import re

import pytest

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.simulation import run_in_process
from tests.federation.helpers import FAST, Finished, assert_same, assert_same_run, without_seconds
from tests.flower import BIN, SuperLink, copy_of_app

pytestmark = [pytest.mark.deployment, pytest.mark.flower, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def superlink(tmp_path_factory):
    """A SuperLink for simulations, with a home and a port of its own, started in an empty folder."""
    home = tmp_path_factory.mktemp("superlink")
    command = [BIN / "flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", "PORT"]
    started = SuperLink(home, command)
    try:
        yield started.start()
    finally:
        started.end()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return copy_of_app(tmp_path_factory.mktemp("app") / "app")


THREE_NODES = ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]


@pytest.mark.parametrize(
    ("words", "options"),
    [([], []), ([], THREE_NODES), (["share=statistics", "generator=none"], THREE_NODES)],
    ids=["default number of nodes", "three nodes", "sums"],
)
def test_flwr_run_ends_with_the_same_bits_as_a_run_in_one_process(
    superlink, app, finished_run, tmp_path, words, options
):
    ended = superlink.run(app, " ".join([*FAST, *words]), tmp_path / "run", *options)
    assert ended.status == "finished:completed", ended
    through_flower = Finished(tmp_path / "run", json.loads((tmp_path / "run" / "results.json").read_text()))
    here = finished_run(*words)
    assert without_seconds(through_flower.results) == without_seconds(here.results)
    assert_same_run(through_flower, here)
    assert "=== Round 2: Training Generator and Global Adapters ===" in through_flower.log
    assert "=== Round 2: Training Generator and Global Adapters ===" in ended.shown


def test_one_exchange_of_sums_has_the_same_bits_too(superlink, app, tmp_path):
    words = ("experiment=one_shot", "dataset.clips_per_class=8", "projection.columns=16", "report=false")
    ended = superlink.run(app, " ".join(words), tmp_path / "run")
    assert ended.status == "finished:completed", ended
    through_flower = Finished(tmp_path / "run", json.loads((tmp_path / "run" / "results.json").read_text()))
    here = tmp_path / "here"
    results = run_in_process(compose_settings(words), here)
    assert without_seconds(through_flower.results) == without_seconds(results)
    assert_same_run(through_flower, Finished(here, results))


def test_secure_sums_end_with_the_same_bits_as_in_one_process(superlink, app, finished_run, tmp_path):
    overrides = [*FAST, "share=statistics", "secure_sums=secagg", "projection.columns=8", "partition.sites=4"]
    nodes = ["--federation-config", "num-supernodes=4 client-resources-num-cpus=1"]
    ended = superlink.run(app, " ".join(overrides), tmp_path / "run", *nodes)
    assert ended.status == "finished:completed", ended
    through_flower = Finished(tmp_path / "run", json.loads((tmp_path / "run" / "results.json").read_text()))
    here = finished_run(*overrides[len(FAST) :])
    assert_same(through_flower.state["sums"], here.state["sums"])
    assert [without_bytes(row) for row in through_flower.rows] == [without_bytes(row) for row in here.rows]
    assert through_flower.rows[0]["bytes_registration"] > here.rows[0]["bytes_registration"] > 0  # keys and shares


def without_bytes(row):
    return {key: value for key, value in without_seconds(row).items() if key != "bytes_registration"}


def test_a_wrong_override_fails_the_run_and_the_reason_is_in_its_status(superlink, app, tmp_path):
    ended = superlink.run(app, "rouns=3", tmp_path / "run")
    assert ended.status == "finished:failed"
    assert {"rouns", "rounds"} <= set(re.findall(r"\w+", ended.details))
    assert not (tmp_path / "run").exists()
