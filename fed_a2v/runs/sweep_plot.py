"""Plot of a sweep: accuracy against each parameter, with mean and standard deviation over the others."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fed_a2v.install import install_hint
from fed_a2v.runs.compare import SweepJob, differing, natural
from fed_a2v.runs.rounds import fully_evaluated
from fed_a2v.storage.files import replacing
from fed_a2v.storage.plain_text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("fed_a2v")

# Parameter that is repeated rather than compared.
REPEATED = "seed"


def plot_sweep(jobs: Sequence[SweepJob], path: Path) -> Path | None:
    """Plot a panel for each parameter with several values among the finished jobs.

    Each job is a dot, open if not all sites were evaluated; the bar is the standard deviation around the mean of the
    jobs with the same value.

    Returns:
        `path`, or None if there is nothing to compare, or no matplotlib.
    """
    done = [job for job in jobs if job.status == "done" and job.results.get("accuracy") is not None]
    varied = differing([job.overrides for job in done])
    varied = [key for key in varied if key != REPEATED] or varied
    if not varied:
        return None
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("The plot of the sweep needs matplotlib: %s", install_hint("plots"))
        return None

    with rc_context({"text.parse_math": False}):  # a dollar in a value is a dollar
        _draw(Figure(figsize=(4.2 * len(varied), 3.6), layout="constrained"), done, varied, path)
    return path


def _draw(figure: Figure, done: Sequence[SweepJob], varied: Sequence[str], path: Path) -> None:
    panels = figure.subplots(1, len(varied), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, varied, strict=True):
        values = sorted({job.overrides.get(key, "-") for job in done}, key=natural)
        for place, value in enumerate(values):
            of_value = [job for job in done if job.overrides.get(key, "-") == value]
            accuracies = [float(job.results["accuracy"]) for job in of_value]
            deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
            for job, accuracy in zip(of_value, accuracies, strict=True):
                fill = "full" if fully_evaluated(job.results) else "none"
                panel.plot(place, accuracy, "o", color="0.65", markersize=4, fillstyle=fill, zorder=1)
            panel.errorbar(
                place + 0.12, statistics.mean(accuracies), deviation, fmt="s", color="C0", capsize=4, zorder=2
            )
        rotation = 30 if max(map(len, values)) > 6 else 0
        panel.set_xticks(range(len(values)), list(map(one_line, values)), rotation=rotation)
        panel.set_xlim(-0.5, len(values) - 0.5)
        panel.set_xlabel(one_line(key))
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("accuracy")
    partly = "" if all(fully_evaluated(job.results) for job in done) else ", open: not all test clips"
    figure.suptitle(f"{len(done)} jobs (dots{partly}); mean and standard deviation", fontsize="medium")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
