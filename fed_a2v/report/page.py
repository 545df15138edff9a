"""The report as one HTML file: texts and figures of the runs, and a packed copy of Plotly.

Called by `fed-a2v report` and at the end of a run. The page's Content-Security-Policy allows its own two scripts, by
their hashes, and no requests.
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

from fed_a2v.config.compose import to_yaml
from fed_a2v.config.tree import dotted_items
from fed_a2v.errors import UserError
from fed_a2v.report import figures
from fed_a2v.report.collect import Collection, ReportError, collect
from fed_a2v.report.record import RunRecord
from fed_a2v.report.reproduce import NAMES
from fed_a2v.report.styles import clean
from fed_a2v.report.template import PAGE, SCRIPT, STYLE, TABLE
from fed_a2v.report.verdict import verdict
from fed_a2v.runs.compare import differing
from fed_a2v.runs.exchange import exchange_lines, sums_bytes, traffic
from fed_a2v.runs.folder import has_server_step
from fed_a2v.runs.intervals import crossed_table
from fed_a2v.runs.rounds import (
    best_row,
    fully_evaluated,
    gain_over,
    gains,
    interval_words,
    remarks,
    scored_on,
    step_words,
    total,
)
from fed_a2v.runs.speed import speed
from fed_a2v.runs.table import TextTable, accuracy_cell, interval_cell
from fed_a2v.storage.files import write_text
from fed_a2v.version import __version__

# Maximum number of reasons in the table of errors.
MOST_REASONS = 30
# Maximum number of classes that are named as the weakest.
MOST_WEAK = 5
# Keys of `environment.json` that "How to reproduce" shows apart from the table.
OF_THE_CODE = ("commit", "uncommitted_changes", "packages_sha256", "constraints_sha256", "not_as_in_constraints")
T5 = "t5/accuracy"


class Card(NamedTuple):
    """One figure at the top of the page."""

    name: str
    value: str
    note: str = ""


class Group(NamedTuple):
    """The plots of a section."""

    name: str
    title: str
    plots: list[figures.Plot]


class Weak(NamedTuple):
    """A class that is often not recognised."""

    name: str
    figures: str


class Text(NamedTuple):
    """A run's label and a text about it."""

    label: str
    text: str


class Reproduction(NamedTuple):
    """How to reproduce a run: the code and versions in words, and the commands; "" without any."""

    label: str
    words: list[str]
    commands: str


def write_report(folders: Sequence[Path], out: Path, unfold: figures.Layout | None = None) -> Path:
    """Write the report of the runs in `folders` to the file `out`.

    Args:
        folders: folders of runs, comparisons or sweeps; see `collect`.
        out: file to write, replaced atomically.
        unfold: see `figures.map_plot`.

    Returns:
        `out`.

    Raises:
        ReportError: there is no run, or its files cannot be read.
        OSError: `out` cannot be written.
    """
    try:
        page = render(collect(folders), unfold)
    except (UserError, OSError):
        raise
    except Exception as error:  # with untrusted files, the figures may raise anything
        raise ReportError(f"the files in {', '.join(map(str, folders))} are not those of a run: {error!r}") from error
    return write_text(out, page)


def render(collection: Collection, unfold: figures.Layout | None = None) -> str:
    """HTML of the page."""
    groups = [group for group in _groups(collection, unfold) if group.plots]
    sections = [("headline", "At a glance"), *((group.name, group.title) for group in groups)]
    sections += [("settings", "Settings"), ("reproduce", "How to reproduce")]
    runs = collection.runs
    # Runs with several seeds or folds are judged together.
    repeated = any(arm.members for arm in collection.arms)
    library = _library()
    reproductions = [_reproduction(run) for run in runs]
    code = reproductions[0].words if all(each.words == reproductions[0].words for each in reproductions) else []
    return (
        _environment()
        .get_template("page")
        .render(
            policy=_policy(library.text, SCRIPT),
            version=__version__,
            title=_title(collection),
            verdict=verdict(collection),
            weakest=_weakest(collection.arms[0]),
            subtitle=_subtitle(runs),
            style=STYLE,
            script=SCRIPT,
            library=library.packed,
            plots=_plots_json([plot for group in groups for plot in group.plots]),
            sections=sections,
            notices=_notices(runs),
            cards=_cards(collection) if len(runs) == 1 else [],
            exchange=[
                Text(clean(run.label) if len(runs) > 1 else "", f"{clean(line)}.")
                for run in runs[: figures.MOST_VIEWS]
                for line in (*([] if repeated else _step_lines(run)), *exchange_lines(run.config, run.rows))
            ],
            crossed=[(crossed_table(each), each["covers"]) for each in collection.crossed],
            summary=_summary(collection),
            privacy=_privacy(runs),
            groups=groups,
            gates=figures.gates_table(collection),
            reasons=_reasons(runs),
            differences=_differences(runs),
            configs=[Text(clean(run.label), clean_lines(to_yaml(run.config))) for run in runs if run.config],
            environment=_environments(runs),
            code=code,
            reproductions=[each._replace(words=[]) for each in reproductions] if code else reproductions,
        )
    )


def _groups(runs: Collection, unfold: figures.Layout | None) -> list[Group]:
    groups = [
        Group("rounds", "Accuracy", [figures.accuracy_plot(runs), figures.gain_plot(runs)]),
        Group("by-class", "Classes", [figures.class_plot(runs), figures.confusion_plot(runs)]),
        Group("space", "Map", [figures.map_plot(runs, unfold)]),
        Group("generator", "Generator", [figures.validation_plot(runs), figures.network_plot(runs)]),
        Group("training", "Losses", [figures.loss_plot(runs)]),
        Group("cost", "Bytes and seconds", [figures.bytes_plot(runs), figures.seconds_plot(runs)]),
        Group("of-sites", "Sites", [figures.sites_plot(runs)]),
    ]
    return [group._replace(plots=[plot for plot in group.plots if plot.views]) for group in groups]


# Words and tables -----------------------------------------------------------------------------------------


def _title(collection: Collection) -> str:
    runs, arms = collection.runs, collection.arms
    if len(runs) == 1:
        return clean(runs[0].label)
    if collection.crossed:
        return f"Comparison over {arms[0].repeats}" if arms[0].members else "Comparison"
    return f"{len(runs)} runs" if len(arms) == 1 else f"Comparison of {len(runs)} runs"


def _weakest(run: RunRecord) -> list[Weak]:
    """The classes with the lowest accuracy, of those that are not always recognised."""
    classes = run.evaluation.get("classes", {})
    names = figures.worst_first(run, [name for name in classes if (classes[name].get("accuracy") or 0) < 1])
    found = []
    for name in [each for each in names if classes[each].get("accuracy") is not None][:MOST_WEAK]:
        accuracy, clips = classes[name]["accuracy"], classes[name].get("test_clips")
        words = f"{accuracy * clips:.3g} of {clips:.4g} test clips" if clips else f"{accuracy:.3f}"
        words = f"on average {words}" if run.members else words
        if other := figures.most_confused(run, name):
            words += f", most often taken for {clean(other)}"
        found.append(Weak(clean(name), words))
    return found


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
            notices.append(f"{clean(run.label)}: classes, confusions and map are those after round {recorded}.")
        # The number of test clips is said once, as runs are usually tested on as many.
        notices += [f"{clean(run.label)}: {remark}." for remark in remarks(run.rows, few_clips=len(runs) == 1)]
        if partly := [str(row["round"]) for row in run.rows[:-1] if not fully_evaluated(row)]:
            notices.append(f"{clean(run.label)}: not all sites were evaluated in round {', '.join(partly)}.")
        if cut := max(row.get("aggregation/capped_sites", 0) for row in run.rows):
            notices.append(
                f"{clean(run.label)}: aggregation.max_site_share caps the weights of {cut} sites in the weighted mean."
            )
        if lost := run.last.get("lost_classes"):
            limit = run.config.get("share", {}).get("min_clips", "enough")
            notices.append(
                f"{clean(run.label)}: the server step lacks {len(lost)} classes, since no site has {limit} training "
                f"clips of them (share.min_clips): {', '.join(map(clean, lost))}."
            )
    if len(runs) > figures.MOST_VIEWS:
        notices.append(
            f"Figures of single runs show the first {figures.MOST_VIEWS} of {len(runs)}; the tables show all."
        )
    return notices


def _cards(collection: Collection) -> list[Card]:
    run = collection.runs[0]
    last, rows = run.last, run.rows
    after, before = last.get("accuracy"), last.get("accuracy_before")
    cards = [
        Card("Accuracy", _three(after), _noted(last, "accuracy", f"after round {last['round']}, on {scored_on(last)}"))
    ]
    best = best_row(rows)
    if best is not None and len(rows) > 1:
        note = _noted(best, "accuracy", f"round {best['round']}, on {scored_on(best)}")
        cards.append(Card("Best round", _three(best["accuracy"]), note))
    if last.get(T5) is not None:
        note = f"after round {last['round']}; cosine {_three(last['t5/cosine'])}, CLIP's {_three(last.get('cosine'))}"
        cards.append(Card("T5: accuracy", _three(last[T5]), _noted(last, T5, note)))
    if before is not None and after is not None:
        note = f"in round {last['round']}; the step adds {after - before:+.3f}"
        cards.append(Card("Before the server step", _three(before), _noted(last, "accuracy_before", note)))
    step_gains = gains(rows, run.without_step)
    if has_server_step(run.config) and step_gains["gain_first_round"] is not None:
        cards.append(Card("Gain of the first round", _signed(step_gains["gain_first_round"]), "by the server step"))
    if step_gains["gain_over_fedavg"] is not None:
        note = f"the same run without the server step, after round {last['round']}"
        cards.append(Card("Gain over FedAvg", _signed(step_gains["gain_over_fedavg"]), note))
    for baseline in collection.baselines:
        lead = gain_over(last, baseline.last)
        note = _noted(baseline.last, "accuracy", "" if lead is None else f"this run {lead:+.3f}")
        cards.append(Card(clean(baseline.label), _three(baseline.last.get("accuracy")), note))
    if last.get("accuracy_at_5") is not None:
        cards.append(Card("Among the nearest five", _three(last["accuracy_at_5"]), _noted(last, "accuracy_at_5")))
    if last.get("privacy/epsilon") is not None:
        note = f"delta {last['privacy/delta']:g}; {clean(last['privacy/relation'])}"
        cards.append(Card("Epsilon", f"{last['privacy/epsilon']:.4g}", note))
    generator = run.config.get("generator", {}).get("name")
    if generator and run.config.get("finetune", {}).get("enabled", True):
        cards.append(Card("Generator", clean(generator)))
    if exchange_lines(run.config, rows) and (once := sums_bytes(run.config, rows)) is not None:
        columns = run.config["projection"]["columns"]
        cards.append(Card("Sums of a site", f"{once / 1e3:.1f} kB", f"sent once, in {columns} public columns"))
    cards.append(Card("Traffic", f"{traffic(run.config, rows) / 1e6:.1f} MB", "all sites, both directions"))
    seconds = total(rows, "seconds")
    cards.append(Card("Time", f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min", "in the rounds"))
    found = speed(rows)
    for name, words, *notes in (
        ("Clips/s", found.site.removesuffix(" clips/s"), "in training at a site", found.site_more),
        ("Steps/s", found.server.removesuffix(" steps/s"), "on the server", found.server_more),
        ("Peak memory", found.memory, "of the server's process", found.messages and f"messages: {found.messages}"),
    ):
        if words:
            cards.append(Card(name, words, "; ".join(filter(None, notes))))
    cards.append(Card("Bad replies", str(total(rows, "rejected") + total(rows, "failures")), "rejected or failed"))
    return cards


def _noted(row: Mapping[str, Any], figure: str, note: str = "") -> str:
    """The note of an accuracy's card, after its interval."""
    return "; ".join(part for part in (interval_words(row, figure), note) if part)


def _summary(collection: Collection) -> TextTable:
    """Table of the runs and baselines; empty for a single run, which has cards."""
    if len(collection.runs) == 1:
        return TextTable("", (), ())
    sides = (T5,) if any(T5 in run.last for run in collection.runs) else ()
    rows: list[tuple[str, ...]] = [
        (
            clean(run.label),
            accuracy_cell(run.last, 3),
            _interval(run),
            _three(run.last.get("accuracy_before")),
            _three(run.last.get("accuracy_at_5")),
            *(_three(run.last.get(key)) for key in sides),
            *_gains(run),
            f"{traffic(run.config, run.rows) / 1e6:.1f}",
            f"{total(run.rows, 'seconds'):.1f}",
            str(total(run.rows, "rejected") + total(run.rows, "failures")),
            _steps(run.rows),
        )
        for run in (*(arm for arm in collection.arms if arm.members), *collection.runs)
    ]
    for baseline in collection.baselines:
        name, lines, last = baseline.label, baseline.rows, baseline.last
        before, at_5, *others = (_three(last.get(key)) for key in ("accuracy_before", "accuracy_at_5", *sides))
        rows.append(
            (clean(name), accuracy_cell(last, 3), _interval(baseline), before, at_5, *others, *"------", _steps(lines))
        )
    header = (
        "run",
        "accuracy",
        "95 %",
        "before the last server step",
        "among the nearest five",
        *("T5" for _ in sides),
    )
    header += ("gain of the first round", "gain of the last round", "gain over FedAvg", "MB", "seconds", "bad replies")
    return TextTable("", (*header, "steps at a site + on the server"), tuple(rows))


def _interval(run: RunRecord) -> str:
    """The 95 % interval of an accuracy, in one line; a mean over seeds and folds has none of clips."""
    return "-" if run.members else interval_cell(run.last).replace(" ", "\u00a0")


def _step_lines(run: RunRecord) -> list[str]:
    """What the server step did to single test clips, if that is known."""
    words = step_words(run.rows) if has_server_step(run.config) else ""
    return [f"{words[0].upper()}{words[1:]}"] if words else []


def _privacy(runs: Sequence[RunRecord]) -> TextTable:
    """What each run with differential privacy promises, and what it takes as public."""
    header = ("run", "epsilon", "delta", "neighbouring data", "taken as public", "counts of right test clips")
    rows = tuple(
        (
            clean(run.label),
            f"{run.last['privacy/epsilon']:.4g}",
            f"{run.last['privacy/delta']:g}",
            clean(run.last["privacy/relation"]),
            clean(", ".join(run.last["privacy/public"])),
            "sent without noise" if run.last["privacy/scores"] else "not sent",
        )
        for run in runs
        if run.last.get("privacy/epsilon") is not None
    )
    return TextTable("", header, rows)


def _gains(run: RunRecord) -> list[str]:
    """Gains of the server step in the first round, in the last round, and over FedAvg."""
    if not has_server_step(run.config):
        return ["-", "-", "-"]
    return [_signed(value) for value in gains(run.rows, run.without_step).values()]


def _steps(rows: Sequence[Mapping[str, Any]]) -> str:
    if not any("site/optimiser_steps" in row for row in rows):
        return "-"
    return " + ".join(f"{total(rows, f'{side}/optimiser_steps'):.0f}" for side in ("site", "server"))


def _reasons(runs: Sequence[RunRecord]) -> TextTable:
    """Reasons of rejected replies and failed sites, the most frequent first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for run in runs:
        for row in run.rows:
            for kind, key in (("rejected", "rejections"), ("failed", "failure_reasons")):
                counts.update((clean(run.label), kind, clean(reason)) for reason in row.get(key, []))
    rows = [(reason, kind, run, str(number)) for (run, kind, reason), number in counts.most_common(MOST_REASONS)]
    return TextTable("", ("reason", "what", "run", "times"), tuple(rows))


def _differences(runs: Sequence[RunRecord]) -> TextTable:
    """The overrides in which runs differ; a row for each setting, or for each run if there are more runs."""
    flat = [dict(dotted_items(run.config)) for run in runs]
    given = [dict(word.lstrip("+").split("=", 1) for word in run.overrides or ()) for run in runs]
    # Settings that no overrides of this version give are compared one by one.
    keys = differing(flat if any(run.overrides is None for run in runs) else given)

    def value(key: str, settings: Mapping[str, Any]) -> str:
        found = settings.get(key, settings.get(f"{key}.{NAMES.get(key, 'name')}", "-"))
        return clean(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))

    labels, columns = [clean(run.label) for run in runs], [[value(key, each) for key in keys] for each in flat]
    if not keys or len(runs) <= len(keys):
        return TextTable("", ("setting", *labels), tuple(zip(keys, *columns, strict=True)))
    return TextTable("", ("run", *keys), tuple((label, *of_run) for label, of_run in zip(labels, columns, strict=True)))


def _environments(runs: Sequence[RunRecord]) -> TextTable:
    """Software and hardware of the runs: a column for each, or one for all if only the start differs."""
    keys = list(dict.fromkeys(key for run in runs for key in run.environment if key not in OF_THE_CODE))
    found = [{key: _cell(run.environment.get(key)) for key in keys} for run in runs]
    labels = [clean(run.label) for run in runs]
    if len({repr([each[key] for key in keys if key != "started"]) for each in found}) == 1:
        starts = [each.get("started", "-") for each in found]
        labels = ["value" if len(runs) == 1 else "all runs"]
        found = [found[0] | ({"started": " to ".join(dict.fromkeys((min(starts), max(starts))))} if keys else {})]
    rows = tuple((clean(key).replace("_", " "), *(each[key] for each in found)) for key in keys)
    return TextTable("", ("", *labels), rows)


def _cell(value: Any) -> str:
    return "-" if value is None else clean(value)


def _reproduction(run: RunRecord) -> Reproduction:
    found = run.environment
    words = [f"Version {clean(found.get('fed_a2v', __version__))}."]
    if commit := found.get("commit"):
        changed = ", with uncommitted changes that the commit lacks" if found.get("uncommitted_changes") else ""
        words.append(f"Git commit {clean(commit)}{changed}.")
    if digest := found.get("constraints_sha256"):
        others = found.get("not_as_in_constraints") or []
        but = f", but {clean(', '.join(map(str, others)))}" if others else ""
        words.append(f"Packages in the versions of constraints.txt (SHA-256 {clean(digest)}){but}.")
    if digest := found.get("packages_sha256"):
        words.append(f"SHA-256 of the names and versions of all installed packages: {clean(digest)}.")
    if run.overrides is None:
        words.append("No overrides of this version give the settings of this run, which are listed above.")
        return Reproduction(clean(run.label), words, "")
    checkout = [f"git checkout {clean(commit)}"] if commit and not found.get("uncommitted_changes") else []
    commands = [*checkout, clean(shlex.join(["fed-a2v", "train", *run.overrides]))]
    return Reproduction(clean(run.label), words, "\n".join(commands))


def clean_lines(text: str) -> str:
    """Several lines, each cleaned."""
    return "\n".join(clean(line) if line.strip() else "" for line in text.splitlines())


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _three(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


# The file -------------------------------------------------------------------------------------------------


class Library(NamedTuple):
    """Plotly's JavaScript, as text and packed for the page."""

    text: str
    packed: str


@lru_cache(maxsize=1)
def _library() -> Library:
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    content = (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_bytes()
    # Higher levels take longer without making it smaller.
    return Library(content.decode(), base64.b64encode(gzip.compress(content, 6, mtime=0)).decode())


def _policy(*scripts: str) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plots_json(plots: Sequence[figures.Plot]) -> str:
    """The figures' data by name; `<` is escaped so that no name can end the script element."""
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

    def render_table(content: TextTable, name: str) -> Any:
        numeric = [all(number(cell) for cell in column) for column in zip(*content.rows, strict=True)]
        return Markup(table.render(table=content, name=name, numeric=numeric))

    environment.globals["table"] = render_table
    return environment
