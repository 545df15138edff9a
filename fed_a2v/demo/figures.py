"""The figures of the page: a sound's waveform and spectrogram, and its place on the map.

Text, grid and background have no colours here: the page sets those of its theme.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.data.audio import FloatArray
from fed_a2v.demo.explorer import Answer
from fed_a2v.encoders.logmel import mel_filters
from fed_a2v.report.styles import LONGEST_LABEL, colour, figure, label, symbol

# Columns of the waveform and of the spectrogram, and bands of the latter: about one for each pixel on a phone.
COLUMNS = 300
BANDS = 64
# Range of the spectrogram in decibels below its loudest point.
RANGE = 80.0
# Length of the spectrogram's frames in seconds.
FRAME = 0.064
HERTZ = (500, 1000, 2000, 4000, 8000, 16_000)
# Height of the figures in pixels.
HEIGHT = 480
# Classes with a line in the legend while no sound is shown.
MOST_NAMED = 12


def sound_figure(waveform: FloatArray, rate: int) -> go.Figure:
    """Waveform, and below it the spectrogram in mel bands, of a sound (samples,)."""
    seconds = len(waveform) / rate
    low, high = _envelope(waveform)
    times = (np.arange(len(low)) + 0.5) * seconds / len(low)
    outline = go.Scatter(
        x=np.concatenate([times, times[::-1]]).round(4).tolist(),
        y=np.concatenate([high, low[::-1]]).round(4).tolist(),
        mode="lines",
        fill="toself",
        line={"width": 1, "color": colour(0)},
        hoverinfo="skip",
        xaxis="x",
        yaxis="y2",
    )
    decibels, centres = _spectrogram(waveform, rate)
    heat = go.Heatmap(
        z=decibels.round().astype(np.int8),
        x0=seconds / decibels.shape[1] / 2,
        dx=seconds / decibels.shape[1],
        zmin=-RANGE,
        zmax=0,
        colorscale="Viridis",
        colorbar={"title": {"text": "dB", "side": "top"}, "thickness": 10, "len": 0.62, "y": 0, "yanchor": "bottom"},
        hovertemplate="%{x:.2f} s, %{customdata} Hz: %{z} dB<extra></extra>",
        customdata=np.repeat(centres.round().astype(int)[:, None], decibels.shape[1], axis=1),
    )
    shown = [hertz for hertz in HERTZ if centres[0] <= hertz <= centres[-1]]
    loudest = max(1e-3, float(np.abs(waveform).max(initial=0)))
    return figure(
        [outline, heat],
        xaxis={"title": {"text": "seconds"}, "range": [0, seconds], "anchor": "y", "zeroline": False},
        yaxis={
            "title": {"text": "Hz"},
            "domain": [0, 0.66],
            "tickvals": np.interp(shown, centres, np.arange(len(centres))).tolist(),
            "ticktext": [f"{hertz:,}" for hertz in shown],
            "showgrid": False,
        },
        yaxis2={"domain": [0.72, 1], "range": [-1.1 * loudest, 1.1 * loudest]},
        height=HEIGHT,
        showlegend=False,
        dragmode=False,  # a finger scrolls the page
        margin={"l": 64, "r": 16, "t": 40, "b": 44},
    )


def _envelope(waveform: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest sample in each of at most `COLUMNS` parts of a waveform."""
    edges = np.linspace(0, len(waveform), min(COLUMNS, len(waveform)) + 1).astype(int)[:-1]
    return np.minimum.reduceat(waveform, edges), np.maximum.reduceat(waveform, edges)


def _spectrogram(waveform: FloatArray, rate: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(bands, columns) decibels, at most 0 and at least -`RANGE`, and (bands,) centres of the bands in Hz."""
    frame = 2 ** round(np.log2(FRAME * rate))
    padded = np.pad(waveform, frame // 2)
    starts = np.linspace(0, len(padded) - frame, min(COLUMNS, len(waveform))).astype(int)
    frames = np.stack([padded[start : start + frame] for start in starts])
    filters = mel_filters(rate, frame, BANDS)
    power = filters @ (np.abs(np.fft.rfft(frames * np.hanning(frame), axis=1)) ** 2).T
    decibels = 10 * np.log10(np.maximum(power / max(float(power.max()), 1e-10), 1e-10))
    centres: NDArray[np.float64] = np.fft.rfftfreq(frame, 1 / rate)[filters.argmax(axis=1)]
    return np.maximum(decibels, -RANGE), centres


def map_figure(embedding_map: EmbeddingMap, answer: Answer | None = None) -> go.Figure:
    """The map; with an answer, the sound is on it, and all but its nearest classes and neighbours' are faint."""
    points = np.pad(embedding_map.coordinates, ((0, 0), (0, 2)))[:, :2]
    first, second = [*embedding_map.explained, 0.0, 0.0][:2]
    names = [str(name) for name in embedding_map.classes]
    near = set(names)
    if answer is not None:
        neighbours = [each.name for each in (answer.real, answer.synthetic) if each is not None]
        near = {*neighbours, *(name for name, _ in answer.classes)}
    traces = []
    for index, name in enumerate(names):
        for synthetic in (True, False):
            chosen = np.flatnonzero((embedding_map.labels == index) & (embedding_map.synthetic == synthetic))
            if len(chosen):
                traces.append(_cloud(embedding_map, points, chosen, index, synthetic, name in near))
    traces.sort(key=lambda trace: trace.opacity)  # the nearest classes lie on top
    named = [trace for trace in traces if trace.showlegend]
    if answer is None and len(named) > MOST_NAMED:
        for trace in named:
            trace.showlegend = False
    if answer is not None and answer.place is not None:
        traces += _sound(points, answer)
    return figure(
        traces,
        xaxis={"title": {"text": f"first axis, {first:.0%} of the variance"}, "zeroline": False},
        yaxis={"title": {"text": f"second axis, {second:.0%}"}, "zeroline": False},
        legend={"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0, "xanchor": "left"},
        height=HEIGHT,
        dragmode=False,
        margin={"l": 56, "r": 16, "t": 40, "b": 48},
    )


def _cloud(
    embedding_map: EmbeddingMap,
    points: NDArray[Any],
    chosen: NDArray[np.int64],
    index: int,
    synthetic: bool,
    near: bool,
) -> go.Scatter:
    """The real or synthetic points of a class, in the colour and with the symbol that the report gives it."""
    name = str(embedding_map.classes[index])
    full = label(name)
    notes = [
        f"{full}, synthetic" if synthetic else f"{full}, {label(embedding_map.sites[row])}" for row in chosen.tolist()
    ]
    alone = not (embedding_map.labels[~embedding_map.synthetic] == index).any()
    return go.Scatter(
        x=_rounded(points[chosen, 0]),
        y=_rounded(points[chosen, 1]),
        mode="markers",
        name=label(name, LONGEST_LABEL),
        legendgroup=str(index),
        showlegend=near and (alone or not synthetic),
        opacity=1 if near else 0.15,
        customdata=notes,
        hovertemplate="%{customdata}<extra></extra>",
        marker={
            "color": colour(index),
            "symbol": symbol(index) + ("-open" if synthetic else ""),
            "size": 7 if synthetic else 10,
        },
    )


def _sound(points: NDArray[Any], answer: Answer) -> list[go.Scatter]:
    """The sound, and a line to its nearest synthetic sample."""
    assert answer.place is not None
    here = np.pad(answer.place, (0, 2))[:2]
    traces = []
    if answer.synthetic is not None:
        there = points[answer.synthetic.row]
        traces.append(
            go.Scatter(
                x=_rounded(np.array([here[0], there[0]])),
                y=_rounded(np.array([here[1], there[1]])),
                mode="lines",
                line={"color": "#768290", "dash": "dot", "width": 2},
                showlegend=False,
                hoverinfo="skip",
            )
        )
    star = go.Scatter(
        x=_rounded(here[:1]),
        y=_rounded(here[1:]),
        mode="markers",
        name="this sound",
        hovertemplate="this sound<extra></extra>",
        marker={"symbol": "star", "size": 20, "color": "#ffd92f", "line": {"color": "#1c2026", "width": 2}},
    )
    return [*traces, star]


def _rounded(values: NDArray[Any]) -> list[float]:
    """Values with four digits, which are finer than a pixel."""
    return [float(f"{value:.4g}") for value in values.tolist()]
