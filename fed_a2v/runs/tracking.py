"""Tracking a run: its folder and, beside it, Weights & Biases, which may fail without harm to the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fed_a2v.config import to_yaml
from fed_a2v.runs.files import plain
from fed_a2v.runs.folder import RunFolder
from fed_a2v.settings import Settings

logger = logging.getLogger("fed_a2v")


class Tracker:
    """Writes a run's folder and logs to W&B, from `with Tracker(...) as tracker` to the end of the block.

    ```
    with Tracker(folder, settings, partition) as tracker:
        for ...:
            tracker.log_round(row)
        tracker.finish({"accuracy": 0.86})
    ```

    Left by an exception, it writes no `results.json` and marks the W&B run as failed.

    Args:
        path: the run's folder.
        settings: saved as `config.yaml`; `settings.wandb` says how W&B is used.
        partition: which clips each site has, saved as `partition.json`; None for none.
        after_round: the last round already done, where a run is resumed; rows of later rounds are removed.
        wandb_id: id of the W&B run to go on with; None for a new one. Store `wandb_id` with the state.
        name: name of the run at W&B; default the folder's.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        partition: Any = None,
        after_round: int = 0,
        wandb_id: str | None = None,
        name: str | None = None,
    ) -> None:
        self.folder = RunFolder(path)
        self.settings = settings
        self.partition = partition
        self.after_round = after_round
        self.name = name or path.absolute().name
        self._wandb = _Wandb(wandb_id)

    @property
    def wandb_id(self) -> str | None:
        """Id of the W&B run, to resume it; None where there is none."""
        return self._wandb.id

    def __enter__(self) -> Tracker:
        self.folder.start(to_yaml(self.settings), self.partition, self.after_round)
        self._wandb.start(self.folder.path, self.settings, self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wandb.finish(exit_code=0 if kind is None else 1)

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Record one round: a row in `metrics.jsonl` and one W&B call of its numbers.

        Args:
            row: must hold `round`. NaN and infinity become null in the file and are left out at W&B, as are
                lists, dictionaries and text.
        """
        self.folder.append(row)
        self._wandb.log(row)

    def log_pictures(self, round_number: int, pictures: Mapping[str, Path]) -> None:
        """Show a round's pictures, files by name, at W&B; they are in the folder already."""
        self._wandb.log_pictures(round_number, pictures)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write `results.json` and the W&B summary."""
        self.folder.write_results(results)
        self._wandb.summarise(results)


class _Wandb:
    """One W&B run. The first error from it becomes a warning and ends its use, never the experiment's."""

    def __init__(self, run_id: str | None) -> None:
        self.id = run_id
        self._run: Any = None
        self._broken = False
        self._warned = False

    def start(self, folder: Path, settings: Settings, name: str) -> None:
        chosen = settings.wandb
        if chosen.mode == "disabled":
            return

        def init() -> None:
            import wandb

            self._run = wandb.init(
                mode=chosen.mode,
                project=chosen.project,
                entity=chosen.entity,
                group=chosen.group,
                name=name,
                id=self.id,
                resume="allow",
                dir=str(folder.absolute()),
                config=settings.model_dump(mode="json", by_alias=True),
                settings=wandb.Settings(silent=True, console="off"),
            )
            self.id = self._run.id

        self._try(init)

    def log(self, row: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._try(lambda: self._run.log(_numbers(row), step=int(row["round"])))

    def log_pictures(self, round_number: int, pictures: Mapping[str, Path]) -> None:
        def show() -> None:
            import wandb

            media = {name: wandb.Image(str(path)) for name, path in pictures.items()}
            self._run.log(media, step=round_number)

        if self._run is not None:
            self._try(show)

    def summarise(self, results: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._try(lambda: self._run.summary.update(_numbers(results)))

    def finish(self, exit_code: int) -> None:
        if self._run is not None:
            self._broken = False  # a run that failed in between is still closed
            self._try(lambda: self._run.finish(exit_code=exit_code))
        self._run = None

    def _try(self, call: Callable[[], Any]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception as error:
            self._broken = True
            if not self._warned:
                self._warned = True
                logger.warning("W&B failed (%s: %s); the run goes on without it", type(error).__name__, error)


def _numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
    """The entries that are finite numbers; they alone make curves."""
    values = {key: plain(value) for key, value in row.items()}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}
