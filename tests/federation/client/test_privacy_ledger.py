"""The releases of a site over all runs: added up, never exceeded, and repeated at no cost."""

import math
import multiprocessing

import pytest
import torch

pytest.importorskip("dp_accounting")

from fed_a2v.core.gaussian_release import Budget, epsilon_of
from fed_a2v.federation.client.ledger import LedgerError
from fed_a2v.federation.client.privacy_ledger import PrivacyLedger
from fed_a2v.federation.client.privacy_policy import PolicyViolationError
from tests.refusals import refused

DELTA = 1e-5


def deviation_of(epsilon):
    return 1 / math.sqrt(sum(each**-2 for each in Budget(epsilon, DELTA).noise()))


def draws():
    return [torch.randn(3, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)]


@pytest.fixture
def ledger(tmp_path):
    return PrivacyLedger(tmp_path / "site" / "privacy", max_epsilon=4.0)


def release(ledger, key, epsilon, make=draws):
    deviation = deviation_of(epsilon)
    return ledger.release(key, deviation, deviation, make)


def test_a_repeated_request_gets_the_same_release_at_no_cost(ledger, tmp_path):
    first = release(ledger, "a", 4.0)
    for again in (ledger, PrivacyLedger(tmp_path / "site" / "privacy", 4.0)):
        second = release(again, "a", 4.0, make=None)
        assert [torch.equal(*pair) for pair in zip(first, second, strict=True)] == [True, True]
        assert again.epsilon() == pytest.approx(4.0, rel=1e-6)


def test_releases_add_up_and_none_exceeds_the_limit(ledger):
    release(ledger, "a", 2.0)
    release(ledger, "b", 2.0)
    assert ledger.epsilon() == pytest.approx(epsilon_of([deviation_of(2.0)] * 2, DELTA))
    with refused(PolicyViolationError, "max-epsilon=4", f"{ledger.epsilon():.4g}", "privacy.epsilon"):
        release(ledger, "c", 3.0, make=None)
    assert release(ledger, "d", 0.5)


def test_a_run_that_does_not_fit_is_refused_before_its_first_release(ledger):
    with refused(PolicyViolationError, "max-epsilon=4"):
        ledger.release("a", deviation_of(0.1), deviation_of(5.0), draws)
    assert ledger.epsilon() == 0.0


def test_epsilon_is_that_of_the_owners_delta(tmp_path):
    strict = PrivacyLedger(tmp_path, max_epsilon=4.0, max_delta=1e-7)
    with refused(PolicyViolationError, "1e-07"):
        release(strict, "a", 4.0)


def test_without_a_limit_releases_are_recorded(tmp_path):
    ledger = PrivacyLedger(tmp_path)
    release(ledger, "a", 50.0)
    assert ledger.epsilon() == pytest.approx(50.0, rel=1e-6)


def test_a_crash_while_drawing_or_writing_costs_nothing_and_leaves_a_ledger_that_works(ledger):
    class KilledError(Exception):
        pass

    def killed():
        raise KilledError

    with pytest.raises(KilledError):
        release(ledger, "a", 4.0, killed)
    (ledger.folder / ".a.npz.0123.tmp").write_bytes(b"half a file")
    assert ledger.epsilon() == 0.0
    release(ledger, "a", 4.0)
    assert sorted(path.name for path in ledger.folder.iterdir()) == ["a.npz", "lock"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
@pytest.mark.parametrize("key", ["a", "b"])
def test_a_damaged_ledger_refuses_everything(ledger, content, key):
    release(ledger, "a", 1.0)
    (ledger.folder / "a.npz").write_bytes(content)
    with refused(LedgerError, "damaged") as caught:
        release(ledger, key, 1.0)
    assert str(ledger.folder) not in str(caught.value)


def test_a_ledger_that_cannot_be_written_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with refused(LedgerError) as caught:
        release(PrivacyLedger(tmp_path / "file" / "privacy"), "a", 1.0)
    assert str(tmp_path) not in str(caught.value)


def _in_process(folder, key, queue):
    try:
        release(PrivacyLedger(folder, 4.0), key, 2.0)
        queue.put("released")
    except PolicyViolationError:
        queue.put("refused")


def test_processes_at_the_same_time_do_not_exceed_the_limit_together(ledger):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_in_process, args=(ledger.folder, f"key{n}", queue)) for n in range(6)]
    for process in processes:
        process.start()
    answers = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    fitting = answers.count("released")
    assert answers == ["refused"] * (6 - fitting) + ["released"] * fitting
    assert ledger.epsilon() <= 4.0 < ledger.epsilon(deviation_of(2.0))
