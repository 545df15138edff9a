"""The gates of a generator: a table with their verdicts, and the range of values that pass in a figure."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from fed_a2v.core.quality import FEWEST_JUDGED, PASSES, Gate
from fed_a2v.report.collect import Collection
from fed_a2v.report.figures.base import SMALLEST_SPAN, extremes
from fed_a2v.report.record import Row
from fed_a2v.report.styles import clean, colour
from fed_a2v.runs.table import TextTable

# What each gate asks, in words.
GATES = {
    "tstr": "Train on synthetic, test on real",
    "c2st": "Two-sample test",
    "nn_ratio": "Nearest-neighbour ratio",
}
QUESTIONS = {
    "tstr": "Does a classifier learn from samples what it learns from real rows? 1: as much",
    "c2st": "Can a classifier tell samples from real rows? 0.5: no",
    "nn_ratio": "Are samples as far from the training rows as other real rows are? 0: copies, above 1: noise",
}


def gates_table(collection: Collection) -> TextTable:
    """The gates in each run's newest validation, with the range that passes and the verdict."""
    rows = []
    own = len(collection.runs) > 1
    for run in collection.runs:
        validated = [row for row in run.rows if any(f"generator_quality/{name}" in row for name in GATES)]
        for name, words in GATES.items() if validated else ():
            gate = _gate(name, validated[-1])
            low, high = (f"{gate.interval[0]:.3f}", f"{gate.interval[1]:.3f}") if gate.interval else ("", "")
            value = "-" if gate.value is None else f"{gate.value:.3f}" + (f" [{low}, {high}]" if low else "")
            cells = (words, QUESTIONS[name], value, _range(gate), _verdict(gate))
            rows.append((clean(run.label), *cells) if own else cells)
    header = ("gate", "question", "value, 95 %", "passes", "verdict")
    return TextTable("", ("run", *header) if own else header, tuple(rows))


def show_range(shown: go.Figure, name: str) -> go.Figure:
    """Mark the range that passes the gate `name`: an area, with a line and its value at each limit."""
    low, high = PASSES[name]
    limits = [end for end in (low, high) if 0 < end < math.inf]
    lowest, highest = extremes(shown.data)
    lowest, highest = min(lowest, *limits), max(highest, *limits)
    room = 0.15 * max(highest - lowest, SMALLEST_SPAN)
    bottom, top = lowest - room, highest + room
    shown.add_hrect(max(low, bottom), min(high, top), fillcolor=colour(2), opacity=0.12, line_width=0, layer="below")
    for limit in limits:
        shown.add_hline(
            limit,
            line={"color": colour(2), "width": 1.5, "dash": "dot"},
            annotation_text=f"passes from {limit:g}" if limit == low else f"passes up to {limit:g}",
            annotation_position="top right" if limit == low else "bottom right",
        )
    return shown.update_yaxes(range=[bottom, top])


def _gate(name: str, row: Row) -> Gate:
    def of(suffix: str) -> Any:
        return row.get(f"generator_quality/{name}{suffix}")

    interval = None if of("_low") is None or of("_high") is None else (of("_low"), of("_high"))
    rows = int(row.get("generator_quality/rows") or 0)
    return Gate(name, of(""), of("_real"), *PASSES[name], rows, interval)


def _range(gate: Gate) -> str:
    if math.isinf(gate.high):
        return f"from {gate.low:g}"
    return f"{gate.low:g} to {gate.high:g}" if gate.low > 0 else f"up to {gate.high:g}"


def _verdict(gate: Gate) -> str:
    if gate.value is None:
        return "not computed: too few rows"
    if gate.passed is None:
        return f"none: {gate.rows} held-out rows, {FEWEST_JUDGED} are needed"
    if gate.passed:
        return "passed"
    return "failed" if gate.surely_failed else "outside the range, perhaps by chance"
