"""Reader of W&B's files: a resumed run logs the rounds again that a killed one had not yet written to disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

# LevelDB's log format after W&B's header: blocks of records, or parts of records, with checksum, length and kind.
# https://github.com/google/leveldb/blob/main/doc/log_format.md
HEADER, BLOCK, PART = 7, 32768, struct.Struct("<IHB")
FULL, FIRST, LAST = 1, 2, 4


def logged_rounds(folder: Path, run_id: str) -> set[int]:
    """The rounds in the W&B files of a run, online or offline.

    Args:
        folder: folder of the run, with W&B's files in `wandb/`, one for each start of the run.
        run_id: ID of the run at W&B.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    rounds: set[int] = set()
    for path in sorted(folder.glob(f"wandb/*-{run_id}/run-{run_id}.wandb")):
        for content in records(path.read_bytes()):
            record = Record()
            try:
                record.ParseFromString(content)
            except DecodeError:  # incomplete record of a killed run
                break
            for item in record.history.item:
                if "round" in (item.key, *item.nested_key):
                    rounds.add(int(json.loads(item.value_json)))
    return rounds


def records(content: bytes) -> Iterator[bytes]:
    """The complete, still encoded records in a file's content, up to the point where it is cut off."""
    place, record = HEADER, b""
    while True:
        if BLOCK - place % BLOCK < PART.size:  # too short for another part, so filled with zeros
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
