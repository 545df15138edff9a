"""The messages between server and sites, and the checks on everything that is received.

A reply to training or registration (`train_reply`) is a list of numpy arrays, the adapter weights first and then the
arrays of each class, and a JSON manifest (`metrics["manifest"]`) that gives the meaning of each array. Shapes and types
travel with the arrays, which are joined into one or two (`packing`). A reply to evaluation (`eval_reply`) is a manifest
alone, which may also travel beside a reply to training. The server specifies each reply that it expects (`ReplySpec`,
`EvalReplySpec`) and refuses any other with an `InvalidReplyError`, whose reason is one short line that is safe to log.
Nothing is ever unpickled, and no declared size is trusted.
"""

from fed_a2v.federation.protocol.arrays import decode_weights, encode_weights, payload_bytes
from fed_a2v.federation.protocol.errors import FederationError, InvalidReplyError, show
from fed_a2v.federation.protocol.eval_reply import (
    VALIDATION,
    Changes,
    ClassScores,
    EvalReplySpec,
    Scores,
    SideScores,
    beside_training,
    decode_scores,
    encode_scores,
    scores_beside_training,
)
from fed_a2v.federation.protocol.manifest import claimed_site
from fed_a2v.federation.protocol.masked import MASKED_TASKS, WEIGHT, MaskedTask
from fed_a2v.federation.protocol.packing import join_arrays, read_arrays, split_arrays
from fed_a2v.federation.protocol.train_reply import (
    NOISE_LIMIT,
    REGISTRATION,
    SUMS_TASKS,
    ReplySpec,
    Task,
    TrainReply,
    decode_reply,
    encode_reply,
    pack_reply,
)
from fed_a2v.federation.protocol.withdrawal import check_withdrawal, encode_withdrawal, is_withdrawal

__all__ = [
    "MASKED_TASKS",
    "NOISE_LIMIT",
    "REGISTRATION",
    "SUMS_TASKS",
    "VALIDATION",
    "WEIGHT",
    "Changes",
    "ClassScores",
    "EvalReplySpec",
    "FederationError",
    "InvalidReplyError",
    "MaskedTask",
    "ReplySpec",
    "Scores",
    "SideScores",
    "Task",
    "TrainReply",
    "beside_training",
    "check_withdrawal",
    "claimed_site",
    "decode_reply",
    "decode_scores",
    "decode_weights",
    "encode_reply",
    "encode_scores",
    "encode_weights",
    "encode_withdrawal",
    "is_withdrawal",
    "join_arrays",
    "pack_reply",
    "payload_bytes",
    "read_arrays",
    "scores_beside_training",
    "show",
    "split_arrays",
]
