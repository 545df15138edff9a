"""The figures of a report, each with a table of its numbers; used by `page`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.report.collect import Collection, Row, RunRecord
from fed_a2v.report.styles import LONGEST_LABEL, bar_style, clean, colour, dash, figure, label, symbol
from fed_a2v.runs.rounds import fully_evaluated, gain, gain_over, scored_on
from fed_a2v.runs.table import TextTable

# Maximum number of runs in a figure with one view per run.
MOST_VIEWS = 12
# Maximum number of classes with numbers in the confusion matrix, and with names on the map.
READABLE_CLASSES = 20
MOST_CONFUSIONS = 50

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


# Rounds ---------------------------------------------------------------------------------------------------

ACCURACIES = (
    ("accuracy", "Accuracy"),
    ("accuracy_at_5", "Among the nearest five"),
    ("cosine", "Cosine"),
    ("loss", "Loss"),
    ("t5/accuracy", "T5: accuracy"),
    ("t5/cosine", "T5: cosine"),
    ("t5/loss", "T5: loss"),
    ("accuracy_known", "Classes received so far"),
    ("accuracy_old", "Classes of earlier sites"),
    ("unseen/harmonic", "With unrecorded classes, harmonic mean"),
    ("unseen/among_unseen", "Among unrecorded classes"),
)
FRACTIONS = {
    *("accuracy", "accuracy_at_5", "t5/accuracy", "accuracy_known", "accuracy_old"),
    *("unseen/harmonic", "unseen/among_unseen"),
}


_T5_NOTE = (
    " T5 is scored among the T5 prompts, and after the server step only: before it, only the CLIP adapter is sent."
)


def accuracy_plot(collection: Collection) -> Plot:
    """Accuracy by round, before and after the server step, with the baselines."""
    views = []
    for key, title in ACCURACIES:
        traces: list[Any] = []
        for index, run in enumerate(collection.runs):
            several = len(collection.runs) > 1
            after = run.label if several or key != "accuracy" else "after the server step"
            traces += _line(run.rows, key, after, index, tested=True)
            if key == "accuracy":
                name = f"{run.label}, before the server step" if several else "before the server step"
                traces += _line(run.rows, "accuracy_before", name, index, faint=True, tested=True)
        if not traces:
            continue
        for index, (name, rows) in enumerate(collection.baselines.items()):
            traces += _line(rows, key, name, len(collection.runs) + index, plain=True)
        views.append(View(title, _by_round(traces, title, fraction=key in FRACTIONS)))
    columns = [*_columns(collection.runs, "accuracy_before", "before"), *_columns(collection.runs, "accuracy", "after")]
    t5 = _columns(collection.runs, "t5/accuracy", "T5")
    columns += t5
    columns += [
        (_of_run("test clips", run, collection.runs), {row["round"]: scored_on(row) for row in run.rows})
        for run in collection.runs
        if not all(map(fully_evaluated, run.rows))
    ]
    columns += [
        (name, {row["round"]: row.get("accuracy") for row in rows}) for name, rows in collection.baselines.items()
    ]
    return Plot(
        "accuracy",
        "Accuracy by round",
        "Share of test clips whose nearest class prompt is the true one. Open markers: the plain average of the sites' "
        "adapters; full markers: after the server's fine-tuning." + (_T5_NOTE if t5 else ""),
        views,
        _round_table(columns),
    )


def gain_plot(collection: Collection) -> Plot:
    """Gain of the server step by round: over the average in the round, and over a run without server steps."""
    views, columns = [], []
    for words, measure in (("In the round", _gain_in_round), ("Over FedAvg", _gain_over_fedavg)):
        gains = [(index, run, measure(run)) for index, run in enumerate(collection.runs)]
        known = [each for each in gains if any(value is not None for value in each[2].values())]
        columns += [(_of_run(words.lower(), run, collection.runs), values) for _, run, values in known]
        traces = [
            go.Bar(
                x=list(values),
                y=list(values.values()),
                name=label(run.label),
                marker=bar_style(index, several=True),
                hovertemplate="round %{x}: %{y:+.3f}",
                showlegend=len(collection.runs) > 1,
            )
            for index, run, values in known
        ]
        if traces:
            views.append(View(words, _by_round(traces, "gain in accuracy")))
    return Plot(
        "gain",
        "Gain of the server step",
        "In the round: accuracy after the server step minus accuracy before it. Only in the first round is this the "
        "gain over a plain average; later averages are of adapters that earlier steps have improved. Over FedAvg: "
        "accuracy minus that of the same run without the server step, after the same round.",
        views,
        _round_table(columns),
        height=260,
    )


def _gain_in_round(run: RunRecord) -> dict[int, float | None]:
    return {row["round"]: gain(row) for row in run.rows}


def _gain_over_fedavg(run: RunRecord) -> dict[int, float | None]:
    without = {row["round"]: row for row in run.without_step}
    return {row["round"]: gain_over(row, without.get(row["round"])) for row in run.rows}


def loss_plot(collection: Collection) -> Plot:
    """Losses of the generator, with its terms and those of a GAN's critic, and of the adapters."""
    parts = sorted({key for run in collection.runs for row in run.rows for key in row if key.startswith("generator/")})
    keys = [("server/generator_loss", "Generator's loss")]
    keys += [(key, key.removeprefix("generator/").replace("_", " ").capitalize()) for key in parts]
    keys += [("server/adapter_finetuning_loss", "Fine-tuning"), ("site/loss", "At the sites")]
    return _choice(
        "losses",
        "Losses by round",
        "Training losses: of the generator and its terms, of a GAN's critic, of the adapters in the server's "
        "fine-tuning, and at the sites. Losses of different generators are not comparable.",
        collection,
        keys,
    )


def validation_plot(collection: Collection) -> Plot:
    """Validation of the generator on held-out prototypes."""
    keys = [
        ("server/generator_validation_similarity", "Similarity"),
        ("server/generator_validation_mse", "MSE"),
        ("server/generator_validation_l1", "L1"),
        ("generator_quality/tstr", "Train on synthetic, test on real"),
        ("generator_quality/c2st", "Two-sample test"),
        ("generator_quality/nn_ratio", "Nearest-neighbour ratio"),
    ]
    return _choice(
        "validation",
        "Validation of the generator",
        "Samples compared with held-out prototypes. Samples are as good as real embeddings if train on synthetic "
        "reaches their accuracy, the two-sample test is near 0.5, and the nearest-neighbour ratio is near 1 "
        "(0: copies). Thin lines: real embeddings in place of samples; without markers, one constant for all classes. "
        "Bars: 95 % intervals. Tests on fewer than 40 held-out prototypes have little power.",
        collection,
        keys,
        baselines=(("_real", "real"), ("_blind", "class-blind")),
        more=(("server/generator_validation_rows", "held-out rows"),),
    )


def network_plot(collection: Collection) -> Plot:
    """Validation of the generator's network alone, on the same prototypes."""
    keys = [
        ("generator_network/likelihood", "Log-likelihood"),
        ("generator_network/gain", "Log-likelihood minus the Gaussians'"),
        ("generator_network/reconstruction", "Reconstruction error"),
        ("generator_network/raw_tstr", "Train on raw samples, test on real"),
        ("generator_network/raw_c2st", "Two-sample test of raw samples"),
    ]
    return _choice(
        "network",
        "The generator's network alone",
        "Without class moments, residuals and calibration, which are applied to samples. Log-likelihood of held-out "
        "prototypes in nats per dimension, for a VAE a lower bound. Thin lines: the network before training, if it "
        "starts from a closed form; without markers, baselines without a network: a Gaussian for each class, and the "
        "class mean. Bars: 95 % intervals.",
        collection,
        keys,
        baselines=(("_untrained", "untrained"), ("_gaussian", "Gaussians"), ("_class_mean", "class mean")),
    )


def _choice(
    name: str,
    title: str,
    caption: str,
    collection: Collection,
    keys: Sequence[tuple[str, str]],
    baselines: Sequence[tuple[str, str]] = (),
    more: Sequence[tuple[str, str]] = (),
) -> Plot:
    """A plot with a view for each metric that any run has.

    Args:
        baselines: suffix of a metric's name for each baseline, with its label; only the first has markers.
        more: metrics for the table only.
    """
    views, columns = [], []
    for key, words in keys:
        traces: list[Any] = []
        for index, run in enumerate(collection.runs):
            traces += _line(run.rows, key, run.label, index)
            for place, (suffix, of) in enumerate(baselines):
                traces += _line(run.rows, f"{key}{suffix}", f"{run.label}, {of}", index, faint=True, plain=place > 0)
        if traces:
            views.append(View(words, _by_round(traces, words)))
            columns += _columns(collection.runs, key, words)
            columns += [
                column
                for suffix, of in baselines
                for column in _columns(collection.runs, key + suffix, f"{words}, {of}")
            ]
    columns += [column for key, words in more for column in _columns(collection.runs, key, words)]
    return Plot(name, title, caption, views, _round_table(columns))


def _line(
    rows: Sequence[Row],
    key: str,
    name: str,
    index: int,
    faint: bool = False,
    plain: bool = False,
    tested: bool = False,
) -> list[go.Scatter]:
    """A line over the rounds, with intervals if the rounds have them; empty if no round has a value.

    `tested` adds to the tooltip on which clips a round was scored, if not on all.
    """
    rows = [row for row in rows if row.get(key) is not None]
    if not rows:
        return []
    lone = plain and len(rows) == 1  # a line through one point would be invisible: mark it with a dash
    return [
        go.Scatter(
            x=[row["round"] for row in rows],
            y=[row[key] for row in rows],
            name=label(name),
            mode="lines" if plain and not lone else "lines+markers",
            line={"color": colour(index), "dash": "dot" if faint else dash(index), "width": 1.5 if faint else 2.5},
            marker={"symbol": "line-ew-open" if lone else symbol(index) + ("-open" if faint else ""), "size": 8},
            error_y=_interval_bars(rows, key),
            hovertemplate="%{y:.4g}" + ("%{customdata}" if tested else ""),
            customdata=["" if fully_evaluated(row) else f" on {scored_on(row)}" for row in rows] if tested else None,
        )
    ]


def _interval_bars(rows: Sequence[Row], key: str) -> dict[str, Any]:
    """Error bars of the 95 % intervals of a metric; none if a round has no interval."""
    ends = [(row.get(f"{key}_low"), row[key], row.get(f"{key}_high")) for row in rows]
    bars = [(value - low, high - value) for low, value, high in ends if low is not None and high is not None]
    if len(bars) < len(ends):
        return {}
    below, above = zip(*bars, strict=True)
    return {"symmetric": False, "arrayminus": below, "array": above, "thickness": 1}


def _by_round(traces: list[Any], words: str, fraction: bool = False) -> go.Figure:
    values = {number for trace in traces for number in trace.x}
    span = {"range": [min(values) - 0.5, max(values) + 0.5]} if values else {}
    return figure(
        traces,
        xaxis={"title": {"text": "round"}, **span, **_whole(values)},
        yaxis={"title": {"text": words}, **({"range": [0, 1.02]} if fraction else {})},
        hovermode="x unified",
        barmode="group",
    )


def _whole(rounds: Sized) -> dict[str, Any]:
    """Ticks at whole rounds; with few rounds, Plotly would choose halves."""
    return {"dtick": 1} if len(rounds) <= 12 else {}


# Classes --------------------------------------------------------------------------------------------------


def class_plot(collection: Collection) -> Plot:
    """Bars by class: accuracy, similarity, training clips, sites."""
    runs = [run for run in collection.runs if run.evaluation.get("classes")]
    names = sorted({name for run in runs for name in run.evaluation["classes"]})
    order = sorted(names, key=lambda name: -_of(runs[-1], name, "accuracy", -1)) if runs else []
    has_t5 = any("t5/accuracy" in figures for run in runs for figures in run.evaluation["classes"].values())
    measures = [
        ("accuracy", "Accuracy", ".3f"),
        ("accuracy_before", "Before the server step", ".3f"),
        ("cosine", "Similarity", ".3f"),
        *([("t5/accuracy", "T5: accuracy", ".3f"), ("t5/cosine", "T5: similarity", ".3f")] if has_t5 else []),
        ("clips", "Training clips", "d"),
        ("sites", "Sites", "d"),
    ]
    views = []
    for key, words, form in measures:
        if any(_of(run, name, key) is not None for run in runs for name in names):
            traces = [_class_bars(run, order, key, form, index, len(runs) > 1) for index, run in enumerate(runs)]
            views.append(View(words, _by_class(traces, order, words, "accuracy" in key)))
    similarity = [_similarity(run) for run in runs]
    rows = []
    for name in order:
        for run, synthetic in zip(runs, similarity, strict=True):
            cells = [_text(_of(run, name, key), form) for key, _, form in measures]
            own = [clean(run.label)] if len(runs) > 1 else []
            marked = clean(name) + " (lost)" * bool(_of(run, name, "lost"))
            rows.append((marked, *own, *cells, _tested(run, name), _text(synthetic.get(name), ".3f")))
    header = ("class", *(["run"] if len(runs) > 1 else []), *(words.lower() for _, words, _ in measures))
    return Plot(
        "classes",
        "Classes",
        "Each class at the end of the run: accuracy on its test clips, mean cosine of the adapters' outputs to its "
        "prompt, number of training clips, and number of sites with such clips. Lost: no site has enough clips to send "
        "prototypes of the class, so it is learned by the sites' adapters only.",
        views,
        TextTable("", (*header, "test clips", "similarity of samples"), tuple(rows)),
        height=max(260, 90 + len(order) * (16 + 8 * max(0, min(len(runs), 4) - 1))),
    )


def _class_bars(run: RunRecord, order: Sequence[str], key: str, form: str, index: int, several: bool) -> go.Bar:
    notes = []
    for name in order:
        clips, sites = (_of(run, name, field, 0) for field in ("clips", "sites"))
        trained = "lost, too few clips at every site" if _of(run, name, "lost") else f"{clips} clips at {sites} sites"
        notes.append(f"{label(name)}<br>{trained}, {_tested(run, name)} test clips")
    return go.Bar(
        y=list(range(len(order))),
        x=[_of(run, name, key) for name in order],
        name=label(run.label),
        orientation="h",
        marker=bar_style(index, several),
        customdata=notes,
        hovertemplate="%{customdata}<br>%{x:" + form + "}",
        showlegend=several,
    )


def _by_class(traces: list[Any], order: Sequence[str], words: str, fraction: bool) -> go.Figure:
    return figure(
        traces,
        xaxis={"title": {"text": words}, **({"range": [0, 1.02]} if fraction else {"rangemode": "tozero"})},
        yaxis={**_named(order), "range": [len(order) - 0.5, -0.5]},
        margin=_margin(order),
        barmode="group",
        bargap=0.25,
    )


def _named(names: Sequence[str]) -> dict[str, Any]:
    """An axis with names at whole numbers: as categories, Plotly would read some names as numbers or dates."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [label(name, LONGEST_LABEL) for name in names],
    }


def _margin(names: Sequence[str], below: bool = False) -> dict[str, int]:
    """Margins for names at the left and below. Plotly's automatic margins would draw everything several times."""
    longest = min(LONGEST_LABEL, max(map(len, names), default=0))
    return {"l": 16 + 7 * longest, "r": 16, "t": 28, "b": 20 + 6 * longest if below else 48}


def _of(run: RunRecord, name: str, key: str, otherwise: Any = None) -> Any:
    value = run.evaluation["classes"].get(name, {}).get(key)
    return otherwise if value is None else value


def _tested(run: RunRecord, name: str) -> str:
    """Number of scored test clips of a class, with the total if not all were scored."""
    scored = _of(run, name, "test_clips", 0)
    total = run.evaluation["classes"].get(name, {}).get("test_clips_total", scored)
    return str(scored) if total == scored else f"{scored} of {'?' if total is None else total}"


def _similarity(run: RunRecord) -> dict[str, float]:
    """Cosine of samples to held-out prototypes by class, in the newest validation."""
    validations = [
        row["generator_validation_per_class"] for row in run.rows if row.get("generator_validation_per_class")
    ]
    return dict(validations[-1]) if validations else {}


# The map --------------------------------------------------------------------------------------------------


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
    return Plot(
        "map",
        "Map of the embeddings",
        "Full symbols: the sites' prototypes, each the mean of a group of clips. Open symbols: samples of the "
        "generator. Samples of a good generator surround the prototypes of their class and spread wider.",
        views,
        TextTable("", ((("run",) if len(collection.runs) > 1 else ()) + header), tuple(rows)),
        height=560,
        classes=tuple(sorted(map(clean, classes))),
    )


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
                    "name": clean(name),  # shown when the reader highlights the class
                    "visible": few,
                    "showarrow": False,
                    "yshift": 12,
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


# Confusion ------------------------------------------------------------------------------------------------


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
        xaxis={**_named(names), "tickangle": -60, "showgrid": False},
        yaxis={**_named(names), "range": [len(names) - 0.5, -0.5], "showgrid": False},
        margin=_margin(names, below=True),
    )


# Bytes and seconds ----------------------------------------------------------------------------------------

PHASES = ("sites", "generator", "validation", "distil", "finetune", "calibration", "evaluate")


def bytes_plot(collection: Collection) -> Plot:
    """Traffic by round."""
    views = []
    columns: list[tuple[str, dict[int, Any]]] = []
    for key, words in (("bytes_up", "Up, from the sites"), ("bytes_down", "Down, to the sites")):
        traces = []
        for index, run in enumerate(collection.runs):
            values = {row["round"]: row.get(key, 0) / 1e6 for row in run.rows}
            traces.append(_bars(values, run.label, index, len(collection.runs) > 1, "%{y:.3g} MB"))
            columns.append((_of_run(f"MB {key.removeprefix('bytes_')}", run, collection.runs), values))
        views.append(View(words, _by_round(traces, "MB")))
    return Plot(
        "bytes",
        "Bytes by round",
        "Payload of all sites together, in MB (a million bytes).",
        views,
        _round_table(columns),
        height=280,
    )


def seconds_plot(collection: Collection) -> Plot:
    """Seconds by round and phase."""
    views = []
    columns: list[tuple[str, dict[int, Any]]] = []
    for run in collection.runs[:MOST_VIEWS]:
        keys = {key.removeprefix("seconds/") for row in run.rows for key in row if key.startswith("seconds/")}
        phases = sorted(keys, key=lambda name: (PHASES.index(name) if name in PHASES else len(PHASES), name))
        traces = []
        for index, phase in enumerate(phases):
            values = {row["round"]: row.get(f"seconds/{phase}", 0.0) for row in run.rows}
            traces.append(_bars(values, phase, index, True, "%{y:.2f} s"))
            columns.append((_of_run(phase, run, collection.runs), values))
        views.append(View(clean(run.label), _by_round(traces, "seconds").update_layout(barmode="stack")))
    return Plot("seconds", "Seconds by round and phase", "Wall-clock time on the server.", views, _round_table(columns))


def _bars(values: Mapping[int, Any], name: str, index: int, legend: bool, hover: str) -> go.Bar:
    return go.Bar(
        x=list(values),
        y=list(values.values()),
        name=label(name),
        marker=bar_style(index, legend),
        hovertemplate=hover,
        showlegend=legend,
    )


# Sites ----------------------------------------------------------------------------------------------------

# Status of a site in a round: colour and symbol.
STATUS = {"replied": (2, "circle"), "rejected": (1, "x"), "failed": (5, "triangle-up")}


def sites_plot(collection: Collection) -> Plot:
    """Status of every site in every round."""
    views: list[View] = []
    rows: list[tuple[str, ...]] = []
    own = len(collection.runs) > 1
    for run in collection.runs:
        names = sorted({site for row in run.rows for site in (*row.get("sites", {}), *row.get("not_evaluated", ()))})
        if names and len(views) < MOST_VIEWS:
            views.append(View(clean(run.label), _status(run, names)))
        for name in names:
            rows.append((*([clean(run.label)] if own else []), clean(name), *_site_cells(run, name)))
    header = (
        *("site", "sampled", "replied", "rejected", "failed", "last reply"),
        *("seconds per round", "classes", "clips", "not evaluated"),
    )
    most = max((len({site for row in run.rows for site in row.get("sites", {})}) for run in collection.runs), default=0)
    return Plot(
        "sites",
        "Replies of the sites",
        "A reply is rejected if it does not pass the server's checks; a site has failed if it reports an error or does "
        "not reply in time. No mark: the site was not sampled in that round. Not evaluated: number of rounds whose "
        "accuracy lacks the site's test clips.",
        views,
        TextTable("", ((("run",) if own else ()) + header), tuple(rows)),
        height=int(min(1200, max(240, 120 + 16 * most))),
    )


def _status(run: RunRecord, names: Sequence[str]) -> go.Figure:
    place = {name: index for index, name in enumerate(names)}
    traces = []
    for status, (tint, sign) in STATUS.items():
        points = [
            (row["round"], name) for row in run.rows for name, each in row.get("sites", {}).items() if each == status
        ]
        if points:
            traces.append(
                go.Scatter(
                    x=[number for number, _ in points],
                    y=[place[name] for _, name in points],
                    mode="markers",
                    name=status,
                    marker={"color": colour(tint), "symbol": sign, "size": 9},
                    customdata=[label(name) for _, name in points],
                    hovertemplate="%{customdata}, round %{x}",
                )
            )
    rounds = [row["round"] for row in run.rows]
    return figure(
        traces,
        margin=_margin(names),
        xaxis={"title": {"text": "round"}, "range": [min(rounds) - 0.5, max(rounds) + 0.5], **_whole(rounds)},
        yaxis={**_named(names), "range": [len(names) - 0.5, -0.5]},
        showlegend=True,
    )


def _site_cells(run: RunRecord, name: str) -> tuple[str, ...]:
    status = {row["round"]: row["sites"][name] for row in run.rows if name in row.get("sites", {})}
    counts = [sum(each == kind for each in status.values()) for kind in ("replied", "rejected", "failed")]
    replied = [number for number, each in status.items() if each == "replied"]
    last_reply = f"{run.last['round'] - max(replied)} rounds ago" if replied else "never"
    seconds = [row["site_seconds"][name] for row in run.rows if name in row.get("site_seconds", {})]
    classes = run.partition.get(name, {}).get("classes", {})
    clips = sum(each.get("train", 0) for each in classes.values())
    known = (str(sum(each.get("train", 0) > 0 for each in classes.values())), str(clips)) if classes else ("-", "-")
    mean = f"{sum(seconds) / len(seconds):.2f}" if seconds else "-"
    missed = sum(name in row.get("not_evaluated", ()) for row in run.rows)
    return (str(len(status)), *map(str, counts), last_reply, mean, *known, str(missed))


# Tables ---------------------------------------------------------------------------------------------------


def _columns(runs: Sequence[RunRecord], key: str, words: str) -> list[tuple[str, dict[int, Any]]]:
    return [
        (_of_run(words, run, runs), {row["round"]: _with_interval(row, key) for row in run.rows})
        for run in runs
        if any(row.get(key) is not None for row in run.rows)
    ]


def _with_interval(row: Row, key: str) -> Any:
    """A metric, as text with its interval if the round has one."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if row.get(key) is None or low is None or high is None:
        return row.get(key)
    return f"{row[key]:.4g} [{low:.3g}, {high:.3g}]"


def _of_run(words: str, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    return f"{clean(run.label)}: {words}" if len(runs) > 1 else words


def _round_table(columns: Iterable[tuple[str, Mapping[int, Any]]]) -> TextTable:
    """A table with one row per round."""
    columns = list(columns)
    numbers = sorted({number for _, values in columns for number in values})
    rows = [(str(number), *(_text(values.get(number), ".4g") for _, values in columns)) for number in numbers]
    return TextTable("", ("round", *(clean(name) for name, _ in columns)), tuple(rows))


def _text(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return value if isinstance(value, str) else format(value, form)
