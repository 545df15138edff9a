import psutil
import pytest

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.matrix_rate import training_operations
from fed_a2v.federation.server import machine_figures
from fed_a2v.federation.server.machine_figures import MachineFigures
from tests.federation.helpers import SMALL, Federation

SITE = ("machine/site_clips_per_second", "machine/site_steps_per_second", "machine/site_matrix_share")
SERVER = ("machine/server_steps_per_second", "machine/server_matrix_share")


@pytest.fixture(scope="module")
def federation():
    return Federation("site.epochs=3").start()


@pytest.fixture(scope="module")
def row(federation):
    return federation.round() | {"site_seconds": {"site-000": 1.5, "site-001": 0.5}}


@pytest.fixture
def figures(federation, row):
    def of(clips=40, settings=federation.settings, **changes):
        machine = MachineFigures(settings.device, settings.site, settings.finetune)
        return machine.of_round(row | changes, clips, federation.strategy.step, 1)

    return of


def test_a_sites_rate_is_that_of_its_own_seconds(figures, row, federation):
    found, operations = figures(), training_operations(federation.strategy.step.adapters, 1)
    assert found["machine/site_clips_per_second"] == 40 * 3 / 2.0
    assert found["machine/site_steps_per_second"] == row["site/optimiser_steps"] * row["replies"] / 2.0
    assert found["machine/site_matrix_share"] == pytest.approx(60 * operations / found["machine/matrix_rate"])


def test_the_servers_rate_is_that_of_fine_tuning_and_distillation(figures, row, federation):
    found = figures(**{"seconds/finetune": 0.5, "seconds/distil": 0.5, "server/optimiser_steps": 30})
    assert found["machine/server_steps_per_second"] == 30
    rows = 30 * federation.settings.finetune.batch_size
    operations = training_operations(federation.strategy.step.adapters, 1)
    assert found["machine/server_matrix_share"] == pytest.approx(rows * operations / found["machine/matrix_rate"])


def test_messages_count_from_the_first_request_to_the_last_reply(figures):
    seconds = {"seconds/sites": 1.0, "seconds/replies": 0.5, "seconds/evaluate": 0.5}
    found = figures(bytes_up=10, bytes_down=30, **seconds)
    assert found["machine/bytes_per_second"] == 20


def test_sites_that_report_no_time_have_no_speed(figures):
    found = figures(site_seconds={"site-000": 0.0})  # as with privacy=dp
    assert not found.keys() & {*SITE}
    assert found.keys() >= {*SERVER}
    skipped = figures(clips=0)
    assert not skipped.keys() & {*SITE}


def test_a_deployed_server_does_not_know_the_sites_machines(figures, monkeypatch):
    monkeypatch.setattr(machine_figures, "is_deployed_server", lambda: True)
    found = figures()
    assert "machine/site_matrix_share" not in found
    assert found["machine/site_clips_per_second"] > 0


def test_more_steps_at_the_sites_are_more_clips(figures):
    settings = compose_settings([*SMALL, "site.epochs=3", "site.server_steps=true"])
    found = figures(settings=settings, replies=2)
    more = 2 * settings.finetune.first_steps * settings.site.batch_size
    assert found["machine/site_clips_per_second"] == (40 * 3 + more) / 2.0


def test_the_peak_memory_never_falls_and_is_that_of_the_process(figures):
    held = bytearray(b"x" * 50_000_000)
    peak, resident = figures()["machine/peak_memory"], psutil.Process().memory_info().rss
    assert peak >= resident - 10_000_000 > len(held)
    del held
    assert figures()["machine/peak_memory"] >= peak
