"""Status of every site in every round."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from fed_a2v.report.collect import Collection
from fed_a2v.report.figures.base import MOST_VIEWS, Plot, View, margin, named_axis, whole_rounds
from fed_a2v.report.record import RunRecord
from fed_a2v.report.styles import clean, colour, figure, label
from fed_a2v.runs.table import TextTable

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
        margin=margin(names),
        xaxis={"title": {"text": "round"}, "range": [min(rounds) - 0.5, max(rounds) + 0.5], **whole_rounds(rounds)},
        yaxis={**named_axis(names), "range": [len(names) - 0.5, -0.5]},
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
