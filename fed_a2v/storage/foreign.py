"""Reading files that a stranger may have made: a run's folder is data, whoever it comes from.

Nothing but a regular file is opened, no link leads out of the folder, and a small file cannot ask for much memory.
Arrays in `.npz` files are read by `fed_a2v.storage.npz`, saved states by `fed_a2v.runs.checkpoint`.
"""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path
from typing import Any

import yaml

from fed_a2v.errors import UserError

LARGEST_JSON = 256_000_000
LARGEST_YAML = 1_000_000
# Values in a JSON text. Each takes about a hundred bytes in memory, and two in a text such as `[[],[],[]]`.
MOST_VALUES = 4_000_000


class ForeignFileError(UserError, ValueError):
    """A file of a folder is not what it must be to be read safely; the message names it."""


def inside(path: Path, folder: Path) -> Path:
    """`path`, if it lies in `folder` with all links followed; the folder itself may be a link.

    Raises:
        ForeignFileError: a link leads out of the folder.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ForeignFileError(
            f"{path} leads out of {folder}, to {path.resolve()}: links out of a run's folder are not followed; put a "
            "copy of the file in its place if it belongs there"
        )
    return path


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of `most` bytes at most.

    Raises:
        FileNotFoundError: there is none.
        ForeignFileError: it is something else, such as a pipe, or larger.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ForeignFileError(f"{path} is no file")
    if found.st_size > most:
        raise ForeignFileError(f"{path} has {found.st_size / 1e6:.1f} MB, more than the {most / 1e6:.0f} MB of any run")
    with path.open("rb") as file:
        return file.read(most)


def check_values(text: bytes, what: object) -> None:
    """Check that a JSON text, called `what` in the message, holds no more values than any run's.

    Raises:
        ForeignFileError: it may hold more.
    """
    if text.count(b",") + text.count(b"[") + text.count(b"{") > MOST_VALUES:
        raise ForeignFileError(f"{what} has more than {MOST_VALUES:,} values")


def parse_json(text: bytes, what: object) -> Any:
    """The value of a JSON text in UTF-8.

    Args:
        text: the content.
        what: its name in messages.

    Raises:
        ForeignFileError: it is no JSON text, nested too deeply, or of too many values.
    """
    check_values(text, what)
    try:
        value = json.loads(text.decode("utf-8-sig"))  # of bytes, json takes half a character for one
        if b"\\u" in text:
            check_text(value)
    except (ValueError, RecursionError) as error:  # of UnicodeDecodeError, too
        raise ForeignFileError(f"{what} is damaged: {error}") from error
    return value


def check_text(value: Any) -> None:
    """Check that all text in nested values can be written: an escape may stand for half a character.

    Raises:
        UnicodeEncodeError: some cannot.
    """
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            check_text(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_text(item)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file.

    Raises:
        ForeignFileError: the file is damaged, no object, or too large.
    """
    if not path.exists():
        return {}
    value = parse_json(read_bytes(path, LARGEST_JSON), path)
    if not isinstance(value, dict):
        raise ForeignFileError(f"{path} is damaged: not a JSON object")
    return value


class _PlainSafeLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe loading without anchors: a few nested ones stand for more values than there is memory for."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to an anchor")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings, as plain values: `${...}` stays as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignFileError: the file is damaged, no mapping, or too large.
    """
    try:
        value = yaml.load(read_bytes(path, LARGEST_YAML), Loader=_PlainSafeLoader)
        check_text(value)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, ForeignFileError):
            raise
        raise ForeignFileError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise ForeignFileError(f"{path} is damaged: not a mapping")
    return {str(key): item for key, item in value.items()}


def read_names(path: Path) -> dict[str, str]:
    """The lines `name: other name` of a YAML file, as they are written: `no`, `010` and `true` are words like others.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignFileError: the file is damaged, has anything but such lines, names one twice, or is too large.
    """
    try:
        node = yaml.compose(read_bytes(path, LARGEST_YAML), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ForeignFileError):
            raise
        raise ForeignFileError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ForeignFileError(f"{path} needs lines of the form `name: other name`")
    names: dict[str, str] = {}
    for key, value in node.value:
        line = f"{path}, line {key.start_mark.line + 1}"
        if not all(isinstance(each, yaml.ScalarNode) and each.value for each in (key, value)):
            raise ForeignFileError(f"{line}: needs the form `name: other name`")
        if key.value in names:
            raise ForeignFileError(f"{line}: {key.value!r} is there twice; keep one")
        names[key.value] = value.value
    return names


def check_archive(path: Path, most: int | None = None) -> None:
    """Check a zip archive by its directory: entries that are not compressed, or `most` bytes in all when unpacked.

    Raises:
        OSError: there is no such file.
        ForeignFileError: it is no regular file, or unpacks into more than it should.
        zipfile.BadZipFile: it is no archive.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ForeignFileError(f"{path} is no file")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > (found.st_size if most is None else most):
        raise ForeignFileError(
            f"{path} unpacks from {found.st_size / 1e6:.1f} MB into {unpacked / 1e6:.1f} MB, more than any run's does"
        )
