"""What crosses the wire, and the checks it must pass.

A site's reply is one list of numpy arrays, the adapter weights first and the arrays of each class behind them, and
a JSON manifest (`metrics["manifest"]`) that says which array is what. Shapes and types travel with the arrays, which
are joined for the way (`npy`). The server knows what it may expect (`ReplySpec`); whatever differs is refused with a
`InvalidReplyError`, whose reason is one short line, safe to log. Nothing is ever unpickled, and no declared size is
believed.

There are two kinds of message, `replies` and `scores`, one file each; both have a `manifest`, replies `arrays`, too.
"""

from fed_a2v.federation.protocol.arrays import decode_weights, encode_weights, payload_bytes
from fed_a2v.federation.protocol.errors import InvalidReplyError, show
from fed_a2v.federation.protocol.eval_reply import (
    VALIDATION,
    ClassScores,
    Scores,
    SideScores,
    decode_scores,
    encode_scores,
)
from fed_a2v.federation.protocol.manifest import claimed_site
from fed_a2v.federation.protocol.packing import join_arrays, read_arrays, split_arrays
from fed_a2v.federation.protocol.train_reply import ReplySpec, Task, TrainReply, decode_reply, encode_reply, pack_reply

__all__ = [
    "VALIDATION",
    "ClassScores",
    "InvalidReplyError",
    "ReplySpec",
    "Scores",
    "SideScores",
    "Task",
    "TrainReply",
    "claimed_site",
    "decode_reply",
    "decode_scores",
    "decode_weights",
    "encode_reply",
    "encode_scores",
    "encode_weights",
    "join_arrays",
    "pack_reply",
    "payload_bytes",
    "read_arrays",
    "show",
    "split_arrays",
]
