"""Plot of a sweep: accuracy against each parameter, with the interval of the mean over the seeds."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_a2v.install import install_hint
from fed_a2v.runs.compare import SEED, SweepJob, accuracies, distinct, groups, natural, varied
from fed_a2v.runs.intervals import mean_interval
from fed_a2v.runs.rounds import fully_evaluated
from fed_a2v.storage.files import replacing
from fed_a2v.storage.plain_text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("fed_a2v")

# The axis spans at least so many points of accuracy, so that chance does not look like a difference.
LEAST_SPAN = 0.1
# More series share one colour and have no legend.
MOST_SERIES = 6
# Room on the axis for the series of a value, where the distance of two values is 1.
ROOM = 0.5


def plot_sweep(jobs: Sequence[SweepJob], path: Path) -> Path | None:
    """Plot a panel for each parameter with several values among the finished jobs.

    Each job is a dot, open if not all sites were evaluated. Jobs that differ in their seed only have a square at their
    mean, with its 95 % interval; those of different settings are never put together: they are series of their own.

    Returns:
        `path`, or None if there is nothing to compare, or no matplotlib.
    """
    done = [job for job in jobs if job.status == "done" and job.results.get("accuracy") is not None]
    keys = varied(done)
    if not keys:
        return None
    keys = [key for key in keys if key != SEED] or keys
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("The plot of the sweep needs matplotlib: %s", install_hint("plots"))
        return None

    with rc_context({"text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(5.0, 4.2 * len(keys)), 4.0), layout="constrained")
        _draw(figure, done, keys, path)
    return path


def _draw(figure: Figure, done: Sequence[SweepJob], keys: Sequence[str], path: Path) -> None:
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    ends = [float(job.results["accuracy"]) for job in done]
    for panel, key in zip(panels, keys, strict=True):
        ends += _panel(panel, done, key, [other for other in keys if other != key])
    low, high = min(ends), max(ends)
    more = max(0.0, LEAST_SPAN - (high - low)) / 2 + 0.05 * max(LEAST_SPAN, high - low)
    panels[0].set_ylim(max(-0.02, low - more), min(1.02, high + more))
    panels[0].set_ylabel("accuracy")
    partly = "" if all(fully_evaluated(job.results) for job in done) else ", open: not all test clips"
    several = any(len(accuracies(group)) > 1 for group in groups(done).values())
    means = "; squares: mean over the seeds with its 95 % interval" if several else ""
    figure.suptitle(f"dots: {len(done)} jobs{partly}{means}", fontsize="medium")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _panel(panel: Axes, done: Sequence[SweepJob], key: str, others: Sequence[str]) -> list[float]:
    """Draw the accuracies by the values of a key, a series for each combination of the others.

    Returns:
        The ends of the intervals.
    """
    of_seed = key == SEED  # nothing else varies: the seeds repeat one setting
    values = ["all seeds"] if of_seed else sorted({job.overrides.get(key, "-") for job in done}, key=natural)
    short = {other: distinct([job.overrides.get(other, "-") for job in done]) for other in (key, *others)}
    series: dict[tuple[str, ...], list[SweepJob]] = {}
    for job in done:
        series.setdefault(tuple(job.overrides.get(other, "-") for other in others), []).append(job)
    few = len(series) <= MOST_SERIES
    drawn: list[float] = []
    for number, (settings, jobs) in enumerate(series.items()):
        colour = f"C{number}" if few else "C0"
        shift = ROOM * (number + 0.5 - len(series) / 2) / len(series)
        named = zip(others, settings, strict=True)
        name = ", ".join(f"{other.rpartition('.')[2]}={short[other][value]}" for other, value in named)
        for place, value in enumerate(values):
            here = [job for job in jobs if of_seed or job.overrides.get(key, "-") == value]
            several = len(accuracies(here)) > 1
            for job in here:
                fill = "full" if fully_evaluated(job.results) else "none"
                paint: dict[str, Any] = {
                    "color": colour,
                    "alpha": 0.45 if several else 1.0,
                    "fillstyle": fill,
                    "markersize": 4,
                }
                panel.plot(place + shift, float(job.results["accuracy"]), "o", **paint)
            if several:
                each = mean_interval(accuracies(here))
                ends = (each.low, each.high) if math.isfinite(each.reach) else (each.mean, each.mean)
                reach = [[each.mean - ends[0]], [ends[1] - each.mean]]
                at = place + shift + 0.25 * ROOM / len(series)
                panel.errorbar(at, each.mean, reach, fmt="s", color=colour, capsize=3, markersize=5)
                drawn += ends
        if name and few:
            panel.plot([], [], "s", color=colour, markersize=5, label=one_line(_short(name, 40)))
    if others and few:
        above: dict[str, Any] = {
            "loc": "lower left",
            "bbox_to_anchor": (0, 1),
            "ncols": 2,
        }  # beside the figures, not over them
        panel.legend(fontsize="small", frameon=False, **above)
    labels = [one_line(_short(short[key].get(value, value), 24)) for value in values]
    panel.set_xticks(range(len(values)), labels, rotation=30 if max(map(len, labels)) > 6 and len(labels) > 2 else 0)
    panel.set_xlim(-0.5, len(values) - 0.5)
    panel.set_xlabel("" if of_seed else one_line(key))
    panel.grid(axis="y", alpha=0.3)
    return drawn


def _short(text: str, most: int) -> str:
    """The end of a long text: of a path the part that differs."""
    return text if len(text) <= most else f"...{text[3 - most :]}"
