"""`fed-a2v report`: writes one HTML file about one or several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v report RUN ... [--out FILE]   write an HTML report of one or several runs, readable offline
"""


def run(words: list[str]) -> None:
    """Write the report and print its path."""
    parser = argparse.ArgumentParser("fed-a2v report", description="Write one HTML file about one or several runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, a comparison or a sweep")
    parser.add_argument(
        "--out", type=Path, help="default: report.html in RUN; for several runs, in the working directory"
    )
    given = parser.parse_args(words)

    from fed_a2v.core.projection import umap_layout
    from fed_a2v.report.page import write_report

    out = given.out or (given.runs[0] if len(given.runs) == 1 else Path()) / "report.html"
    write_report(given.runs, out.expanduser().absolute(), umap_layout)
    say(Console(), f"Report: {out}")
