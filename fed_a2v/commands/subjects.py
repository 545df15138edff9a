"""Inputs of `fed-a2v generate`: sound files, samples of the generator, test clips of a run's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fed_a2v.config.schema import cache_dir
from fed_a2v.core.names import clean_name
from fed_a2v.data.audio import FloatArray
from fed_a2v.data.clips import EmbeddedClips
from fed_a2v.data.datasets.base import data_set
from fed_a2v.data.index import open_source, parts
from fed_a2v.data.site import load_clips
from fed_a2v.data.sounds import RunError
from fed_a2v.images.gallery import Subject
from fed_a2v.images.subjects import Subjects
from fed_a2v.load import LoadedRun


def from_files(run: LoadedRun, words: Sequence[str]) -> Subjects:
    """Sound files: FILE, or CLASS=FILE to set the class of the sound.

    By default, the class is the name of the file's folder, if that is a class.

    Raises:
        BadClipError: a file cannot be used.
        RunError: the run does not have the class, or a file is named twice.
    """
    given = [_split(word, run.classes) for word in words]
    names = _distinct_names([path for _, path in given])
    if duplicates := [path for (_, path), name in zip(given, names, strict=True) if names.count(name) > 1]:
        raise RunError(f"the sound file {duplicates[0]} is named twice; name it once")
    subjects: list[Subject] = []
    for (category, path), name in zip(given, names, strict=True):
        known = run.class_name(category) if category else _class_of_folder(path, run.classes)
        subjects.append(Subject(name, known, run.waveform(path), run.encoder.sample_rate))
    waveforms = [subject.waveform for subject in subjects if subject.waveform is not None]
    return Subjects(subjects, run.embed(waveforms, run.encoder.sample_rate))


def synthetic(run: LoadedRun, classes: Sequence[str], number: int, seed: int) -> Subjects:
    """`number` samples of the generator for each class."""
    subjects = [Subject(f"{name}, synthetic {k + 1}", name) for name in classes for k in range(number)]
    return Subjects(subjects, torch.cat([run.generator.sample(name, number, seed) for name in classes]))


def test_clips(run: LoadedRun, classes: Sequence[str], number: int) -> Subjects:
    """The first `number` test clips of each class in the run's data, which no site has trained on.

    Raises:
        DataError: the data cannot be read here.
    """
    settings = run.settings
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
    test = clips.rows("test")
    labels = clips.labels[torch.from_numpy(test)]
    rows = [int(row) for name in classes for row in test[(labels == clips.classes.index(name)).numpy()][:number]]
    subjects = [
        Subject(clips.keys[row], clips.classes[int(clips.labels[row])], *_sound_of(run, clips, row)) for row in rows
    ]
    return Subjects(subjects, run.inputs(clips.embeddings[torch.tensor(rows, dtype=torch.int64)]))


def _sound_of(run: LoadedRun, clips: EmbeddedClips, row: int) -> tuple[FloatArray | None, int]:
    """A clip's waveform and rate; None if the data set has only embeddings."""
    settings = run.settings
    place = 0 if clips.sets is None else int(clips.sets[row])
    part = parts(settings.dataset)[place]
    if not data_set(part.name).has_audio:
        return None, 0
    key, rate = clips.keys[row], run.encoder.sample_rate
    if settings.dataset.name == "mixed":
        key = key.removeprefix(f"{place}-{part.name}/")
    return open_source(part, settings.seed).waveform(key, rate, part.clip_seconds), rate


def class_list(run: LoadedRun, text: str) -> tuple[str, ...]:
    """The classes in A,B,..., whose names may contain commas themselves.

    Raises:
        RunError: the run does not have a class; names the nearest one.
    """
    pieces = text.split(",")
    known = {clean_name(name) for name in run.classes}
    names: list[str] = []
    while pieces:
        # Longest name first: "crying, baby" before "crying".
        joined = (",".join(pieces[:count]) for count in range(len(pieces), 0, -1))
        name = next((name for name in joined if clean_name(name) in known), pieces[0])
        pieces = pieces[name.count(",") + 1 :]
        if name.strip():
            names.append(run.class_name(name))
    return tuple(dict.fromkeys(names))


def _split(word: str, classes: Sequence[str]) -> tuple[str, Path]:
    """CLASS=FILE as (class, file); both may contain further =, and an existing file "A=B" is a file."""
    if "=" not in word or Path(word).expanduser().is_file():
        return "", Path(word).expanduser()
    parts = word.split("=")
    pairs = [("=".join(parts[:count]), "=".join(parts[count:])) for count in range(1, len(parts))]
    known = {clean_name(name) for name in classes}
    name, rest = next((pair for pair in reversed(pairs) if clean_name(pair[0]) in known), pairs[0])
    return name, Path(rest).expanduser()


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own, after as many parent folders as make it distinct."""
    others = {path.absolute() for path in paths}

    def name(path: Path) -> str:
        parts = path.absolute().parts
        tails = (parts[-depth:] for depth in range(1, len(parts) + 1))
        return next("/".join(tail) for tail in tails if sum(other.parts[-len(tail) :] == tail for other in others) == 1)

    return [name(path) for path in paths]


def _class_of_folder(path: Path, classes: Sequence[str]) -> str | None:
    folder = clean_name(path.absolute().parent.name)
    return next((name for name in classes if clean_name(name) == folder), None)
