"""What a person sees while rounds go by: a live view in a terminal, a line a round elsewhere."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from fed_a2v.runs.logs import ConsoleHandler
from fed_a2v.runs.table import seconds

logger = logging.getLogger("fed_a2v")

TAIL = 5  # log lines in the live view


class ProgressView(Protocol):
    """What the rounds report to."""

    def __enter__(self) -> ProgressView:
        """Start showing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop showing."""

    def phase(self, round_number: int, name: str) -> None:
        """Round `round_number` has come to the phase `name`, e.g. "sites" or "generator"."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """A round is over; `row` is its row of `metrics.jsonl`."""


def progress_view(rounds: int, console: Console, done: int = 0) -> ProgressView:
    """The view that fits the console.

    Args:
        rounds: rounds of the whole run.
        console: where people read.
        done: rounds done before, where a run is resumed.
    """
    return LiveView(rounds, console, done) if console.is_terminal else PlainView(rounds)


class PlainView:
    """Logs a line a round, at INFO."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to stop."""

    def phase(self, round_number: int, name: str) -> None:
        """Show nothing: phases are for the live view."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Log the round's line."""
        logger.info("%s", round_line(row, self.rounds))


class LiveView:
    """A bar over the rounds with phase, accuracy and time left; below it the last few log lines.

    While it is shown it takes the place of the logger's `ConsoleHandler`s: a line for each round and warnings
    scroll by above the bar and stay, other lines pass through the last few below it.
    """

    def __init__(self, rounds: int, console: Console, done: int = 0) -> None:
        self.rounds = rounds
        self.console = console
        self._first, self._started = done, time.monotonic()
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._bar = Progress(
            TextColumn("Round {task.fields[round]}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[phase]:<12}", style="cyan"),
            TextColumn("accuracy {task.fields[accuracy]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bar.add_task(
            "", total=rounds, completed=done, round=done, phase="starting", accuracy="-", left=""
        )
        self._live = Live(get_renderable=self._picture, console=console, refresh_per_second=4, transient=True)
        self._handler = _TailHandler(console, self._tail)
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> LiveView:
        self._started = time.monotonic()
        self._handlers = logger.handlers
        others = [handler for handler in logger.handlers if not isinstance(handler, ConsoleHandler)]
        logger.handlers = [*others, self._handler]
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()
        logger.handlers = self._handlers

    def phase(self, round_number: int, name: str) -> None:
        """Show that round `round_number` has come to the phase `name`."""
        self._bar.update(self._task, round=round_number, phase=name)

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Move the bar on and add the round's line above it."""
        number = int(row["round"])
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, number - self._first) * (self.rounds - number)
        self._bar.update(
            self._task,
            completed=number,
            round=number,
            phase="done",
            accuracy=_accuracies(row),
            left=f"about {timedelta(seconds=round(left))} left" if left else "",
        )
        logger.info("%s", round_line(row, self.rounds), extra={"stays": True})

    def _picture(self) -> Group:
        lines = [Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in self._tail]
        return Group(self._bar, *lines)


class _TailHandler(ConsoleHandler):
    """Keeps the last lines for the live view; warnings, and what is marked to stay, are printed above it."""

    def __init__(self, console: Console, tail: deque[str]) -> None:
        super().__init__(console)
        self.tail = tail

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or getattr(record, "stays", False):
            super().emit(record)
        else:
            self.tail.extend(self.format(record).splitlines())


def round_line(row: Mapping[str, Any], rounds: int) -> str:
    """A round in one line: accuracy before and after the server step, seconds, and what went wrong."""
    parts = [f"accuracy {_accuracies(row)}", f"{seconds(row):.1f} s"]
    for key in ("rejected", "failures"):
        if row.get(key):
            parts.append(f"{row[key]} {key}")
    if row.get("rolled_back"):
        parts.append("fine-tuning rolled back")
    return f"Round {row['round']}/{rounds}: " + ", ".join(parts)


def _accuracies(row: Mapping[str, Any]) -> str:
    before, after = row.get("accuracy_before"), row.get("accuracy")
    shown = [f"{value:.3f}" if value is not None else "-" for value in (before, after)]
    return shown[1] if before is None else " -> ".join(shown)
