"""Figures by round: accuracy, gain of the server step, losses, validation of the generator, bytes and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from fed_a2v.report.collect import Collection, Row, RunRecord
from fed_a2v.report.figures.base import MOST_VIEWS, Plot, View, by_round, columns_of, of_run, round_table
from fed_a2v.report.styles import bar_style, clean, colour, dash, label, symbol
from fed_a2v.runs.rounds import fully_evaluated, gain, gain_over, scored_on, total

PHASES = ("sites", "generator", "validation", "distil", "finetune", "calibration", "evaluate")
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
        views.append(View(title, by_round(traces, title, fraction=key in FRACTIONS)))
    t5 = columns_of(collection.runs, "t5/accuracy", "T5")
    columns = [
        *columns_of(collection.runs, "accuracy_before", "before"),
        *columns_of(collection.runs, "accuracy", "after"),
        *t5,
    ]
    columns += [
        (of_run("test clips", run, collection.runs), {row["round"]: scored_on(row) for row in run.rows})
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
        round_table(columns),
    )


def gain_plot(collection: Collection) -> Plot:
    """Gain of the server step by round: over the average in the round, and over a run without server steps."""
    views, columns = [], []
    for words, measure in (("In the round", _gain_in_round), ("Over FedAvg", _gain_over_fedavg)):
        gains = [(index, run, measure(run)) for index, run in enumerate(collection.runs)]
        known = [each for each in gains if any(value is not None for value in each[2].values())]
        columns += [(of_run(words.lower(), run, collection.runs), values) for _, run, values in known]
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
            views.append(View(words, by_round(traces, "gain in accuracy")))
    return Plot(
        "gain",
        "Gain of the server step",
        "In the round: accuracy after the server step minus accuracy before it. Only in the first round is this the "
        "gain over a plain average; later averages are of adapters that earlier steps have improved. Over FedAvg: "
        "accuracy minus that of the same run without the server step, after the same round.",
        views,
        round_table(columns),
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
        f"Samples compared with {collection.held_out}. Samples are as good as real embeddings if train on synthetic "
        "reaches their accuracy, the two-sample test is near 0.5, and the nearest-neighbour ratio is near 1 "
        "(0: copies). Thin lines: real embeddings in place of samples; without markers, one constant for all classes. "
        "Bars: 95 % intervals. Tests on fewer than 40 {collection.held_out} have little power.",
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
        "Without class moments, residuals and calibration, which are applied to samples. Log-likelihood of "
        f"{collection.held_out} in nats per dimension, for a VAE a lower bound. Thin lines: the network before "
        "training, if it starts from a closed form; without markers, baselines without a network: a Gaussian for each "
        "class, and the class mean. Bars: 95 % intervals.",
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
            views.append(View(words, by_round(traces, words)))
            columns += columns_of(collection.runs, key, words)
            columns += [
                column
                for suffix, of in baselines
                for column in columns_of(collection.runs, key + suffix, f"{words}, {of}")
            ]
    columns += [column for key, words in more for column in columns_of(collection.runs, key, words)]
    return Plot(name, title, caption, views, round_table(columns))


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


def bytes_plot(collection: Collection) -> Plot:
    """Traffic by round."""
    views = []
    columns: list[tuple[str, dict[int, Any]]] = []
    for key, words in (("bytes_up", "Up, from the sites"), ("bytes_down", "Down, to the sites")):
        traces = []
        for index, run in enumerate(collection.runs):
            values = {row["round"]: row.get(key, 0) / 1e6 for row in run.rows}
            if run.shares_sums:
                once = "bytes_registration" if key == "bytes_up" else "bytes_down_registration"
                values = {0: total(run.rows, once) / 1e6} | values
            traces.append(_bars(values, run.label, index, len(collection.runs) > 1, "%{y:.3g} MB"))
            columns.append((of_run(f"MB {key.removeprefix('bytes_')}", run, collection.runs), values))
        views.append(View(words, by_round(traces, "MB")))
    return Plot(
        "bytes",
        "Bytes by round",
        "Payload of all sites together, in MB (a million bytes)."
        + (
            " Round 0: the registration, with the sites' sums."
            if any(run.shares_sums for run in collection.runs)
            else ""
        ),
        views,
        round_table(columns),
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
            columns.append((of_run(phase, run, collection.runs), values))
        views.append(View(clean(run.label), by_round(traces, "seconds").update_layout(barmode="stack")))
    return Plot("seconds", "Seconds by round and phase", "Wall-clock time on the server.", views, round_table(columns))


def _bars(values: Mapping[int, Any], name: str, index: int, legend: bool, hover: str) -> go.Bar:
    return go.Bar(
        x=list(values),
        y=list(values.values()),
        name=label(name),
        marker=bar_style(index, legend),
        hovertemplate=hover,
        showlegend=legend,
    )
