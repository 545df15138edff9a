"""The bank of sums: a total of secure aggregation has no sites that could be taken out of it."""

import torch

from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.sum_bank import TOTAL, SumBank
from tests.refusals import refused


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
