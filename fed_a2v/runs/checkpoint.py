"""Checkpoints: the whole state of a run, to go on after a kill, and the generator alone, to use elsewhere."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fed_a2v.conf_tree import dotted_items
from fed_a2v.errors import UserError
from fed_a2v.storage.files import plain, replacing
from fed_a2v.storage.foreign import check_archive, inside

logger = logging.getLogger("fed_a2v")

SCHEMA = 3
# Characters of a generator's key that go into its file's name.
LONGEST_KEY = 60

# Settings that a resumed run may change: they say where and how loudly it runs, not what it computes. What lies at the
# places of data and prompts is compared by itself.
HARMLESS = (
    "resume",
    "accept_new_data",
    "checkpoint",
    "device",
    "threads",
    "cache_dir",
    "report",
    "wandb",
    "tracking",
    "aggregation.patience",
    "images",
    "generate_global_images_frequency",
    "generate_nodes_images_frequency",
    "federation.round_timeout",
    "federation.site_timeout",
    "federation.start_timeout",
    "generator.save_checkpoint",
    "generator.checkpoint_path",
    "generator.checkpoint_frequency",
    "dataset.root",
    "dataset.path",
    "targets.path",
    "targets.captions",
)
PLACES = ("root", "path")


class CheckpointError(UserError, ValueError):
    """A checkpoint is damaged, or does not fit what is to be done with it."""


class DamagedError(CheckpointError):
    """A checkpoint is not what was written: cut short, or changed since."""


# The state of a run ---------------------------------------------------------------------------------------


def save_state(folder: Path, state: Mapping[str, Any], *, keep: int = 2, best: bool = False) -> Path:
    """Save the whole state of a run after a round, and drop all saved states but the last few and the best.

    Args:
        folder: the run's folder; the file is `checkpoints/state_round_000003.pt` in it.
        state: tensors and plain values (numbers, strings, None, lists, tuples, dictionaries) at any depth.
            It must hold `round` (int) and `config` (the settings as a dictionary).
        keep: states to keep, this one among them.
        best: whether this round is the best so far; it is then also kept as `checkpoints/best_round_000003.pt`, in
            place of the best before it.

    Returns:
        The file.

    Raises:
        TypeError: a value that safe loading would refuse; the message names where it stands.
        OSError: the folder cannot be written.
    """
    path = folder / "checkpoints" / f"state_round_{state['round']:06d}.pt"
    _save(path, {**state, "fingerprint": fingerprint(state["config"])})
    if best:
        _keep_as_best(path)
    for _, old in _numbered(path.parent, "state", ".pt")[keep:]:
        old.unlink(missing_ok=True)
    return path


def _keep_as_best(path: Path) -> None:
    """Give a saved state a second name, which outlives the first; takes no space where there are hard links."""
    best = path.with_name(path.name.replace("state", "best", 1))
    temporary = path.with_name(f".{best.name}.{uuid.uuid4().hex}.tmp")
    try:
        os.link(path, temporary)
        os.replace(temporary, best)  # noqa: PTH105
    except OSError:
        with path.open("rb") as source, replacing(best) as target:
            shutil.copyfileobj(source, target)
    for _, old in _numbered(path.parent, "best", ".pt"):
        if old != best:
            old.unlink(missing_ok=True)


def load_state(folder: Path, most: int | None = None) -> dict[str, Any] | None:
    """The newest whole state in a run's folder, of round `most` at most; tensors on the CPU. None where there is none.

    A damaged file is passed over with a warning, and the one before it used.

    Raises:
        CheckpointError: every state is damaged, or the newest whole one is of another schema version.
    """
    states = _numbered(folder / "checkpoints", "state", ".pt")
    states = [(number, path) for number, path in states if most is None or number <= most]
    for _, path in states:
        try:
            return read_state(path)
        except DamagedError as error:
            logger.warning("%s; going back to the state before it", error)
    if states:
        raise CheckpointError(f"every saved state in {folder / 'checkpoints'} is damaged; start anew with resume=never")
    return None


def read_state(path: Path) -> dict[str, Any]:
    """The state in one file, e.g. of an earlier round than the newest; tensors on the CPU.

    Raises:
        CheckpointError: the file is damaged, holds a generator alone, or is of another schema version.
    """
    state = _load(inside(path, path.parent.parent))
    if {"round", "config", "fingerprint"} - state.keys():
        raise CheckpointError(
            f"{path} is not the state of a run; name its folder or a state_round_N.pt in checkpoints/"
        )
    try:
        json.dumps(state["config"], ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} does not hold settings: {str(error).splitlines()[0]}") from error
    return state


def drop_states_after(folder: Path, round_number: int) -> None:
    """Delete the states of later rounds: a run that starts anew or goes back must not find them."""
    for kind in ("state", "best"):
        for number, path in _numbered(folder / "checkpoints", kind, ".pt"):
            if number > round_number:
                path.unlink(missing_ok=True)


def fingerprint(config: Mapping[str, Any]) -> str:
    """Hash of the settings that change results: equal for experiments of which one may go on as the other."""
    relevant = {key: plain(value) for key, value in _items(config).items() if not _harmless(key) and key != "rounds"}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Difference:
    """A setting that a run to be resumed had otherwise; `harmless` if it may go on all the same."""

    key: str
    was: Any
    now: Any
    harmless: bool

    def __str__(self) -> str:
        note = " (may only grow)" if self.key == "rounds" and not self.harmless else ""
        return f"{self.key}: {self.was} -> {self.now}{note}"


def check_same_experiment(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Check that a run may go on under the settings `new`; both are nested dictionaries.

    `rounds` may grow, and what changes no result (`resume`, `device`, `wandb`, ...: `HARMLESS`) may change.

    Returns:
        The harmless differences, by dotted key.

    Raises:
        CheckpointError: lists every other key that differs, with both values.
    """
    before, after = _items(old), _items(new)
    absent = "(absent)"
    differences = []
    for key in sorted(before.keys() | after.keys()):
        was, now = plain(before.get(key, absent)), plain(after.get(key, absent))
        grows = key == "rounds" and isinstance(was, int) and isinstance(now, int) and now > was
        if was != now:
            differences.append(Difference(key, was, now, grows or _harmless(key)))
    if harmful := [difference for difference in differences if not difference.harmless]:
        raise CheckpointError(
            "the run to resume was started with other settings:\n"
            + "\n".join(f"  {difference}" for difference in harmful)
            + "\nresume it with its own settings, or start anew with resume=never or in another folder"
        )
    return differences


def _items(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by dotted key; the places of a mix's data sets stand apart from them, as those of one do."""
    items = dict(dotted_items(config))
    sets = items.get("dataset.sets") or []
    if all(isinstance(part, Mapping) for part in sets):
        items["dataset.sets"] = [{k: v for k, v in part.items() if k not in PLACES} for part in sets]
        items["dataset.root"] = [items.get("dataset.root"), *(part.get(key) for part in sets for key in PLACES)]
    return items


def _harmless(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in HARMLESS)


# The generator alone --------------------------------------------------------------------------------------


def save_generator_checkpoint(
    path: str | Path,
    generator_type: str,
    dimensions: Mapping[str, int],
    round_number: int,
    state: Mapping[str, Any],
    optimiser: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    **extra: Any,
) -> Path:
    """Save a generator so that `torch.load(path)`, safe loading and all, reads it.

    Args:
        path: the configured path; `checkpoints/vae_generator.pt` gives
            `checkpoints/vae_generator_round_10.pt` for round 10.
        generator_type: the generator's name, e.g. "vae".
        dimensions: what must be equal to load it again, e.g. `{"input_dim": 512, "latent_dim": 256}`.
        round_number: the round, stored as `round`.
        state: the generator's state, stored as `generator_state`.
        optimiser: its optimiser's state, stored as `optimizer_state`; None where there is none.
        folder: the folder that a relative path starts from; default the working directory.
        extra: further entries (tensors and plain values) under their own names.

    Returns:
        The file.

    Raises:
        TypeError: a value that safe loading would refuse.
        OSError: the folder cannot be written.
    """
    logger.info("Saving generator checkpoint at round %d", round_number)
    content = {
        **extra,
        "generator_type": generator_type,
        "dimensions": dict(dimensions),
        "generator_state": state,
        "optimizer_state": optimiser,
    }
    return _save_generator(Path(path), round_number, content, folder)


def save_generator_family(
    path: str | Path,
    round_number: int,
    checkpoints: Mapping[str, Mapping[str, Any]],
    *,
    folder: Path | None = None,
) -> list[Path]:
    """Save generators that belong together, one file a key.

    Args:
        path, round_number, folder: as for `save_generator_checkpoint`; the key goes into the file's name, e.g.
            `checkpoints/vae_generator_dog_round_10.pt`, see `keyed_path`.
        checkpoints: by key, each with `generator_type`, `dimensions`, `generator_state` and `optimizer_state`. A
            single generator has the empty key.

    Returns:
        The files.

    Raises:
        TypeError, OSError: as `save_generator_checkpoint`.
    """
    logger.info("Saving generator checkpoint at round %d", round_number)
    return [
        _save_generator(keyed_path(path, key), round_number, checkpoint, folder)
        for key, checkpoint in checkpoints.items()
    ]


def _save_generator(base: Path, round_number: int, content: Mapping[str, Any], folder: Path | None) -> Path:
    name = base.with_name(f"{base.stem}_round_{round_number}{base.suffix}")
    written = (folder or Path()) / name
    _save(written, {**content, "round": round_number})
    logger.info("Saved generator checkpoint to %s", name)
    return written


def keyed_path(path: str | Path, key: str) -> Path:
    """The configured path of one generator of a family: `vae_generator.pt` and "dog" give `vae_generator_dog.pt`.

    Safe and different for every key on any file system: a key that is not plain (a-z, 0-9, _) is cleaned and gets
    a hash of itself behind it. The empty key leaves the path as it is.
    """
    path = Path(path)
    if not key:
        return path
    plain_key = re.sub(r"[^a-z0-9]+", "_", key.casefold()).strip("_")[:LONGEST_KEY]
    if plain_key != key:
        plain_key = f"{plain_key}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return path.with_name(f"{path.stem}_{plain_key}{path.suffix}")


def own_path(path: str | Path, generator_type: str) -> Path:
    """Where a run saves its generator, below its own folder, whatever it has loaded and from wherever.

    `checkpoints/` and the name of the configured path without a round, `checkpoints/mine.pt` for
    `elsewhere/mine_round_3.pt`; `checkpoints/vae_generator.pt` where the path names no file of its own.
    """
    name = re.sub(r"(_round_\d+)+$", "", Path(path).stem)
    named = Path(path).suffix == ".pt" and name not in ("state", "best")  # as the run's own states are called
    return Path("checkpoints") / f"{name if named else f'{generator_type}_generator'}.pt"


def load_generator_family(
    path: str | Path,
    generator_type: str,
    dimensions: Mapping[str, int],
    keys: Sequence[str],
    *,
    folder: Path | None = None,
    own: bool = False,
) -> dict[str, dict[str, Any]]:
    """The newest checkpoints of a generator, by key: `("",)` for a single one, else those of a family.

    A family is that of its newest round. It need not have all `keys`, for some classes may not have been seen
    yet, but every generator that was saved in that round must be there.

    Args:
        path: `.../vae_generator_round_10.pt`, or `.../vae_generator.pt` for the highest round beside it; for a family
            it must be the latter. Where nothing is there, the folders below that one are searched, and of several
            the one that was written last is taken; so they are below a path that is a folder. A relative path is
            looked for in the working directory, and then in the other runs beside `folder`.
        generator_type: the type that is wanted.
        dimensions: the dimensions that are wanted; all must be equal.
        keys: the keys that may be there.
        folder: of the run that loads; nothing in it is found by a search, for a run must not take up what it has
            saved itself before it was stopped.
        own: a relative path is looked for in `folder` first of all.

    Returns:
        The dictionaries that were saved, tensors on the CPU.

    Raises:
        FileNotFoundError: nothing is there, or a key of the family is missing; says which.
        CheckpointError: damaged, no generator checkpoint, or of another type or other dimensions; says which.
    """
    base = _find_generators(Path(path).expanduser(), generator_type, keys, folder, own)
    found = {
        key: _read_generator(file, generator_type, dimensions)
        for key in keys
        if (file := _newest(keyed_path(base, key))) is not None
    }
    newest = max(checkpoint["round"] for checkpoint in found.values())
    current = {key: checkpoint for key, checkpoint in found.items() if checkpoint["round"] == newest}
    family = next(iter(current.values())).get("family", list(current))
    if missing := [key for key in family if key not in current]:
        raise FileNotFoundError(
            f"round {newest} of the generators in {base} had {len(family)} keys; missing are "
            f"{', '.join(map(repr, missing))}, e.g. {keyed_path(base, missing[0]).stem}_round_{newest}.pt; bring the "
            "files back, or set generator.load_checkpoint=false"
        )
    return current


def load_generator_checkpoint(
    path: str | Path, generator_type: str, dimensions: Mapping[str, int], *, folder: Path | None = None
) -> dict[str, Any]:
    """The dictionary that `save_generator_checkpoint` stored; see `load_generator_family`."""
    return load_generator_family(path, generator_type, dimensions, [""], folder=folder)[""]


def _read_generator(path: Path, generator_type: str, dimensions: Mapping[str, int]) -> dict[str, Any]:
    checkpoint = _load(path)
    missing = {"round", "generator_type", "dimensions", "generator_state"} - checkpoint.keys()
    if missing:
        raise CheckpointError(f"{path} is no generator checkpoint: it has no {', '.join(sorted(missing))}")
    if checkpoint["generator_type"] != generator_type:
        raise CheckpointError(
            f"{path} holds a generator of type {checkpoint['generator_type']}, the settings ask for "
            f"{generator_type}; set generator={checkpoint['generator_type']}, or generator.checkpoint_path to "
            "another file"
        )
    stored = checkpoint["dimensions"]
    differences = [
        f"{name}: {stored.get(name, '(absent)')} in the file, {dimensions.get(name, '(absent)')} wanted"
        for name in sorted(stored.keys() | dimensions.keys())
        if stored.get(name) != dimensions.get(name)
    ]
    if differences:
        raise CheckpointError(f"{path} does not fit: " + "; ".join(differences))
    logger.info("Loaded generator checkpoint from %s (round %d)", path, checkpoint["round"])
    return checkpoint


def _find_generators(path: Path, generator_type: str, keys: Sequence[str], folder: Path | None, own: bool) -> Path:
    """The base path that has files of `keys`, in the first place that has any; of several the one written last."""
    starts = [folder] if folder is not None and own else []
    bases = [start / path for start in [*starts, Path()]]
    bases = [base / f"{generator_type}_generator.pt" if base.is_dir() else base for base in bases]
    places = [place for base in bases for place in ([base], _below(base, folder))]
    if folder is not None and not path.is_absolute():
        places.append(_in_other_runs(path, folder.absolute()))
    for place in places:
        written = {
            base: max(file.stat().st_mtime_ns for file in files)
            for base in place
            if (files := [file for key in keys if (file := _newest(keyed_path(base, key))) is not None])
        }
        if written:
            return max(written, key=lambda base: (written[base], base))
    wanted = f"{bases[-1].name} and {bases[-1].stem}_round_N.pt"
    if len(keys) > 1:
        each = ", ".join(map(repr, keys))
        wanted = f"one for each of {each}, such as {keyed_path(bases[-1], keys[0]).stem}_round_N.pt,"
    below = " or ".join(str(base.parent.absolute()) for base in bases)
    beside = "" if folder is None or path.is_absolute() else f", and in the other runs beside {folder}"
    raise FileNotFoundError(
        f"no generator checkpoint: looked for {wanted} in and below {below}{beside}; set generator.checkpoint_path to "
        "one, or generator.load_checkpoint=false"
    )


def _newest(base: Path) -> Path | None:
    """The file itself, or the highest round of that base name beside it."""
    if base.is_file():
        return base
    return next((path for _, path in _numbered(base.parent, base.stem, base.suffix)), None)


def _below(base: Path, folder: Path | None) -> list[Path]:
    """The base path in each folder below its own that has files like it, but for those in `folder`."""
    parents = {file.parent for file in base.parent.rglob(f"{glob.escape(base.stem)}*_round_*{base.suffix}")}
    return [
        parent / base.name
        for parent in parents
        if folder is None or not parent.absolute().is_relative_to(folder.absolute())
    ]


def _in_other_runs(path: Path, folder: Path) -> list[Path]:
    """A relative path in each run beside that in `folder`; of a dated one, outputs/DATE/TIME, on all dates."""
    root = folder.parent
    while re.fullmatch(r"[\d_-]+", root.name):
        root = root.parent
    pattern = "/".join("*" * len(folder.relative_to(root).parts))
    return [other / path for other in root.glob(pattern) if other != folder]


# Files ----------------------------------------------------------------------------------------------------


def _numbered(folder: Path, stem: str, suffix: str) -> list[tuple[int, Path]]:
    """The files `STEM_round_N.SUFFIX` in a folder, highest N first."""
    pattern = re.compile(rf"{re.escape(stem)}_round_(\d+){re.escape(suffix)}")
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := pattern.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _save(path: Path, content: Mapping[str, Any]) -> None:
    storable = _storable({**content, "schema": SCHEMA}, path.name)
    storable["digest"] = _digest(storable)
    with replacing(path) as file:
        torch.save(storable, file)


def _load(path: Path) -> dict[str, Any]:
    """Read a file that `_save` wrote, with safe loading.

    Raises:
        DamagedError: its bytes or its content are not what was written.
        CheckpointError: it is no checkpoint, or one of another schema version.
    """
    try:
        # torch.load notices a file cut short but not a changed byte: the zip format's checksums do.
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedError(f"{path} is damaged (wrong checksum of {broken})")
        content = dict(torch.load(path, map_location="cpu", weights_only=True))
        # A view may repeat a few bytes without end, and takes memory as soon as anybody copies it. Ours share some.
        if tensor_bytes(content) > 2 * path.stat().st_size:
            raise DamagedError(f"{path} is damaged (its tensors are larger than the file)")
        digest, found = content.pop("digest", None), _digest(content)
    except (OSError, DamagedError):
        raise
    except Exception as error:  # a damaged file may break the reader at any step
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(f"{path} is damaged ({reason})") from error
    if "schema" not in content:
        raise CheckpointError(f"{path} is no checkpoint of this program")
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path} has schema version {content['schema']}, this program reads {SCHEMA}; "
            "go on with the version that wrote it, or start anew with resume=never"
        )
    # A file that was changed and packed anew has the right checksums, but not the right digest.
    if digest != found:
        raise DamagedError(f"{path} is damaged (its content is not what was saved)")
    return content


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a nested structure."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def _digest(value: Any) -> str:
    """SHA-256 of a nested structure of tensors and plain values: of types, keys, order, shapes and all bytes."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            digest.update(f"{{{len(value)}".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(f"{type(value).__name__}{len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{type(value).__name__}{value!r}\n".encode("utf-8", "surrogatepass"))

    add(value)
    return digest.hexdigest()


def _storable(value: Any, where: str) -> Any:
    """A copy of `value` that safe loading reads back: plain containers, values and tensors on the CPU.

    Raises:
        TypeError: names the place of a value of another type.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        # A view would drag the whole storage it looks into onto the disk.
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if type(value) in (dict, OrderedDict) or (isinstance(value, Mapping) and not isinstance(value, dict)):
        return {_storable(key, where): _storable(item, f"{where}: {key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_storable(item, f"{where}[{index}]") for index, item in enumerate(value))
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise TypeError(
        f"{where}: a {type(value).__name__} cannot be stored for safe loading; use tensors and plain values"
    )
