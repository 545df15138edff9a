"""Checkpoints of the generator alone, for use in another run or another program."""

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

# Maximum number of characters of a generator's key in a file name.
LONGEST_KEY = 60


def save_generator_family(
    path: str | Path,
    round_number: int,
    checkpoints: Mapping[str, Mapping[str, Any]],
    *,
    folder: Path | None = None,
) -> list[Path]:
    """Save a family of generators, one file per key.

    Args:
        path: configured path; `checkpoints/vae_generator.pt` gives `checkpoints/vae_generator_round_10.pt` for
            round 10, and `checkpoints/vae_generator_dog_round_10.pt` for the key "dog", see `keyed_path`.
        round_number: round, stored as `round`.
        checkpoints: by key, each with `generator_type`, `dimensions`, `generator_state` and `optimizer_state`. A
            single generator has the empty key.
        folder: base of a relative path; default the working directory.

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

    Safe and unique for every key on any file system: a key that is not plain (a-z, 0-9, _) is cleaned, and its hash
    is appended. The empty key leaves the path unchanged.
    """
    path = Path(path)
    if not key:
        return path
    plain_key = re.sub(r"[^a-z0-9]+", "_", key.casefold()).strip("_")[:LONGEST_KEY]
    if plain_key != key:
        plain_key = f"{plain_key}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return path.with_name(f"{path.stem}_{plain_key}{path.suffix}")


def own_path(path: str | Path, generator_type: str) -> Path:
    """Path where a run saves its generator, in its own folder, independent of where it has loaded one.

    `checkpoints/` and the name of the configured path without a round, `checkpoints/mine.pt` for
    `elsewhere/mine_round_3.pt`; `checkpoints/vae_generator.pt` if the path does not name a file.
    """
    name = re.sub(r"(_round_\d+)+$", "", Path(path).stem)
    named = Path(path).suffix == ".pt" and name not in ("state", "best")  # names of the run's own states
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

    All files of a family are from its newest round. It may lack some `keys`, since not every class may have been
    recorded yet, but every generator that was saved in that round must be present.

    Args:
        path: `.../vae_generator_round_10.pt`, or `.../vae_generator.pt` for the highest round; for a family it must be
            the latter. If there is no such file, or the path is a folder, the folders below it are searched, and the
            file written last is used. A relative path is searched in the working directory, and then in the other
            runs next to `folder`.
        generator_type: expected type.
        dimensions: expected dimensions; all must be equal.
        keys: possible keys.
        folder: folder of the run that loads. A search skips it, so that a run does not load its own files from before
            a stop.
        own: search a relative path in `folder` first.

    Returns:
        The saved dictionaries, with tensors on the CPU.

    Raises:
        FileNotFoundError: no file, or a key of the family is missing; names it.
        CheckpointError: damaged, not a generator checkpoint, or of another type or other dimensions; names them.
    """
    base = _find_generators(Path(path).expanduser(), generator_type, keys, folder, own)
    checkpoints = {
        key: _read_generator(file, generator_type, dimensions)
        for key in keys
        if (file := _newest(keyed_path(base, key))) is not None
    }
    newest = max(checkpoint["round"] for checkpoint in checkpoints.values())
    current = {key: checkpoint for key, checkpoint in checkpoints.items() if checkpoint["round"] == newest}
    family = next(iter(current.values())).get("family", list(current))
    if missing := [key for key in family if key not in current]:
        raise FileNotFoundError(
            f"round {newest} of the generators in {base} had {len(family)} keys; missing are "
            f"{', '.join(map(repr, missing))}, e.g. {keyed_path(base, missing[0]).stem}_round_{newest}.pt; restore the "
            "files, or set generator.load_checkpoint=false"
        )
    return current


def _read_generator(path: Path, generator_type: str, dimensions: Mapping[str, int]) -> dict[str, Any]:
    checkpoint = load_torch(path)
    missing = {"round", "generator_type", "dimensions", "generator_state"} - checkpoint.keys()
    if missing:
        raise CheckpointError(f"{path} is not a generator checkpoint: it lacks {', '.join(sorted(missing))}")
    if checkpoint["generator_type"] != generator_type:
        raise CheckpointError(
            f"{path} has a generator of type {checkpoint['generator_type']}, but the settings name "
            f"{generator_type}; set generator={checkpoint['generator_type']}, or generator.checkpoint_path to "
            "another file"
        )
    stored = checkpoint["dimensions"]
    differences = [
        f"{name}: {stored.get(name, '(absent)')} in the file, {dimensions.get(name, '(absent)')} in this run"
        for name in sorted(stored.keys() | dimensions.keys())
        if stored.get(name) != dimensions.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{path} does not fit: {'; '.join(differences)}; set generator.checkpoint_path to another file"
        )
    logger.info("Loaded generator checkpoint from %s (round %d)", path, checkpoint["round"])
    return checkpoint


def _find_generators(path: Path, generator_type: str, keys: Sequence[str], folder: Path | None, own: bool) -> Path:
    """The base path with files of `keys`, from the first place that has any; of several, the one written last."""
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
    expected = f"{bases[-1].name} and {bases[-1].stem}_round_N.pt"
    if len(keys) > 1:
        each = ", ".join(map(repr, keys))
        expected = f"one for each of {each}, such as {keyed_path(bases[-1], keys[0]).stem}_round_N.pt,"
    below = " or ".join(str(base.parent.absolute()) for base in bases)
    others = "" if folder is None or path.is_absolute() else f", and in the other runs next to {folder}"
    raise FileNotFoundError(
        f"no generator checkpoint: searched for {expected} in and below {below}{others}; set "
        "generator.checkpoint_path to one, or generator.load_checkpoint=false"
    )


def _newest(base: Path) -> Path | None:
    """The file itself, or the file of the highest round with this base name."""
    if base.is_file():
        return base
    return next((path for _, path in numbered_files(base.parent, base.stem, base.suffix)), None)


def _below(base: Path, folder: Path | None) -> list[Path]:
    """The base path in each folder below its own that has such files, except those in `folder`."""
    parents = {file.parent for file in base.parent.rglob(f"{glob.escape(base.stem)}*_round_*{base.suffix}")}
    return [
        parent / base.name
        for parent in parents
        if folder is None or not parent.absolute().is_relative_to(folder.absolute())
    ]


def _in_other_runs(path: Path, folder: Path) -> list[Path]:
    """A relative path in each run next to `folder`; for a dated run, outputs/DATE/TIME, on all dates."""
    root = folder.parent
    while re.fullmatch(r"[\d_-]+", root.name):
        root = root.parent
    pattern = "/".join("*" * len(folder.relative_to(root).parts))
    return [other / path for other in root.glob(pattern) if other != folder]
