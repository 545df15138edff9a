"""Where log lines go: to the console as they are, and to `run.log` with time and level."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fed_a2v.storage.plain_text import PlainLines

# Loggers whose lines are for `run.log` alone.
CLASS_LINES = "fed_a2v.classes"  # what the guide reports for each class and epoch: hundreds of lines a round
LAST_LINES = "fed_a2v.last"  # where results and report are, where the command says so itself
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}


def for_console(record: logging.LogRecord) -> bool:
    """Whether a line is not for `run.log` alone."""
    return record.name not in (CLASS_LINES, LAST_LINES)


class ConsoleHandler(logging.Handler):
    """Prints messages on a rich console, unwrapped; warnings and errors carry their level."""

    def __init__(self, console: Console, level: int = logging.INFO) -> None:
        super().__init__(level)
        self.console = console
        self.addFilter(for_console)
        self.addFilter(PlainLines())

    def format(self, record: logging.LogRecord) -> str:
        """The message, with the level's name before it from WARNING up."""
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname}: {text}"

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            self.console.print(Text(self.format(record), STYLES.get(record.levelno, "")), soft_wrap=True)
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """`run.log`. A line that a full disk refuses is lost; what ends the run is a state that cannot be saved."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Stay silent about the disk; other errors are shown as ever."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, whether or not its last lines find room."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def setup_logging(folder: Path, console: Console, level: int = logging.INFO) -> Iterator[None]:
    """Send the loggers "fed_a2v" and "flwr" to `folder`'s `run.log` and to the console, while the block runs.

    Both stop handing lines to the root logger, whose handlers (Hydra's, for one) would show them a second
    time. The console is spared Flower's lines below WARNING and those of `CLASS_LINES` and `LAST_LINES`;
    `run.log` has them. Nested calls do not double lines: the innermost counts. At the end all is as it was.

    Args:
        folder: the run's folder, made if need be; `run.log` is added to.
        console: where people read.
        level: lines below it are not for the console.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = LogFile(folder / "run.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    file.setLevel(logging.INFO)
    file.addFilter(PlainLines())

    ours, flowers = ConsoleHandler(console, level), ConsoleHandler(console, max(level, logging.WARNING))
    flower_level = logging.getLogger("flwr").level or logging.INFO
    with (
        _replaced("fed_a2v", [ours, file], logging.INFO),
        _replaced("flwr", [flowers, file], flower_level),
    ):
        try:
            yield
        finally:
            file.close()


@contextlib.contextmanager
def on_console(console: Console, level: int = logging.INFO) -> Iterator[None]:
    """Show the lines of the logger "fed_a2v" from `level` up on the console, and nowhere else, while the block runs."""
    with _replaced("fed_a2v", [ConsoleHandler(console, level)], logging.INFO):
        yield


@contextlib.contextmanager
def _replaced(name: str, handlers: list[logging.Handler], level: int) -> Iterator[None]:
    """Give a logger these handlers and this level, and no parent, for the length of the block."""
    logger = logging.getLogger(name)
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = handlers[:], False
    logger.setLevel(level)
    try:
        yield
    finally:
        # What the library set in the meantime (Flower does so when it is first imported) stays.
        added = [handler for handler in logger.handlers if handler not in handlers]
        logger.handlers, logger.propagate = [*before[0], *added], before[2]
        if logger.level == level:
            logger.setLevel(before[1])
