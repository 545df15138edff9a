"""Scores of images by CLIP: zero-shot classification over all class names, and CLIPScore.

Used by `fed-a2v generate --evaluate`. Zero-shot classification (Radford et al. 2021) chooses the class whose name has
the highest cosine with the image. CLIPScore (Hessel et al. 2021) is 100 times that cosine for the true class, at least
0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.config.sections.output import ImageSettings
from fed_a2v.core.names import clean_name
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.encoders.pretrained import ModelError, Pretrained, pick_device
from fed_a2v.images.gallery import GalleryError, read_gallery
from fed_a2v.install import install_hint
from fed_a2v.storage.files import write_json

if TYPE_CHECKING:
    from PIL.Image import Image

IntArray = NDArray[np.int64]

CONFIDENCE = 0.95
RESAMPLES = 1000
# Images per batch of CLIP.
BATCH = 16


class Clip:
    """CLIP's two encoders, with the interface that torchmetrics' CLIPScore expects.

    Args:
        settings: `settings.clip` names the model.

    Raises:
        ModelError: the model is missing or of another kind, or a package is not installed.
    """

    def __init__(self, settings: ImageSettings) -> None:
        source = Pretrained(settings.clip.model, settings.clip.revision, "", "images.clip")
        self.name = settings.clip.model
        self.device = pick_device(settings.device)
        self.network = source.network("CLIPModel", torch.float32, self.device)
        self.processor = source.read("CLIPProcessor")
        self.config = self.network.config

    def to(self, device: torch.device) -> Clip:
        """Do nothing: torchmetrics would move the model to the device of its inputs."""
        del device
        return self

    @torch.inference_mode()
    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, D) features of (B, 3, H, W) preprocessed images."""
        return _pooled(self.network.get_image_features(pixel_values=pixel_values.to(self.device))).cpu()

    @torch.inference_mode()
    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, D) features of (B, T) tokens."""
        tokens = {"input_ids": input_ids.to(self.device), "attention_mask": attention_mask.to(self.device)}
        return _pooled(self.network.get_text_features(**tokens)).cpu()

    def of_pictures(self, pictures: Sequence[Image]) -> Tensor:
        """(B, D) normalised features of images."""
        parts = [
            self.get_image_features(
                self.processor(images=list(pictures[k : k + BATCH]), return_tensors="pt").pixel_values
            )
            for k in range(0, len(pictures), BATCH)
        ]
        return F.normalize(torch.cat(parts), dim=1)

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, D) normalised features of texts."""
        tokens = self.processor(text=list(texts), return_tensors="pt", padding=True)
        return F.normalize(self.get_text_features(tokens.input_ids, tokens.attention_mask), dim=1)

    def scores(self, pictures: Sequence[Image], texts: Sequence[str]) -> NDArray[np.float64]:
        """(B,) CLIPScore of each image with its text."""
        try:
            from torchmetrics.functional.multimodal import clip_score
        except ImportError as error:
            raise ModelError(f"CLIPScore needs the package torchmetrics: {install_hint('hf')}") from error
        as_torchmetrics: Any = lambda: (self, self.processor)  # noqa: E731 - a loaded model is allowed
        pixels = [torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) for picture in pictures]
        return np.array(
            [float(clip_score(picture, text, as_torchmetrics)) for picture, text in zip(pixels, texts, strict=True)]
        )


def evaluate(folder: Path, settings: ImageSettings) -> dict[str, Any]:
    """Score the images of a gallery, column by column, and write `evaluation.json` to its folder.

    Images of subjects with a known class count. The candidates are all classes of the run.

    Args:
        folder: folder of the gallery.
        settings: `settings.clip` names the model.

    Returns:
        The content of `evaluation.json`: for each column the number of images, and accuracy, balanced accuracy, macro
        F1 (over the classes with images) and CLIPScore, each with its 95 % interval: Wilson's for the accuracy, the
        percentile bootstrap over the images for the others, None for a single image; and the confusion, a row for
        each class with images.

    Raises:
        GalleryError: the folder is not a gallery, an image is missing or damaged, or no subject has a class.
        ModelError: see `Clip`.
    """
    from PIL import Image, UnidentifiedImageError

    gallery = read_gallery(folder)
    classes = list(gallery["classes"])
    known = [subject for subject in gallery["subjects"] if subject["class"] is not None]
    if not known:
        raise GalleryError(f"no subject of {folder} has a class to compare with; name sound files as CLASS=FILE")
    clip = Clip(settings)
    names = clip.of_texts([clean_name(name) for name in classes])
    columns = {}
    for column in gallery["columns"]:
        shown = [subject for subject in known if column in subject["pictures"]]
        if not shown:
            continue
        pictures = []
        for subject in shown:
            path = folder / subject["pictures"][column]
            try:
                with Image.open(path) as picture:
                    pictures.append(picture.convert("RGB"))
            except (UnidentifiedImageError, OSError) as error:
                raise GalleryError(f"the image {path} cannot be read: {error}; generate the images again") from error
        truth = np.array([classes.index(subject["class"]) for subject in shown], dtype=np.int64)
        predicted = (clip.of_pictures(pictures) @ names.T).argmax(dim=1).numpy()
        scores = clip.scores(pictures, [clean_name(subject["class"]) for subject in shown])
        columns[column] = _figures(truth, predicted, scores, classes)
    result = {"clip": clip.name, "classes": classes, "confidence": CONFIDENCE, "columns": columns}
    write_json(folder / "evaluation.json", result)
    return result


def _figures(
    truth: IntArray, predicted: IntArray, scores: NDArray[np.float64], classes: Sequence[str]
) -> dict[str, Any]:
    """The figures of one column; see `evaluate`."""
    from scipy.stats import binomtest
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

    def balanced(true: IntArray, guess: IntArray) -> float:
        return float(balanced_accuracy_score(true, guess))

    def macro_f1(true: IntArray, guess: IntArray) -> float:
        return float(f1_score(true, guess, labels=np.unique(true), average="macro", zero_division=0))

    wilson = binomtest(int((truth == predicted).sum()), len(truth)).proportion_ci(CONFIDENCE, method="wilson")
    present = np.unique(truth)
    counts = confusion_matrix(truth, predicted, labels=np.arange(len(classes)))
    with warnings.catch_warnings():
        # scikit-learn warns of predicted classes without images, which rightly count as errors, and of small samples.
        warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
        return {
            "pictures": len(truth),
            "accuracy": {"value": float(accuracy_score(truth, predicted)), "interval": [wilson.low, wilson.high]},
            "balanced_accuracy": _with_interval(balanced, truth, predicted),
            "macro_f1": _with_interval(macro_f1, truth, predicted),
            "clip_score": _with_interval(lambda values: float(values.mean()), scores),
            "confusion": {
                classes[label]: {classes[k]: int(count) for k, count in enumerate(counts[label]) if count}
                for label in present
            },
        }


def _with_interval(statistic: Callable[..., float], *data: NDArray[Any]) -> dict[str, Any]:
    """A figure and its bootstrap interval, with a fixed seed."""
    from scipy.stats import bootstrap

    value = statistic(*data)
    if len(data[0]) < 2:
        return {"value": value, "interval": None}
    interval = bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        paired=len(data) > 1,
        vectorized=False,
        rng=numpy_generator("bootstrap of pictures"),
    ).confidence_interval
    return {"value": value, "interval": [float(interval.low), float(interval.high)]}


def _pooled(output: Any) -> Tensor:
    """The features that transformers returns: a tensor up to version 4, an object with a tensor since version 5."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
