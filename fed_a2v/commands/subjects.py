"""What `fed-a2v generate` makes pictures of: sound files, samples of the generator, test clips of a run's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fed_a2v.core.names import clean_name
from fed_a2v.data.audio import FloatArray
from fed_a2v.data.clips import EmbeddedClips
from fed_a2v.data.index import open_source, parts
from fed_a2v.data.site import load_clips
from fed_a2v.images.gallery import Subject
from fed_a2v.images.subjects import Subjects
from fed_a2v.load import LoadedRun, RunError
from fed_a2v.settings import cache_dir


def from_files(run: LoadedRun, words: Sequence[str]) -> Subjects:
    """Sound files: FILE, or CLASS=FILE to say what is to be heard.

    Without a word about it, the class is that of the folder that the file is in, if its name is a class's.

    Raises:
        BadClipError: a file cannot be used.
        RunError: a word names no class of the run, or two files have the same name.
    """
    subjects: list[Subject] = []
    for word in words:
        name, path = _split(word)
        waveform = run.waveform(path)
        category = run.class_name(name) if name else _class_of_folder(path, run.classes)
        subjects.append(Subject(path.name, category, waveform, run.encoder.sample_rate))
    names = [subject.name for subject in subjects]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RunError(f"two sound files are called {min(twice)}; give them different names")
    heard = [subject.waveform for subject in subjects if subject.waveform is not None]
    return Subjects(subjects, run.embed(heard, run.encoder.sample_rate))


def synthetic(run: LoadedRun, classes: Sequence[str], number: int, seed: int) -> Subjects:
    """`number` samples of the generator for each class."""
    subjects = [Subject(f"{name}, synthetic {k + 1}", name) for name in classes for k in range(number)]
    return Subjects(subjects, torch.cat([run.generator.sample(name, number, seed) for name in classes]))


def test_clips(run: LoadedRun, classes: Sequence[str], number: int) -> Subjects:
    """The first `number` test clips of each class in the run's own data, on which no site has trained.

    Raises:
        DataError: the data cannot be read here.
    """
    settings = run.settings
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings))
    test = clips.rows("test")
    labels = clips.labels[torch.from_numpy(test)]
    rows = [int(row) for name in classes for row in test[(labels == clips.classes.index(name)).numpy()][:number]]
    subjects = [
        Subject(clips.keys[row], clips.classes[int(clips.labels[row])], *_sound_of(run, clips, row)) for row in rows
    ]
    return Subjects(subjects, clips.embeddings[torch.tensor(rows, dtype=torch.int64)])


def _sound_of(run: LoadedRun, clips: EmbeddedClips, row: int) -> tuple[FloatArray | None, int]:
    """A clip's waveform and rate; none where the data set has embeddings alone."""
    settings = run.settings
    place = 0 if clips.sets is None else int(clips.sets[row])
    part = parts(settings.dataset)[place]
    if part.name == "embeddings":
        return None, 0
    key, rate = clips.keys[row], run.encoder.sample_rate
    if settings.dataset.name == "mixed":
        key = key.removeprefix(f"{place}-{part.name}/")
    return open_source(part, settings.seed).waveform(key, rate, part.clip_seconds), rate


def _split(word: str) -> tuple[str, Path]:
    """CLASS=FILE as (class, file); a file whose own name has a = in it is a file."""
    name, sign, rest = word.partition("=")
    if sign and not Path(word).expanduser().is_file():
        return name, Path(rest).expanduser()
    return "", Path(word).expanduser()


def _class_of_folder(path: Path, classes: Sequence[str]) -> str | None:
    folder = clean_name(path.absolute().parent.name)
    return next((name for name in classes if clean_name(name) == folder), None)
