"""Reading JSON and YAML from untrusted files: a run folder may come from somebody else.

Only regular files are opened, links out of the folder are rejected, and a small file cannot make the reader allocate
much memory. `fed_a2v.storage.npz` reads `.npz` files, `fed_a2v.runs.checkpoint` checkpoints.
"""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path
from typing import Any

import yaml

from fed_a2v.errors import UserError

LARGEST_JSON = 256_000_000  # bytes
LARGEST_YAML = 1_000_000  # bytes
# Values in a JSON text. A value takes about a hundred bytes in memory, but can take as few as two characters in the
# text: `[[],[],[]]`.
MOST_VALUES = 4_000_000


class UntrustedFileError(UserError, ValueError):
    """A file cannot be read safely; the message names it."""


def inside(path: Path, folder: Path) -> Path:
    """Return `path` if it is in `folder` after resolving all links; the folder itself may be a link.

    Raises:
        UntrustedFileError: a link leads out of the folder, or to itself.
    """
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # by the version of Python
        raise UntrustedFileError(f"{path} is a link that leads to itself; remove it") from error
    if not target.is_relative_to(folder.resolve()):
        raise UntrustedFileError(
            f"{path} leads out of {folder}, to {target}: links out of a run folder are not followed; replace "
            "the link with a copy of the file if it belongs there"
        )
    return path


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        UntrustedFileError: it is not a regular file (a pipe, a folder, ...), or larger.
    """
    size = _regular_size(path)
    if size > most:
        raise UntrustedFileError(
            f"{path} has {size / 1e6:.1f} MB, the limit for files of a run is {most / 1e6:.0f} MB; replace the file"
        )
    with path.open("rb") as file:
        return file.read(most)


def check_values(text: bytes, what: object) -> None:
    """Check that a JSON text, called `what` in the message, has at most `MOST_VALUES` values, without parsing it.

    Raises:
        UntrustedFileError: it may have more.
    """
    # An upper bound: each value follows one of these characters, except the first.
    if text.count(b",") + text.count(b"[") + text.count(b"{") > MOST_VALUES:
        raise UntrustedFileError(f"{what} has more than {MOST_VALUES:,} values")


def parse_json(text: bytes, what: object) -> Any:
    """The value of a JSON text in UTF-8.

    Args:
        text: the JSON text.
        what: its name in messages.

    Raises:
        UntrustedFileError: the text is not JSON, is nested too deeply, or has too many values.
    """
    check_values(text, what)
    try:
        value = json.loads(text.decode("utf-8-sig"))  # from bytes, json accepts half a character
        if b"\\u" in text:
            check_text(value)
    except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
        raise UntrustedFileError(f"{what} is damaged: {error}") from error
    return value


def check_text(value: Any) -> None:
    """Check that all strings in nested values can be encoded: an escape may stand for half a character.

    Raises:
        UnicodeEncodeError: one cannot.
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
    """The JSON object in a file; {} if the file does not exist.

    Raises:
        UntrustedFileError: the file is damaged, not a JSON object, or too large.
    """
    if not path.exists():
        return {}
    value = parse_json(read_bytes(path, LARGEST_JSON), path)
    if not isinstance(value, dict):
        raise UntrustedFileError(f"{path} is damaged: not a JSON object")
    return value


class _PlainSafeLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML's safe loader without aliases: a few nested ones can expand to more values than fit into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias of an anchor")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings, as plain values; `${...}` is not resolved.

    Raises:
        FileNotFoundError: the file does not exist.
        UntrustedFileError: the file is damaged, not a mapping, or too large.
    """
    text = read_bytes(path, LARGEST_YAML)
    try:
        value = yaml.load(text, Loader=_PlainSafeLoader)
        check_text(value)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise UntrustedFileError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise UntrustedFileError(f"{path} is damaged: not a mapping")
    return {str(key): item for key, item in value.items()}


def read_names(path: Path) -> dict[str, str]:
    """The lines `name: other name` of a YAML file, all as strings: `no`, `010` and `true` are not converted.

    Raises:
        FileNotFoundError: the file does not exist.
        UntrustedFileError: the file is damaged, has lines of another form, has a name twice, or is too large.
    """
    text = read_bytes(path, LARGEST_YAML)
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UntrustedFileError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(node, yaml.MappingNode):
        raise UntrustedFileError(f"{path} needs lines of the form `name: other name`")
    names: dict[str, str] = {}
    for key, value in node.value:
        line = f"{path}, line {key.start_mark.line + 1}"
        if not all(isinstance(each, yaml.ScalarNode) and each.value for each in (key, value)):
            raise UntrustedFileError(f"{line}: needs the form `name: other name`")
        if key.value in names:
            raise UntrustedFileError(f"{line}: {key.value!r} is listed twice; keep one")
        names[key.value] = value.value
    return names


def check_archive(path: Path, most: int | None = None) -> None:
    """Check the unpacked size of a zip archive by its directory, before anything is unpacked.

    Args:
        path: the archive.
        most: limit of the unpacked bytes; None: the size of the file, which holds if no entry is compressed.

    Raises:
        OSError: the file does not exist.
        UntrustedFileError: it is not a regular file, or its unpacked size is above the limit.
        zipfile.BadZipFile: it is not a zip archive.
    """
    size = _regular_size(path)
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > (size if most is None else most):
        raise UntrustedFileError(
            f"{path} unpacks from {size / 1e6:.1f} MB to {unpacked / 1e6:.1f} MB, more than any file of a run"
        )


def _regular_size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(f"{path} is not a regular file")
    return status.st_size
