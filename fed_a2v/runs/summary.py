"""A run in one line, and as a small table of HTML for notebooks. The run's folder may be untrusted."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fed_a2v.core.names import listed
from fed_a2v.errors import UserError
from fed_a2v.runs.compare import read_results
from fed_a2v.runs.folder import RunFolder
from fed_a2v.storage.plain_text import one_line

# Classes that are shown by name.
SHOWN_CLASSES = 8
# Larger figures are not shown; some integers are too large for a float.
LARGEST = 1e15


def run_line(folder: RunFolder, round_number: int, rounds: int, classes: Sequence[str]) -> str:
    """A run in one line: its name, the accuracy after a round, and the number of classes.

    Args:
        folder: folder of the run.
        round_number: the round.
        rounds: number of rounds in the settings.
        classes: names of the classes.
    """
    accuracy = _number(_figures(folder, round_number).get("accuracy"))
    known = "" if accuracy is None else f"accuracy {accuracy:.3f}, "
    name = one_line(folder.path.absolute().name)
    return f"<run {name}: {known}round {round_number} of {rounds}, {len(classes)} classes>"


def run_html(folder: RunFolder, round_number: int, rounds: int, classes: Sequence[str], generator: str) -> str:
    """A run as a table: accuracy with its 95 % interval and test clips, classes, generator, rounds, and the report.

    The link to the report is relative to the working folder, which a notebook's page resolves.

    Args:
        folder: see `run_line`.
        round_number: see `run_line`.
        rounds: see `run_line`.
        classes: see `run_line`.
        generator: name of the generator.
    """
    figures = _figures(folder, round_number)
    rows = {
        "Accuracy": _accuracy(figures),
        "Classes": _text(f"{len(classes)}: {listed(classes, SHOWN_CLASSES)}"),
        "Generator": _text(generator),
        "Rounds": _text(str(rounds) if round_number == rounds else f"{round_number} of {rounds}"),
        "Report": _report(folder),
        "Folder": f"<code>{_text(folder.path)}</code>",
    }
    cells = "".join(
        f'<tr><th style="text-align: left">{name}</th><td style="text-align: left">{cell}</td></tr>'
        for name, cell in rows.items()
    )
    return f"<table>{cells}</table>"


def _figures(folder: RunFolder, round_number: int) -> Mapping[str, Any]:
    """The results, if they are those after this round, else the metrics of the round; empty if they cannot be read."""
    results = read_results(folder.path)
    if results is not None and results.get("rounds") == round_number:
        return results
    try:
        return next((row for row in folder.rows() if row.get("round") == round_number), {})
    except (UserError, OSError):
        return {}


def _accuracy(figures: Mapping[str, Any]) -> str:
    accuracy, low, high = (_number(figures.get(key)) for key in ("accuracy", "accuracy_low", "accuracy_high"))
    if accuracy is None:
        return "unknown"
    clips, total = (_number(figures.get(key)) for key in ("test_clips", "test_clips_total"))
    parts = [] if low is None or high is None else [f"95 %: {low:.3f} to {high:.3f}"]
    if clips is not None:
        of_all = "" if total is None or total == clips else f" of {total:.0f}"
        parts.append(f"{clips:.0f}{of_all} test clips")
    return f"<strong>{accuracy:.3f}</strong>" + (f" ({', '.join(parts)})" if parts else "")


def _report(folder: RunFolder) -> str:
    try:
        path = folder.report
    except UserError:  # a link out of the folder
        return "none"
    if not path.is_file():
        return "none"
    try:
        place = os.path.relpath(path, Path.cwd())
    except ValueError:  # on another drive
        place = str(path)
    address = quote(Path(place).as_posix(), errors="replace")
    return f'<a href="{html.escape(address)}" target="_blank">report.html</a>'


def _number(value: Any) -> float | None:
    """A number that can be shown, else None: a file may have anything in its place."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST else None


def _text(value: object) -> str:
    return html.escape(one_line(value))
