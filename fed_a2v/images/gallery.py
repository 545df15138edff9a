"""A folder of images, with their inputs and a page that shows them; written in training and by `fed-a2v generate`.

pictures.json     subjects, settings and files of the images
index.html        contact sheet
audio/            sounds as the encoder receives them
COLUMN/           images, one folder for each column of the sheet
"""

from __future__ import annotations

import hashlib
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
from fed_a2v.storage.untrusted import UntrustedFileError, read_json

# Columns of a gallery of sounds.
SOUND, TEXT = "sound", "text"
# Maximum number of characters of a subject's name in a file name.
LONGEST_NAME = 40


class GalleryError(UserError, ValueError):
    """A folder of images is missing or incomplete."""


@dataclass(frozen=True)
class Subject:
    """Content of a row of the sheet.

    Attributes:
        name: name, unique in the gallery.
        category: class; None if unknown.
        waveform: (samples,) input of the encoder; None without a sound.
        rate: sample rate of the waveform in Hz.
    """

    name: str
    category: str | None
    waveform: FloatArray | None = None
    rate: int = 0


class Column(NamedTuple):
    """Images from prompts of one origin.

    Attributes:
        name: name, also of the folder of the images.
        title: title of the column.
        rows: positions of the subjects with an image in this column.
        prompts: prompts of these subjects, in the same order.
    """

    name: str
    title: str
    rows: Sequence[int]
    prompts: AdapterOutput


def text_column(subjects: Sequence[Subject], targets: ClassPrompts) -> Column:
    """The ablation: images from the text prompt of the true class."""
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
    """Generate all images of a gallery; the folder appears once it is complete.

    The initial noise of an image depends on `images.seed` and the subject alone, so it is the same in every column.

    Args:
        folder: folder to create; must not exist, or be empty.
        model: image model.
        subjects: rows of the sheet.
        columns: columns of the sheet.
        facts: run, round and classes, for `pictures.json` and the sheet.
        finish: called with the folder that has all images, before the sheet is written and the folder appears.
        done: called with the number of newly generated images.

    Raises:
        ModelError: see `ImageModel.draw`.
        OSError: the folder cannot be written, or is not empty.
    """
    files = [f"{row:04d}-{_file_name(subject.name)}" for row, subject in enumerate(subjects)]
    entries: list[dict[str, Any]] = [
        {"name": subject.name, "class": subject.category, "audio": None, "pictures": {}} for subject in subjects
    ]
    settings = model.settings
    with new_folder(folder) as temporary:
        for subject, file, entry in zip(subjects, files, entries, strict=True):
            if subject.waveform is not None:
                entry["audio"] = f"audio/{file}.wav"
                (temporary / "audio").mkdir(exist_ok=True)
                soundfile.write(temporary / entry["audio"], subject.waveform, subject.rate, subtype="PCM_16")
        for column in columns:
            (temporary / column.name).mkdir()
            for start in range(0, len(column.rows), settings.batch_size):
                rows = column.rows[start : start + settings.batch_size]
                seeds = [seed_for(settings.seed, "picture", subjects[row].name) for row in rows]
                prompts = column.prompts.index_select(
                    torch.arange(start, start + len(rows), device=column.prompts.clip.device)
                )
                for row, picture in zip(rows, model.draw(prompts, seeds), strict=True):
                    name = f"{column.name}/{files[row]}.png"
                    picture.save(temporary / name)
                    entries[row]["pictures"][column.name] = name
                done(len(rows))
        content = {
            **facts,
            "images": settings.model_dump(mode="json"),
            "columns": {column.name: column.title for column in columns},
            "subjects": entries,
        }
        write_json(temporary / "pictures.json", content)
        finish(temporary)
        write_sheet(temporary)


def read_gallery(folder: Path) -> dict[str, Any]:
    """The content of `pictures.json`; checks that every image exists.

    Raises:
        GalleryError: the folder is not a gallery, or an image is missing; names it.
    """
    try:
        gallery = read_json(folder / "pictures.json")
    except UntrustedFileError as error:
        raise GalleryError(f"{error}; generate the images again") from error
    if not gallery:
        raise GalleryError(
            f"{folder} is not a folder of images: it has no pictures.json; `fed-a2v generate` creates one"
        )
    for subject in gallery["subjects"]:
        for name in subject["pictures"].values():
            if not (folder / name).is_file():
                raise GalleryError(
                    f"the image {folder / name} of {subject['name']!r} is missing; generate the images again"
                )
    return gallery


def pictures_in(folder: Path) -> dict[str, Path]:
    """The images of a gallery by "images/COLUMN/SUBJECT"."""
    return {
        f"images/{column}/{subject['name']}": folder / file
        for subject in read_gallery(folder)["subjects"]
        for column, file in subject["pictures"].items()
    }


def write_sheet(folder: Path) -> None:
    """Write `index.html`, the contact sheet of the folder."""
    write_text(folder / "index.html", contact_sheet(read_gallery(folder), read_json(folder / "evaluation.json")))


def safe_name(name: str) -> str:
    """An untrusted name, such as a site's, as a file name: plain ones are kept, others get a hash."""
    plain = _file_name(name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")[:LONGEST_NAME] or "sound"
