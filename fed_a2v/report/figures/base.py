"""What the figures of a report share: the plot with its views, axes, and tables of its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fed_a2v.report.collect import Collection
from fed_a2v.report.record import Row, RunRecord
from fed_a2v.report.styles import LONGEST_LABEL, clean, figure, label
from fed_a2v.runs.table import TextTable

# Maximum number of runs in a figure with one view per run.
MOST_VIEWS = 12
# Maximum number of classes with numbers in the confusion matrix.
READABLE_CLASSES = 20
# Smallest height of a zoomed axis of shares: on a smaller one, a single clip would look like a difference.
SMALLEST_SPAN = 0.1

Layout = Callable[[NDArray[np.float32]], NDArray[np.float32] | None]


@dataclass(frozen=True)
class View:
    """One view of a figure, chosen by its label."""

    label: str
    figure: go.Figure


@dataclass(frozen=True)
class Plot:
    """A figure of the report.

    Attributes:
        name: unique word, for links.
        title: title.
        caption: explanation.
        views: at least one; with more, the reader chooses one.
        table: numbers of the figure.
        height: height in pixels.
        classes: names that the reader can highlight; `meta` of a trace is its class.
    """

    name: str
    title: str
    caption: str
    views: list[View]
    table: TextTable
    height: int = 360
    classes: tuple[str, ...] = ()


# Axes


def by_round(traces: list[Any], words: str, fraction: bool = False) -> go.Figure:
    """A figure over the rounds, with ticks at whole rounds.

    Args:
        traces: lines or bars.
        words: title of the vertical axis.
        fraction: whether the values are shares: the axis then has their range only, and says so.
    """
    values = {number for trace in traces for number in trace.x}
    span = {"range": [min(values) - 0.5, max(values) + 0.5]} if values else {}
    low, high = _span(traces) if fraction else (0.0, 0.0)
    return figure(
        traces,
        xaxis={"title": {"text": "round"}, **span, **whole_rounds(values)},
        yaxis={
            "title": {"text": f"{words}, axis from {low:.2f}" if low > 0 else words},
            **({"range": [low, high]} if fraction else {}),
        },
        hovermode="x unified",
        barmode="group",
    )


def _span(traces: Iterable[Any]) -> tuple[float, float]:
    """The range of an axis of shares: that of the values and their intervals, with some room, within 0 and 1.02."""
    low, high = extremes(traces)
    half = max(1.2 * (high - low), SMALLEST_SPAN) / 2
    middle = min(max((low + high) / 2, half), 1.02 - half)
    return max(0.0, middle - half), min(1.02, middle + half)


def extremes(traces: Iterable[Any]) -> tuple[float, float]:
    """The lowest and the highest value of lines, with their error bars."""
    ends = []
    for trace in traces:
        bars = trace.error_y
        sides = zip(trace.y, bars.arrayminus or [0] * len(trace.y), bars.array or [0] * len(trace.y), strict=True)
        ends += [end for value, below, above in sides for end in (value - below, value + above)]
    return min(ends), max(ends)


def whole_rounds(rounds: Sized) -> dict[str, Any]:
    """Ticks at whole rounds; with few rounds, Plotly would choose halves."""
    return {"dtick": 1} if len(rounds) <= 12 else {}


def bars_to(values: Sequence[float], ends: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Error bars from the lower to the upper end of an interval of each value."""
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    return {"symmetric": False, "arrayminus": below, "array": above, "thickness": 1}


def named_axis(names: Sequence[str]) -> dict[str, Any]:
    """An axis with names at whole numbers: as categories, Plotly would read some names as numbers or dates."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [label(name, LONGEST_LABEL) for name in names],
        "ticklabelstandoff": 4,
    }


def margin(names: Sequence[str], below: bool = False) -> dict[str, int]:
    """Margins for names at the left and below. Plotly's automatic margins would draw everything several times."""
    longest = min(LONGEST_LABEL, max(map(len, names), default=0))
    return {"l": 20 + 8 * longest, "r": 16, "t": 28, "b": 20 + 6 * longest if below else 48}


# Tables


def columns_of(runs: Sequence[RunRecord], key: str, words: str) -> list[tuple[str, dict[int, Any]]]:
    """Columns of a metric, one for each run that has it."""
    return [
        (of_run(words, run, runs), {row["round"]: _with_interval(row, key) for row in run.rows})
        for run in runs
        if any(row.get(key) is not None for row in run.rows)
    ]


def _with_interval(row: Row, key: str) -> Any:
    """A metric, as text with its interval if the round has one."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if row.get(key) is None or low is None or high is None:
        return row.get(key)
    return f"{row[key]:.4g} [{low:.3g}, {high:.3g}]"


def of_run(words: str, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    """The words, after the label of the run if there are several."""
    return f"{clean(run.label)}: {words}" if len(runs) > 1 else words


def of_means(collection: Collection, shapes: str = "Lines") -> str:
    """What lines or bars and the areas or bars around them mean, if runs have been merged; else what the intervals are.

    Args:
        collection: the runs.
        shapes: the shapes of the means, "Lines" or "Bars".
    """
    repeats = list(dict.fromkeys(run.repeats for run in collection.arms if run.members))
    if not repeats:
        return ""
    around = "areas" if shapes == "Lines" else "thin lines"
    return f"{shapes}: means over {' or '.join(repeats)}; {around}: from the lowest to the highest of these runs."


def round_table(columns: Iterable[tuple[str, Mapping[int, Any]]]) -> TextTable:
    """A table with one row per round."""
    columns = list(columns)
    numbers = sorted({number for _, values in columns for number in values})
    rows = [(str(number), *(cell(values.get(number), ".4g") for _, values in columns)) for number in numbers]
    return TextTable("", ("round", *(clean(name) for name, _ in columns)), tuple(rows))


def cell(value: Any, form: str) -> str:
    """A value in a table; `-` for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return value if isinstance(value, str) else format(value, form)
