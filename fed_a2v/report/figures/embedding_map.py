"""The map of real and synthetic embeddings in two dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.report.collect import Collection
from fed_a2v.report.figures.base import MOST_VIEWS, READABLE_CLASSES, Layout, Plot, View
from fed_a2v.report.styles import LONGEST_LABEL, clean, colour, figure, label, symbol
from fed_a2v.runs.table import TextTable


def map_plot(collection: Collection, unfold: Layout | None = None) -> Plot:
    """Real and synthetic embeddings in two dimensions.

    Args:
        collection: the runs.
        unfold: a further projection to two dimensions, such as `umap_layout`; may return None.
    """
    views, rows, classes = [], [], dict[str, None]()
    for run in [run for run in collection.runs if run.map is not None][:MOST_VIEWS]:
        assert run.map is not None
        own = f"{clean(run.label)}, " if len(collection.runs) > 1 else ""
        first, second = [*run.map.explained, 0.0, 0.0][:2]
        axes = (f"first axis, {first:.0%} of the variance", f"second axis, {second:.0%}")
        flat = np.pad(run.map.coordinates, ((0, 0), (0, 2)))[:, :2]
        views.append(View(f"{own}PCA", _scatter(run.map, flat, axes)))
        unfolded = unfold(run.map.coordinates) if unfold else None
        if unfolded is not None:
            views.append(View(f"{own}UMAP", _scatter(run.map, unfolded, ("UMAP 1", "UMAP 2"))))
        classes |= dict.fromkeys(map(str, run.map.classes))
        for index, name in enumerate(run.map.classes):
            of_class = run.map.labels == index
            real, sampled = (of_class & (run.map.synthetic == kind) for kind in (False, True))
            centres = [_centre(flat[selected]) for selected in (real, sampled)]
            cells = (str(int(real.sum())), centres[0], str(int(sampled.sum())), centres[1])
            rows.append((*([clean(run.label)] if own else []), clean(name), *cells))
    header = ("class", "real points", "centre of real points", "synthetic points", "centre of synthetic points")
    points, word = _real_points(collection)
    return Plot(
        "map",
        "Map of the embeddings",
        f"Full symbols: {points}. Open symbols: samples of the generator. Samples of a good generator surround the "
        f"{word} of their class and spread wider. Names are shown where there is room for them; below, each class has "
        "its symbol.",
        views,
        TextTable("", ((("run",) if len(collection.runs) > 1 else ()) + header), tuple(rows)),
        height=560,
        classes=tuple(sorted(map(clean, classes))),
    )


def _real_points(collection: Collection) -> tuple[str, str]:
    """What the full symbols are, and one word for them."""
    prototypes = "the sites' prototypes, each the mean of a group of clips"
    means = "the class means in the public space, over the clips of all sites"
    kinds = {run.shares_sums for run in collection.runs}
    if kinds == {True}:
        return means, "means"
    return (f"{prototypes}, or {means}", "full symbols") if True in kinds else (prototypes, "prototypes")


def _scatter(embedding_map: EmbeddingMap, points: NDArray[Any], axes: tuple[str, str]) -> go.Figure:
    labels, is_synthetic = embedding_map.labels, embedding_map.synthetic
    names = [str(name) for name in embedding_map.classes]
    few = len(names) <= READABLE_CLASSES
    traces, notes = [], []
    for index, name in enumerate(names):
        for synthetic in (True, False):
            chosen = np.flatnonzero((labels == index) & (is_synthetic == synthetic))
            if len(chosen):
                traces.append(_cloud(embedding_map, points, chosen, index, synthetic, few))
        real = points[(labels == index) & (~is_synthetic | is_synthetic.all())]
        if len(real):
            # At the point next to the median, since the median of a ring would be in empty space.
            middle = real[np.linalg.norm(real - np.median(real, axis=0), axis=1).argmin()]
            notes.append(
                {
                    "x": float(middle[0]),
                    "y": float(middle[1]),
                    "text": label(name, LONGEST_LABEL),
                    "name": clean(name),
                    "showarrow": False,  # the page moves it to where it covers no other name
                }
            )
    return figure(
        traces,
        xaxis={"title": {"text": axes[0]}, "zeroline": False},
        yaxis={"title": {"text": axes[1]}, "zeroline": False},
        annotations=notes,
        showlegend=False,
    )


def _cloud(
    embedding_map: EmbeddingMap, points: NDArray[Any], chosen: NDArray[Any], index: int, synthetic: bool, few: bool
) -> go.Scatter:
    name = label(str(embedding_map.classes[index]))
    notes = [
        f"{name}, synthetic"
        if synthetic
        else f"{name}, {label(embedding_map.sites[row])}: mean of {embedding_map.counts[row]} clips"
        for row in chosen
    ]
    return go.Scatter(
        x=_rounded(points[chosen, 0]),
        y=_rounded(points[chosen, 1]),
        mode="markers",
        name=name,
        meta=clean(str(embedding_map.classes[index])),
        customdata=notes,
        hovertemplate="%{customdata}<extra></extra>",
        marker={
            "color": colour(index),
            "symbol": symbol(index) + ("-open" if synthetic else ""),
            "size": 7 if synthetic else (10 if few else 8),
            "opacity": 0.55 if synthetic else 0.95,
        },
    )


def _centre(points: NDArray[Any]) -> str:
    if not len(points):
        return "-"
    x, y = np.median(points, axis=0)
    return f"({x:.3g}, {y:.3g})"


def _rounded(values: NDArray[Any]) -> list[float]:
    """Values with four digits, which are finer than a pixel and keep the file small."""
    return [float(f"{value:.4g}") for value in values.tolist()]
