"""Checkpoints of the generator alone, to be used in another run or elsewhere."""

from __future__ import annotations

import glob
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fed_a2v.storage.torch_files import CheckpointError, load_torch, numbered_files, save_torch

logger = logging.getLogger("fed_a2v")

# Characters of a generator's key that go into its file's name.
LONGEST_KEY = 60


def save_generator_family(
    path: str | Path,
    round_number: int,
    checkpoints: Mapping[str, Mapping[str, Any]],
    *,
    folder: Path | None = None,
) -> list[Path]:
    """Save generators that belong together, one file a key.

    Args:
        path: the configured path; `checkpoints/vae_generator.pt` gives `checkpoints/vae_generator_round_10.pt` for
            round 10, and that of the key "dog" `checkpoints/vae_generator_dog_round_10.pt`, see `keyed_path`.
        round_number: the round, stored as `round`.
        checkpoints: by key, each with `generator_type`, `dimensions`, `generator_state` and `optimizer_state`. A
            single generator has the empty key.
        folder: the folder that a relative path starts from; default the working directory.

    Returns:
        The files.

    Raises:
        TypeError: a value that safe loading would refuse.
        OSError: the folder cannot be written.
    """
    logger.info("Saving generator checkpoint at round %d", round_number)
    return [
        _save_generator(keyed_path(path, key), round_number, checkpoint, folder)
        for key, checkpoint in checkpoints.items()
    ]


def _save_generator(base: Path, round_number: int, content: Mapping[str, Any], folder: Path | None) -> Path:
    name = base.with_name(f"{base.stem}_round_{round_number}{base.suffix}")
    written = (folder or Path()) / name
    save_torch(written, {**content, "round": round_number})
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


def _read_generator(path: Path, generator_type: str, dimensions: Mapping[str, int]) -> dict[str, Any]:
    checkpoint = load_torch(path)
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
    return next((path for _, path in numbered_files(base.parent, base.stem, base.suffix)), None)


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
