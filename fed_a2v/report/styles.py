"""Colours, symbols and labels of runs and classes in all figures; never distinguished by colour alone."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import plotly.graph_objects as go

# After Okabe and Ito, with medium lightness: each has a contrast of at least 3 on white and on the dark background.
COLOURS = ("#3d85c6", "#c76a15", "#239670", "#b865a8", "#a8851a", "#d0555b", "#768290")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "hexagon", "triangle-down")
DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot", "dot")
PATTERNS = ("", "/", "x", ".", "\\", "+", "|", "-")
LONGEST_LABEL = 24  # characters on an axis; tooltips and tables have the full name

# Letters of right-to-left scripts.
RIGHT_TO_LEFT = {"R", "AL"}


def colour(index: int) -> str:
    """Colour of the run or class with this index."""
    return COLOURS[index % len(COLOURS)]


def faint(index: int) -> str:
    """The same colour for an area."""
    red, green, blue = (int(colour(index)[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def symbol(index: int) -> str:
    """Symbol of the run or class with this index; its combination with the colour repeats after 70."""
    return SYMBOLS[index % len(SYMBOLS)]


def dash(index: int) -> str:
    """Line style of the run with this index."""
    return DASHES[index % len(DASHES)]


def bar_style(index: int, several: bool) -> dict[str, Any]:
    """Markers of the bars with this index, with a pattern if there are `several` kinds of bars."""
    shape = PATTERNS[index % len(PATTERNS)] if several else ""
    return {"color": colour(index), "pattern": {"shape": shape, "fillmode": "overlay", "fgopacity": 0.6, "size": 7}}


def clean(name: object) -> str:
    """A name from a data set as one line of printable text that can be written as UTF-8."""
    text = str(name).encode("utf-8", "replace").decode("utf-8")
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp") else letter for letter in text)


def label(name: object, longest: int | None = None) -> str:
    """A name for a figure.

    `<`, `>` and `&` are escaped, since Plotly reads them as markup; a right-to-left name is isolated, since it would
    change the direction of the text around it.
    """
    text = clean(name)
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    right_to_left = any(unicodedata.bidirectional(letter) in RIGHT_TO_LEFT for letter in text)
    text = re.sub("[&<>]", lambda match: {"&": "&amp;", "<": "&lt;", ">": "&gt;"}[match[0]], text)
    return f"\u2068{text}\u2069" if right_to_left else text


def figure(traces: list[Any], **layout: Any) -> go.Figure:
    """A figure without colours for text, grid and background: the page sets those of its theme."""
    common: dict[str, Any] = {
        "template": go.layout.Template(),
        "margin": {"l": 56, "r": 16, "t": 28, "b": 48},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "hovermode": "closest",
    }
    return go.Figure(traces, go.Layout({**common, **layout}))
