"""What a run makes of a sound: its nearest classes, its place on the map of the embeddings, its image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.core.metrics import ClassScore
from fed_a2v.core.projection import EmbeddingMap, MapSpace, map_in_space
from fed_a2v.core.seeding import seed_for
from fed_a2v.data.audio import UNKNOWN_FRAMES, FloatArray
from fed_a2v.data.sounds import RunError
from fed_a2v.load import LoadedRun

if TYPE_CHECKING:
    from PIL.Image import Image

    from fed_a2v.images.pipelines import ImageModel

# Classes that are named for a sound.
TOP = 5


class Neighbour(NamedTuple):
    """A point of the map.

    Attributes:
        row: its position on the map.
        name: class.
        site: site of a prototype; "" for a synthetic sample.
        similarity: cosine to the sound, with the origin of the map subtracted from both.
    """

    row: int
    name: str
    site: str
    similarity: float


@dataclass(frozen=True)
class Answer:
    """What a run makes of a sound.

    Attributes:
        name: name of the file.
        waveform: (samples,) input of the encoder.
        rate: its sample rate in Hz.
        seconds: length of the file; None if its header has none.
        embedding: (1, S, Da) input of the adapters.
        classes: the nearest classes, best first.
        place: (P,) coordinates on the map; None without a map.
        real: nearest point of the map that comes from recordings; None without any.
        synthetic: nearest sample of the generator; None without any.
    """

    name: str
    waveform: FloatArray
    rate: int
    seconds: float | None
    embedding: Tensor
    classes: list[ClassScore]
    place: NDArray[np.float32] | None
    real: Neighbour | None
    synthetic: Neighbour | None


class Explorer:
    """A run that is asked about sounds.

    Args:
        run: the run.
        images: image model for `picture`; None without images.

    Attributes:
        map: map of the embeddings after the run's round, which is that of the report for the last round; None without
            points.
        seconds: length of the encoder's input; of a longer sound the beginning is used.

    Raises:
        RunError: the run was trained on files of embeddings, whose encoder is unknown.
        ModelError: the encoder is missing.
    """

    def __init__(self, run: LoadedRun, images: ImageModel | None = None) -> None:
        self.run, self.images = run, images
        try:
            rate = run.encoder.sample_rate
        except RunError as error:
            raise RunError(
                f"{run.folder.path.name} was trained on files of embeddings, whose encoder is unknown, so it cannot be "
                "asked about sounds; choose a run whose data set has sound files (dataset=folder, dataset=esc50, ...)"
            ) from error
        found = map_in_space(run.step, run.round)
        self.map: EmbeddingMap | None = None if found is None else found[0]
        self._space: MapSpace | None = None if found is None else found[1]
        silence = run.waveform(np.zeros(rate, np.float32), rate)
        self.seconds = len(silence) / rate
        run.embed(silence, rate)  # loads the weights, for which the first sound would wait

    def answer(self, path: Path) -> Answer:
        """Classify a sound file and find its neighbours.

        Raises:
            BadClipError: the file cannot be used; the message names it without its folder.
        """
        waveform, rate = self.run.waveform(path), self.run.encoder.sample_rate
        embedding = self.run.embed(waveform, rate)
        ranked = self.run.classify(embedding, top=TOP)[0]
        assert isinstance(ranked, list)
        place = real = synthetic = None
        if self._space is not None and self.map is not None:
            point = embedding[0].double().mean(dim=0).cpu().numpy()
            place = self._space.coordinates(point[None])[0]
            similarities = self._space.similarities(point)
            real, synthetic = (self._nearest(similarities, self.map.synthetic == kind) for kind in (False, True))
        return Answer(path.name, waveform, rate, _seconds(path), embedding, ranked, place, real, synthetic)

    def _nearest(self, similarities: NDArray[np.float64], among: NDArray[np.bool_]) -> Neighbour | None:
        assert self.map is not None
        if not among.any():
            return None
        row = int(np.where(among, similarities, -np.inf).argmax())
        name = str(self.map.classes[self.map.labels[row]])
        return Neighbour(row, name, str(self.map.sites[row]), float(similarities[row]))

    def picture(self, answer: Answer) -> Image:
        """The image of a sound, the same as that of `fed-a2v generate` for a file of this name.

        Raises:
            ModelError: the image model does not accept the prompts.
        """
        assert self.images is not None
        seed = seed_for(self.images.settings.seed, "picture", answer.name)
        return self.images.draw(self.run.adapt(answer.embedding), [seed])[0]


def _seconds(path: Path) -> float | None:
    """The length of a readable sound file by its header."""
    with soundfile.SoundFile(path) as file:
        return None if file.frames == UNKNOWN_FRAMES else file.frames / file.samplerate
