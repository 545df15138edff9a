"""The manifest of a message: JSON in the metrics of Flower, accepted only with exactly the expected keys and types."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NoReturn, TypeVar

from flwr.common import Scalar
from pydantic import BaseModel, ConfigDict, ValidationError

from fed_a2v.federation.protocol.errors import InvalidReplyError, as_invalid_reply, show

# Largest values that a site may report.
MAX_COUNT = 10**9  # clips
MAX_LOSS = 1e12  # per clip

_SCHEMA_VERSION = 3
MANIFEST = "manifest"  # key in the metrics
# Largest length in characters: a fixed part and a part for each entry. An entry usually takes 150.
_MAX_FIXED, _MAX_ENTRY = 16384, 512


class Strict(BaseModel):
    """No conversions (True is not 1, "1" is not 1), no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Manifest(Strict):
    """Fields of every manifest: version of the format, site that sends it, round that it belongs to."""

    schema_version: int = _SCHEMA_VERSION
    site: str
    round_number: int


class _Sender(Strict):
    """The sender alone: it is read first because the expected content depends on it."""

    model_config = ConfigDict(extra="ignore")

    site: str


_Kind = TypeVar("_Kind", bound=Strict)


def write_manifest(manifest: Manifest) -> dict[str, Scalar]:
    """The metrics that contain a manifest."""
    return {MANIFEST: manifest.model_dump_json()}


def read_manifest(metrics: Mapping[str, Scalar], kind: type[_Kind], entries: int) -> _Kind:
    """The manifest in `metrics`: JSON of this schema version with exactly the keys and types of `kind`.

    The length is limited by the largest number of `entries`, because a long manifest with an error in every entry
    takes seconds to refuse.

    Raises:
        InvalidReplyError: the manifest is missing or not of this kind.
    """
    tree = _parsed(_text(metrics, entries))
    version = tree.get("schema_version")
    if type(version) is not int or version != _SCHEMA_VERSION:
        raise InvalidReplyError(f"manifest has schema_version {show(version)}, this program has {_SCHEMA_VERSION}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(_show_key, first["loc"][:4]))
        raise InvalidReplyError(f"manifest {where}: {first['msg']}") from error


@as_invalid_reply()
def claimed_site(metrics: Mapping[str, Scalar], classes: Collection[str]) -> str:
    """The site that a reply names as its sender; no other field is checked.

    Raises:
        InvalidReplyError: the sender cannot be read.
    """
    return read_manifest(metrics, _Sender, 2 * len(classes)).site


def check_origin(manifest: Manifest, site: str, round_number: int) -> None:
    """Check that a manifest comes from the expected site and belongs to the expected round.

    Raises:
        InvalidReplyError: it does not.
    """
    if manifest.site != site:
        raise InvalidReplyError(f"reply of site {show(manifest.site)}, expected {show(site)}")
    if manifest.round_number != round_number:
        raise InvalidReplyError(f"reply to round {show(manifest.round_number)}, expected round {round_number}")


def _text(metrics: Mapping[str, Scalar], entries: int) -> str:
    text = metrics.get(MANIFEST) if isinstance(metrics, Mapping) else None
    if type(text) is not str:
        raise InvalidReplyError(f"no manifest: metrics[{MANIFEST!r}] must be a string")
    limit = _MAX_FIXED + _MAX_ENTRY * entries
    if len(text) > limit:
        raise InvalidReplyError(f"manifest of {len(text)} characters, the limit is {limit}")
    return text


def _parsed(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_non_finite)
    except RecursionError as error:
        raise InvalidReplyError("manifest is nested too deep") from error
    except InvalidReplyError:
        raise
    except ValueError as error:
        raise InvalidReplyError("manifest is not valid JSON") from error
    if not isinstance(tree, dict):
        raise InvalidReplyError("manifest is not a JSON object")
    return tree


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InvalidReplyError(f"manifest has the key {show(name)} twice")
    return unique


def _refuse_non_finite(token: str) -> NoReturn:
    raise InvalidReplyError(f"manifest contains {token}")


def _show_key(key: object) -> str:
    """A key or index of the path to an error: unchanged if it is short and plain, else its short repr."""
    text = str(key)
    return text if len(text) <= 40 and text.replace("_", "").isalnum() else show(text)
