"""`fed-a2v doctor`: checks whether this machine can run an experiment, and estimates the cost of a round."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fed_a2v.commands.parser import Parser, loading
from fed_a2v.storage.plain_text import one_line

USAGE = """\
fed-a2v doctor [KEY=VALUE ...]     check this machine and the settings of an experiment
  fed-a2v doctor experiment=esc50_50x1 dataset.root=/data/ESC-50
"""

MARKS = {"fine": ("fine", "green"), "warning": ("WARNING", "yellow"), "error": ("ERROR", "red")}


def run(words: list[str]) -> None:
    """Print all findings; exit code 0 without problems, 1 with warnings, 2 with errors."""
    overrides = Parser(USAGE).parse(words).overrides
    with loading():
        from fed_a2v.doctor import examine, exit_code

        findings = examine(overrides)
    console = Console()
    if console.is_terminal:
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for finding in findings:
            remedy = ("\n" + one_line(finding.remedy), "bold") if finding.remedy else ""
            what = Text.assemble(one_line(finding.what), remedy)
            table.add_row(Text(*MARKS[finding.level]), Text(finding.subject), what)
        console.print(table)
    else:  # one line per finding, for grep and logs
        for finding in findings:
            line = f"{finding.level}\t{finding.subject}\t{one_line(finding.what)}"
            remedy = f"\t-> {one_line(finding.remedy)}" if finding.remedy else ""
            sys.stdout.write(line + remedy + "\n")  # rich would turn the tabs into spaces
    if code := exit_code(findings):
        sys.exit(code)
