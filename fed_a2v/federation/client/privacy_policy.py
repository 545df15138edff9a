"""What a site's owner allows, whatever a run asks for.

To a site on a machine of its own the server is a stranger. A message may say *how* to train, and no more: which files
are read, where anything is written and which code runs is the node's own configuration (`NodeConfig`), and how long,
how often and on how few clips it works has limits there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fed_a2v.config.plugins import UntrustedCodeError, refuse_code
from fed_a2v.config.schema import (
    DatasetSettings,
    EncoderSettings,
    Settings,
    ShareSettings,
    TargetSettings,
    TextModelSettings,
    targets_in_file,
)
from fed_a2v.data.errors import DataError
from fed_a2v.data.site import LabelledClips, SiteData, labelled_rows
from fed_a2v.federation.client.node_config import NodeConfig, NodeConfigError

# Repositories of the Hugging Face hub: OWNER/NAME, or NAME alone.
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


class PolicyViolationError(ValueError):
    """A run asks a site for more than its owner allows."""


def settings_here(asked: Settings, own: NodeConfig, deployed: bool) -> Settings:
    """The run's settings as this node works with them.

    Args:
        asked: what the server has sent.
        own: what only this node knows; it wins.
        deployed: the node is on a machine of its own: nothing in `asked` may name a place there, or code to run.

    Raises:
        PolicyViolationError: the run asks for more than the owner allows.
        NodeConfigError: the run needs something that the node's configuration lacks.
    """
    check_averages(asked.share, own.min_clips or 0)
    if own.max_epochs is not None and asked.site.epochs > own.max_epochs:
        raise PolicyViolationError(
            f"this site trains max-epochs={own.max_epochs} epochs a round, the run asks for "
            f"site.epochs={asked.site.epochs}"
        )
    changes: dict[str, Any] = {}
    if own.device:
        changes["device"] = own.device
    if own.max_threads:
        changes["threads"] = min(asked.threads, own.max_threads)
    if own.cache_dir:
        changes["cache_dir"] = own.cache_dir
    if own.dataset:
        changes["dataset"] = _of_kind(asked.dataset, own.dataset)
    if own.encoder_model:
        changes["encoder"] = asked.encoder.model_copy(update={"model": own.encoder_model, "revision": None})
    if own.targets:
        changes["targets"] = targets_in_file(own.targets)
    here = asked.model_copy(update=changes)
    return _without_places(here, own) if deployed else here


def check_averages(share: ShareSettings, least: int) -> None:
    """Check that every average that the settings ask for is one of `least` clips or more.

    Args:
        share: what the run asks for.
        least: clips behind every average, by the owner's word; 0: whatever the run asks for.

    Raises:
        PolicyViolationError: names both numbers.
    """
    asked = 1 if share.kind == "samples" else share.min_clips
    if asked < least:
        raise PolicyViolationError(
            f"this site gives averages of {least} clips or more (min-clips in its node configuration), "
            f"share={share.kind} with share.min_clips={share.min_clips} asks for {asked}; raise share.min_clips"
        )


def of_enough_clips(data: SiteData, least: int) -> SiteData:
    """A site's clips without the classes that have fewer than `least`: nothing is learned from them, and nothing said.

    Clips for training, for validation and for the test are counted separately.

    Raises:
        PolicyViolationError: no clip for training is left.
    """
    kept = replace(
        data,
        train=_enough(data.train, least),
        validation=_enough(data.validation, least),
        test=_enough(data.test, least),
    )
    if not len(kept.train):
        raise PolicyViolationError(
            f"no class of this site has min-clips={least} clips for training: it has nothing to give"
        )
    return kept


def _enough(clips: LabelledClips, least: int) -> LabelledClips:
    if not len(clips):
        return clips
    return labelled_rows(clips, (clips.labels.bincount()[clips.labels] >= least).nonzero().flatten())


def _without_places(settings: Settings, own: NodeConfig) -> Settings:
    """The settings without the places that the server has named, which would mean files of this machine."""
    dataset = settings.dataset
    if own.data_dir is None and any(part.name != "synth" for part in dataset.sets or [dataset]):
        raise NodeConfigError(
            f"this node's configuration lacks data-dir, the place of its data for dataset={dataset.name}: a site takes "
            "no folder from the server"
        )
    _check_code(settings, own)
    if not own.encoder_model and settings.encoder.model is not None:
        _check_repository("encoder", settings.encoder, "encoder-model")
    if not own.targets:
        _check_targets(settings.targets)
    return settings.model_copy(update={"dataset": _placeless(dataset)})


def _placeless(dataset: DatasetSettings) -> DatasetSettings:
    # Of a file of embeddings the name stays: where data-dir is a folder of several, the run says which.
    name = Path(dataset.path or "").name
    changes = {"root": None, "path": name if name not in ("", "..") else None}
    return dataset.model_copy(update=changes | {"sets": [_placeless(part) for part in dataset.sets]})


def _check_code(settings: Settings, own: NodeConfig) -> None:
    """Check that the settings name no class to be executed that the owner has not allowed, and hand it no path."""
    sections = {key: getattr(settings, key).model_dump(by_alias=True) for key in ("dataset", "encoder")}
    allowed = frozenset((own.allow_code or "").split())
    try:
        refuse_code(sections, "the run", "this site executes what allow-code in its node configuration names", allowed)
    except UntrustedCodeError as error:
        raise PolicyViolationError(str(error)) from None
    for key, value in _texts(sections):
        if ".arguments" in key and _is_place(value):
            raise PolicyViolationError(f"the run hands its own class the path {key}={value!r:.80}: a site takes none")


def _is_place(text: str) -> bool:
    """Whether a text may mean a file or folder of this machine; the name of a repository, OWNER/NAME, does not."""
    if text.startswith(("/", "~", ".", "file:")) or "\\" in text or ".." in text.split("/"):
        return True
    try:
        return "/" in text and Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return True


def _texts(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Every text in nested values, with its dotted key."""
    if isinstance(value, str):
        return [(key, value)]
    if isinstance(value, Mapping):
        places = ((name, f"{key}.{name}" if key else str(name)) for name in value)
        return [text for name, place in places for text in [(place, str(name)), *_texts(value[name], place)]]
    if isinstance(value, list | tuple):
        return [text for place, part in enumerate(value) for text in _texts(part, f"{key}[{place}]")]
    return []


def _check_targets(targets: TargetSettings) -> None:
    for key in ("path", "captions"):
        if getattr(targets, key) is not None:
            raise NodeConfigError(
                f"the run names a file in targets.{key}: a site takes none from the server; give this node its own "
                "(targets=FILE.npz in its configuration, as `fed-a2v targets` writes it)"
            )
    for key, model in (("targets.clip", targets.clip), ("targets.t5", targets.t5)):
        if model is not None:
            _check_repository(key, model, "targets")


def _check_repository(key: str, given: EncoderSettings | TextModelSettings, remedy: str) -> None:
    """Check that a model is one of the hub, and no folder of this machine, nor leads to one."""
    for name in ("model", "revision", "subfolder"):
        value = getattr(given, name, None)
        if value and (not REPOSITORY.fullmatch(value) or (name == "model" and Path(value).exists())):
            raise NodeConfigError(
                f"the run names {key}.{name}={value!r:.80}, which is none of the Hugging Face hub's: a site takes no "
                f"folder from the server; name this node's own with {remedy} in its configuration"
            )


def _of_kind(dataset: DatasetSettings, kind: str) -> DatasetSettings:
    """The settings for another kind of data set, which this node has."""
    try:
        return DatasetSettings.model_validate(dataset.model_dump() | {"name": kind})
    except ValidationError as error:
        raise DataError(f"dataset={kind} in this node's configuration: {error.errors()[0]['msg']}") from error
