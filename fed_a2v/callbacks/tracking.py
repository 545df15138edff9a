"""Tracking a run: its folder and, beside it, Weights & Biases and TensorBoard.

W&B may fail without harm to the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fed_a2v.callbacks.embedding_map_plot import map_figure
from fed_a2v.config.compose import ConfigError, to_yaml
from fed_a2v.config.schema import Settings
from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.runs.embedding_map import load_map
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.wandb_file import logged_rounds
from fed_a2v.storage.files import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("fed_a2v")


class Tracker:
    """Writes a run's folder, W&B and TensorBoard, from `with Tracker(...) as tracker` to the end of the block.

    ```
    with Tracker(folder, settings, partition) as tracker:
        for ...:
            tracker.log_round(row)
        tracker.finish({"accuracy": 0.86})
    ```

    Left by an exception, it writes no `results.json` and marks the W&B run as failed. Where a run is resumed, W&B and
    TensorBoard are first given those of the earlier rows that they lack, so that they have every round once.

    Args:
        path: the run's folder.
        settings: saved as `config.yaml`; `settings.wandb` and `settings.tracking` say what is used beside it.
        partition: which clips each site has, saved as `partition.json`; None for none.
        after_round: the last round already done, where a run is resumed; rows of later rounds are removed.
        wandb_id: id of the W&B run to go on with; None for a new one. Store `wandb_id` with the state.

    Raises:
        OSError: the folder cannot be written.
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        partition: Any = None,
        after_round: int = 0,
        wandb_id: str | None = None,
    ) -> None:
        self.folder = RunFolder(path)
        self.settings = settings
        self.partition = partition
        self.after_round = after_round
        self._wandb = _Wandb(wandb_id)
        self._tensorboard = _TensorBoard() if settings.tracking.tensorboard else None

    @property
    def wandb_id(self) -> str | None:
        """Id of the W&B run, to resume it; None where there is none."""
        return self._wandb.id

    def __enter__(self) -> Tracker:
        self.folder.start(to_yaml(self.settings), self.partition, self.after_round)
        rows = self.folder.rows()
        if self._tensorboard:
            self._tensorboard.start(self.folder.path, rows)
        self._wandb.start(self.folder.path, self.settings, rows)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wandb.finish(exit_code=0 if kind is None else 1)
        if self._tensorboard:
            self._tensorboard.close()

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Record one round: a row in `metrics.jsonl` and one W&B call of its numbers.

        Args:
            row: must hold `round`. NaN and infinity become null in the file and are left out at W&B, as are
                lists, dictionaries and text.
        """
        self.folder.append(row)
        self._wandb.log(row)
        if self._tensorboard:
            self._tensorboard.log(row)

    def log_pictures(self, round_number: int, pictures: Mapping[str, Path]) -> None:
        """Show a round's pictures, files by name, at W&B; they are in the folder already."""
        self._wandb.log_pictures(round_number, pictures)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write `results.json` and the W&B summary; show the figures by class and the map of the last round."""
        self.folder.write_results(results)
        classes, found = self._last_round()
        self._wandb.log_last(classes, found)
        self._wandb.summarise(results)
        if self._tensorboard and found is not None:
            self._tensorboard.log_map(found, int(results.get("rounds", 0)))

    def _last_round(self) -> tuple[dict[str, dict[str, Any]], EmbeddingMap | None]:
        """Figures by class, and the map of the embeddings, as far as they are in the folder."""
        evaluation, found = self.folder.evaluation, self.folder.map
        classes = json.loads(evaluation.read_text(encoding="utf-8"))["classes"] if evaluation.exists() else {}
        return classes, load_map(found) if found.exists() else None


class _TensorBoard:
    """An event file in the run's folder, under `tensorboard/`; it is written anew at every start, from all rows."""

    def start(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "tracking.tensorboard=true needs TensorBoard: pip install 'fed-a2v[tensorboard]'"
            ) from error
        for old in (folder / "tensorboard").glob("events.out.tfevents.*"):
            old.unlink()
        # A TensorBoard that has shown the old file forgets what was in it.
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=1)
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, int(row["round"]))
        self._writer.flush()

    def log_map(self, found: EmbeddingMap, round_number: int) -> None:
        figure = _figure(found)
        if figure is not None:
            self._writer.add_image("embeddings", _pixels(figure), round_number, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One W&B run. The first error from it becomes a warning and ends its use, never the experiment's."""

    def __init__(self, run_id: str | None) -> None:
        self.id = run_id
        self._run: Any = None
        self._broken = False
        self._warned = False
        self._online = False
        self._had: Container[int] = ()

    def start(self, folder: Path, settings: Settings, rows: Sequence[Mapping[str, Any]]) -> None:
        chosen = settings.wandb
        if chosen.mode == "disabled":
            return
        self._online = chosen.mode == "online"

        def init() -> None:
            import wandb

            earlier = self.id
            self._run = wandb.init(
                mode=chosen.mode,
                project=chosen.project,
                entity=chosen.entity,
                group=chosen.group,
                name=folder.absolute().name,
                id=self.id,
                resume="allow",
                dir=str(folder.absolute()),
                config=settings.model_dump(mode="json", by_alias=True),
                settings=wandb.Settings(silent=True, console="off"),
            )
            self.id = self._run.id
            if self._online:  # the server knows where it is; what lies behind it would be refused
                self._had = range(self._run.starting_step)
            elif earlier is not None:
                self._had = logged_rounds(folder, earlier)

        self._try(init)
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        if self._run is not None and row["round"] not in self._had:
            self._try(lambda: self._run.log(_numbers(row), step=int(row["round"])))

    def log_pictures(self, round_number: int, pictures: Mapping[str, Path]) -> None:
        def show() -> None:
            import wandb

            media = {name: wandb.Image(str(path)) for name, path in pictures.items()}
            self._run.log(media, step=round_number)

        if self._run is not None:
            self._try(show)

    def log_last(self, classes: Mapping[str, Mapping[str, Any]], found: EmbeddingMap | None) -> None:
        """A table of figures by class, and a picture of the map."""

        def show() -> None:
            import wandb

            media: dict[str, Any] = {}
            if classes:
                figures = list(dict.fromkeys(name for row in classes.values() for name in row))
                rows = [[name, *(plain(row.get(figure)) for figure in figures)] for name, row in classes.items()]
                media["classes"] = wandb.Table(columns=["class", *figures], data=rows)
            # Offline is the default: who has not asked for W&B misses nothing, for the report has the map.
            figure = None if found is None else _figure(found, logging.WARNING if self._online else logging.DEBUG)
            if figure is not None:
                media["embeddings"] = wandb.Image(_pixels(figure))
            self._run.log(media)

        if self._run is not None and (classes or found is not None):
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


def _figure(found: EmbeddingMap, level: int = logging.WARNING) -> Figure | None:
    try:
        return map_figure(found)
    except ImportError:
        logger.log(level, "No picture of the embeddings without matplotlib: pip install 'fed-a2v[plots]'")
        return None


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    """(H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
    """The entries that are finite numbers; they alone make curves."""
    values = {key: plain(value) for key, value in row.items()}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}
