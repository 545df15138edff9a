"""The weights of the federation's classes in a public label head, for `prior=labels`.

Classes are tied to the head's labels by a file, by text vectors, or by name. The trainer calls it before any site sends
anything; see `fed_a2v.core.label_prior`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fed_a2v.config.sections.data import (
    DatasetSettings,
    EncoderSettings,
    PriorSettings,
    ProjectionSettings,
    TargetSettings,
)
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.core.label_prior import class_weights, ties_by_name, ties_by_text
from fed_a2v.core.names import clean_name, listed, nearest
from fed_a2v.encoders.ast import ASTEncoder
from fed_a2v.encoders.label_head import head_weight
from fed_a2v.encoders.text import load_targets
from fed_a2v.errors import ConfigError
from fed_a2v.storage.npz import ArrayFileError, as_floats, as_names, read_arrays

log = logging.getLogger("fed_a2v")

# Arrays of the file of a head: names of its labels; rows and text vectors of those labels that have one.
LABELS, INDEX, VECTORS = "labels", "label_index", "label_vectors"
# Names of the labels of the head in a file of embeddings.
OWN_LABELS = "head_labels"


def class_label_weights(
    prior: PriorSettings,
    projection: ProjectionSettings,
    dataset: DatasetSettings,
    encoder: EncoderSettings,
    targets: TargetSettings,
    prompts: ClassPrompts,
    cache: Path | None = None,
) -> Tensor:
    """(C, Da) float32 weights of the classes in the head of `prior.path`, else of the file or encoder of the clips.

    Args:
        prior, projection, dataset, encoder, targets: sections of the settings.
        prompts: the class prompts, of `targets`.
        cache: see `load_targets`.

    Raises:
        ConfigError: there is no head, its labels have no names, the file of ties cannot be used, or no class has a
            label.
        ModelError, TargetsError: the text model cannot be used.
    """
    path, section = prior.path, "prior"
    if path is None and projection.name == "head":
        path, section = projection.path, "projection"
    weight = head_weight(path, dataset, encoder, section)
    labels, vectors = _labels(path, dataset, encoder)
    if len(labels) != len(weight):
        raise ConfigError(f"prior=labels: the head has {len(weight)} labels, and names for {len(labels)}")
    struck = torch.tensor([label.startswith(tuple(prior.exclude)) for label in labels])
    how, ties = _ties(prior, targets, prompts, labels, vectors, struck, cache)
    tied = ties.sum(dim=1) > 0
    if not tied.any():
        raise ConfigError(
            f"prior=labels: no class has a label of the head by {how}; set prior.ties to a JSON file with the labels "
            "of each class"
        )
    log.info("prior=labels: %d of %d classes are tied to labels by %s", int(tied.sum()), len(tied), how)
    if not tied.all():
        missing = [name for name, has in zip(prompts.names, tied.tolist(), strict=True) if not has]
        log.warning("prior=labels: no label for %s; name them in prior.ties", listed(missing))
    return class_weights(ties, weight)


def _labels(
    path: str | None, dataset: DatasetSettings, encoder: EncoderSettings
) -> tuple[list[str], tuple[Tensor, Tensor] | None]:
    """Names of the head's labels; rows and text vectors of those that have one, if the file has any."""
    if path is None and encoder.name == ASTEncoder.name and dataset.name != "embeddings":
        return ASTEncoder.label_names(encoder), None
    place, key = (path, LABELS) if path is not None else (dataset.path, OWN_LABELS)
    try:
        arrays = read_arrays(str(place), (key,), (INDEX, VECTORS))
        names = as_names(arrays[key], f"{key} of {place}")
        if VECTORS not in arrays or INDEX not in arrays:
            return names, None
        vectors = torch.from_numpy(as_floats(arrays[VECTORS], f"{VECTORS} of {place}", (2,)))
    except (ArrayFileError, OSError) as error:
        raise ConfigError(f"prior.path: {error}") from error
    index = arrays[INDEX]
    if (
        index.shape != (len(vectors),)
        or index.dtype.kind not in "iu"
        or not ((index >= 0) & (index < len(names))).all()
    ):
        raise ConfigError(
            f"prior.path={place}: {INDEX} must have the row in {LABELS} of each of {len(vectors)} vectors"
        )
    return names, (torch.from_numpy(index.astype("int64")), vectors)


def _ties(
    prior: PriorSettings,
    targets: TargetSettings,
    prompts: ClassPrompts,
    labels: Sequence[str],
    vectors: tuple[Tensor, Tensor] | None,
    struck: Tensor,
    cache: Path | None,
) -> tuple[str, Tensor]:
    """How classes are tied to labels, and the (C, K) ties."""
    kept = (~struck).nonzero().flatten()
    ties = torch.zeros(len(prompts.names), len(labels))
    classes = prompts.clip.flatten(1).float().cpu()
    if prior.ties is not None:
        ties = _given_ties(prior, prompts.names, labels)
        ties[:, struck] = 0
        return "prior.ties", ties / ties.sum(dim=1, keepdim=True).clamp(min=1e-12)
    if targets.name in ("clip", "t5") and targets.captions is None:
        tokens, width = prompts.clip.shape[1:]
        texts = load_targets(targets, labels, (tokens, width), None, cache).clip.flatten(1)
        ties[:, kept] = ties_by_text(classes, texts[kept])
        return "text vectors", ties
    if vectors is not None and targets.name == "file" and vectors[1].shape[1] == classes.shape[1]:
        rows = ~struck[vectors[0]]
        if rows.any():
            ties[:, vectors[0][rows]] = ties_by_text(classes, vectors[1][rows])
            return "text vectors", ties
    ties[:, kept] = ties_by_name(prompts.names, [labels[row] for row in kept.tolist()])
    return "name", ties


def _given_ties(prior: PriorSettings, classes: Sequence[str], labels: Sequence[str]) -> Tensor:
    """(C, K) ones for the labels that the file names for each class, and 0 for a class that it does not name."""
    where = f"prior.ties={prior.ties}"
    try:
        given = json.loads(Path(str(prior.ties)).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read as JSON: {error}") from error
    if not isinstance(given, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in given.values()
    ):
        raise ConfigError(f"{where} must map names of classes to lists of labels")
    row_of = {clean_name(name): row for row, name in enumerate(classes)}
    column_of: dict[str, int] = {}
    for column, label in enumerate(labels):
        column_of.setdefault(label, column)
    ties = torch.zeros(len(classes), len(labels))
    for name, names in given.items():
        for label in names:
            if label not in column_of:
                near = nearest(label, column_of)
                raise ConfigError(
                    f"{where}: the head has no label {label!r}" + (f"; did you mean {near!r}?" if near else "")
                )
            if clean_name(name) in row_of:
                ties[row_of[clean_name(name)], column_of[label]] = 1
    return ties
