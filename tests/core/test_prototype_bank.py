from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics
from tests.core.conftest import assert_same_bits, through_a_file
from tests.core.test_contradiction import at, honest_sites


def audio(value, groups=2, count=3):
    means = torch.full((groups, 1, 4), float(value))
    return AudioPrototypes(means, torch.full((groups,), count), torch.full_like(means, 0.5))


def says(name, value, count=6, clip=None, **more):
    return ClassStatistics(name, count, audio(value, **more), None if clip is None else torch.full((1, 8), float(clip)))


def bank_of(**sites):
    bank = PrototypeBank()
    for site, prompts in sites.items():
        bank.update(site, prompts, f"data of {site}", 1)
    return bank


def of_class(rows, name):
    return rows.embeddings[rows.labels == rows.names.index(name)]


def test_sites_may_order_their_classes_differently():
    bank = bank_of(a=[says("dog", 1), says("cat", 2)], b=[says("cat", 20), says("cow", 30), says("dog", 10)])
    rows = bank.rows()
    assert rows.names == ("cat", "cow", "dog")
    assert of_class(rows, "dog").unique().tolist() == [1, 10]
    assert of_class(rows, "cat").unique().tolist() == [2, 20]
    assert of_class(rows, "cow").unique().tolist() == [30]


def test_the_order_of_rows_does_not_depend_on_the_order_of_replies():
    sites = {"b": [says("dog", 10), says("cat", 20)], "a": [says("cat", 2), says("dog", 1)]}
    one, other = bank_of(**sites).rows(), bank_of(**dict(reversed(sites.items()))).rows()
    assert_same_bits(vars(one), vars(other))
    assert one.embeddings[:, 0, 0].tolist() == [2, 2, 20, 20, 1, 1, 10, 10]


def test_rows_are_float32_for_every_type_of_input():
    prompts = AudioPrototypes(torch.ones(2, 1, 4).half(), torch.tensor([3, 4]), torch.ones(2, 1, 4).half())
    rows = bank_of(a=[ClassStatistics("dog", 7, prompts)]).rows()
    assert {rows.embeddings.dtype, rows.counts.dtype, rows.variances.dtype} == {torch.float32}
    assert rows.labels.dtype == torch.int64
    assert rows.counts.tolist() == [3, 4]


def test_an_empty_bank_has_no_rows():
    assert PrototypeBank().rows() is None
    assert bank_of(a=[]).rows() is None


def test_a_site_without_a_new_reply_still_counts():
    bank = bank_of(a=[says("dog", 1)], b=[says("cat", 2)])
    bank.update("a", [says("dog", 3)], "new", 9)
    assert bank.rows().names == ("cat", "dog")


def test_a_reply_replaces_the_sites_earlier_reply():
    bank = bank_of(a=[says("dog", 1), says("cat", 2)])
    bank.update("a", [says("cow", 3)], "new", 2)
    assert bank.rows().names == ("cow",)


def test_a_site_that_resends_without_audio_keeps_its_prototypes():
    bank = bank_of(a=[says("dog", 1), says("cat", 2)])
    bank.update("a", [ClassStatistics("dog", 6, clip=torch.ones(1, 8))], "data of a", 2)
    assert of_class(bank.rows(), "dog").unique().tolist() == [1]
    assert bank.mean_outputs("clip", ["dog"])[0].tolist() == [[1.0] * 8]


@pytest.mark.parametrize(("name", "data"), [("cow", "data of a"), ("dog", "other data")], ids=["class", "fingerprint"])
def test_a_class_sent_without_audio_has_none_if_the_bank_has_none(name, data):
    bank = bank_of(a=[says("dog", 1)])
    bank.update("a", [ClassStatistics(name, 6)], data, 2)
    assert bank.rows() is None
    assert bank.counts() == {name: 6}


def test_a_site_is_dropped_after_its_maximum_age_and_not_before():
    bank = bank_of(a=[says("dog", 1)], b=[says("cat", 2)])
    bank.update("b", [says("cat", 2)], "data of b", 3)
    assert bank.expire(4, 3) == []
    assert bank.expire(5, 3) == ["a"]
    assert bank.rows().names == ("cat",)
    assert set(bank.fingerprints) == {"b"}


def test_a_site_without_classes_does_not_expire():
    bank = bank_of(a=[], b=[says("cat", 2)])
    assert bank.expire(1, 3) == [], "it has just been heard"


def test_no_site_expires_with_a_maximum_age_of_zero():
    bank = bank_of(a=[says("dog", 1)])
    assert bank.expire(10_000, 0) == []
    assert len(bank.rows()) == 2


def test_counts_are_summed_over_the_sites_by_name():
    bank = bank_of(a=[says("dog", 1, count=5), says("cat", 2, count=1)], b=[says("dog", 3, count=7)])
    assert list(bank.counts().items()) == [("cat", 1), ("dog", 12)]


def test_mean_outputs_are_weighted_by_clips_over_the_sites_that_sent_them():
    bank = bank_of(a=[says("dog", 1, count=30, clip=1)], b=[says("dog", 1, count=10, clip=5), says("cat", 1)])
    dog, cat, cow = bank.mean_outputs("clip", ["dog", "cat", "cow"])
    assert dog.unique().tolist() == [2.0]
    assert cat is None
    assert cow is None


def test_a_bank_survives_a_file_bit_for_bit():
    bank = bank_of(
        a=[says("dog", 1, clip=2), says("cat", 2)], b=[ClassStatistics("dog", 3, audio(4), t5=torch.ones(3, 2))]
    )
    back = PrototypeBank.from_state_dict(through_a_file(bank.state_dict()))
    assert_same_bits(back.state_dict(), bank.state_dict())
    assert_same_bits(vars(back.rows()), vars(bank.rows()))
    bank.hold_out(0.5)
    back = PrototypeBank.from_state_dict(through_a_file(bank.state_dict()))
    assert values(back.held_out_rows()) == values(bank.held_out_rows()) != []
    back.update("a", [ClassStatistics("dog", 6)], "data of a", 2)
    assert back.expire(4, 2) == ["b"]


# Holding out


def numbered(name, first, groups, count=3):
    """A class whose prototypes are successive numbers from `first`."""
    means = torch.arange(float(first), first + groups).view(-1, 1, 1).repeat(1, 1, 4)
    return ClassStatistics(
        name, groups * count, AudioPrototypes(means, torch.full((groups,), count), torch.zeros_like(means))
    )


def values(rows):
    return [] if rows is None else rows.embeddings[:, 0, 0].tolist()


def test_the_middle_one_of_eight_prototypes_of_each_site_is_held_out():
    bank = bank_of(a=[numbered("dog", 0, 8), numbered("cat", 50, 8)], b=[numbered("dog", 10, 8)])
    bank.hold_out(0.125)
    assert values(bank.held_out_rows()) == [54, 4, 14]
    assert len(bank.training_rows()) == 21
    assert bank.held_out_rows().names == bank.training_rows().names == ("cat", "dog")
    assert sorted(values(bank.training_rows()) + values(bank.held_out_rows())) == sorted(values(bank.rows()))


@pytest.mark.parametrize(
    ("groups", "held"), [([1, 1], []), ([3], [1]), ([2], []), ([1, 1, 1], [20]), ([2, 2], [11]), ([5, 3], [2])]
)
def test_one_of_three_prototypes_over_all_sites_is_held_out(groups, held):
    bank = bank_of(**{f"site{k}": [numbered("dog", 10 * k, number)] for k, number in enumerate(groups)})
    bank.hold_out(0.125)
    assert values(bank.held_out_rows()) == held


def test_nothing_is_held_out_before_the_decision_or_for_a_share_of_zero():
    bank = bank_of(a=[numbered("dog", 0, 8)])
    assert values(bank.held_out_rows()) == []
    bank.hold_out(0.0)
    bank.hold_out(0.5)
    assert values(bank.held_out_rows()) == [], "what was decided stays"
    assert len(bank.training_rows()) == 8


def test_the_held_out_rows_do_not_depend_on_the_order_of_replies():
    sites = {"c": [numbered("dog", 20, 3)], "a": [numbered("dog", 0, 1)], "b": [numbered("dog", 10, 4)]}
    one, other = bank_of(**sites), bank_of(**dict(reversed(sites.items())))
    for bank in (one, other):
        bank.hold_out(0.25)
    assert values(one.held_out_rows()) == values(other.held_out_rows()) == [12, 21]


def test_the_number_of_held_out_rows_is_limited():
    bank = bank_of(**{f"site{k}": [numbered("dog", 10 * k, 8)] for k in range(9)})
    bank.hold_out(0.125, most=2)
    assert values(bank.held_out_rows()) == [4, 14]


def test_a_change_of_another_class_keeps_the_decision():
    bank = bank_of(a=[numbered("dog", 0, 8), numbered("cat", 50, 8)])
    bank.hold_out(0.125)
    bank.update("a", [numbered("dog", 0, 8), numbered("cat", 70, 16)], "new", 2)
    bank.hold_out(0.5)
    assert values(bank.held_out_rows()) == [71, 73, 75, 77, 79, 81, 83, 85, 4]


def test_held_out_prototypes_are_used_for_training_if_a_class_has_no_others():
    bank = bank_of(a=[numbered("dog", 0, 1)], b=[numbered("dog", 10, 1)])
    bank.update("c", [numbered("dog", 20, 1)], "data of c", 5)
    bank.hold_out(0.125)
    assert values(bank.held_out_rows()) == [20]
    bank.expire(6, 2)
    bank.hold_out(0.125)
    assert (values(bank.held_out_rows()), values(bank.training_rows())) == ([], [20])
    bank.update("d", [numbered("dog", 30, 2)], "data of d", 6)
    bank.hold_out(0.125)
    assert values(bank.held_out_rows()) == [31], "never one that was trained on"


SENT = st.tuples(st.sampled_from("abc"), st.sampled_from(["dog", "cat"]), st.integers(1, 5))


@given(st.lists(st.lists(SENT, max_size=3), min_size=1, max_size=5), st.sampled_from([0.125, 0.34, 0.8]))
def test_rows_that_were_trained_on_are_never_held_out(rounds, share):
    bank, trained_on, first = PrototypeBank(), set(), 0
    for number, sent in enumerate(rounds):
        for site, name, groups in sent:
            bank.update(site, [numbered(name, first, groups)], f"{first}", number)
            first += 10
        bank.expire(number, 1)
        bank.hold_out(share)
        bank = PrototypeBank.from_state_dict(through_a_file(bank.state_dict()))
        trained_on |= set(values(bank.training_rows()))
        assert trained_on.isdisjoint(values(bank.held_out_rows()))
        if bank.rows() is not None:
            assert set(bank.training_rows().labels.tolist()) == set(range(len(bank.rows().names)))


# Caps on sites


def liar_and_honest(claim, share):
    """Four honest sites send 1.0, one that reports `claim` clips sends 0.0, all of one class."""
    bank = PrototypeBank(max_site_share=share)
    for number in range(4):
        bank.update(f"site-{number}", [says("dog", 1.0, clip=1.0)], "mark", 1)
    bank.update("liar", [says("dog", 0.0, count=claim, clip=0.0)], "mark", 1)
    return bank


@given(claim=st.integers(1000, 10**9), share=st.floats(0.2, 0.9))
def test_a_site_that_reports_many_clips_is_capped_at_its_share(claim, share):
    bank = liar_and_honest(claim, share)
    clips = bank.clips()
    assert clips["liar", "dog"] <= share * sum(clips.values()) * (1 + 1e-9)
    assert float(bank.mean_outputs("clip", ["dog"])[0].mean()) >= (1 - share) * (1 - 1e-5)
    rows = bank.rows()
    of_liar = rows.embeddings[:, 0, 0] == 0
    # It reports more clips than its prototypes have; the counts of these are scaled down by the same factor.
    assert rows.counts[of_liar].sum() <= share / (1 - share) * rows.counts[~of_liar].sum() * (1 + 1e-5)


def test_without_a_cap_clips_are_those_that_sites_report():
    bank = liar_and_honest(10**9, 1.0)
    assert bank.clips()["liar", "dog"] == 10**9
    assert float(bank.mean_outputs("clip", ["dog"])[0].mean()) < 1e-6


def test_the_only_site_of_a_class_is_capped_over_all_classes():
    bank = PrototypeBank(max_site_share=0.5)
    bank.update("a", [says("cat", 1.0, count=10)], "mark", 1)
    bank.update("b", [says("cow", 1.0, count=10)], "mark", 1)
    bank.update("liar", [says("dog", 1.0, count=10**9)], "mark", 1)
    assert bank.clips() == {("a", "cat"): 10, ("b", "cow"): 10, ("liar", "dog"): 20}


def test_capped_lists_the_sites_that_count_for_less_than_they_report():
    bank = PrototypeBank(max_site_share=0.5)
    bank.update("even", [says("cat", 1.0, count=10), says("cow", 1.0, count=10)], "mark", 1)
    bank.update("odd", [says("cat", 1.0, count=10), says("dog", 1.0, count=10)], "mark", 1)
    assert bank.capped() == {}
    bank.update("odd", [says("cat", 1.0, count=12), says("dog", 1.0, count=8)], "mark", 1)
    assert bank.capped() == {"odd": ["cat"]}
    bank.update("large", [says("sea", 1.0, count=200), says("dog", 1.0, count=8)], "mark", 1)
    assert bank.capped() == {"large": ["dog", "sea"], "odd": ["cat", "dog"]}
    assert PrototypeBank.from_state_dict(bank.state_dict()).capped() == {}, "without a cap"


def test_moments_are_those_of_the_clips_of_the_prototypes():
    random = torch.Generator().manual_seed(0)
    groups = [torch.randn(size, 1, 4, generator=random).double() + size for size in (3, 5, 9, 4)]
    bank = PrototypeBank()
    for number, pair in enumerate((groups[:2], groups[2:])):
        audio = AudioPrototypes(
            torch.stack([group.mean(dim=0) for group in pair]),
            torch.tensor([len(group) for group in pair]),
            torch.stack([group.var(dim=0, correction=0) for group in pair]),
        )
        bank.update(f"site-{number}", [ClassStatistics("dog", sum(map(len, pair)), audio)], "mark", 1)
    clips = torch.cat(groups)[:, 0]
    mean, variance = bank.moments()
    torch.testing.assert_close(mean, clips.mean(dim=0))
    torch.testing.assert_close(variance, clips.var(dim=0, correction=0))
    assert PrototypeBank().moments() is None


# Very many sites


def test_each_round_samples_some_of_very_many_prototypes_of_a_class():
    bank = PrototypeBank()
    for number in range(20):
        bank.update(f"site-{number:02d}", [says("dog", number, groups=3), says("cat", -number, groups=1)], "mark", 1)
    everything = bank.rows()
    drawn = bank.training_rows(30, torch.Generator().manual_seed(1))
    assert len(of_class(drawn, "dog")) == 30
    assert torch.equal(of_class(drawn, "cat"), of_class(everything, "cat")), "no more than 30: all of them"
    values = of_class(drawn, "dog")[:, 0, 0]
    assert values.unique().numel() > 10
    assert torch.equal(values, values.sort().values), "sites stay in order"
    assert_same_bits(vars(bank.training_rows(30, torch.Generator().manual_seed(1))), vars(drawn))
    other = of_class(bank.training_rows(30, torch.Generator().manual_seed(2)), "dog")[:, 0, 0]
    assert not torch.equal(other, values)
    assert_same_bits(vars(bank.training_rows(1000, torch.Generator())), vars(everything))


# Contradicted sites, and sites with very many rows


def test_swapped_labels_of_one_site_are_ignored():
    honest, swapped = honest_sites(), [at("class 0", 10, count=10**9), at("class 1", 0, count=10**9)]
    bank, without = bank_of(**honest, x=swapped), bank_of(**honest)
    bank.max_site_share = without.max_site_share = 0.4
    bank.contradict()
    assert bank.contradicted == {("x", "class 0"), ("x", "class 1")}
    assert_same_bits(vars(bank.rows()), vars(without.rows()))
    assert [moment.tolist() for moment in bank.moments()] == [moment.tolist() for moment in without.moments()]
    bank.hold_out(0.5)
    without.hold_out(0.5)
    assert_same_bits(vars(bank.held_out_rows()), vars(without.held_out_rows()))
    assert_same_bits(vars(bank.training_rows()), vars(without.training_rows()))


def test_mean_outputs_of_a_contradicted_class_are_ignored():
    said = {site: [replace(prompt, clip=torch.ones(1, 8)) for prompt in of] for site, of in honest_sites().items()}
    bank = bank_of(**said, x=[replace(at("class 0", 10), clip=torch.full((1, 8), 99.0)), at("class 1", 10)])
    bank.contradict()
    assert bank.contradicted == {("x", "class 0")}
    assert bank.mean_outputs("clip", ["class 0"])[0].unique().tolist() == [1]


def test_contradicted_pairs_survive_a_file():
    bank = bank_of(**honest_sites(), x=[at("class 0", 10), at("class 1", 0)])
    bank.contradict()
    back = PrototypeBank.from_state_dict(through_a_file(bank.state_dict()))
    assert back.contradicted == bank.contradicted
    assert_same_bits(vars(back.rows()), vars(bank.rows()))


def flooded(many, share=0.5, others=2):
    bank = PrototypeBank(max_site_share=share)
    for number in range(others):
        bank.update(f"site-{number}", [says("dog", number, groups=1, count=3)], "mark", 1)
    means = torch.full((many, 1, 4), 100.0)
    audio = AudioPrototypes(means, torch.ones(many, dtype=torch.int64), torch.zeros_like(means))
    bank.update("x", [ClassStatistics("dog", many, audio)], "mark", 1)
    return bank


@pytest.mark.parametrize("per_class", [0, 30, 128], ids=["all", "thirty", "more than there are"])
@pytest.mark.parametrize("many", [6, 100, 5000])
def test_no_site_exceeds_its_share_of_rows_if_three_have_the_class(many, per_class):
    rows = flooded(many).training_rows(per_class, torch.Generator().manual_seed(0))
    values = rows.embeddings[:, 0, 0]
    assert {0.0, 1.0, 100.0} == set(values.tolist())
    assert float((values == 100).float().mean()) <= 0.5
    assert per_class == 0 or len(rows) <= 2 * per_class


def test_repeated_rows_divide_their_clips():
    bank = flooded(100)
    rows, everything = bank.training_rows(), bank.rows()
    for value in (0, 1, 100):
        counts = (float(each.counts[each.embeddings[:, 0, 0] == value].sum()) for each in (rows, everything))
        assert next(counts) == pytest.approx(next(counts))


@pytest.mark.parametrize(
    "bank", [flooded(2), flooded(100, others=1), flooded(100, share=1.0)], ids=["within", "two sites", "no limit"]
)
def test_rows_within_the_share_are_not_repeated(bank):
    assert_same_bits(vars(bank.training_rows()), vars(bank.rows()))


def test_a_sites_prototypes_are_in_one_block_of_memory_for_each_type():
    bank, sent = PrototypeBank(), [says("rain", 3), says("dog", 2, groups=3)]
    bank.update("a", sent, "same", 1)
    stored = [each.audio for _, each in bank]
    floats = {part.untyped_storage().data_ptr() for audio in stored for part in (audio.means, audio.variances)}
    assert len(floats) == 1
    for before in sent:
        (after,) = (each.audio for _, each in bank if each.name == before.name)
        assert all(torch.equal(getattr(after, name), value) for name, value in vars(before.audio).items())
