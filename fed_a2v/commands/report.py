"""`fed-a2v report`: writes one HTML file about one or several runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fed_a2v.commands.parser import Parser, loading
from fed_a2v.commands.runs import check_run
from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v report RUN ...             write an HTML report of one or several runs
  fed-a2v report runs/mine
  fed-a2v report runs/mine runs/other --out report.html
"""


def run(words: list[str]) -> None:
    """Write the report and print its path."""
    parser = Parser(USAGE)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, a comparison or a sweep")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: report.html in RUN, or here for several runs",
    )
    given = parser.parse(words)
    for folder in given.runs:
        check_run(folder)
    with loading():
        from fed_a2v.core.projection import umap_layout
        from fed_a2v.report.page import write_report

    out = given.out or (given.runs[0] if len(given.runs) == 1 else Path()) / "report.html"
    write_report(given.runs, out.expanduser().absolute(), umap_layout)
    say(Console(), f"Report: {out}")
