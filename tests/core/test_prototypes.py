from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.prototypes import fingerprint, pooled_moments, similar_groups, summarise_class
from fed_a2v.core.statistics import AudioPrototypes
from tests.core.conftest import World, draws


def clips(number, tokens=2, width=6):
    return torch.randn(number, tokens, width, generator=draws(0))


def test_pooled_moments_are_those_of_all_clips_and_need_min_clips():
    rows = clips(7)
    found = pooled_moments(rows, min_clips=7)
    torch.testing.assert_close(found.mean, rows.mean(dim=0))
    assert found.variance == pytest.approx(float((rows - rows.mean(dim=0)).square().mean()))
    assert found.count == 7
    assert pooled_moments(rows, min_clips=8) is None


@given(st.integers(1, 40), st.integers(1, 10))
def test_groups_divide_the_rows_into_equal_parts(number, groups):
    if groups > number:
        return
    found = similar_groups(torch.randn(number, 5, generator=draws(number)), groups)
    assert torch.cat(found).sort().values.tolist() == list(range(number))
    sizes = [len(group) for group in found]
    assert len(sizes) == groups
    assert max(sizes) - min(sizes) <= 1


def test_similar_rows_fall_into_the_same_group():
    centres = 10 * torch.randn(4, 12, generator=draws(3))
    belongs = torch.arange(4).repeat(6)
    rows = centres[belongs] + 0.1 * torch.randn(24, 12)
    groups = similar_groups(rows, 4)
    assert sorted(belongs[group].unique().tolist() for group in groups) == [[0], [1], [2], [3]]


def test_groups_are_the_same_every_time_and_do_not_touch_the_global_state():
    rows = torch.randn(20, 5)
    state = torch.get_rng_state()
    one, other = similar_groups(rows, 6), similar_groups(rows.clone(), 6)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_identical_rows_can_be_divided():
    assert [len(group) for group in similar_groups(torch.ones(9, 4), 3)] == [3, 3, 3]


def test_prototypes_are_group_means_with_their_count_and_population_variance():
    embeddings = clips(24)
    shared = summarise_class("dog", embeddings, "prototypes")
    groups = similar_groups(embeddings.flatten(1), 8)
    assert (shared.name, shared.count, len(shared.audio.means)) == ("dog", 24, 8)
    assert shared.audio.counts.tolist() == [3] * 8
    for k, group in enumerate(groups):
        torch.testing.assert_close(shared.audio.means[k], embeddings[group].mean(0))
        torch.testing.assert_close(shared.audio.variances[k], embeddings[group].var(0, correction=0))


@pytest.mark.parametrize("variance", ["groups", "class"])
def test_prototypes_restore_mean_and_variance_of_all_clips(variance):
    embeddings = clips(26)
    means, counts, variances = vars(summarise_class("dog", embeddings, "prototypes", variance=variance).audio).values()
    weight = (counts / counts.sum())[:, None, None]
    mean = (weight * means).sum(0)
    torch.testing.assert_close(mean, embeddings.mean(0))
    torch.testing.assert_close((weight * (variances + (means - mean) ** 2)).sum(0), embeddings.var(0, correction=0))


def test_one_variance_for_a_class_is_the_mean_within_its_groups():
    groups = summarise_class("dog", clips(26), "prototypes").audio
    one = summarise_class("dog", clips(26), "prototypes", variance="class").audio
    assert torch.equal(one.means, groups.means)
    assert (one.variances == one.variances[:1]).all()
    weight = (groups.counts / groups.counts.sum())[:, None, None]
    torch.testing.assert_close(one.variances[0], (weight * groups.variances).sum(0))


def test_variance_none_sends_zeros():
    shared = summarise_class("dog", clips(24), "prototypes", variance="none")
    assert not shared.audio.variances.any()
    assert shared.audio.variances.shape == (8, 2, 6)


@given(st.integers(1, 60), st.integers(1, 10), st.integers(1, 6))
def test_every_mean_is_over_min_clips_or_more(number, prototypes, min_clips):
    shared = summarise_class("dog", clips(number), "prototypes", prototypes, min_clips)
    if number < min_clips:
        assert shared is None
    else:
        assert shared.audio.counts.min() >= min_clips
        assert shared.audio.counts.sum() == shared.count == number
        assert 1 <= len(shared.audio.counts) <= prototypes


@pytest.mark.parametrize("kind", ["prototypes", "mean"])
def test_a_class_with_too_few_clips_is_left_out(kind):
    assert summarise_class("dog", clips(2), kind, min_clips=3) is None
    assert summarise_class("dog", clips(0), kind, min_clips=1) is None


def test_a_class_with_too_few_clips_for_two_groups_is_one_mean():
    embeddings = clips(5)
    shared = summarise_class("dog", embeddings, "prototypes", min_clips=3)
    assert shared.audio.counts.tolist() == [5]
    torch.testing.assert_close(shared.audio.means[0], embeddings.mean(0))


def test_sharing_the_mean_gives_one_mean():
    embeddings = clips(24)
    audio = summarise_class("dog", embeddings, "mean").audio
    assert audio.counts.tolist() == [24]
    torch.testing.assert_close(audio.means, embeddings.mean(0, keepdim=True))
    torch.testing.assert_close(audio.variances, embeddings.var(0, correction=0, keepdim=True))


def test_sharing_samples_sends_every_clip():
    embeddings = clips(5)
    audio = summarise_class("dog", embeddings, "samples", min_clips=3).audio
    assert torch.equal(audio.means, embeddings)
    assert audio.counts.tolist() == [1] * 5
    assert not audio.variances.any()


def test_a_fingerprint_changes_with_the_data_and_only_with_it():
    said = [summarise_class("dog", clips(24), "prototypes"), summarise_class("cat", clips(9) + 1, "prototypes")]
    again = [summarise_class("dog", clips(24), "prototypes"), summarise_class("cat", clips(9) + 1, "prototypes")]
    expected = fingerprint(said)
    assert fingerprint(again) == expected
    assert fingerprint([replace(entry, clip=torch.randn(1, 8)) for entry in said]) == expected
    dog = said[0].audio
    changed = [
        [said[0]],
        [replace(said[0], name="cow"), said[1]],
        [replace(said[0], count=25), said[1]],
        *(
            [replace(said[0], audio=AudioPrototypes(**vars(dog) | {name: getattr(dog, name) + bit})), said[1]]
            for name, bit in (("means", 1e-6), ("counts", 1), ("variances", 1e-6))
        ),
    ]
    assert len({expected, *map(fingerprint, changed)}) == len(changed) + 1


def test_a_fingerprint_of_views_is_that_of_their_values():
    said = summarise_class("dog", clips(24), "prototypes")
    view = said.audio.means.transpose(1, 2).contiguous().transpose(1, 2)
    assert not view.is_contiguous()
    same = replace(said, audio=AudioPrototypes(view, said.audio.counts, said.audio.variances))
    assert fingerprint([same]) == fingerprint([said])


def test_sites_with_the_same_world_share_every_class():
    assert [len(update.statistics) for update in World().updates(sites=3)] == [4, 3, 3]
