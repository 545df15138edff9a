"""A folder of pictures: what each was made of, and a page to look at them.

pictures.json     what was drawn, of what and how
index.html        the contact sheet
audio/            what the encoder heard
COLUMN/           the pictures, a folder for each column of the sheet
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch

from fed_a2v.core.adapters import AdapterOutput, ClassPrompts
from fed_a2v.core.seeding import seed_for
from fed_a2v.data.audio import FloatArray
from fed_a2v.errors import UserError
from fed_a2v.images.pipelines import ImageModel
from fed_a2v.images.sheet import contact_sheet
from fed_a2v.storage.files import new_folder, write_json, write_text

# The columns of a gallery of sounds.
SOUND, TEXT = "sound", "text"
# Characters of a subject's name that go into its files' names.
LONGEST_NAME = 40


class GalleryError(UserError, ValueError):
    """A folder of pictures is missing, or lacks one of them."""


@dataclass(frozen=True)
class Subject:
    """What a row of the sheet shows.

    Attributes:
        name: unique in the gallery.
        category: the class; None where it is not known.
        waveform: (samples,) what the encoder heard; None where there is no sound.
        rate: of the waveform, in Hz.
    """

    name: str
    category: str | None
    waveform: FloatArray | None = None
    rate: int = 0


class Column(NamedTuple):
    """Pictures that are made in one way.

    Attributes:
        name: and folder of its pictures.
        title: over the column.
        rows: positions of the subjects that it has pictures of.
        prompts: of these, in their order.
    """

    name: str
    title: str
    rows: Sequence[int]
    prompts: AdapterOutput


def text_column(subjects: Sequence[Subject], targets: ClassPrompts) -> Column:
    """The ablation: what the image model makes of the true class's own text prompt."""
    rows = [row for row, subject in enumerate(subjects) if subject.category is not None]
    places = torch.tensor([targets.names.index(str(subjects[row].category)) for row in rows], dtype=torch.int64)
    prompts = AdapterOutput(targets.clip, targets.t5).index_select(places.to(targets.clip.device))
    return Column(TEXT, "True text prompt", rows, prompts)


def draw_gallery(
    folder: Path,
    model: ImageModel,
    subjects: Sequence[Subject],
    columns: Sequence[Column],
    facts: Mapping[str, Any],
    finish: Callable[[Path], Any] = lambda _: None,
    done: Callable[[int], None] = lambda _: None,
) -> None:
    """Draw all pictures of a gallery; the folder appears when all is in it.

    The noise that a picture starts from depends on `images.seed` and the subject alone, so it is the same in every
    column.

    Args:
        folder: to be made; must not exist, or be empty.
        model: draws.
        subjects: the rows.
        columns: the columns.
        facts: what the pictures' readers should know, for `pictures.json` and the sheet: run, round, classes.
        finish: called with the folder when the pictures are in it, before the sheet is made and the folder appears.
        done: called with the number of pictures that have just been drawn.

    Raises:
        ModelError: see `ImageModel.draw`.
        OSError: the folder cannot be written, or holds something.
    """
    files = [f"{row:04d}-{_file_name(subject.name)}" for row, subject in enumerate(subjects)]
    entries: list[dict[str, Any]] = [
        {"name": subject.name, "class": subject.category, "audio": None, "pictures": {}} for subject in subjects
    ]
    settings = model.settings
    with new_folder(folder) as growing:
        for subject, file, entry in zip(subjects, files, entries, strict=True):
            if subject.waveform is not None:
                entry["audio"] = f"audio/{file}.wav"
                (growing / "audio").mkdir(exist_ok=True)
                soundfile.write(growing / entry["audio"], subject.waveform, subject.rate, subtype="PCM_16")
        for column in columns:
            (growing / column.name).mkdir()
            for start in range(0, len(column.rows), settings.batch_size):
                rows = column.rows[start : start + settings.batch_size]
                seeds = [seed_for(settings.seed, "picture", subjects[row].name) for row in rows]
                prompts = column.prompts.index_select(
                    torch.arange(start, start + len(rows), device=column.prompts.clip.device)
                )
                for row, picture in zip(rows, model.draw(prompts, seeds), strict=True):
                    name = f"{column.name}/{files[row]}.png"
                    picture.save(growing / name)
                    entries[row]["pictures"][column.name] = name
                done(len(rows))
        content = {
            **facts,
            "images": settings.model_dump(mode="json"),
            "columns": {column.name: column.title for column in columns},
            "subjects": entries,
        }
        write_json(growing / "pictures.json", content)
        finish(growing)
        write_sheet(growing)


def read_gallery(folder: Path) -> dict[str, Any]:
    """What `pictures.json` holds; checks that every picture is there.

    Raises:
        GalleryError: the folder is no gallery, or a picture is missing; names it.
    """
    index = folder / "pictures.json"
    if not index.is_file():
        raise GalleryError(f"{folder} is no folder of pictures: it has no pictures.json; `fed-a2v generate` makes one")
    try:
        gallery = dict(json.loads(index.read_text()))
    except ValueError as error:
        raise GalleryError(f"{index} is not readable: {error}; draw the pictures anew") from error
    for subject in gallery["subjects"]:
        for name in subject["pictures"].values():
            if not (folder / name).is_file():
                raise GalleryError(f"the picture {folder / name} of {subject['name']!r} is missing; draw them anew")
    return gallery


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures of a gallery by "images/COLUMN/SUBJECT"."""
    return {
        f"images/{column}/{subject['name']}": folder / file
        for subject in read_gallery(folder)["subjects"]
        for column, file in subject["pictures"].items()
    }


def write_sheet(folder: Path) -> None:
    """Make `index.html` of what the folder holds."""
    evaluation = folder / "evaluation.json"
    judged = json.loads(evaluation.read_text()) if evaluation.is_file() else None
    write_text(folder / "index.html", contact_sheet(read_gallery(folder), judged))


def safe_name(name: str) -> str:
    """A name that strangers chose, such as a site's, as a file's: plain ones stay, others get a hash."""
    plain = _file_name(name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")[:LONGEST_NAME] or "sound"
