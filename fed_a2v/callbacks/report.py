"""Writes the report of a finished run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.runs.folder import RunFolder

log = logging.getLogger("fed_a2v")


class Report(Callback):
    """Writes `report.html` unless `report=false`; called after the other callbacks, because it shows their files."""

    last = True

    def on_run_start(self, run: RunContext) -> None:
        """Remember the folder."""
        self.run = run

    def on_run_end(self, results: Mapping[str, Any] | None) -> None:
        """Write the report."""
        if self.run.config["report"] and results is not None:
            write_run_report(self.run.folder, self.run.last_log)


def write_run_report(folder: RunFolder, last_log: logging.Logger) -> None:
    """Write the HTML report; a failure is only logged."""
    try:
        from fed_a2v.report.page import write_report  # imports Plotly and others that only a report needs

        write_report([folder.path], folder.report)
    except Exception as error:
        log.warning("The report was not written: %s: %s", type(error).__name__, error)
    else:
        last_log.info("Report: %s", folder.report)
