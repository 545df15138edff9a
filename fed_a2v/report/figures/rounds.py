"""Figures by round: accuracy, gain of the server step, losses, validation of the generator, bytes and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from fed_a2v.report.collect import Collection
from fed_a2v.report.figures.base import (
    MOST_VIEWS,
    Plot,
    View,
    bars_to,
    by_round,
    columns_of,
    of_means,
    of_run,
    round_table,
)
from fed_a2v.report.figures.gates import GATES, show_range
from fed_a2v.report.record import RunRecord
from fed_a2v.report.styles import bar_style, clean, colour, dash, faint, label, symbol
from fed_a2v.runs.exchange import sites_train
from fed_a2v.runs.folder import has_server_step
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


_AXIS = "The vertical axis has the range of the values only, so that differences can be seen."
# Maximum number of arms with bars for the intervals of their accuracy; those of more would hide each other.
MOST_INTERVALS = 4
# Maximum number of bars with their value beside them.
MOST_NUMBERS = 12
_T5_NOTE = (
    " T5 is scored among the T5 prompts, and after the server step only: before it, only the CLIP adapter is sent."
)


def accuracy_plot(collection: Collection) -> Plot:
    """Accuracy by round, before and after the server step, with the baselines."""
    views = []
    arms = collection.arms
    many = len(arms) > MOST_INTERVALS
    for key, title in ACCURACIES:
        traces: list[Any] = []
        for index, run in enumerate(arms):
            several = len(arms) > 1
            step = has_server_step(run.config)
            after = run.label if several or key != "accuracy" or not step else "after the server step"
            traces += _line(run, key, after, index, tested=True, area=len(arms) == 1, exact=many)
            if key == "accuracy" and step:
                name = f"{run.label}, before the server step" if several else "before the server step"
                traces += _line(run, "accuracy_before", name, index, light=True, tested=True)
        if not traces:
            continue
        for index, run in enumerate(collection.baselines):
            traces += _line(run, key, run.label, len(arms) + index, plain=True)
        views.append(View(title, by_round(traces, title, fraction=key in FRACTIONS)))
    t5 = columns_of(arms, "t5/accuracy", "T5")
    columns = [*columns_of(arms, "accuracy_before", "before"), *columns_of(arms, "accuracy", "after"), *t5]
    columns += [
        (of_run("test clips", run, arms), {row["round"]: scored_on(row) for row in run.rows})
        for run in arms
        if not all(map(fully_evaluated, run.rows))
    ]
    for run in collection.baselines:
        columns += columns_of([run], "accuracy", run.label)
    caption = _accuracy_caption(collection) + _T5_NOTE * bool(t5)
    return Plot("accuracy", "Accuracy by round", caption, views, round_table(columns))


def _accuracy_caption(collection: Collection) -> str:
    words = ["Share of test clips whose nearest class prompt is the true one."]
    trained = {sites_train(run.config) for run in collection.runs}
    if any(gain(row) is not None and has_server_step(run.config) for run in collection.runs for row in run.rows):
        before = ["the average of the sites' adapters"] * (True in trained)
        before += ["the adapters of the round before, as the sites train none"] * (False in trained)
        words.append(f"Full markers: after the server step; open markers: before it, {', or '.join(before)}.")
    elif trained == {False}:
        words.append("The sites train no adapters, so there is no average of theirs to compare with.")
    words += ["Lines without markers: baselines of the same comparison."] * bool(collection.baselines)
    if any(row.get("accuracy_low") is not None for run in collection.arms if not run.members for row in run.rows):
        where = "The table has 95 % intervals" if len(collection.arms) > MOST_INTERVALS else "Bars: 95 % intervals"
        if len(collection.arms) == 1 and len(collection.arms[0].rows) > 1:
            where = "Area: 95 % interval"
        words.append(f"{where}, on these test clips.")
    words += [of_means(collection), _AXIS]
    return " ".join(filter(None, words))


def gain_plot(collection: Collection) -> Plot:
    """Gain of the server step by round: over the average in the round, and over a run without server steps."""
    views, columns = [], []
    arms = collection.arms
    for words, measure in (("In the round", _gain_in_round), ("Over FedAvg", _gain_over_fedavg)):
        gains = [(index, run, measure(run)) for index, run in enumerate(arms) if has_server_step(run.config)]
        known = [each for each in gains if any(value is not None for value in each[2].values())]
        columns += [(of_run(words.lower(), run, arms), values) for _, run, values in known]
        numbers = sum(len(values) for *_, values in known) <= MOST_NUMBERS and not any(run.members for run in arms)
        traces = [
            go.Bar(
                x=list(values),
                y=list(values.values()),
                name=label(run.label),
                marker=bar_style(index, several=len(arms) > 1),
                error_y=_range_bars([measure(each) for each in run.members], values),
                hovertemplate="round %{x}: %{y:+.3f}",
                **({"texttemplate": "%{y:+.3f}", "textposition": "outside", "cliponaxis": False} if numbers else {}),
                showlegend=len(arms) > 1,
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
        "accuracy minus that of the same run without the server step, after the same round. "
        + of_means(collection, "Bars"),
        views,
        round_table(columns),
        height=280,
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
    keys += [(key, _term(key)) for key in parts]
    keys += [("server/adapter_finetuning_loss", "Fine-tuning"), ("site/loss", "At the sites")]
    return _choice(
        "losses",
        "Losses by round",
        "Training losses: of the generator and its terms, of a GAN's critic, of the adapters in the server's "
        "fine-tuning, and at the sites. Losses of different generators are not comparable.",
        collection,
        keys,
    )


def _term(key: str) -> str:
    name = key.removeprefix("generator/").replace("_", " ")
    return "KL" if name == "kl" else name.capitalize()


def validation_plot(collection: Collection) -> Plot:
    """Validation of the generator on held-out prototypes."""
    keys = [
        *((f"generator_quality/{name}", words) for name, words in GATES.items()),
        ("server/generator_validation_similarity", "Similarity"),
        ("server/generator_validation_mse", "MSE"),
        ("server/generator_validation_l1", "L1"),
    ]
    return _choice(
        "validation",
        "Validation of the generator",
        f"Samples compared with {collection.held_out}. Samples are as good as real embeddings if train on synthetic "
        "reaches their accuracy, the two-sample test is near 0.5, and the nearest-neighbour ratio is near 1 "
        "(0: copies). Thin lines: real embeddings in place of samples; without markers, one constant for all classes. "
        f"Bars: 95 % intervals. Tests on fewer than 40 {collection.held_out} have little power. Area in green: the "
        "range that passes.",
        collection,
        keys,
        "samples",
        (("_real", "real rows"), ("_blind", "class-blind")),
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
        "network",
        (("_untrained", "untrained"), ("_gaussian", "Gaussians"), ("_class_mean", "class mean")),
    )


def _choice(
    name: str,
    title: str,
    caption: str,
    collection: Collection,
    keys: Sequence[tuple[str, str]],
    of_run_alone: str = "",
    baselines: Sequence[tuple[str, str]] = (),
    more: Sequence[tuple[str, str]] = (),
) -> Plot:
    """A plot with a view for each metric that any run has.

    Args:
        of_run_alone: what a line shows, in the legend of a single run; default: the run's label.
        baselines: suffix of a metric's name for each baseline, with its label; only the first has markers.
        more: metrics for the table only.
    """
    views, columns = [], []
    arms = collection.arms
    for key, words in keys:
        traces: list[Any] = []
        for index, run in enumerate(arms):
            alone = len(arms) == 1
            traces += _line(run, key, of_run_alone if alone and of_run_alone else run.label, index)
            for place, (suffix, of) in enumerate(baselines):
                named = of if alone else f"{run.label}, {of}"
                traces += _line(run, f"{key}{suffix}", named, index, light=True, plain=place > 0)
        if traces:
            shown = by_round(traces, words)
            gate = key.rpartition("/")[2].removeprefix("raw_")
            views.append(View(words, show_range(shown, gate) if gate in GATES else shown))
            columns += columns_of(arms, key, words)
            columns += [
                column for suffix, of in baselines for column in columns_of(arms, key + suffix, f"{words}, {of}")
            ]
    columns += [column for key, words in more for column in columns_of(arms, key, words)]
    return Plot(name, title, f"{caption} {of_means(collection)}".strip(), views, round_table(columns))


def _line(
    run: RunRecord,
    key: str,
    name: str,
    index: int,
    light: bool = False,
    plain: bool = False,
    tested: bool = False,
    area: bool = False,
    exact: bool = False,
) -> list[go.Scatter]:
    """A line over the rounds, with intervals if the rounds have them; empty if no round has a value.

    Args:
        run: run, or mean of runs.
        key: metric.
        name: name in the legend.
        index: its colour and symbol.
        light: whether it is a thin line with open markers, without intervals.
        plain: whether it has no markers.
        tested: whether the tooltip says on which clips a round was scored, if not on all.
        area: whether intervals are an area, as always those of a mean of runs, and not bars.
        exact: whether a single run has no intervals.
    """
    rows = [row for row in run.rows if row.get(key) is not None]
    if not rows:
        return []
    lone = plain and len(rows) == 1  # a line through one point would be invisible: mark it with a dash
    ends: list[Any] = [(row.get(f"{key}_low"), row.get(f"{key}_high")) for row in rows]
    known = (
        all(end is not None for pair in ends for end in pair)
        and not light
        and (bool(run.members) or not (plain or exact))
    )
    as_area = known and len(rows) > 1 and (area or bool(run.members))
    numbers, values = [row["round"] for row in rows], [row[key] for row in rows]
    line = go.Scatter(
        x=numbers,
        y=values,
        name=label(name),
        legendgroup=name,
        mode="lines" if plain and not lone else "lines+markers",
        line={"color": colour(index), "dash": "dot" if light else dash(index), "width": 1.5 if light else 2.5},
        marker={"symbol": "line-ew-open" if lone else symbol(index) + ("-open" if light else ""), "size": 8},
        error_y=bars_to(values, ends) if known and not as_area else {},
        hovertemplate="%{y:.4g}" + ("%{customdata}" if tested else ""),
        customdata=["" if fully_evaluated(row) else f" on {scored_on(row)}" for row in rows] if tested else None,
    )
    if not as_area:
        return [line]
    lows, highs = ([pair[side] for pair in ends] for side in (0, 1))
    around = go.Scatter(
        x=numbers + numbers[::-1],
        y=highs + lows[::-1],
        legendgroup=name,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint(index),
        hoverinfo="skip",
        showlegend=False,
    )
    return [line, around]


def _range_bars(members: Sequence[Mapping[int, float | None]], means: Mapping[int, float | None]) -> dict[str, Any]:
    """Error bars from the lowest to the highest of several runs; none for a single run."""
    if not members or any(value is None for value in means.values()):
        return {}
    ends = [(min(values), max(values)) for number in means for values in [[each[number] or 0.0 for each in members]]]
    return bars_to([value or 0.0 for value in means.values()], ends)


def bytes_plot(collection: Collection) -> Plot:
    """Traffic by round."""
    views = []
    columns: list[tuple[str, dict[int, Any]]] = []
    arms = collection.arms
    for key, words in (("bytes_up", "Up, from the sites"), ("bytes_down", "Down, to the sites")):
        traces = []
        for index, run in enumerate(arms):
            values = {row["round"]: row.get(key, 0) / 1e6 for row in run.rows}
            if run.shares_sums:
                once = "bytes_registration" if key == "bytes_up" else "bytes_down_registration"
                values = {0: total(run.rows, once) / 1e6} | values
            traces.append(_bars(values, run.label, index, len(arms) > 1, "%{y:.3g} MB"))
            columns.append((of_run(f"MB {key.removeprefix('bytes_')}", run, arms), values))
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
