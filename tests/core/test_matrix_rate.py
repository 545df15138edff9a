import pytest
import torch

from fed_a2v.core import matrix_rate as module
from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.matrix_rate import matrix_rate, training_operations


# Counted by torch.utils.flop_counter, whose import would take longer than all of this file.
@pytest.mark.parametrize(("clip", "t5", "tokens", "counted"), [((1, 24), None, 1, 5952), ((7, 24), (5, 32), 3, 68352)])
def test_the_operations_are_those_that_torch_counts(clip, t5, tokens, counted):
    prompts = ClassPrompts(("a", "b"), torch.zeros(2, *clip), None if t5 is None else torch.zeros(2, *t5))
    assert training_operations(Adapters(20, prompts, 16), tokens) == counted


def test_a_closed_form_is_trained_by_no_step():
    adapters = Adapters(20, ClassPrompts(("a", "b"), torch.randn(2, 1, 24), None), closed_form=True)
    assert training_operations(adapters, 1) == 0


def test_the_rate_is_measured_once_for_each_number_of_threads(monkeypatch):
    module._measured_rate.cache_clear()
    monkeypatch.setattr(module, "CPU_EDGE", 8)
    before = torch.get_num_threads()
    rates = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            rates.append(matrix_rate(torch.device("cpu")))
    finally:
        torch.set_num_threads(before)
        found = module._measured_rate.cache_info()
        module._measured_rate.cache_clear()
    assert (found.misses, found.hits) == (2, 1)
    assert rates[0] == rates[2] > 0
