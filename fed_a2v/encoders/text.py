"""Class prompts: the prompt embedding of each class, which the adapters learn to produce from audio embeddings.

`federation.factory.prompt_set` calls `load_targets` for the server, the sites and `fed-a2v targets`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fed_a2v.config.sections.data import TargetSettings
from fed_a2v.core.names import clean_name
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.encoders.captions import CaptionsError, read_captions
from fed_a2v.errors import UserError
from fed_a2v.storage.array_cache import Arrays, cache_key, cached
from fed_a2v.storage.npz import Array, ArrayFileError, as_floats, as_names, read_arrays

if TYPE_CHECKING:
    from torch import Tensor

    from fed_a2v.core.adapters import ClassPrompts

logger = logging.getLogger("fed_a2v")

CLIP_WIDTH = 768
# Mean cosine similarity between the CLIP ViT-B/32 text vectors of ESC-50's classes.
MEAN_COSINE = 0.8


class TargetsError(UserError, ValueError):
    """The class prompts cannot be used: classes are missing, or the shapes do not match the adapters."""


def load_targets(
    settings: TargetSettings,
    names: Sequence[str],
    clip_shape: tuple[int, int | None],
    t5_shape: tuple[int, int] | None,
    cache: Path | None = None,
) -> ClassPrompts:
    """The class prompts of the classes `names`; names are compared after `clean_name`.

    Args:
        settings: `random`, `file` with a path, or text models.
        names: the C classes.
        clip_shape: (Tc, Dc); Dc None: the width of the file or model, or 768 for random prompts. With CLIP's text
            model, Tc = 1 is the pooled output (for FLUX), and Tc > 1 the last hidden state (for Stable Diffusion).
        t5_shape: (T, Dt), or None without a T5 adapter.
        cache: folder that caches the output of the text models; None: do not cache.

    Raises:
        TargetsError: two names are the same class, the file is unreadable or lacks a class, or a shape does not match.
        ModelError: a text model is missing or of another type, or its packages are not installed.
        OSError: the cache cannot be written.
    """
    _distinct(names, "the list of classes")
    if settings.name == "random":
        tokens, width = clip_shape
        clip = _random_prompts(tuple(names), "clip", (tokens, width or CLIP_WIDTH))
        t5 = None if t5_shape is None else _random_prompts(tuple(names), "t5", t5_shape)
        return _prompts(names, clip, t5)
    if settings.name == "file":
        assert settings.path is not None  # checked by the settings
        return _from_file(settings.path, names, clip_shape, t5_shape)
    prompts = class_prompts(settings, names)
    return _prompts(
        names,
        _by_model("clip", settings, prompts, clip_shape, cache),
        None if t5_shape is None else _by_model("t5", settings, prompts, t5_shape, cache),
    )


def class_prompts(settings: TargetSettings, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts that describe each class: its captions if the file has any, else its name in the templates.

    Raises:
        TargetsError: the captions file cannot be used.
    """
    captions: dict[str, list[str]] = {}
    if settings.captions is not None:
        try:
            for category, caption in read_captions(settings.captions):
                captions.setdefault(clean_name(category), []).append(caption)
        except CaptionsError as error:
            raise TargetsError(f"targets.captions: {error}") from error
    templates = settings.templates or ["{}"]
    words = [clean_name(name) for name in names]
    return [tuple(captions.get(name) or (template.replace("{}", name) for template in templates)) for name in words]


def _by_model(
    kind: Literal["clip", "t5"],
    settings: TargetSettings,
    prompts: Sequence[tuple[str, ...]],
    shape: tuple[int, int | None],
    cache: Path | None,
) -> Tensor:
    """(C, *shape): for each class the mean of the text model's output over the class's prompts."""
    from fed_a2v.encoders.text_models import TextModel

    chosen = settings.clip if kind == "clip" else settings.t5
    assert chosen is not None  # checked by the settings
    tokens, width = shape
    model = TextModel(kind, chosen, settings.device or "auto")

    def compute() -> Arrays:
        logger.info("Embedding the prompts of %d classes with %s", len(prompts), chosen.model)
        truncated = model.too_long([prompt for texts in prompts for prompt in texts], tokens)
        if truncated:
            logger.warning(
                "%d prompts are longer than the %s prompt's %d tokens and are truncated, e.g. %r",
                len(truncated),
                kind,
                tokens,
                truncated[0],
            )
        return {"vectors": np.stack([model.embed(texts, tokens).mean(axis=0) for texts in prompts])}

    key = cache_key("targets-1", model.version_key(), tokens, tuple(prompts))
    vectors = compute()["vectors"] if cache is None else cached(cache / "targets", key, compute)["vectors"]
    if width not in (None, vectors.shape[-1]):
        raise TargetsError(
            f"{chosen.model} has width {vectors.shape[-1]}, but adapters.{kind}_width is {width}; "
            f"set adapters.{kind}_width={vectors.shape[-1]}"
        )
    return _tensor(vectors)


# All sites of a process use the same ones, in every round.
@lru_cache(maxsize=8)
def _random_prompts(names: tuple[str, ...], kind: str, shape: tuple[int, int]) -> Tensor:
    """Normal vectors, seeded by each class's name, as (C, *shape): without meaning, but fixed and distinct.

    All have a common component, so that the mean cosine similarity between two classes is that of CLIP's text
    vectors. The elements have variance 1.
    """
    # The word "anchors" only seeds the draw; another word would change the vectors.
    shared = numpy_generator("anchors", kind).standard_normal(shape, dtype=np.float32)
    own = np.stack(
        [numpy_generator("anchors", kind, clean_name(name)).standard_normal(shape, dtype=np.float32) for name in names]
    )
    vectors = np.sqrt(MEAN_COSINE) * shared + np.sqrt(1 - MEAN_COSINE) * own
    return _tensor(vectors.astype(np.float32))


def _from_file(
    path: str, names: Sequence[str], clip_shape: tuple[int, int | None], t5_shape: tuple[int, int] | None
) -> ClassPrompts:
    try:
        arrays = read_arrays(path, ("category", "vectors"), ("t5_vectors",))
        known = as_names(arrays["category"], f"category of {path}")
        _distinct(known, f"category of {path}")
        row_of = {clean_name(name): row for row, name in enumerate(known)}
        if missing := [name for name in names if clean_name(name) not in row_of]:
            raise TargetsError(
                f"{path} has no vector for {len(missing)} of {len(names)} classes: {', '.join(missing)}; "
                "add them to the file, or keep only the others with dataset.classes=[...]"
            )
        rows = [row_of[clean_name(name)] for name in names]
        clip = _tokens(path, "vectors", arrays["vectors"], len(known), clip_shape, "adapters.clip")[rows]
        t5 = None
        if t5_shape is not None:
            if "t5_vectors" not in arrays:
                raise TargetsError(
                    f"{path} has no t5_vectors, which adapters.t5_tokens={t5_shape[0]} needs; "
                    "add them to the file, or choose adapters without T5 (adapters=compact)"
                )
            t5 = _tokens(path, "t5_vectors", arrays["t5_vectors"], len(known), t5_shape, "adapters.t5")[rows]
    except ArrayFileError as error:
        raise TargetsError(f"targets.path: {error}") from error
    for kind, tensor in (("vectors", clip), ("t5_vectors", t5)):
        if tensor is not None and not tensor.isfinite().all():
            bad = int((~tensor.isfinite().flatten(1).all(1)).nonzero()[0])
            raise TargetsError(f"{path}: {kind} of {names[bad]!r} contains NaN or infinite numbers; compute it again")
    return _prompts(names, clip, t5)


def _tokens(
    path: str,
    name: str,
    values: Array,
    count: int,
    shape: tuple[int, int | None],
    key: str,
) -> Tensor:
    """`values` as (count, tokens, width), checked against `shape`, the settings KEY_tokens and KEY_width."""
    array = as_floats(values, f"{name} of {path}", (2, 3))
    if len(array) != count:
        raise TargetsError(f"{path}: {len(array)} {name} for {count} names in category")
    array = array[:, None] if array.ndim == 2 else array
    tokens, width = shape
    if array.shape[1] != tokens:
        raise TargetsError(
            f"{path}: {name} has {array.shape[1]} token(s) per class, but {key}_tokens is {tokens}; "
            f"store {name} with the shape (classes, {tokens}, width), or set {key}_tokens={array.shape[1]}"
        )
    if width is not None and array.shape[2] != width:
        raise TargetsError(
            f"{path}: {name} has width {array.shape[2]}, but {key}_width is {width}; set {key}_width={array.shape[2]}"
        )
    return _tensor(array)


def _distinct(names: Sequence[str], where: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        cleaned = clean_name(name)
        if not cleaned:
            raise TargetsError(f"{where} has the name {name!r}, which contains no word; rename the class")
        if cleaned in seen:
            raise TargetsError(f"{where} lists a class twice: {seen[cleaned]!r} and {name!r}; keep one of them")
        seen[cleaned] = name
    if not seen:
        raise TargetsError(f"{where} is empty; it needs at least one class")


def _prompts(names: Sequence[str], clip: Tensor, t5: Tensor | None) -> ClassPrompts:
    from fed_a2v.core.adapters import ClassPrompts  # it imports torch: see `_tensor`

    return ClassPrompts(tuple(names), clip, t5)


def _tensor(array: Array) -> Tensor:
    # Imported here because it takes a second, which callers such as `fed-a2v embed` do not need.
    import torch

    return torch.from_numpy(array)
