"""The limits that a site's owner sets for every run; the message handler applies them to the settings of a message.

A deployed site does not trust the server. A message only determines *how* to train. The node's own configuration
(`NodeConfig`) determines which files are read, where files are written and which code runs, and limits the time, the
number of epochs and the smallest number of clips of an average.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fed_a2v.config.plugins import UntrustedCodeError, refuse_code
from fed_a2v.config.schema import Settings
from fed_a2v.config.sections.base import Section
from fed_a2v.config.sections.data import (
    DatasetSettings,
    EncoderSettings,
    TargetSettings,
    TextModelSettings,
    place_key,
    targets_in_file,
)
from fed_a2v.config.sections.federation import ShareSettings
from fed_a2v.data.errors import DataError
from fed_a2v.data.site import LabelledClips, SiteData, labelled_rows
from fed_a2v.federation.client.node_config import NodeConfig, NodeConfigError

# A repository of the Hugging Face hub: OWNER/NAME, or NAME alone.
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


class PolicyViolationError(ValueError):
    """A run requests more than the site's owner allows."""


def settings_here(requested: Settings, own: NodeConfig, deployed: bool) -> Settings:
    """The settings that this node uses for a run.

    Args:
        requested: the settings that the server sent.
        own: the node's configuration; it has precedence.
        deployed: the node is on its own machine: paths in `requested` are removed or refused, and so is code to run.

    Raises:
        PolicyViolationError: the run requests more than the owner allows.
        NodeConfigError: the node's configuration lacks something that the run needs.
    """
    check_averages(requested.share, own.min_clips or 0)
    if own.require_secure_sums and not requested.has_secure_sums:
        raise PolicyViolationError(
            "this site sends statistics of its clips only as sums that are hidden in a total (require-secure-sums in "
            f"its node configuration), the run has share={requested.share.kind} and "
            f"secure_sums={requested.secure_sums.name}; set share=statistics and secure_sums=secagg"
        )
    if own.max_epochs is not None and requested.site.epochs > own.max_epochs:
        raise PolicyViolationError(
            f"this site trains at most max-epochs={own.max_epochs} epochs in a round, the run requests "
            f"site.epochs={requested.site.epochs}"
        )
    changes: dict[str, Any] = {}
    if own.device:
        changes["device"] = own.device
    if own.max_threads:
        changes["threads"] = min(requested.threads, own.max_threads)
    if own.cache_dir:
        changes["cache_dir"] = own.cache_dir
    if own.dataset:
        changes["dataset"] = _with_kind(requested.dataset, own.dataset)
    if own.encoder_model:
        changes["encoder"] = requested.encoder.model_copy(update={"model": own.encoder_model, "revision": None})
    if own.targets:
        changes["targets"] = targets_in_file(own.targets)
    here = requested.model_copy(update=changes)
    if not deployed:
        return here
    # From here on: no path of the server, because it could refer to a file of this machine.
    dataset = here.dataset
    if own.data_dir is None and any(place_key(part.name) for part in (dataset, *dataset.sets)):
        raise NodeConfigError(
            f"this node's configuration lacks data-dir, the folder of its data for dataset={dataset.name}: a site uses "
            "no folder that the server names"
        )
    _check_code({"dataset": dataset, "encoder": here.encoder}, own.allow_code or "")
    if not own.encoder_model and here.encoder.model is not None:
        _check_repository("encoder", here.encoder, "encoder-model")
    if not own.targets:
        _check_targets(here.targets)
    return here.model_copy(update={"dataset": _without_dataset_paths(dataset)})


def check_averages(share: ShareSettings, min_clips: int) -> None:
    """Check that every average that a run requests is over at least `min_clips` clips.

    Args:
        share: the section `share` of the run's settings.
        min_clips: smallest number of clips of an average that the site's owner allows; 0: no limit.

    Raises:
        PolicyViolationError: averages may be over fewer clips; the message gives both numbers.
    """
    fewest = 1 if share.kind == "samples" else share.min_clips
    if fewest < min_clips:
        raise PolicyViolationError(
            f"this site sends averages of at least {min_clips} clips (min-clips in its node configuration), "
            f"share={share.kind} with share.min_clips={share.min_clips} requests averages of {fewest}; raise "
            "share.min_clips"
        )


def check_privacy(requested: Settings, own: NodeConfig, deployed: bool, task: str) -> None:
    """Check that nothing but noisy sums leaves a site if the run, or the site's owner, asks for differential privacy.

    Args:
        requested: the settings that the server sent.
        own: the node's configuration.
        deployed: the node is on its own machine.
        task: task of the message.

    Raises:
        PolicyViolationError: the message requests more.
        NodeConfigError: the node's configuration has no privacy ledger.
    """
    if not requested.privacy.adds_noise:
        if own.max_epsilon is not None:
            raise PolicyViolationError(
                f"this site sends noisy sums only (max-epsilon={own.max_epsilon:g} in its node configuration), and the "
                "run has privacy=none: choose privacy=dp"
            )
        return
    if task == "register":
        raise PolicyViolationError("the task register asks for averages without noise, and the run has privacy=dp")
    if not deployed:
        return
    if own.privacy_ledger is None:
        raise NodeConfigError(
            "this node's configuration lacks privacy-ledger, a folder of the site, which runs with privacy=dp need"
        )
    if task == "evaluate" and not (own.allow_scores and requested.privacy.scores):
        raise PolicyViolationError(
            "counts of right test clips carry no noise, and this site sends them only with allow-scores=true in its "
            f"node configuration and privacy.scores=true, which is {str(requested.privacy.scores).lower()}: set "
            "privacy.scores=false"
        )


def check_noise_sites(own: NodeConfig, sites: int) -> None:
    """Check that the owner allows the noise of a run to be shared among so many sites.

    Raises:
        PolicyViolationError: the owner allows fewer.
    """
    if sites > (own.noise_sites or 1):
        raise PolicyViolationError(
            f"the run shares the noise among {sites} sites, this site among at most noise-sites={own.noise_sites or 1} "
            "in its node configuration: choose secure_sums=none, with which each site adds all noise, or ask its owner"
        )


def of_enough_clips(data: SiteData, min_clips: int) -> SiteData:
    """A site's clips without the classes that have fewer than `min_clips`, so that no reply depends on these classes.

    Training, validation and test clips are counted separately.

    Raises:
        PolicyViolationError: no training clip remains.
    """
    kept = replace(
        data,
        train=_large_classes(data.train, min_clips),
        validation=_large_classes(data.validation, min_clips),
        test=_large_classes(data.test, min_clips),
    )
    if not len(kept.train):
        raise PolicyViolationError(
            f"no class of this site has min-clips={min_clips} training clips; add clips, or lower min-clips"
        )
    return kept


def _large_classes(clips: LabelledClips, min_clips: int) -> LabelledClips:
    if not len(clips):
        return clips
    return labelled_rows(clips, (clips.labels.bincount()[clips.labels] >= min_clips).nonzero().flatten())


def _without_dataset_paths(dataset: DatasetSettings) -> DatasetSettings:
    # The name of a file of embeddings remains, because data-dir may be a folder with several such files.
    name = Path(dataset.path or "").name
    changes = {"root": None, "path": name if name not in ("", "..") else None}
    return dataset.model_copy(update=changes | {"sets": [_without_dataset_paths(part) for part in dataset.sets]})


def _check_code(sections: Mapping[str, Section], allowed: str) -> None:
    """Check that the owner allows all custom classes in sections, and that their arguments contain no path."""
    values = {key: section.model_dump(by_alias=True) for key, section in sections.items()}
    try:
        remedy = "this site only executes the classes in allow-code of its node configuration"
        refuse_code(values, "the run", remedy, frozenset(allowed.split()))
    except UntrustedCodeError as error:
        raise PolicyViolationError(str(error)) from None
    for key, value in _strings(values):
        if ".arguments" in key and _may_be_path(value):
            raise PolicyViolationError(
                f"the run passes the path {key}={value!r:.80} to a custom class: a site uses no path that the server "
                "names"
            )


def _may_be_path(text: str) -> bool:
    """Whether a string may refer to a file or folder of this machine; OWNER/NAME of a repository does not."""
    if text.startswith(("/", "~", ".", "file:")) or "\\" in text or ".." in text.split("/"):
        return True
    try:
        return "/" in text and Path(text).exists()
    except (OSError, ValueError):  # too long for a path, or contains a zero byte
        return True


def _strings(value: Any, key: str = "") -> list[tuple[str, str]]:
    """All strings in nested values, keys included, each with its dotted key."""
    if isinstance(value, str):
        return [(key, value)]
    if isinstance(value, Mapping):
        paths = ((name, f"{key}.{name}" if key else str(name)) for name in value)
        return [text for name, path in paths for text in [(path, str(name)), *_strings(value[name], path)]]
    if isinstance(value, list | tuple):
        return [text for index, part in enumerate(value) for text in _strings(part, f"{key}[{index}]")]
    return []


def _check_targets(targets: TargetSettings) -> None:
    for key in ("path", "captions"):
        if getattr(targets, key) is not None:
            raise NodeConfigError(
                f"the run names a file in targets.{key}, and a site uses no file that the server names; set "
                "targets=FILE.npz in the configuration of this node (`fed-a2v targets` writes such a file)"
            )
    for key, model in (("targets.clip", targets.clip), ("targets.t5", targets.t5)):
        if model is not None:
            _check_repository(key, model, "targets")


def _check_repository(key: str, model: EncoderSettings | TextModelSettings, remedy: str) -> None:
    """Check that a model is a repository of the hub, and that no part of its name may be a path on this machine."""
    for name in ("model", "revision", "subfolder"):
        value = getattr(model, name, None)
        if value and (not REPOSITORY.fullmatch(value) or (name == "model" and Path(value).exists())):
            raise NodeConfigError(
                f"the run has {key}.{name}={value!r:.80}, which is not from the Hugging Face hub, and a site uses no "
                f"folder that the server names; set {remedy} in the configuration of this node"
            )


def _with_kind(dataset: DatasetSettings, kind: str) -> DatasetSettings:
    """The settings changed to the kind of data set of this node."""
    try:
        return DatasetSettings.model_validate(dataset.model_dump() | {"name": kind})
    except ValidationError as error:
        raise DataError(f"dataset={kind} in this node's configuration: {error.errors()[0]['msg']}") from error
