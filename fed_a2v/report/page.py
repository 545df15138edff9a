"""The report as one HTML file: text and figures of the runs, and Plotly itself, packed.

The page may run its own two scripts, known by their hashes, and fetch nothing: its Content-Security-Policy says so.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import plotly.io
from markupsafe import Markup
from omegaconf import OmegaConf

from fed_a2v.errors import UserError
from fed_a2v.report import figures
from fed_a2v.report.collect import Collection, ReportError, RunRecord, collect
from fed_a2v.report.reproduce import overrides_of
from fed_a2v.report.styles import clean
from fed_a2v.report.template import PAGE, SCRIPT, STYLE, TABLE
from fed_a2v.runs.folder import has_server_step
from fed_a2v.runs.intervals import crossed_table
from fed_a2v.runs.rounds import best_row, fully_evaluated, gain_over, gains, remarks, scored_on
from fed_a2v.runs.table import TextTable, accuracy_cell
from fed_a2v.storage.files import write_text
from fed_a2v.version import __version__

# Reasons that are listed under "What went wrong".
MOST_REASONS = 30
T5 = "t5/accuracy"


class Card(NamedTuple):
    """One figure of the headline."""

    name: str
    value: str
    note: str = ""


class Group(NamedTuple):
    """Plots under one heading."""

    name: str
    title: str
    plots: list[figures.Plot]


class Text(NamedTuple):
    """A run's label and a text about it."""

    label: str
    text: str


class Command(NamedTuple):
    """How to run a run again."""

    label: str
    words: str
    command: str


def write_report(folders: Sequence[Path], out: Path, unfold: figures.Layout | None = None) -> Path:
    """Write the report of the runs in `folders` to the file `out`.

    Args:
        folders: of runs, comparisons or sweeps; see `collect`.
        out: replaced in one step.
        unfold: see `figures.map_plot`.

    Returns:
        `out`.

    Raises:
        ReportError: there is no run, or what it left cannot be read.
        OSError: `out` cannot be written.
    """
    try:
        page = render(collect(folders), unfold)
    except (UserError, OSError):
        raise
    except Exception as error:  # whatever files that others have changed make of the figures
        raise ReportError(f"what lies in {', '.join(map(str, folders))} is not what a run leaves: {error!r}") from error
    return write_text(out, page)


def render(found: Collection, unfold: figures.Layout | None = None) -> str:
    """The page of some runs."""
    groups = [group for group in _groups(found, unfold) if group.plots]
    sections = [("headline", "At a glance"), *((group.name, group.title) for group in groups)]
    sections += [("settings", "Settings"), ("environment", "Environment"), ("reproduce", "How to reproduce")]
    runs = found.runs
    library = _library()
    return (
        _environment()
        .get_template("page")
        .render(
            policy=_policy(library.text, SCRIPT),
            version=__version__,
            title=clean(runs[0].label) if len(runs) == 1 else f"{len(runs)} runs side by side",
            subtitle=_subtitle(runs),
            style=STYLE,
            script=SCRIPT,
            library=library.packed,
            plots=_plots_json([plot for group in groups for plot in group.plots]),
            sections=sections,
            notices=_notices(runs),
            cards=_cards(found) if len(runs) == 1 else [],
            crossed=[(each["says"], crossed_table(each), each["covers"]) for each in found.crossed],
            summary=_summary(found),
            groups=groups,
            reasons=_reasons(runs),
            differences=_differences(runs),
            configs=[Text(clean(run.label), clean_lines(_yaml(run.config))) for run in runs if run.config],
            environment=_environments(runs),
            commands=[_command(run) for run in runs],
        )
    )


def _groups(found: Collection, unfold: figures.Layout | None) -> list[Group]:
    groups = [
        Group("rounds", "Accuracy", [figures.accuracy_plot(found), figures.gain_plot(found)]),
        Group(
            "training",
            "Losses",
            [figures.loss_plot(found), figures.validation_plot(found), figures.network_plot(found)],
        ),
        Group("by-class", "Classes", [figures.class_plot(found), figures.confusion_plot(found)]),
        Group("space", "Map", [figures.map_plot(found, unfold)]),
        Group("cost", "Bytes and seconds", [figures.bytes_plot(found), figures.seconds_plot(found)]),
        Group("of-sites", "Sites", [figures.sites_plot(found)]),
    ]
    return [group._replace(plots=[plot for plot in group.plots if plot.views]) for group in groups]


# Words and tables -----------------------------------------------------------------------------------------


def _subtitle(runs: Sequence[RunRecord]) -> str:
    def words(run: RunRecord) -> str:
        name = run.config.get("dataset", {}).get("name", "unknown data")
        return f"{name}, {run.config.get('partition', {}).get('sites', '?')} sites, {run.rounds} rounds"

    return " · ".join(dict.fromkeys(clean(words(run)) for run in runs[: figures.MOST_VIEWS]))


def _notices(runs: Sequence[RunRecord]) -> list[str]:
    notices = [
        f"{clean(run.label)} has not finished: round {run.last['round']} of {run.rounds}."
        for run in runs
        if not run.finished
    ]
    for run in runs:
        recorded = run.evaluation.get("round", run.last["round"])
        if recorded != run.last["round"]:
            notices.append(f"{clean(run.label)}: classes, confusions and map are as they were after round {recorded}.")
        notices += [f"{clean(run.label)}: {remark}." for remark in remarks(run.rows)]
        if partly := [str(row["round"]) for row in run.rows[:-1] if not fully_evaluated(row)]:
            notices.append(f"{clean(run.label)}: not all sites were evaluated in round {', '.join(partly)}.")
        if cut := max(row.get("aggregation/capped_sites", 0) for row in run.rows):
            notices.append(
                f"{clean(run.label)}: the weighted mean is not by clips alone, aggregation.max_site_share cuts what "
                f"{cut} of the sites count for."
            )
        if lost := run.last.get("lost_classes"):
            limit = run.config.get("share", {}).get("min_clips", "enough")
            notices.append(
                f"{clean(run.label)}: the server step does not know {len(lost)} classes, for no site has {limit} clips "
                f"of them to train on (share.min_clips): {', '.join(map(clean, lost))}."
            )
    if len(runs) > figures.MOST_VIEWS:
        notices.append(f"Figures of single runs show the first {figures.MOST_VIEWS} of {len(runs)}; the tables, all.")
    return notices


def _cards(found: Collection) -> list[Card]:
    run = found.runs[0]
    last, rows = run.last, run.rows
    after, before = last.get("accuracy"), last.get("accuracy_before")
    cards = [Card("Accuracy", _three(after), f"after round {last['round']}, on {scored_on(last)}")]
    best = best_row(rows)
    if best is not None and len(rows) > 1:
        cards.append(Card("Best round", _three(best["accuracy"]), f"round {best['round']}, on {scored_on(best)}"))
    if last.get("t5/accuracy") is not None:
        note = f"after round {last['round']}; cosine {_three(last['t5/cosine'])}, CLIP's {_three(last.get('cosine'))}"
        cards.append(Card("T5: accuracy", _three(last["t5/accuracy"]), note))
    if before is not None and after is not None:
        note = f"of round {last['round']}, to which the step adds {after - before:+.3f}"
        cards.append(Card("Before the server step", _three(before), note))
    worth = gains(rows, run.without_step)
    if has_server_step(run.config) and worth["gain_first_round"] is not None:
        cards.append(Card("Gain of the first round", _signed(worth["gain_first_round"]), "by the server step"))
    if worth["gain_over_fedavg"] is not None:
        note = f"the same run without the server step, after round {last['round']}"
        cards.append(Card("Gain over FedAvg", _signed(worth["gain_over_fedavg"]), note))
    for name, baseline in found.baselines.items():
        lead = gain_over(last, baseline[-1])
        note = "" if lead is None else f"this run {lead:+.3f}"
        cards.append(Card(clean(name), _three(baseline[-1].get("accuracy")), note))
    if last.get("accuracy_at_5") is not None:
        cards.append(Card("Among the nearest five", _three(last["accuracy_at_5"])))
    generator = run.config.get("generator", {}).get("name")
    if generator and run.config.get("finetune", {}).get("enabled", True):
        cards.append(Card("Generator", clean(generator)))
    traffic = sum(row.get("bytes_up", 0) + row.get("bytes_down", 0) for row in rows) / 1e6
    cards.append(Card("Traffic", f"{traffic:.1f} MB", "all sites, both ways"))
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    cards.append(Card("Time", f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min", "in the rounds"))
    bad = sum(row.get("rejected", 0) + row.get("failures", 0) for row in rows)
    cards.append(Card("Bad replies", str(bad), "rejected or failed"))
    return cards


def _summary(found: Collection) -> TextTable:
    """The runs and baselines side by side; nothing for a single run, which has cards."""
    if len(found.runs) == 1:
        return TextTable("", (), ())
    sides = (T5,) if any(T5 in run.last for run in found.runs) else ()
    rows: list[tuple[str, ...]] = [
        (
            clean(run.label),
            _three(run.last.get("accuracy_before")),
            accuracy_cell(run.last, 3),
            _three(run.last.get("accuracy_at_5")),
            *(_three(run.last.get(key)) for key in sides),
            *_gains(run),
            f"{sum(row.get('bytes_up', 0) + row.get('bytes_down', 0) for row in run.rows) / 1e6:.1f}",
            f"{sum(row.get('seconds', 0.0) for row in run.rows):.1f}",
            str(sum(row.get("rejected", 0) + row.get("failures", 0) for row in run.rows)),
            _steps(run.rows),
        )
        for run in found.runs
    ]
    for name, lines in found.baselines.items():
        last = lines[-1]
        before, at_5, *others = (_three(last.get(key)) for key in ("accuracy_before", "accuracy_at_5", *sides))
        rows.append((clean(name), before, accuracy_cell(last, 3), at_5, *others, *"------", _steps(lines)))
    header = ("run", "before the last server step", "accuracy", "among the nearest five", *("T5" for _ in sides))
    header += ("gain of the first round", "gain of the last round", "gain over FedAvg", "MB", "seconds", "bad replies")
    return TextTable("", (*header, "steps at a site + on the server"), tuple(rows))


def _gains(run: RunRecord) -> list[str]:
    """What the server step adds in the first round, in the last, and to the run."""
    if not has_server_step(run.config):
        return ["-", "-", "-"]
    return [_signed(value) for value in gains(run.rows, run.without_step).values()]


def _steps(rows: Sequence[Mapping[str, Any]]) -> str:
    if not any("site/optimiser_steps" in row for row in rows):
        return "-"
    sums = (sum(row.get(f"{side}/optimiser_steps", 0) for row in rows) for side in ("site", "server"))
    return " + ".join(f"{each:.0f}" for each in sums)


def _reasons(runs: Sequence[RunRecord]) -> TextTable:
    """Why replies were rejected and sites failed, the most frequent first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for run in runs:
        for row in run.rows:
            for kind, key in (("rejected", "rejections"), ("failed", "failure_reasons")):
                counts.update((clean(run.label), kind, clean(reason)) for reason in row.get(key, []))
    rows = [(reason, kind, run, str(number)) for (run, kind, reason), number in counts.most_common(MOST_REASONS)]
    return TextTable("", ("reason", "what", "run", "times"), tuple(rows))


def _differences(runs: Sequence[RunRecord]) -> TextTable:
    """The settings in which runs differ, a row a setting."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    rows = []
    for key in keys:
        values = [clean(json.dumps(each[key], ensure_ascii=False)) if key in each else "-" for each in flat]
        if len(set(values)) > 1:
            rows.append((key, *values))
    return TextTable("", ("setting", *(clean(run.label) for run in runs)), tuple(rows))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in tree.items():
        leaves += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return leaves


def _environments(runs: Sequence[RunRecord]) -> TextTable:
    """Where the runs took place, a column a run; one column where all say the same."""
    keys = list(dict.fromkeys(key for run in runs for key in run.environment))
    columns = [[_cell(run.environment.get(key)) for key in keys] for run in runs]
    labels = [clean(run.label) for run in runs]
    if len(runs) == 1:
        labels = ["value"]
    rows = zip(keys, *columns, strict=True)
    return TextTable("", ("", *labels), tuple((clean(key).replace("_", " "), *cells) for key, *cells in rows))


def _cell(value: Any) -> str:
    return "-" if value is None else clean(value)


def _command(run: RunRecord) -> Command:
    overrides = overrides_of(run.config) if run.config else None
    if overrides is None:
        return Command(clean(run.label), "no overrides of this version give its settings; they are listed above.", "")
    return Command(
        clean(run.label),
        f"with version {clean(run.environment.get('fed_a2v', __version__))},",
        clean(shlex.join(["fed-a2v", "train", *overrides])),
    )


def _yaml(config: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def clean_lines(text: str) -> str:
    """Several lines, each cleaned."""
    return "\n".join(clean(line) if line.strip() else "" for line in text.splitlines())


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _three(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


# The file -------------------------------------------------------------------------------------------------


class Library(NamedTuple):
    """Plotly's JavaScript, as it is and packed for the page."""

    text: str
    packed: str


@lru_cache(maxsize=1)
def _library() -> Library:
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    content = (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_bytes()
    # The highest level gains no more than this one, and takes longer.
    return Library(content.decode(), base64.b64encode(gzip.compress(content, 6, mtime=0)).decode())


def _policy(*scripts: str) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plots_json(plots: Sequence[figures.Plot]) -> str:
    """The figures' data by name; `<` is written so that no name can end the script element."""
    views = {
        plot.name: [json.loads(plotly.io.to_json(view.figure, validate=False)) for view in plot.views] for plot in plots
    }
    return json.dumps(views, separators=(",", ":")).replace("<", "\\u003c")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": PAGE, "table": TABLE}), autoescape=True, undefined=jinja2.StrictUndefined
    )
    table = environment.get_template("table")
    number = re.compile(r"[-+]?[\d.]+%?|-").fullmatch

    def filled(content: TextTable, name: str) -> Any:
        numeric = [all(number(cell) for cell in column) for column in zip(*content.rows, strict=True)]
        return Markup(table.render(table=content, name=name, numeric=numeric))

    environment.globals["table"] = filled
    return environment
