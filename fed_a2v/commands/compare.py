"""`fed-a2v compare`: an experiment and its baselines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from fed_a2v.commands.parser import Parser, loading, resumable
from fed_a2v.config.baselines import BASELINES
from fed_a2v.core.names import nearest
from fed_a2v.errors import ConfigError
from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v compare [KEY=VALUE ...]    train an experiment and its baselines, and compare them
  fed-a2v compare experiment=quick
  fed-a2v compare experiment=quick --folds --seeds 0,1,2
"""
ALL = "all"


def run(words: list[str]) -> None:
    """Run the experiment and its baselines and print two tables, or one table of several folds and seeds."""
    parser = Parser(USAGE)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: outputs/compare/DATE_TIME")
    parser.add_argument(
        "--with",
        dest="baselines",
        metavar="NAME,...",
        help="baselines; default FedAvg,prototypes,pooled, or FedAvg,sums,pooled with share=statistics",
    )
    parser.add_argument(
        "--folds", nargs="?", const=ALL, metavar="1,2,...", help="test folds, one per run; without a value: all"
    )
    parser.add_argument("--seeds", metavar="0,1,...", help="seeds, each run on every fold")
    parser.add_argument(
        "--jobs",
        metavar="N",
        help="runs at the same time, each in its own process; default: with --folds or --seeds one per core, else one",
    )
    # The value of --folds may be left out, and the next word may be an override.
    following = zip(words, [*words[1:], ""], strict=True)
    given = parser.parse(
        [
            f"--folds={ALL}" if word == "--folds" and not re.match(r"[\w,]*$", after) else word
            for word, after in following
        ]
    )

    from fed_a2v.config.compose import compose_settings
    from fed_a2v.config.requirements import check_requirements

    baselines = None
    if given.baselines is not None:
        # Names such as "FedAvg, as many steps" contain a comma.
        baselines = [name.strip() for name in re.split(r",(?! as many)", given.baselines) if name.strip()]
        if unknown := [name for name in baselines if name not in BASELINES]:
            near = nearest(unknown[0], BASELINES)
            hint = f"did you mean {near!r}? " if near else ""
            raise ConfigError(f"--with={unknown[0]}: {hint}choose from {'; '.join(BASELINES)}")
    folds = None if given.folds is None else [] if given.folds == ALL else _numbers("--folds", given.folds)
    seeds = None if given.seeds is None else _numbers("--seeds", given.seeds)
    if given.jobs is not None and not re.fullmatch(r"[1-9]\d{0,3}", given.jobs):
        raise ConfigError(f"--jobs={given.jobs}: write the number of runs at the same time, --jobs=2")
    settings = compose_settings(given.overrides)
    check_requirements(settings)
    with loading():
        from fed_a2v.arms import usual_jobs
        from fed_a2v.compare import compare, cross_validate
        from fed_a2v.storage.files import free_folder
    default = Path("outputs/compare") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = (given.out.expanduser() if given.out else free_folder(default)).absolute()
    console = Console()
    crossed = folds is not None or seeds is not None
    jobs = int(given.jobs or (usual_jobs(settings, 1000) if crossed else 1))
    with resumable(folder):
        if crossed:
            summary = cross_validate(given.overrides, folder, baselines, folds, seeds, jobs=jobs)
        else:
            rows = compare(given.overrides, folder, baselines, jobs=jobs)
    if crossed:
        _show_summary(console, summary)
    else:
        _show_rounds(console, rows, folder)
    say(console, f"Tables: {folder / 'comparison.md'}, .csv, .tex", f"Results: {folder}")
    if (report := folder / "report.html").is_file():
        say(console, f"Report: {report}")


def _show_rounds(console: Console, rows: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """The rounds of the experiment, and of all arms side by side."""
    from fed_a2v.runs.folder import RunFolder
    from fed_a2v.runs.rounds import closing_lines
    from fed_a2v.runs.table import accuracy_cell, comparison_table, rounds_table

    label = list(rows)[-1]
    console.print(rounds_table(rows[label], f"{label}, round by round").rich())
    for line in closing_lines(rows[label], RunFolder(folder / label).read_results()):
        say(console, line, wrap=True)
    console.print(comparison_table(rows, "Accuracy after each round, from the same seed").rich())
    if any("t5/accuracy" in row for run in rows.values() for row in run):
        console.print(comparison_table(rows, "T5 accuracy after each round", "t5/accuracy").rich())
    final = {name: accuracy_cell(run[-1], 3) for name, run in rows.items()}
    last = ", ".join(f"{name} {shown}" for name, shown in final.items() if shown != "-")
    say(console, f"Final accuracy: {last}", wrap=True)
    if len(rows) > 1:
        say(console, "One fold and one seed establish no difference: add --seeds 0,1,2, and --folds.", wrap=True)


def _show_summary(console: Console, summary: dict[str, Any]) -> None:
    """The table of all folds and seeds, and a sentence for each pair of arms."""
    from fed_a2v.runs.intervals import crossed_table

    console.print(crossed_table(summary, "Accuracy after the last round; steps at a site + on the server").rich())
    say(console, *summary["sentences"], wrap=True)
    say(console, summary["covers"], wrap=True)


def _numbers(option: str, text: str) -> Sequence[int]:
    """Numbers separated by commas, without duplicates."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigError(f"{option}={text}: write integers separated by commas, {option}=1,2,3")
    return list(dict.fromkeys(map(int, text.split(","))))
