"""The figures of a report, each with the numbers behind it as a table."""

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

# Runs that are shown one by one where they cannot share a figure.
MOST_VIEWS = 12
# Classes whose numbers still fit into the cells of the confusion matrix, and whose names onto the map.
READABLE_CLASSES = 20
MOST_CONFUSIONS = 50

Layout = Callable[[NDArray[np.float32]], NDArray[np.float32] | None]


@dataclass(frozen=True)
class View:
    """One of the faces of a figure, chosen by its label."""

    label: str
    figure: go.Figure


@dataclass(frozen=True)
class Plot:
    """A figure of the report.

    Attributes:
        name: a word of its own, for links.
        title: what it shows.
        caption: how to read it.
        views: at least one; with more, the reader chooses.
        table: the numbers behind it.
        height: in pixels.
        classes: names that the reader may single out by a list; traces carry their index as `meta`.
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
    ("accuracy_known", "Classes heard of so far"),
    ("accuracy_old", "Classes whose sites are gone"),
    ("unseen/harmonic", "With unrecorded classes, harmonic mean"),
    ("unseen/among_unseen", "Among unrecorded classes"),
)
FRACTIONS = {
    *("accuracy", "accuracy_at_5", "t5/accuracy", "accuracy_known", "accuracy_old"),
    *("unseen/harmonic", "unseen/among_unseen"),
}


_T5_WORDS = " T5 is scored among the T5 prompts, and after the server step only: before it the CLIP side travels alone."


def accuracy_plot(found: Collection) -> Plot:
    """Accuracy by round, before and after the server step, beside the baselines."""
    views = []
    for key, title in ACCURACIES:
        traces: list[Any] = []
        for index, run in enumerate(found.runs):
            several = len(found.runs) > 1
            after = run.label if several or key != "accuracy" else "after the server step"
            traces += _line(run.rows, key, after, index, tested=True)
            if key == "accuracy":
                name = f"{run.label}, before the server step" if several else "before the server step"
                traces += _line(run.rows, "accuracy_before", name, index, faint=True, tested=True)
        if not traces:
            continue
        for index, (name, rows) in enumerate(found.baselines.items()):
            traces += _line(rows, key, name, len(found.runs) + index, plain=True)
        views.append(View(title, _by_round(traces, title, fraction=key in FRACTIONS)))
    columns = [*_columns(found.runs, "accuracy_before", "before"), *_columns(found.runs, "accuracy", "after")]
    t5 = _columns(found.runs, "t5/accuracy", "T5")
    columns += t5
    columns += [
        (_of_run("test clips", run, found.runs), {row["round"]: scored_on(row) for row in run.rows})
        for run in found.runs
        if not all(map(fully_evaluated, run.rows))
    ]
    columns += [(name, {row["round"]: row.get("accuracy") for row in rows}) for name, rows in found.baselines.items()]
    return Plot(
        "accuracy",
        "Accuracy by round",
        "Share of test clips whose nearest class prompt, among all, is the right one. Open markers: the plain average "
        "of the sites' adapters; full markers: after the server's fine-tuning." + (_T5_WORDS if t5 else ""),
        views,
        _round_table(columns),
    )


def gain_plot(found: Collection) -> Plot:
    """What the server step adds, round by round: to the average of the round, and to the run."""
    views, columns = [], []
    for words, measure in (("In the round", _gain_in_round), ("Over FedAvg", _gain_over_fedavg)):
        gains = [(index, run, measure(run)) for index, run in enumerate(found.runs)]
        known = [each for each in gains if any(value is not None for value in each[2].values())]
        columns += [(_of_run(words.lower(), run, found.runs), values) for _, run, values in known]
        traces = [
            go.Bar(
                x=list(values),
                y=list(values.values()),
                name=label(run.label),
                marker=bar_style(index, several=True),
                hovertemplate="round %{x}: %{y:+.3f}",
                showlegend=len(found.runs) > 1,
            )
            for index, run, values in known
        ]
        if traces:
            views.append(View(words, _by_round(traces, "gain in accuracy")))
    return Plot(
        "gain",
        "Gain of the server step",
        "In the round: accuracy after the server step less accuracy before it. The first round's says what the step "
        "does to a plain average; later averages are of adapters that it has improved already. Over FedAvg: accuracy "
        "less that of the same run without the server step, after the same round.",
        views,
        _round_table(columns),
        height=260,
    )


def _gain_in_round(run: RunRecord) -> dict[int, float | None]:
    return {row["round"]: gain(row) for row in run.rows}


def _gain_over_fedavg(run: RunRecord) -> dict[int, float | None]:
    without = {row["round"]: row for row in run.without_step}
    return {row["round"]: gain_over(row, without.get(row["round"])) for row in run.rows}


def loss_plot(found: Collection) -> Plot:
    """Losses of the generator, with its terms and those of a GAN's critic, and of the adapters."""
    parts = sorted({key for run in found.runs for row in run.rows for key in row if key.startswith("generator/")})
    keys = [("server/generator_loss", "Generator's loss")]
    keys += [(key, key.removeprefix("generator/").replace("_", " ").capitalize()) for key in parts]
    keys += [("server/adapter_finetuning_loss", "Fine-tuning"), ("site/loss", "At the sites")]
    return _choice(
        "losses",
        "Losses by round",
        "Training losses: of the generator and its terms, of a GAN's critic, of the adapters in the server's "
        "fine-tuning, and at the sites. Losses of different generators do not compare.",
        found,
        keys,
    )


def validation_plot(found: Collection) -> Plot:
    """The generator on prototypes that it has not seen."""
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
        "Samples beside held-out prototypes. Samples are as good as recordings where the first test reaches real "
        "embeddings' accuracy, the two-sample test stays near 0.5, and the nearest-neighbour ratio is near 1 "
        "(0: copies). Thin lines: real embeddings in the samples' place, and without markers a constant that knows no "
        "class. Bars: 95 % intervals. Tests on fewer than 40 held-out prototypes say little.",
        found,
        keys,
        beside=(("_real", "real"), ("_blind", "class-blind")),
        more=(("server/generator_validation_rows", "held-out rows"),),
    )


def network_plot(found: Collection) -> Plot:
    """The generator's network alone, on the same prototypes."""
    keys = [
        ("generator_network/likelihood", "Log-likelihood"),
        ("generator_network/gain", "Log-likelihood less the Gaussians'"),
        ("generator_network/reconstruction", "Reconstruction error"),
        ("generator_network/raw_tstr", "Train on raw samples, test on real"),
        ("generator_network/raw_c2st", "Two-sample test of raw samples"),
    ]
    return _choice(
        "network",
        "The generator's network alone",
        "Without the classes' moments, the residuals and the calibration that its samples get. Log-likelihood of "
        "held-out prototypes in nats a dimension, for a VAE a lower bound; thin lines: the network before its training "
        "where it starts from a closed form, and without markers what needs no network, a Gaussian for each class and "
        "the class's mean. Bars: 95 % intervals.",
        found,
        keys,
        beside=(("_untrained", "untrained"), ("_gaussian", "Gaussians"), ("_class_mean", "class mean")),
    )


def _choice(
    name: str,
    title: str,
    caption: str,
    found: Collection,
    keys: Sequence[tuple[str, str]],
    beside: Sequence[tuple[str, str]] = (),
    more: Sequence[tuple[str, str]] = (),
) -> Plot:
    """A plot with a view for each metric that any run has.

    Args:
        beside: what stands behind a metric's name where it is a baseline, and its words; only the first has markers.
        more: metrics for the table alone.
    """
    views, columns = [], []
    for key, words in keys:
        traces: list[Any] = []
        for index, run in enumerate(found.runs):
            traces += _line(run.rows, key, run.label, index)
            for place, (behind, of) in enumerate(beside):
                traces += _line(run.rows, f"{key}{behind}", f"{run.label}, {of}", index, faint=True, plain=place > 0)
        if traces:
            views.append(View(words, _by_round(traces, words)))
            columns += _columns(found.runs, key, words)
            columns += [
                column for behind, of in beside for column in _columns(found.runs, key + behind, f"{words}, {of}")
            ]
    columns += [column for key, words in more for column in _columns(found.runs, key, words)]
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
    """One line over the rounds, with its intervals where the rows have them; nothing where no round has a value.

    `tested`: say where not all test clips were scored.
    """
    rows = [row for row in rows if row.get(key) is not None]
    if not rows:
        return []
    lone = plain and len(rows) == 1  # a line through one point is not to be seen: a dash in its place
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
    """Bars to the ends of the 95 % intervals of a metric; none where a round has no interval."""
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
    """Ticks at whole rounds, where a scale of its own could have halves."""
    return {"dtick": 1} if len(rounds) <= 12 else {}


# Classes --------------------------------------------------------------------------------------------------


def class_plot(found: Collection) -> Plot:
    """Bars by class: accuracy, similarity, training clips, sites."""
    runs = [run for run in found.runs if run.evaluation.get("classes")]
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
        "prompt, clips that sites train on, and how many sites have any. Lost: no site has enough clips of it to share "
        "anything, so that only the average of the sites' adapters knows the class.",
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
    """An axis whose whole numbers have names: as categories, Plotly would take some for numbers or dates."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [label(name, LONGEST_LABEL) for name in names],
    }


def _margin(names: Sequence[str], below: bool = False) -> dict[str, int]:
    """Room for names to the left, and below. Plotly would measure it, by drawing everything several times."""
    longest = min(LONGEST_LABEL, max(map(len, names), default=0))
    return {"l": 16 + 7 * longest, "r": 16, "t": 28, "b": 20 + 6 * longest if below else 48}


def _of(run: RunRecord, name: str, key: str, otherwise: Any = None) -> Any:
    value = run.evaluation["classes"].get(name, {}).get(key)
    return otherwise if value is None else value


def _tested(run: RunRecord, name: str) -> str:
    """Test clips of a class that were scored; of how many, where those were not all."""
    scored = _of(run, name, "test_clips", 0)
    total = run.evaluation["classes"].get(name, {}).get("test_clips_total", scored)
    return str(scored) if total == scored else f"{scored} of {'?' if total is None else total}"


def _similarity(run: RunRecord) -> dict[str, float]:
    """Cosine of samples to held-out prototypes by class, of the newest validation."""
    found = [row["generator_validation_per_class"] for row in run.rows if row.get("generator_validation_per_class")]
    return dict(found[-1]) if found else {}


# The map --------------------------------------------------------------------------------------------------


def map_plot(found: Collection, unfold: Layout | None = None) -> Plot:
    """Real and synthetic embeddings in two dimensions.

    Args:
        found: the runs.
        unfold: another way to two dimensions than the first two axes, such as `umap_layout`; may return None.
    """
    views, rows, classes = [], [], dict[str, None]()
    for run in [run for run in found.runs if run.map is not None][:MOST_VIEWS]:
        assert run.map is not None
        own = f"{clean(run.label)}, " if len(found.runs) > 1 else ""
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
            real, drawn = (of_class & (run.map.synthetic == kind) for kind in (False, True))
            centres = [_centre(flat[rows_of]) for rows_of in (real, drawn)]
            cells = (str(int(real.sum())), centres[0], str(int(drawn.sum())), centres[1])
            rows.append((*([clean(run.label)] if own else []), clean(name), *cells))
    header = ("class", "real points", "their centre", "synthetic points", "their centre")
    return Plot(
        "map",
        "Map of the embeddings",
        "Full symbols: the sites' prototypes, each the mean of a group of clips. Open symbols: what the generator "
        "draws. A good generator's cloud lies around its class's prototypes, wider than they, and not on top of them.",
        views,
        TextTable("", ((("run",) if len(found.runs) > 1 else ()) + header), tuple(rows)),
        height=560,
        classes=tuple(sorted(map(clean, classes))),
    )


def _scatter(found: EmbeddingMap, points: NDArray[Any], axes: tuple[str, str]) -> go.Figure:
    names = [str(name) for name in found.classes]
    few = len(names) <= READABLE_CLASSES
    traces, notes = [], []
    for index, name in enumerate(names):
        for synthetic in (True, False):
            chosen = np.flatnonzero((found.labels == index) & (found.synthetic == synthetic))
            if len(chosen):
                traces.append(_cloud(found, points, chosen, index, synthetic, few))
        real = points[(found.labels == index) & (~found.synthetic | found.synthetic.all())]
        if len(real):
            # Beside the point in the middle, for the middle of a ring would be empty.
            middle = real[np.linalg.norm(real - np.median(real, axis=0), axis=1).argmin()]
            notes.append(
                {
                    "x": float(middle[0]),
                    "y": float(middle[1]),
                    "text": label(name, LONGEST_LABEL),
                    "name": clean(name),  # shown where the reader singles its class out
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
    found: EmbeddingMap, points: NDArray[Any], chosen: NDArray[Any], index: int, synthetic: bool, few: bool
) -> go.Scatter:
    name = label(str(found.classes[index]))
    notes = [
        f"{name}, synthetic" if synthetic else f"{name}, {label(found.sites[row])}: mean of {found.counts[row]} clips"
        for row in chosen
    ]
    return go.Scatter(
        x=_rounded(points[chosen, 0]),
        y=_rounded(points[chosen, 1]),
        mode="markers",
        name=name,
        meta=clean(str(found.classes[index])),
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
    """Four digits are finer than a pixel."""
    return [float(f"{value:.4g}") for value in values.tolist()]


# Confusion ------------------------------------------------------------------------------------------------


def confusion_plot(found: Collection) -> Plot:
    """Which class was taken for which."""
    runs = [run for run in found.runs if run.evaluation.get("confusion")]
    views, rows = [], []
    for run in runs[:MOST_VIEWS]:
        views.append(View(clean(run.label), _matrix(run)))
    for run in runs:
        own = (clean(run.label),) if len(found.runs) > 1 else ()
        for clips, share, name, other in _confusions(run)[:MOST_CONFUSIONS]:
            rows.append((*own, clean(name), clean(other), str(clips), f"{share:.0%}"))
    header = ("class", "taken for", "clips", "share of the class")
    size = max((len(run.evaluation["classes"]) for run in runs), default=0)
    return Plot(
        "confusion",
        "Confusions",
        "Rows: the clips' class; columns: the class of the nearest prompt, as a share of the row. The table lists the "
        f"confusions by number of clips, {MOST_CONFUSIONS} at most.",
        views,
        TextTable("", ((("run",) if len(found.runs) > 1 else ()) + header), tuple(rows)),
        height=int(min(900, max(360, 170 + 22 * size))),
    )


def _confusions(run: RunRecord) -> list[tuple[int, float, str, str]]:
    found = [
        (clips, clips / sum(predicted.values()), name, other)
        for name, predicted in run.evaluation["confusion"].items()
        for other, clips in predicted.items()
        if other != name
    ]
    return sorted(found, key=lambda each: (-each[0], *each[2:]))


def _matrix(run: RunRecord) -> go.Figure:
    confusion: Mapping[str, Mapping[str, int]] = run.evaluation["confusion"]
    names = sorted({*confusion, *(other for predicted in confusion.values() for other in predicted)})
    counts = np.array([[confusion.get(name, {}).get(other, 0) for other in names] for name in names])
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    notes = [
        [
            f"{label(name)} taken for {label(other)}: {counts[i, j]} of {counts[i].sum()}"
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


def bytes_plot(found: Collection) -> Plot:
    """Traffic by round."""
    views = []
    columns: list[tuple[str, dict[int, Any]]] = []
    for key, words in (("bytes_up", "Up, from the sites"), ("bytes_down", "Down, to the sites")):
        traces = []
        for index, run in enumerate(found.runs):
            values = {row["round"]: row.get(key, 0) / 1e6 for row in run.rows}
            traces.append(_bars(values, run.label, index, len(found.runs) > 1, "%{y:.3g} MB"))
            columns.append((_of_run(f"MB {key.removeprefix('bytes_')}", run, found.runs), values))
        views.append(View(words, _by_round(traces, "MB")))
    return Plot(
        "bytes",
        "Bytes by round",
        "Payload of all sites together, in MB (a million bytes).",
        views,
        _round_table(columns),
        height=280,
    )


def seconds_plot(found: Collection) -> Plot:
    """Seconds by round and phase."""
    views = []
    columns: list[tuple[str, dict[int, Any]]] = []
    for run in found.runs[:MOST_VIEWS]:
        keys = {key.removeprefix("seconds/") for row in run.rows for key in row if key.startswith("seconds/")}
        phases = sorted(keys, key=lambda name: (PHASES.index(name) if name in PHASES else len(PHASES), name))
        traces = []
        for index, phase in enumerate(phases):
            values = {row["round"]: row.get(f"seconds/{phase}", 0.0) for row in run.rows}
            traces.append(_bars(values, phase, index, True, "%{y:.2f} s"))
            columns.append((_of_run(phase, run, found.runs), values))
        views.append(View(clean(run.label), _by_round(traces, "seconds").update_layout(barmode="stack")))
    return Plot(
        "seconds", "Seconds by round and phase", "As a clock on the server sees it.", views, _round_table(columns)
    )


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

# How a site answered: colour and symbol.
ANSWERS = {"replied": (2, "circle"), "rejected": (1, "x"), "failed": (5, "triangle-up")}


def sites_plot(found: Collection) -> Plot:
    """How every site answered in every round."""
    views: list[View] = []
    rows: list[tuple[str, ...]] = []
    own = len(found.runs) > 1
    for run in found.runs:
        names = sorted({site for row in run.rows for site in (*row.get("sites", {}), *row.get("not_evaluated", ()))})
        if names and len(views) < MOST_VIEWS:
            views.append(View(clean(run.label), _answers(run, names)))
        for name in names:
            rows.append((*([clean(run.label)] if own else []), clean(name), *_site_cells(run, name)))
    header = (
        *("site", "asked", "replied", "rejected", "failed", "silent for"),
        *("seconds a round", "classes", "clips", "not evaluated"),
    )
    most = max((len({site for row in run.rows for site in row.get("sites", {})}) for run in found.runs), default=0)
    return Plot(
        "sites",
        "How sites answered",
        "A reply is rejected if it does not pass the server's checks; a site has failed if it reports an error or says "
        "nothing in time. No mark: it was not asked in that round. Not evaluated: in so many rounds its test clips are "
        "missing from the figures.",
        views,
        TextTable("", ((("run",) if own else ()) + header), tuple(rows)),
        height=int(min(1200, max(240, 120 + 16 * most))),
    )


def _answers(run: RunRecord, names: Sequence[str]) -> go.Figure:
    place = {name: index for index, name in enumerate(names)}
    traces = []
    for answer, (tint, sign) in ANSWERS.items():
        found = [
            (row["round"], name) for row in run.rows for name, said in row.get("sites", {}).items() if said == answer
        ]
        if found:
            traces.append(
                go.Scatter(
                    x=[number for number, _ in found],
                    y=[place[name] for _, name in found],
                    mode="markers",
                    name=answer,
                    marker={"color": colour(tint), "symbol": sign, "size": 9},
                    customdata=[label(name) for _, name in found],
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
    answers = {row["round"]: row["sites"][name] for row in run.rows if name in row.get("sites", {})}
    counts = [sum(answer == kind for answer in answers.values()) for kind in ("replied", "rejected", "failed")]
    heard = [number for number, answer in answers.items() if answer == "replied"]
    silent = f"{run.last['round'] - max(heard)} rounds" if heard else "never heard"
    seconds = [row["site_seconds"][name] for row in run.rows if name in row.get("site_seconds", {})]
    classes = run.partition.get(name, {}).get("classes", {})
    clips = sum(each.get("train", 0) for each in classes.values())
    known = (str(sum(each.get("train", 0) > 0 for each in classes.values())), str(clips)) if classes else ("-", "-")
    mean = f"{sum(seconds) / len(seconds):.2f}" if seconds else "-"
    missed = sum(name in row.get("not_evaluated", ()) for row in run.rows)
    return (str(len(answers)), *map(str, counts), silent, mean, *known, str(missed))


# Tables ---------------------------------------------------------------------------------------------------


def _columns(runs: Sequence[RunRecord], key: str, words: str) -> list[tuple[str, dict[int, Any]]]:
    return [
        (_of_run(words, run, runs), {row["round"]: _with_interval(row, key) for row in run.rows})
        for run in runs
        if any(row.get(key) is not None for row in run.rows)
    ]


def _with_interval(row: Row, key: str) -> Any:
    """A metric, in words where the row also has its interval."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if row.get(key) is None or low is None or high is None:
        return row.get(key)
    return f"{row[key]:.4g} [{low:.3g}, {high:.3g}]"


def _of_run(words: str, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    return f"{clean(run.label)}: {words}" if len(runs) > 1 else words


def _round_table(columns: Iterable[tuple[str, Mapping[int, Any]]]) -> TextTable:
    """A row a round, a column a figure."""
    columns = list(columns)
    numbers = sorted({number for _, values in columns for number in values})
    rows = [(str(number), *(_text(values.get(number), ".4g") for _, values in columns)) for number in numbers]
    return TextTable("", ("round", *(clean(name) for name, _ in columns)), tuple(rows))


def _text(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return value if isinstance(value, str) else format(value, form)
