"""Runs with `share=statistics` together with options that need more than the sums, and what their messages carry."""

import pytest
import torch

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.simulation import run_in_process
from tests.federation.helpers import FAST, Finished

SUMS = ("share=statistics", "projection.columns=16", "share.min_clips=1", "rounds=2")
WIDTH, COLUMNS, CLASSES = 512, 16, 10
SPACE = 4 * (WIDTH * COLUMNS + COLUMNS)  # bytes of the matrix and the centre
TRIANGLE = COLUMNS * (COLUMNS + 1) // 2


@pytest.fixture
def finished(tmp_path):
    def run(*words):
        folder = tmp_path / f"run {len(list(tmp_path.iterdir()))}"
        return Finished(folder, run_in_process(compose_settings([*FAST, *SUMS, *words]), folder))

    return run


@pytest.mark.parametrize(
    "words",
    [
        ("generator=gaussian", "aggregation=kd"),
        ("generator=none", "finetune.from_nodes_adapters=true", "optimize_memory_usage=true"),
    ],
)
def test_the_sites_adapters_are_distilled_or_give_the_targets(finished, words):
    run = finished(*words)
    assert [row["rejected"] for row in run.rows] == [0, 0]
    assert run.results["accuracy"] > 0.2  # chance is 0.1
    assert run.rows[0]["bytes_up"] > 10 * run.rows[0]["bytes_registration"]


def test_sites_that_do_not_train_get_the_space_and_send_their_sums_once(finished):
    run = finished("experiment=one_shot", "rounds=2")
    first, second = run.rows
    # The mean of the clips, two classes and the triangle of the scatter, of each of five sites in half precision.
    assert first["bytes_registration"] == 5 * 2 * (COLUMNS + 2 * COLUMNS + TRIANGLE)
    assert (first["bytes_up"], second["bytes_up"]) == (0, 0)
    matrix = SPACE - 4 * COLUMNS
    assert first["bytes_down_registration"] == 5 * (matrix + SPACE)
    adapters = 2 * (CLASSES * COLUMNS + CLASSES) + 4 * 2 * COLUMNS  # weight and bias; mean and deviation of the input
    assert second["bytes_down"] == 5 * (SPACE + SPACE + adapters)
    assert run.results["bytes_down"] == sum(row["bytes_down"] for row in run.rows) + first["bytes_down_registration"]
    assert first["accuracy"] == second["accuracy"] > 0.4


def test_sites_that_come_one_after_the_other_give_the_adapters_of_all_at_once(finished):
    together = finished("experiment=one_shot", "rounds=2")
    later = finished(
        *("experiment=one_shot", "rounds=2", "scenario=class_incremental"),
        *("scenario.steps=2", "scenario.rounds_per_step=1"),
    )
    assert later.rows[1]["bytes_up"] > 0 < later.rows[0]["bytes_registration"]
    assert len(later.state["sums"]["sites"]) == 5
    # The centre is that of the sites that registered, so not to the last bit.
    assert later.results["accuracy"] == pytest.approx(together.results["accuracy"], abs=0.1)
    counts = [sum(site["counts"] for site in run.state["sums"]["sites"].values()) for run in (together, later)]
    assert torch.equal(*counts)
