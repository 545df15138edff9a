"""The sums of the sites: totals, withdrawal, the cap on one site, and their saved state."""

import copy

import pytest
import torch
from torch.nn import functional as F

from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.sum_bank import TOTAL, SumBank
from tests.refusals import refused

CLASSES, COLUMNS = ("dog", "rain", "siren"), 5


def sums(clips, seed=0):
    random = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(clips, COLUMNS, generator=random), dim=1)
    return ClassSums.of(rows, torch.randint(len(CLASSES), (clips,), generator=random), len(CLASSES))


def bank_of(sizes, **options):
    bank = SumBank(CLASSES, COLUMNS, **options)
    for site, clips in sizes.items():
        bank.update(site, sums(clips, seed=clips))
    return bank


def same(left, right):
    return all(torch.equal(getattr(left, key), getattr(right, key)) for key in ("counts", "sums", "scatter"))


SIZES = {"site-0": 7, "site-1": 9, "site-2": 8, "site-3": 6}


def test_the_total_is_the_same_to_the_last_bit_in_any_order_of_arrival():
    total = bank_of(SIZES).total
    assert same(total, bank_of(dict(reversed(SIZES.items()))).total)
    assert int(total.counts.sum()) == 30
    again = bank_of(SIZES)
    again.update("site-2", sums(8, seed=8))
    assert same(total, again.total), "sums that are sent twice count once"


def test_a_site_that_withdraws_has_never_been_there():
    bank = bank_of(SIZES)
    bank.withdraw(["site-1", "site-9"])
    rest = bank_of({site: clips for site, clips in SIZES.items() if site != "site-1"})
    assert same(bank.total, rest.total)
    assert torch.equal(bank.model().covariance, rest.model().covariance)
    bank.withdraw(SIZES)
    assert bank.model() is None


def test_the_model_is_estimated_once_for_the_same_sums():
    bank = bank_of(SIZES)
    model = bank.model()
    assert bank.model() is model
    bank.update("site-0", sums(5, seed=99))
    assert not torch.equal(bank.model().covariance, model.covariance)
    bank.load_state_dict(bank_of(SIZES).state_dict())
    assert torch.equal(bank.model().covariance, model.covariance)


def test_no_site_counts_for_more_than_its_share_of_the_clips():
    sizes = SIZES | {"site-4": 1000}
    capped = bank_of(sizes, max_site_share=0.5)
    assert list(capped.capped()) == ["site-4"]
    assert float(capped.total.counts.sum()) == pytest.approx(60)
    assert float(capped.total.scatter_matrix().trace()) == pytest.approx(60)
    expected = bank_of(SIZES).total.sums + sums(1000, seed=1000).sums * 30 / 1000
    torch.testing.assert_close(capped.total.sums, expected)
    assert capped.model().covariance.isfinite().all()
    assert bank_of(sizes).capped() == {}
    assert same(bank_of(SIZES, max_site_share=0.5).total, bank_of(SIZES).total), "the bits of honest sites are the same"


def test_a_loaded_bank_has_the_same_total():
    bank, loaded = bank_of(SIZES), bank_of({})
    loaded.load_state_dict(copy.deepcopy(bank.state_dict()))
    assert same(bank.total, loaded.total)


DAMAGES = {
    "other classes": lambda entry: entry | {"counts": torch.ones(4, dtype=torch.int64)},
    "another space": lambda entry: entry | {"sums": torch.zeros(3, 6, dtype=torch.float64)},
    "another type": lambda entry: entry | {"sums": entry["sums"].long()},
    "a scatter that is a matrix": lambda entry: entry | {"scatter": torch.zeros(5, 5, dtype=torch.float64)},
    "NaN": lambda entry: entry | {"scatter": entry["scatter"] * torch.nan},
    "clips below 0": lambda entry: entry | {"counts": torch.tensor([3, -1, 3])},
    "no clips": lambda entry: entry | {"counts": torch.zeros(3, dtype=torch.int64)},
    "an entry too few": lambda entry: {"counts": entry["counts"], "sums": entry["sums"]},
    "an entry too many": lambda entry: entry | {"more": entry["sums"]},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_sums_of_a_strangers_file_are_checked(damage):
    state = copy.deepcopy(bank_of(SIZES).state_dict())
    state["sites"]["site-2"] = DAMAGES[damage](state["sites"]["site-2"])
    bank = bank_of({"site-7": 5})
    with pytest.raises(ValueError, match="site-2"):
        bank.load_state_dict(state)
    assert list(bank.sites) == ["site-7"]


WRONG = {
    "prior of another space": {"prior": torch.ones(3, 6)},
    "prior of integers": {"prior": torch.ones(3, 5, dtype=torch.int64)},
    "prior with NaN": {"prior": torch.full((3, 5), torch.nan)},
    "prior that is no tensor": {"prior": [1.0]},
    "sites in no total": {"within": ["site-0"]},
    "site without a name": {"within": [3]},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_strangers_prior_and_total_are_checked(wrong):
    bank = bank_of({"site-7": 5})
    with pytest.raises(ValueError, match="prior" if "prior" in wrong else "total"):
        bank.load_state_dict(bank_of(SIZES).state_dict() | WRONG[wrong])
    assert list(bank.sites) == ["site-7"]
    assert bank.prior is None


def test_a_total_is_kept_and_no_site_leaves_it():
    rows = torch.nn.functional.normalize(torch.arange(12.0).reshape(4, 3), dim=1)
    sums = ClassSums.of(rows, torch.tensor([0, 1, 1, 0]), 2)
    bank = SumBank(["dog", "rain"], 3)
    bank.store_total(["site-b", "site-a"], sums)
    assert bank.within == ("site-a", "site-b")
    loaded = SumBank(["dog", "rain"], 3)
    loaded.load_state_dict(bank.state_dict())
    assert (loaded.within, list(loaded.sites)) == (bank.within, [TOTAL])
    assert torch.equal(loaded.total.scatter, sums.scatter)
    with refused(ValueError, "site-a"):
        loaded.withdraw(["site-a"])
    loaded.withdraw(["site-c"])
    assert torch.equal(loaded.total.sums, sums.sums)
