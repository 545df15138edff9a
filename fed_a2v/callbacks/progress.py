"""Progress on the console: a live view in a terminal, else one line per round, JSON, or nothing."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.runs.logs import ConsoleHandler
from fed_a2v.runs.output import Output
from fed_a2v.runs.rounds import best_row, fully_evaluated, gain_words, interval_words, scored_on
from fed_a2v.runs.table import seconds
from fed_a2v.storage.files import plain

logger = logging.getLogger("fed_a2v")

TAIL = 5  # log lines in the live view
PHASES = ("sites", "server", "evaluate")  # phases of a round, in order
SPARKS, PLAIN_SPARKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
MOST_SPARKS = 20  # maximum number of rounds in the sparkline


class Progress(Callback):
    """Shows the progress in the view that fits the console and the chosen output."""

    def on_run_start(self, run: RunContext) -> None:
        """Start showing."""
        self.view = progress_view(run.config["rounds"], run.console, run.rounds_done, run.output, run.title)
        self.view.__enter__()

    def on_phase(self, round_number: int, phase: str) -> None:
        """Show the phase."""
        self.view.phase(round_number, phase)

    def on_round_end(self, metrics: Mapping[str, Any]) -> None:
        """Show the round."""
        self.view.round_done(metrics)

    def on_run_end(self, results: Mapping[str, Any] | None) -> None:
        """Stop showing."""
        self.view.__exit__(None, None, None)


class ProgressView(Protocol):
    """Interface of a view of the progress."""

    def __enter__(self) -> ProgressView:
        """Start showing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop showing."""

    def phase(self, round_number: int, name: str) -> None:
        """Round `round_number` enters the phase `name`, e.g. "sites" or "server"."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """A round is over; `row` is its row of `metrics.jsonl`."""


def progress_view(
    rounds: int, console: Console, done: int = 0, output: Output = "full", title: str = ""
) -> ProgressView:
    """The view that fits the console.

    Args:
        rounds: number of rounds of the whole run.
        console: console for the view.
        done: number of rounds of an earlier start, if the run is resumed.
        output: the chosen output.
        title: title of the run, if there are several; a prefix of its lines.
    """
    if output == "quiet":
        return SilentView()
    if output == "json":
        return JsonView(title)
    return LiveView(rounds, console, done, title) if console.is_terminal else PlainView(rounds, title)


class SilentView:
    """Shows nothing."""

    def __enter__(self) -> SilentView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to stop."""

    def phase(self, round_number: int, name: str) -> None:
        """Show nothing."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Show nothing."""


class PlainView(SilentView):
    """Logs one line per round, at INFO."""

    def __init__(self, rounds: int, title: str = "") -> None:
        self.rounds = rounds
        self.title = title

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Log the round's line."""
        logger.info("%s", _titled(self.title, round_line(row, self.rounds)))


class JsonView(SilentView):
    """Writes each round's row to standard output, as in `metrics.jsonl`; with the key `run` if there are several."""

    def __init__(self, title: str = "") -> None:
        self.title = title

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Write the row as one line, and flush it."""
        named = {"run": self.title} if self.title else {}
        sys.stdout.write(json.dumps(plain(named | dict(row)), allow_nan=False) + "\n")
        sys.stdout.flush()


class LiveView:
    """Rounds, phases, sites, accuracy and the time left, refreshed four times a second, above the last log lines.

    While it is shown it replaces the logger's `ConsoleHandler`s: warnings and one line per round are printed above it,
    other lines only appear among the last few below it.
    """

    def __init__(self, rounds: int, console: Console, done: int = 0, title: str = "") -> None:
        self.rounds = rounds
        self.console = console
        self.title = title
        self._done, self._round, self._phase = done, done, "starting"
        self._row: Mapping[str, Any] = {}
        self._accuracies: list[float | None] = []
        self._best: Mapping[str, Any] | None = None
        self._durations: list[float] = []
        self._started = self._mark = self._phase_began = time.monotonic()
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._live = Live(get_renderable=self._picture, console=console, refresh_per_second=4, transient=True)
        self._handler = _TailHandler(console, self._tail)
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> LiveView:
        self._started = self._mark = self._phase_began = time.monotonic()
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
        """Show that round `round_number` enters the phase `name`."""
        self._round, self._phase, self._phase_began = round_number, name, time.monotonic()

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Advance the bar, and print the round's line above it."""
        now = time.monotonic()
        self._durations.append(now - self._mark)
        self._mark = self._phase_began = now
        self._done = self._round = int(row["round"])
        self._phase = "done"
        self._row = row
        self._accuracies.append(row.get("accuracy"))
        self._best = best_row([*([self._best] if self._best else []), row])
        logger.info("%s", _titled(self.title, round_line(row, self.rounds)), extra={"stays": True})

    def _left(self) -> float | None:
        """Estimated seconds left; of several rounds the first does not count, because it also loads the data."""
        if not self._durations:
            return None
        usual = self._durations[1:] or self._durations
        mean = sum(usual) / len(usual)
        return max(0.0, mean * (self.rounds - self._done) - (time.monotonic() - self._mark))

    def _picture(self) -> Group:
        lines = [Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in self._tail]
        title = [Text(self.title, style="bold", no_wrap=True, overflow="ellipsis")] if self.title else []
        return Group(*title, self._bar(), self._facts(), *lines)

    def _bar(self) -> Table:
        elapsed, left = time.monotonic() - self._started, self._left()
        row = Table.grid(padding=(0, 1))
        times = _clock(elapsed) + ("" if left is None or self._done >= self.rounds else f", about {_clock(left)} left")
        bar = ProgressBar(self.rounds, self._done, width=24)
        row.add_row(Text(f"Round {self._round}/{self.rounds}", style="bold"), bar, Text(times, no_wrap=True))
        return row

    def _facts(self) -> Table:
        """Phase, sites and accuracy, one line each."""
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", min_width=8)
        facts.add_column(no_wrap=True, overflow="ellipsis")
        facts.add_row("Phase", self._phases())
        if self._row:
            partly = "" if fully_evaluated(self._row) else f"; evaluated: {scored_on(self._row)}"
            facts.add_row("Sites", Text(answers(self._row) + partly))
            sparks = sparkline(self._accuracies[-MOST_SPARKS:], SPARKS if self._unicode() else PLAIN_SPARKS)
            facts.add_row(
                "Accuracy", Text.assemble((sparks, "green"), f" {_accuracies(self._row)}{self._best_words()}")
            )
        return facts

    def _phases(self) -> Text:
        """The phases of a round, with the current one marked, and its seconds."""
        if self._phase not in PHASES:
            return Text(self._phase, style="cyan")
        words = Text()
        for name in PHASES:
            present = name == self._phase
            shown = f"[{name} {time.monotonic() - self._phase_began:.0f} s]" if present else name
            words.append(("  " if words else "") + shown, "bold cyan" if present else "dim")
        return words

    def _best_words(self) -> str:
        known = [value for value in self._accuracies if value is not None]
        if self._best is None or len(known) < 2:
            return ""
        partly = "" if fully_evaluated(self._best) else f" on {scored_on(self._best)}"
        return f", best {self._best['accuracy']:.3f}{partly}"

    def _unicode(self) -> bool:
        return not self.console.options.ascii_only


class _TailHandler(ConsoleHandler):
    """Keeps the last lines for the live view; warnings and marked records are printed above it."""

    def __init__(self, console: Console, tail: deque[str]) -> None:
        super().__init__(console)
        self.tail = tail

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or getattr(record, "stays", False):
            super().emit(record)
        else:
            self.tail.extend(self.format(record).splitlines())


def round_line(row: Mapping[str, Any], rounds: int) -> str:
    """A round in one line: accuracy before and after the server step with its interval, T5's, seconds, failures."""
    partly = "" if fully_evaluated(row) else f" on {scored_on(row)}"
    evaluated = "accuracy" in row or "sites_evaluated" in row
    parts = [f"accuracy {_accuracies(row)}{partly}" if evaluated else "not evaluated", f"{seconds(row):.1f} s"]
    for key in ("rejected", "failures"):
        if row.get(key):
            parts.append(f"{row[key]} {key}")
    if row.get("rolled_back"):
        parts.append("fine-tuning rolled back")
    return f"Round {row['round']}/{rounds}: " + ", ".join(parts)


def _accuracies(row: Mapping[str, Any]) -> str:
    before, after = row.get("accuracy_before"), row.get("accuracy")
    shown = [f"{value:.3f}" if value is not None else "-" for value in (before, after)]
    t5, interval = row.get("t5/accuracy"), interval_words(row)
    after = shown[1] if before is None else " -> ".join(shown)
    return after + (interval and f" ({interval})") + ("" if t5 is None else f", T5 {t5:.3f}")


def sparkline(values: Sequence[float | None], sparks: str = SPARKS) -> str:
    """Values as a row of blocks from the least to the greatest; a space for a missing one."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)

    def spark(value: float) -> str:
        # Equal values are shown at half height.
        place = round((value - low) / span * (len(sparks) - 1)) if span > 1e-9 else len(sparks) // 2
        return sparks[place]

    return "".join(" " if value is None else spark(value) for value in values)


def answers(row: Mapping[str, Any]) -> str:
    """Numbers of replies in a round, e.g. "48 of 50 replied, 1 rejected, 1 failed"."""
    statuses = list(row.get("sites", {}).values())
    asked = len(statuses) or row.get("replies", 0) + row.get("rejected", 0) + row.get("failures", 0)
    parts = [f"{row.get('replies', 0)} of {asked} replied"]
    parts += [f"{number} {kind}" for kind in ("rejected", "failed") if (number := statuses.count(kind))]
    return ", ".join(parts)


def result_line(results: Mapping[str, Any], folder: object) -> str:
    """A finished run in one line."""
    accuracy, t5 = (results.get(key) for key in ("accuracy", "t5/accuracy"))
    shown = "-" if accuracy is None else f"{accuracy:.4f}"
    interval, side = interval_words(results), interval_words(results, "t5/accuracy")
    partly = f" ({interval})" if interval else ""
    if interval or not fully_evaluated(results):
        partly += f" on {scored_on(results)}"
    side = "" if t5 is None else f", T5 {t5:.4f}" + (side and f" ({side})")
    words, epsilon = gain_words(results), results.get("privacy/epsilon")
    spent = "" if epsilon is None else f", epsilon {epsilon:.4g} at delta {results['privacy/delta']:g}"
    after = f"after {results.get('rounds')} round{'s' * (results.get('rounds') != 1)}{spent}"
    return f"accuracy {shown}{partly}{side} {after}{words and f' ({words})'}: {folder}"


def _clock(duration: float) -> str:
    return str(timedelta(seconds=round(duration)))


def _titled(title: str, line: str) -> str:
    return f"{title}: {line}" if title else line
