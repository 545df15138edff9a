"""Prototypes as rows, and how they are split."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.statistics import PrototypeBatch
from tests.core.conftest import assert_same_bits


def rows_with(counts):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    embeddings = torch.arange(float(len(labels))).view(-1, 1, 1)
    names = tuple(f"{k}" for k in range(len(counts)))
    return PrototypeBatch(embeddings, labels, torch.ones(len(labels)), torch.zeros_like(embeddings), names)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.just(0.0) | st.floats(0.01, 0.9))
def test_a_split_divides_the_rows_and_leaves_every_class_some_to_train_on(counts, share):
    rows = rows_with(counts)
    kept, held = rows.split(share)
    both = torch.cat([kept.embeddings, held.embeddings]).flatten().sort().values
    assert torch.equal(both, rows.embeddings.flatten())
    assert kept.labels.unique().tolist() == list(range(len(counts)))
    assert kept.names == held.names == rows.names
    for part in (kept, held):
        assert torch.equal(part.labels, rows.labels[part.embeddings.flatten().long()])


def test_a_share_is_held_out_and_at_least_one_of_three_rows():
    _, held = rows_with([8, 1, 2, 3, 16]).split(0.125)
    assert held.labels.tolist() == [0, 3, 4, 4]
    assert held.embeddings.flatten().tolist() == [4, 12, 18, 26], "the middle ones"


def test_nothing_is_held_out_for_a_share_of_zero():
    kept, held = rows_with([8, 2]).split(0.0)
    assert len(held) == 0
    assert len(kept) == 10


def test_the_same_rows_are_held_out_every_time():
    rows = rows_with([8, 9, 24])
    assert_same_bits(vars(rows.split(0.25)[1]), vars(rows.split(0.25)[1]))
