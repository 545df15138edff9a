"""Weights are received as they were sent; others are refused."""

import numpy as np
import pytest
import torch

from fed_a2v.federation import protocol as wire
from fed_a2v.federation.protocol import InvalidReplyError
from tests.refusals import refused


def test_weights_may_require_grad_and_be_transposed_or_bfloat16():
    weight = torch.randn(3, 4, requires_grad=True)
    arrays = wire.encode_weights([weight.t(), torch.ones(2, dtype=torch.bfloat16)], "float16")
    assert [a.shape for a in arrays] == [(4, 3), (2,)]
    back = wire.decode_weights(arrays, [(4, 3), (2,)])
    torch.testing.assert_close(back[0], weight.detach().t(), rtol=1e-3, atol=1e-3)


def test_payload_bytes_counts_what_the_arrays_hold():
    weights = [torch.zeros(10, 10), torch.zeros(5)]
    assert wire.payload_bytes(wire.encode_weights(weights, "float16")) == 210
    assert wire.payload_bytes(wire.encode_weights(weights, "float32")) == 420


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ([np.zeros((2, 2), np.float32)], ("weights", 1, 2)),
        ([np.zeros((2, 2), np.float32), np.zeros(3, np.float32)], ("weight 1", "(3,)", "(2,)")),
        ([np.zeros((2, 2), np.float32), np.array([1, np.nan])], ("weight 1", "nan")),
        ([np.zeros((2, 2), np.float32), np.array([1, 2])], ("weight 1", "'int64'")),
        (None, ("list", "numpy")),
    ],
)
def test_bad_weights_from_the_server_are_refused(arrays, named):
    with refused(InvalidReplyError, *named):
        wire.decode_weights(arrays, [(2, 2), (2,)])
