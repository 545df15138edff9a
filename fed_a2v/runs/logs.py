"""Log handlers: messages to the console, and with time and level to `run.log`."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fed_a2v.errors import UserError, interrupted
from fed_a2v.storage.plain_text import PlainLines

# Loggers that write to `run.log` only.
CLASS_LINES = "fed_a2v.classes"  # figures of each class and epoch: hundreds of lines per round
LAST_LINES = "fed_a2v.last"  # paths of results and report, which the command prints itself
TRACEBACKS = "fed_a2v.tracebacks"  # of errors that the command reports in one line
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}


def standard_console() -> Console:
    """Standard error; in a notebook standard output, in lines: a page shows standard error in red."""
    # Kernels ask for colours as in a terminal, but cannot redraw lines.
    return Console(force_jupyter=False, force_terminal=False) if Console().is_jupyter else Console(stderr=True)


def for_console(record: logging.LogRecord) -> bool:
    """Whether a record is also printed on the console."""
    return record.name not in (CLASS_LINES, LAST_LINES, TRACEBACKS)


class ConsoleHandler(logging.Handler):
    """Prints messages on a rich console, unwrapped; warnings and errors with their level."""

    def __init__(self, console: Console, level: int = logging.INFO) -> None:
        super().__init__(level)
        self.console = console
        self.addFilter(for_console)
        self.addFilter(PlainLines())

    def format(self, record: logging.LogRecord) -> str:
        """The message, with the level as prefix from WARNING up."""
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname}: {text}"

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            self.console.print(Text(self.format(record), STYLES.get(record.levelno, "")), soft_wrap=True)
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """`run.log`. On a full disk, lines are lost without ending the run; a state that cannot be saved ends it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore errors of the disk; report others as usual."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, even if its last lines cannot be written."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def setup_logging(folder: Path, console: Console, level: int = logging.INFO) -> Iterator[None]:
    """Send the loggers "fed_a2v" and "flwr" to `run.log` in `folder` and to the console, while the block runs.

    Both stop propagating to the root logger, whose handlers (for example Hydra's) would print lines twice. Flower's
    lines below WARNING, those of `CLASS_LINES` and `LAST_LINES`, and the traceback of an error that ends the block, if
    it is no `UserError`, go to `run.log` only. In nested calls the innermost counts, so lines are not doubled. At the
    end, the previous handlers are restored.

    Args:
        folder: the run's folder, created if needed; lines are appended to `run.log`.
        console: console for messages.
        level: lowest level on the console.
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
        except Exception as error:
            # An error that the user can fix is printed; a folder in which nothing could begin stays as it is.
            if not isinstance(error, UserError) and not interrupted(error):
                logging.getLogger(TRACEBACKS).error("The run ends with an error:", exc_info=error)
            raise
        finally:
            file.close()


@contextlib.contextmanager
def on_console(console: Console, level: int = logging.INFO) -> Iterator[None]:
    """Send the lines of the logger "fed_a2v" from `level` up to the console only, while the block runs."""
    with _replaced("fed_a2v", [ConsoleHandler(console, level)], logging.INFO):
        yield


@contextlib.contextmanager
def _replaced(name: str, handlers: list[logging.Handler], level: int) -> Iterator[None]:
    """Replace the handlers and the level of a logger, and stop its propagation, while the block runs."""
    logger = logging.getLogger(name)
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = handlers[:], False
    logger.setLevel(level)
    try:
        yield
    finally:
        # Keep what the library has set in the meantime, as Flower does when it is first imported.
        added = [handler for handler in logger.handlers if handler not in handlers]
        logger.handlers, logger.propagate = [*before[0], *added], before[2]
        if logger.level == level:
            logger.setLevel(before[1])
