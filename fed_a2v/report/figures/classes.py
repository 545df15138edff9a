"""Figures of the classes: bars for each class, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fed_a2v.report.collect import Collection
from fed_a2v.report.figures.base import (
    MOST_VIEWS,
    READABLE_CLASSES,
    Plot,
    View,
    bars_to,
    cell,
    margin,
    named_axis,
    of_means,
)
from fed_a2v.report.record import RunRecord
from fed_a2v.report.styles import bar_style, clean, figure, label
from fed_a2v.runs.table import TextTable

MOST_CONFUSIONS = 50
# With fewer test clips, the accuracy of a class is mostly chance.
FEW_CLIPS_OF_A_CLASS = 20


def class_plot(collection: Collection) -> Plot:
    """Bars by class, the worst first: accuracy, similarity, training clips, sites."""
    runs = [run for run in collection.arms if run.evaluation.get("classes")]
    order = worst_first(runs[0], {name for run in runs for name in run.evaluation["classes"]}) if runs else []
    has_t5 = any("t5/accuracy" in figures for run in runs for figures in run.evaluation["classes"].values())
    measures = [
        ("accuracy", "Accuracy", ".3f"),
        ("accuracy_before", "Before the server step", ".3f"),
        ("cosine", "Similarity", ".3f"),
        *([("t5/accuracy", "T5: accuracy", ".3f"), ("t5/cosine", "T5: similarity", ".3f")] if has_t5 else []),
        ("clips", "Training clips", ".4g"),
        ("sites", "Sites", ".4g"),
    ]
    views = []
    for key, words, form in measures:
        if any(_of(run, name, key) is not None for run in runs for name in order):
            traces = [_class_bars(run, order, key, form, index, len(runs) > 1) for index, run in enumerate(runs)]
            views.append(View(words, _by_class(traces, order, words, "accuracy" in key)))
    similarity = [_similarity(run) for run in runs]
    rows = []
    for name in order:
        for run, synthetic in zip(runs, similarity, strict=True):
            cells = [cell(_of(run, name, key), form) for key, _, form in measures]
            own = [clean(run.label)] if len(runs) > 1 else []
            marked = clean(name) + " (lost)" * bool(_of(run, name, "lost"))
            rows.append((marked, *own, *cells, _tested(run, name), cell(synthetic.get(name), ".3f")))
    header = ("class", *(["run"] if len(runs) > 1 else []), *(words.lower() for _, words, _ in measures))
    return Plot(
        "classes",
        "Accuracy by class",
        f"Each class at the end of the run, the least accurate{_of_first(runs)} first: accuracy on its test clips, "
        "mean cosine of the adapters' outputs to its prompt, number of training clips, and number of sites with such "
        f"clips. {_few_clips(runs)}{_intervals(runs)}{_lost(collection, order)}{of_means(collection, 'Bars')}".strip(),
        views,
        TextTable("", (*header, "test clips", "similarity of samples"), tuple(rows)),
        height=max(260, 90 + len(order) * (16 + 8 * max(0, min(len(runs), 4) - 1))),
    )


def worst_first(run: RunRecord, names: Iterable[str]) -> list[str]:
    """Classes by accuracy, then by similarity, the lowest first; those without test clips last."""
    return sorted(names, key=lambda name: (_of(run, name, "accuracy", 2), _of(run, name, "cosine", 2), name))


def most_confused(run: RunRecord, name: str) -> str | None:
    """The class for which the test clips of a class were most often taken; None if it is unknown."""
    predicted = run.evaluation.get("confusion", {}).get(name, {})
    others = {other: clips for other, clips in predicted.items() if other != name and clips}
    return min(others, key=lambda other: (-others[other], other), default=None)


def _of_first(runs: Sequence[RunRecord]) -> str:
    return f" of {clean(runs[0].label)}" if len(runs) > 1 else ""


def _few_clips(runs: Sequence[RunRecord]) -> str:
    """How much one test clip changes the accuracy of a class, where it is much."""
    counts = [each.get("test_clips") or 0 for run in runs for each in run.evaluation["classes"].values()]
    least = min((count for count in counts if count), default=FEW_CLIPS_OF_A_CLASS)
    if least >= FEW_CLIPS_OF_A_CLASS:
        return ""
    return f"With {least:.0f} test clips of a class, one clip changes its accuracy by {1 / least:.2f}. "


def _intervals(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        return ""
    single = [each for run in runs if not run.members for each in run.evaluation["classes"].values()]
    return "Thin lines: 95 % intervals, on these test clips. " * any(each.get("accuracy_low") for each in single)


def _lost(collection: Collection, order: Sequence[str]) -> str:
    if not any(_of(run, name, "lost") for run in collection.runs if run.evaluation for name in order):
        return ""
    return (
        f"Lost: no site has enough clips to send {_sent(collection)} of the class, so it is learned by the sites' "
        "adapters only. "
    )


def _sent(collection: Collection) -> str:
    return " or ".join(sorted({"sums" if run.shares_sums else "prototypes" for run in collection.runs}))


def _class_bars(run: RunRecord, order: Sequence[str], key: str, form: str, index: int, several: bool) -> go.Bar:
    notes = []
    for name in order:
        clips, sites = (_of(run, name, field, 0) for field in ("clips", "sites"))
        trained = (
            "lost, too few clips at every site" if _of(run, name, "lost") else f"{clips:.4g} clips, sites: {sites:.4g}"
        )
        notes.append(f"{label(name)}<br>{trained}, {_tested(run, name)} test clips")
    return go.Bar(
        y=list(range(len(order))),
        x=[_of(run, name, key) for name in order],
        name=label(run.label),
        orientation="h",
        marker=bar_style(index, several),
        error_x={} if several and not run.members else _error_bars(run, order, key),
        customdata=notes,
        hovertemplate="%{customdata}<br>%{x:" + form + "}",
        showlegend=several,
    )


def _error_bars(run: RunRecord, order: Sequence[str], key: str) -> dict[str, Any]:
    """Bars of the classes' intervals, or from the lowest to the highest of several runs; none if one is missing."""
    values = [_of(run, name, key) for name in order]
    ends = [(_of(run, name, f"{key}_low"), _of(run, name, f"{key}_high")) for name in order]
    if any(each is None for each in (*values, *(end for pair in ends for end in pair))):
        return {}
    return {**bars_to(values, ends), "width": 2}


def _by_class(traces: list[Any], order: Sequence[str], words: str, fraction: bool) -> go.Figure:
    return figure(
        traces,
        xaxis={"title": {"text": words}, **({"range": [0, 1.02]} if fraction else {"rangemode": "tozero"})},
        yaxis={**named_axis(order), "range": [len(order) - 0.5, -0.5]},
        margin=margin(order),
        barmode="group",
        bargap=0.25,
    )


def _of(run: RunRecord, name: str, key: str, otherwise: Any = None) -> Any:
    value = run.evaluation.get("classes", {}).get(name, {}).get(key)
    return otherwise if value is None else value


def _tested(run: RunRecord, name: str) -> str:
    """Number of scored test clips of a class, with the total if not all were scored."""
    scored = _of(run, name, "test_clips", 0)
    total = run.evaluation["classes"].get(name, {}).get("test_clips_total", scored)
    shown = f"{scored:.4g}"
    return shown if total == scored else f"{shown} of {'?' if total is None else f'{total:.4g}'}"


def _similarity(run: RunRecord) -> dict[str, float]:
    """Cosine of samples to held-out prototypes by class, in the newest validation."""
    validations = [
        row["generator_validation_per_class"] for row in run.rows if row.get("generator_validation_per_class")
    ]
    return dict(validations[-1]) if validations else {}


def confusion_plot(collection: Collection) -> Plot:
    """Confusion matrix of the classes."""
    runs = [run for run in collection.runs if run.evaluation.get("confusion")]
    views, rows = [], []
    for run in runs[:MOST_VIEWS]:
        views.append(View(clean(run.label), _matrix(run)))
    for run in runs:
        own = (clean(run.label),) if len(collection.runs) > 1 else ()
        for clips, share, name, other in _confusions(run)[:MOST_CONFUSIONS]:
            rows.append((*own, clean(name), clean(other), str(clips), f"{share:.0%}"))
    header = ("class", "predicted", "clips", "share of the class")
    size = max((len(run.evaluation["classes"]) for run in runs), default=0)
    return Plot(
        "confusion",
        "Confusions",
        "Rows: true class of the clips; columns: class of the nearest prompt, as a share of the row. The table lists "
        f"at most {MOST_CONFUSIONS} confusions, by number of clips.",
        views,
        TextTable("", ((("run",) if len(collection.runs) > 1 else ()) + header), tuple(rows)),
        height=int(min(900, max(360, 170 + 22 * size))),
    )


def _confusions(run: RunRecord) -> list[tuple[int, float, str, str]]:
    confusions = [
        (clips, clips / sum(predicted.values()), name, other)
        for name, predicted in run.evaluation["confusion"].items()
        for other, clips in predicted.items()
        if other != name
    ]
    return sorted(confusions, key=lambda each: (-each[0], *each[2:]))


def _matrix(run: RunRecord) -> go.Figure:
    confusion: Mapping[str, Mapping[str, int]] = run.evaluation["confusion"]
    names = sorted({*confusion, *(other for predicted in confusion.values() for other in predicted)})
    counts = np.array([[confusion.get(name, {}).get(other, 0) for other in names] for name in names])
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    notes = [
        [
            f"{label(name)} predicted as {label(other)}: {counts[i, j]} of {counts[i].sum()}"
            for j, other in enumerate(names)
        ]
        if len(names) <= 100
        else [f"{label(name, 12)} / {label(other, 12)}: {counts[i, j]}" for j, other in enumerate(names)]
        for i, name in enumerate(names)
    ]
    cells = {"text": [[str(n) if n else "" for n in row] for row in counts.tolist()], "texttemplate": "%{text}"}
    heat = go.Heatmap(
        z=[[float(f"{share:.3g}") for share in row] for row in shares.tolist()],
        customdata=notes,
        hovertemplate="%{customdata}<extra></extra>",
        zmin=0,
        zmax=1,
        autocolorscale=True,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "share"}, "thickness": 10, "tickformat": ".0%"},
        **(cells if len(names) <= READABLE_CLASSES else {}),
    )
    return figure(
        [heat],
        xaxis={**named_axis(names), "tickangle": -60, "showgrid": False},
        yaxis={**named_axis(names), "range": [len(names) - 0.5, -0.5], "showgrid": False},
        margin=margin(names, below=True),
    )
