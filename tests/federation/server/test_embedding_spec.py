"""The kind of embeddings: that of the server's encoder, else of a strict majority of the sites."""

from dataclasses import replace

import pytest
import torch

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.statistics import PooledMoments
from fed_a2v.federation.protocol.errors import FederationError
from fed_a2v.federation.server.embedding_spec import EmbeddingSpec, agreed_spec
from tests.federation.protocol.helpers import make_moments_reply
from tests.refusals import refused

FILES = ("dataset=embeddings", "dataset.path=any.npz")


def site(tokens, width, square_root=False, clips=6):
    moments = PooledMoments(torch.ones(tokens, width), 1.0, clips)
    return replace(make_moments_reply(), num_examples=clips, square_root=square_root, moments=moments)


def kind_of(replies, *overrides):
    settings = compose_settings(["experiment=quick", *overrides])
    return agreed_spec(replies, settings.dataset, settings.encoder)


def test_a_site_that_claims_a_thousand_million_clips_has_one_vote():
    liar = site(1, 1, clips=10**9)
    assert kind_of([liar, site(1, 1024), site(1, 1024)], *FILES) == EmbeddingSpec(1, 1024, False)


def test_the_shape_is_that_of_the_servers_encoder_whatever_the_sites_vote():
    assert kind_of([site(1, 100)] * 4 + [site(1, 512)]) == EmbeddingSpec(1, 512, False)


def test_the_sites_of_the_encoders_shape_vote_on_the_square_root():
    others = [site(1, 100, True)] * 9
    assert kind_of([*others, site(1, 512, True), site(1, 512), site(1, 512)]) == EmbeddingSpec(1, 512, False)


@pytest.mark.parametrize(("setting", "square_root"), [("always", True), ("never", False)])
def test_square_roots_are_as_the_settings_say(setting, square_root):
    replies = [site(1, 512, not square_root)] * 4 + [site(1, 512, square_root)]
    assert kind_of(replies, f"dataset.square_root={setting}") == EmbeddingSpec(1, 512, square_root)


@pytest.mark.parametrize(
    "replies",
    [[site(1, 1024), site(1, 512)], [site(1, 1024)] * 2 + [site(1, 512)] + [site(1, 256)]],
    ids=["a tie", "two of four"],
)
def test_without_a_strict_majority_the_error_names_the_kinds_and_the_settings(replies):
    with refused(FederationError, "of 1 x 1024", "1 of 1 x 512", "encoder", "dataset.square_root"):
        kind_of(replies, *FILES)


def test_if_no_site_has_the_encoders_shape_the_error_names_both_shapes_and_the_remedy():
    with refused(FederationError, "2 of 1 x 1024", "encoder=logmel", "1 x 512", "dataset=embeddings"):
        kind_of([site(1, 1024), site(1, 1024)])


def test_sites_that_share_no_statistics_have_no_vote():
    silent = replace(make_moments_reply(), moments=None)
    assert kind_of([silent]) is None
    assert kind_of([silent, silent, site(1, 7)], *FILES) == EmbeddingSpec(1, 7, False)
