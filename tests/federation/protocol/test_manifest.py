"""The manifest: the sender of a message, and the reason if it cannot be read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.federation import protocol as wire
from fed_a2v.federation.protocol import InvalidReplyError
from tests.federation.protocol.helpers import CLASSES, make_expected, sent
from tests.federation.protocol.hostile import JUNK
from tests.refusals import refused


def test_the_claimed_sender_is_read_before_the_rest_is_checked():
    _, manifest, _ = sent()
    claim = {"schema_version": 3, "site": "site-7"}
    assert wire.claimed_site({"manifest": json.dumps(manifest)}, CLASSES) == "site-0"
    assert wire.claimed_site(wire.encode_scores("site-0", 3, {}), CLASSES) == "site-0"
    assert wire.claimed_site({"manifest": json.dumps(claim | {"classes": [7], "x": None})}, CLASSES) == "site-7"
    for bad in ({"site": "a"}, {"schema_version": 3}, claim | {"site": 3}, claim | {"site": None}):
        with pytest.raises(InvalidReplyError):
            wire.claimed_site({"manifest": json.dumps(bad)}, CLASSES)


@pytest.mark.parametrize("metrics", [{}, None, [], {"manifest": b"{}"}, {"manifest": 3}, {"manifest": None}])
def test_a_reply_without_a_manifest_is_refused(metrics):
    with refused(InvalidReplyError, "metrics['manifest']"):
        wire.decode_reply([], metrics, 1, make_expected())


@given(arrays=JUNK, metrics=JUNK | st.fixed_dictionaries({"manifest": JUNK}), examples=JUNK)
def test_no_junk_raises_anything_but_a_bad_reply(arrays, metrics, examples):
    with pytest.raises(InvalidReplyError):
        wire.decode_reply(arrays, metrics, examples, make_expected())
    with pytest.raises(InvalidReplyError):
        wire.decode_scores(metrics, examples, wire.EvalReplySpec("site-0", 3, CLASSES))
    with pytest.raises(InvalidReplyError):
        wire.claimed_site(metrics, CLASSES)
