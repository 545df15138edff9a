"""Which rounds W&B's own files hold: a run that was killed has lost what W&B had not yet brought to the disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

# LevelDB's log format, under a header of W&B's own: blocks in which each record, or a part of one, has a checksum, a
# length and a kind. https://github.com/google/leveldb/blob/main/doc/log_format.md
HEADER, BLOCK, PART = 7, 32768, struct.Struct("<IHB")
FULL, FIRST, LAST = 1, 2, 4


def logged_rounds(folder: Path, run_id: str) -> set[int]:
    """The rounds whose rows are in the files that a run has at W&B, online or offline, in its folder.

    Args:
        folder: of the run; W&B's files are in `wandb/` in it, one for each time that the run was started.
        run_id: at W&B.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    rounds: set[int] = set()
    for path in sorted(folder.glob(f"wandb/*-{run_id}/run-{run_id}.wandb")):
        for content in records(path.read_bytes()):
            record = Record()
            try:
                record.ParseFromString(content)
            except DecodeError:  # torn
                break
            for item in record.history.item:
                if "round" in (item.key, *item.nested_key):
                    rounds.add(int(json.loads(item.value_json)))
    return rounds


def records(content: bytes) -> Iterator[bytes]:
    """The whole records in a file's content, as they are packed; nothing behind a place where it was cut short."""
    place, record = HEADER, b""
    while True:
        if BLOCK - place % BLOCK < PART.size:  # too little for another part: zeros
            place += BLOCK - place % BLOCK
        if place + PART.size > len(content):
            return
        _, size, kind = PART.unpack_from(content, place)
        place += PART.size
        if place + size > len(content):
            return
        record = content[place : place + size] if kind in (FULL, FIRST) else record + content[place : place + size]
        place += size
        if kind in (FULL, LAST):
            yield record
