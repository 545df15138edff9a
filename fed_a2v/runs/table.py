"""Text tables: the rounds of one run, and several variants."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from fed_a2v.runs.rounds import fully_evaluated, interval_words, total
from fed_a2v.storage.plain_text import csv_cell, latex_text, markdown_cell, one_line

Rows = Sequence[Mapping[str, Any]]

# Short heads of figures.
HEADS = {
    "accuracy_before": "before",
    "accuracy_at_5": "top 5",
    "t5/accuracy": "T5",
    "privacy/epsilon": "epsilon",
    "seconds": "s",
}


@dataclass(frozen=True)
class TextTable:
    """A table of strings, to be shown in a terminal or written as Markdown, CSV or LaTeX."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """The table for a rich console, figures to the right."""
        table = Table(title=Text(one_line(self.title)) if self.title else None, title_justify="left")
        for index, name in enumerate(self.header):
            # Wrapped here, since rich would rather wrap cells than heads.
            width = max((len(one_line(row[index])) for row in self.rows), default=0)
            head = "\n".join(textwrap.wrap(one_line(name), max(width, *map(len, [*name.split(), ""]))))
            justify: JustifyMethod = "right" if self._has_figures(index) else "left"
            table.add_column(Text(head), justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        return table

    def fitting(self) -> TextTable:
        """The table with short heads, for a terminal or a page: the last part of a key, and a word for a figure."""
        last = [HEADS.get(name, name.rpartition(".")[2]) for name in self.header]
        heads = [short if last.count(short) == 1 else name for short, name in zip(last, self.header, strict=True)]
        return TextTable(self.title, tuple(heads), self.rows)

    def without(self, *names: str) -> TextTable:
        """The table without some of its columns."""
        kept = [index for index, name in enumerate(self.header) if name not in names]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return TextTable(self.title, tuple(self.header[index] for index in kept), rows)

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "".join("| " + " | ".join(map(markdown_cell, line)) + " |\n" for line in lines)

    def csv(self) -> str:
        """The table as comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(map(csv_cell, row) for row in (self.header, *self.rows))
        return text.getvalue()

    def latex(self, caption: str, label: str) -> str:
        r"""The table in LaTeX, for the package booktabs, figures to the right.

        Args:
            caption: plain text, without markup.
            label: for `\\ref`.
        """
        columns = "".join("r" if self._has_figures(index) else "l" for index in range(len(self.header)))
        lines = (" & ".join(map(latex_text, row)) + r" \\" for row in (self.header, *self.rows))
        # After a line's end, LaTeX would take a bracket or an asterisk for an option.
        head, *body = (f"{{}}{line}" if line.startswith(("[", "*")) else line for line in lines)
        return "\n".join(
            [
                "% \\usepackage{booktabs}",
                r"\begin{table}",
                r"  \centering",
                f"  \\caption{{{latex_text(caption)}}}",
                f"  \\label{{{label}}}",
                f"  \\begin{{tabular}}{{{columns}}}",
                r"    \toprule",
                f"    {head}",
                r"    \midrule",
                *(f"    {line}" for line in body),
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def _has_figures(self, index: int) -> bool:
        return all(re.match(r"[\d.+-]", row[index]) for row in self.rows)


def rounds_table(rows: Rows, title: str = "") -> TextTable:
    """One run by round: accuracies, losses, traffic in MB (10^6 bytes) and seconds; "-" for a missing value.

    `before` is the accuracy before the server step. The accuracy after it has its 95 % interval, in a form that leaves
    the table within 80 columns.

    There is a column of T5's accuracy if the adapters have a T5 side. An asterisk marks rounds in which not all sites
    were evaluated; `closing_lines` says how many clips such a figure covers.
    """
    has_t5 = any("t5/accuracy" in row for row in rows)
    header = ("round", "before", "accuracy and 95 %", *(["T5"] if has_t5 else []))
    return TextTable(
        title,
        (*header, "gen. loss", "tuning loss", "MB up", "MB down", "time, s"),
        tuple(
            (
                str(row["round"]),
                figure_cell(row.get("accuracy_before"), 3),
                figure_cell(row.get("accuracy"), 3) + ("" if fully_evaluated(row) else "*") + _interval(row),
                *([figure_cell(row.get("t5/accuracy"), 3)] if has_t5 else []),
                figure_cell(row.get("server/generator_loss"), 4),
                figure_cell(row.get("server/adapter_finetuning_loss"), 4),
                figure_cell(row.get("bytes_up"), 2, scale=1e-6),
                figure_cell(row.get("bytes_down"), 2, scale=1e-6),
                figure_cell(seconds(row), 1),
            )
            for row in rows
        ),
    )


def comparison_table(variants: Mapping[str, Rows], title: str = "", figure: str = "accuracy") -> TextTable:
    """Accuracy by round, a column for each variant, and below it the optimiser steps of all rounds.

    Where not all test clips were scored, a cell has the number of those that were.

    Args:
        variants: the rows of each run by label, e.g. "FedAvg only", "prototypes only", "vae", "pooled".
        title: the table's title.
        figure: metric in the cells, default the accuracy of the CLIP side.
    """
    values = {
        label: {int(row["round"]): accuracy_cell(row, 3, figure) for row in rows} for label, rows in variants.items()
    }
    numbers = sorted({number for column in values.values() for number in column})
    steps = {
        label: [f"{total(rows, key):.0f}" if any(key in row for row in rows) else "-" for rows in variants.values()]
        for label, key in (("steps at a site", "site/optimiser_steps"), ("on the server", "server/optimiser_steps"))
    }
    return TextTable(
        title,
        ("round", *variants),
        (
            *((str(number), *(column.get(number, "-") for column in values.values())) for number in numbers),
            *((label, *cells) for label, cells in steps.items()),
        ),
    )


# Metrics of a round in the CSV file of a comparison.
BY_ROUND = (
    *("accuracy", "accuracy_before", "accuracy_at_5", "t5/accuracy", "test_clips"),
    *("site/optimiser_steps", "server/optimiser_steps"),
)


def figures_by_round(variants: Mapping[str, Rows]) -> TextTable:
    """A row for each variant and round, with all digits of the metrics `BY_ROUND` that there are, for a CSV file."""
    present = [key for key in BY_ROUND if any(key in row for rows in variants.values() for row in rows)]
    cells = (
        (label, str(row["round"]), *(figure_cell(row.get(key), None) for key in present))
        for label, rows in variants.items()
        for row in rows
    )
    return TextTable("", ("arm", "round", *present), tuple(cells))


def seconds(row: Mapping[str, Any]) -> float:
    """Seconds that a round took: the sum of its phases."""
    return float(sum(value or 0.0 for key, value in row.items() if key.startswith("seconds/")))


def accuracy_cell(row: Mapping[str, Any], digits: int, figure: str = "accuracy") -> str:
    """The accuracy of a row, or of results; where not all test clips were scored, e.g. "1.000 on 48 of 80"."""
    shown, of_all = figure_cell(row.get(figure), digits), row.get("test_clips_total")
    if shown == "-" or fully_evaluated(row):
        return shown
    return f"{shown} on {row.get('test_clips')} of {'?' if of_all is None else of_all}"


def interval_cell(row: Mapping[str, Any], figure: str = "accuracy") -> str:
    """The 95 % interval of an accuracy, e.g. "0.815 to 0.884"; "-" for a missing one."""
    return interval_words(row, figure).removeprefix("95 % ") or "-"


def _interval(row: Mapping[str, Any]) -> str:
    """The 95 % interval of the accuracy, with a space before it, e.g. " .82-.88"; "" for a missing one."""
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    if low is None or high is None:
        return ""
    digits = 2 if high - low >= 0.02 else 3
    return " " + "-".join("1.0" if value > 1 - 10**-digits / 2 else f"{value:.{digits}f}"[1:] for value in (low, high))


def figure_cell(value: Any, digits: int | None, scale: float = 1.0) -> str:
    """A figure times `scale`, a float with `digits` decimals, None: all of them; "-" for a missing value."""
    if value is None:
        return "-"
    if scale == 1.0 and (digits is None or not isinstance(value, float)):
        return str(value)
    return f"{value * scale:.{digits}f}"
