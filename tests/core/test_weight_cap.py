import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.weight_cap import cap_client_weights

COUNTS = st.lists(st.integers(1, 10**9), min_size=1, max_size=12)
SHARES = st.floats(0.01, 1.0)


@given(COUNTS, SHARES)
def test_no_count_exceeds_its_share_or_grows(counts, share):
    held = cap_client_weights(counts, share)
    possible = max(share, 1 / len(counts))
    assert max(held) <= possible * sum(held) * (1 + 1e-9)
    assert all(0 < after <= before for after, before in zip(held, counts, strict=True))


@given(COUNTS, SHARES)
def test_only_the_largest_counts_are_capped_and_all_at_one_value(counts, share):
    held = cap_client_weights(counts, share)
    cut = {after for after, before in zip(held, counts, strict=True) if after < before}
    assert len(cut) <= 1
    for limit in cut:
        assert all(after == before or before > limit for after, before in zip(held, counts, strict=True))
        assert max(held) == limit


@given(COUNTS, SHARES)
def test_counts_within_the_share_do_not_change(counts, share):
    if max(counts) <= share * sum(counts):
        assert cap_client_weights(counts, share) == counts


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=8), st.floats(0.2, 0.6), st.integers(10**6, 10**12))
def test_the_weight_of_others_does_not_depend_on_a_sites_false_count(honest, share, claim):
    held = cap_client_weights([*honest, claim], share)
    assert sum(held[:-1]) >= (1 - max(share, 1 / len(held))) * sum(held) * (1 - 1e-9)
    assert cap_client_weights([*honest, 10 * claim], share) == pytest.approx(held)


def test_examples():
    assert cap_client_weights([10, 10, 10**9], 0.5) == [10, 10, 20]
    assert cap_client_weights([30, 10], 0.5) == [10, 10]
    assert cap_client_weights([3, 3, 3], 0.2) == [3, 3, 3]
    assert cap_client_weights([7], 0.5) == [7]
    assert cap_client_weights([1, 1000], 1.0) == [1, 1000]
