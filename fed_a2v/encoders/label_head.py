"""The public directions of which the public space of `share=statistics` is made: a label head, text vectors, a matrix.

The server calls it before any site sends anything; see `fed_a2v.core.public_space`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fed_a2v.config.sections.data import DatasetSettings, EncoderSettings, ProjectionSettings
from fed_a2v.encoders.ast import ASTEncoder
from fed_a2v.encoders.clap import ClapEncoder
from fed_a2v.errors import ConfigError
from fed_a2v.storage.npz import Array, ArrayFileError, read_arrays

WEIGHT, MATRIX = "weight", "matrix"
# The entry of a file of embeddings with the weight of its encoder's label head.
HEAD = "head"


def head_weight(
    path: str | None, dataset: DatasetSettings, encoder: EncoderSettings, section: str = "projection"
) -> Tensor:
    """(K, Da) float32 weight of a head with K labels.

    Args:
        path: npz file of the head; None: the entry `head` of a file of embeddings, else the encoder's own.
        dataset: the data set.
        encoder: the encoder of its clips.
        section: section of the settings that has the path, for messages: "projection" or "prior".

    Raises:
        ConfigError: the file has no such array, or the encoder has no label head.
        ModelError: the encoder's model is missing, or has no classifier.
    """
    if path is not None:
        return _read(path, WEIGHT, f"{section}.path")
    if dataset.name == "embeddings" and dataset.path and Path(dataset.path).expanduser().is_file():
        found = _arrays(dataset.path, "dataset.path", (), (HEAD,))
        if HEAD in found:
            return _floats(found[HEAD], f"dataset.path={dataset.path}: {HEAD}")
    if encoder.name == ASTEncoder.name:
        return ASTEncoder.label_weight(encoder)
    raise ConfigError(
        f"{section}: encoder={encoder.name} with dataset={dataset.name} has no label head; set {section}.path to an "
        f"npz file with its {WEIGHT}, add the array {HEAD} to the file of embeddings, or choose "
        + ("prior=none" if section == "prior" else "projection=random")
    )


def text_vectors(projection: ProjectionSettings, encoder: EncoderSettings, classes: Sequence[str]) -> Tensor:
    """(K, Da) float32 vectors of the texts of `projection.texts`, else of the class names.

    Raises:
        ConfigError: the encoder has no text model, or the file has no text.
        ModelError: the encoder's model is missing or of another type.
    """
    if encoder.name != ClapEncoder.name:
        raise ConfigError(
            f"projection=text needs encoder=clap, whose sounds and texts share a space, not encoder={encoder.name}; "
            "choose projection=head or projection=random"
        )
    texts = list(classes)
    if projection.texts is not None:
        try:
            lines = Path(projection.texts).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"projection.texts={projection.texts} cannot be read: {error}") from error
        texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(texts) < 2:
        raise ConfigError(f"projection.texts={projection.texts}: {len(texts)} texts; give at least two")
    return ClapEncoder.text_vectors(encoder, texts)


def given_matrix(path: str) -> Tensor:
    """(Da, K) float32 matrix of an npy file, or of an npz file with the array `matrix`.

    Raises:
        ConfigError: the file has no matrix of numbers.
    """
    if Path(path).suffix != ".npy":
        return _read(path, MATRIX, "projection.path")
    try:
        return _floats(np.load(Path(path).expanduser(), allow_pickle=False), f"projection.path={path}")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"projection.path={path} is not a readable .npy of numbers: {error}") from error


def _read(path: str, name: str, key: str) -> Tensor:
    return _floats(_arrays(path, key, (name,), ())[name], f"{key}={path}: {name}")


def _arrays(path: str, key: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Array]:
    try:
        return read_arrays(path, required, optional)
    except (ArrayFileError, OSError) as error:
        raise ConfigError(f"{key}: {error}") from error


def _floats(values: Array, what: str) -> Tensor:
    if values.ndim != 2 or values.dtype.kind != "f" or not values.size:
        raise ConfigError(f"{what} is {values.dtype} {values.shape}, expected floats in two dimensions")
    return torch.from_numpy(values.astype(np.float32))
