"""Where a run starts: at round 1, or after the last finished round of an earlier start; or nowhere if it is finished.

Called by the trainer before it writes to the run's folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.encoders.text import TargetsError
from fed_a2v.federation.protocol.prompt_check import check_same_prompts, fingerprint
from fed_a2v.runs.checkpoint import check_same_experiment, load_state, read_state
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.same_data import check_same_data
from fed_a2v.storage.files import append_jsonl, write_bytes
from fed_a2v.storage.torch_files import CheckpointError
from fed_a2v.storage.untrusted import read_json

log = logging.getLogger("fed_a2v")


@dataclass(frozen=True)
class SavedRun:
    """A run to resume: its state, and its folder, which may differ from that of the new run.

    Attributes:
        folder: folder of the earlier start.
        state: saved state, `{"round", "config", "components"}`.
    """

    folder: RunFolder
    state: Mapping[str, Any]


def finished_results(resume: str, config: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """The results of the run with these settings if it is finished, else {}.

    A finished run is not changed, and its data need not exist any more.

    Args:
        resume: the setting `resume`.
        config: all settings as plain values.
        folder: folder of the run.
    """
    here = resume == "auto" or (resume != "never" and _path(resume) == folder.path)
    if not here or not folder.results.is_file():
        return {}
    saved = folder.read_config()
    try:
        check_same_experiment(saved, {**config, "rounds": saved.get("rounds")})
    except CheckpointError:  # raised by `find_saved_run`, which also checks the state
        return {}
    return folder.read_results() if saved.get("rounds") == config["rounds"] else {}


def find_saved_run(resume: str, config: Mapping[str, Any], folder: RunFolder) -> SavedRun | None:
    """The run to resume; None if a new one starts.

    Args:
        resume: the setting `resume`.
        config: all settings as plain values.
        folder: folder of the run.

    Raises:
        FileNotFoundError: `resume` names a run that has no saved state.
        CheckpointError: the state is damaged or has other settings, or a finished run would be overwritten.
    """
    if resume == "never":
        return None
    path = folder.path if resume == "auto" else _path(resume)
    source = RunFolder(path.parents[1] if path.is_file() else path)
    rows, trouble = source.whole_rows()
    state = read_state(path) if path.is_file() else load_state(path)
    if state is None:
        if resume != "auto":
            raise FileNotFoundError(f"resume={resume}: no saved state in {path / 'checkpoints'}")
        if folder.results.is_file():
            raise CheckpointError(
                f"{folder.path} contains a finished run without a saved state to resume from: use another folder, or "
                "overwrite it with resume=never"
            )
        if rows:
            log.warning("No saved state in %s: its %d rounds are repeated", path / "checkpoints", len(rows))
        return None
    if state["round"] > len(rows):
        earlier = None if path.is_file() else load_state(path, len(rows))
        if earlier is None:
            raise CheckpointError(
                f"{trouble}, and the state to resume from is that of round {state['round']}: restore the file, "
                "or start again with resume=never or in another folder"
            )
        log.warning("%s: resuming after round %d", trouble, earlier["round"])
        state = earlier
    for difference in check_same_experiment(state["config"], config):
        log.info("Resuming with another %s", difference)
    if source.path != folder.path:  # in a new folder it is a new run at W&B, with all rounds
        state["components"]["callbacks"] = {}
    return SavedRun(source, state)


def take_over(saved: SavedRun, folder: RunFolder) -> None:
    """Copy the rows, the figures and the map of a run in another folder."""
    if saved.folder.path == folder.path:
        return
    folder.metrics.unlink(missing_ok=True)
    for row in saved.folder.whole_rows()[0]:
        append_jsonl(folder.metrics, row)
    for old, new in ((saved.folder.evaluation, folder.evaluation), (saved.folder.map, folder.map)):
        if old.is_file():
            write_bytes(new, old.read_bytes())


def check_unchanged(
    saved: SavedRun, prompts: ClassPrompts, partition: Mapping[str, Any] | None, accept_new_data: bool
) -> None:
    """Check that clips and prompts are those of the earlier start; their paths may differ.

    Raises:
        CheckpointError: they are not; the message names the difference.
    """
    if partition is not None:
        check_same_data(read_json(saved.folder.partition), partition, accept_new_data)
    if not saved.folder.targets.is_file():
        return
    earlier = saved.folder.read_targets()
    if earlier.names != prompts.names:
        if accept_new_data:
            return
        raise CheckpointError(
            f"the run to resume has the classes {', '.join(earlier.names)}, now they are {', '.join(prompts.names)}: "
            "restore the data, or start again with resume=never or in another folder"
        )
    try:
        check_same_prompts(prompts, fingerprint(earlier))
    except TargetsError as error:
        raise CheckpointError(f"the prompts are not those of the run to resume: {error}") from error


def _path(resume: str) -> Path:
    return Path(resume).expanduser().absolute()
