"""The bits of fitted generators do not depend on the number of cores, which numpy's libraries use."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from fed_a2v.core.generators.parts.reduced import ReducedSpace
from fed_a2v.core.one_thread import one_thread
from fed_a2v.core.row_comparison import Table, correct_rows
from tests.core.conftest import assert_same_bits


def threads():
    return {library["filepath"]: library["num_threads"] for library in threadpool_info()}


def test_the_block_has_one_thread_and_what_follows_as_many_as_before():
    with threadpool_limits(2):
        before = threads()
        with one_thread():
            assert set(threads().values()) == {1}
        assert {library: threads()[library] for library in before} == before


@pytest.mark.parametrize("size", [60, 300])
def test_main_directions_have_the_same_bits_on_any_number_of_cores(size):
    rows = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    spaces = []
    for number in (1, 2):
        with threadpool_limits(number):
            spaces.append(ReducedSpace(most=size // 2, whiten=True))
            spaces[-1].fit(rows)
    assert_same_bits(*(space.state_dict() for space in spaces))


def test_a_classifier_of_rows_is_fitted_with_one_thread(monkeypatch):
    used = []

    class Model:
        def __init__(self, **arguments):
            pass

        def fit(self, x, y):
            used.extend(threads().values())
            return self

        def predict(self, x):
            return np.zeros(len(x))

    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", Model)
    rows = Table(np.zeros((2, 3), np.float32), np.arange(2))
    with threadpool_limits(2):
        assert correct_rows(rows, rows).tolist() == [True, False]
    assert set(used) == {1}
