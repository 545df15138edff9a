"""The speed and memory of a run in words, from the metrics `machine/...` of its rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fed_a2v.runs.rounds import Row

# Metrics with this prefix, and those with "seconds" in their name, differ from run to run.
PREFIX = "machine/"
MEMORY = {"peak_memory": "", "peak_gpu_memory": " on the GPU"}
OF_RATE = "% of the matrix rate"


def without_clock(figures: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics, or results, as every run of the same settings has it: without what depends on the machine."""
    return {key: value for key, value in figures.items() if "seconds" not in key and not key.startswith(PREFIX)}


class Speed(NamedTuple):
    """The figures of a run in words, each "" if it is unknown.

    Attributes:
        site: clips/s at a site, such as "1230 clips/s".
        site_more: its optimiser steps/s, and its share of the matrix rate.
        server: optimiser steps/s on the server.
        server_more: its share of the matrix rate.
        messages: MB/s, a million bytes.
        memory: peak memory of the server's process.
    """

    site: str
    site_more: str
    server: str
    server_more: str
    messages: str
    memory: str


def speed(rows: Sequence[Row]) -> Speed:
    """The medians over the rounds after the first, which also loads the data, and the peak memory."""
    later = rows[1:] or rows

    def usual(name: str, digits: str, unit: str, scale: float = 1.0) -> str:
        values = [row[PREFIX + name] for row in later if PREFIX + name in row]
        return f"{statistics.median(values) * scale:{digits}} {unit}" if values else ""

    def joined(*parts: str) -> str:
        return ", ".join(part for part in parts if part)

    peaks = {kind: [row[PREFIX + kind] for row in rows if PREFIX + kind in row] for kind in MEMORY}
    return Speed(
        usual("site_clips_per_second", ".0f", "clips/s"),
        joined(usual("site_steps_per_second", ".0f", "steps/s"), usual("site_matrix_share", ".0f", OF_RATE, 100)),
        usual("server_steps_per_second", ".0f", "steps/s"),
        usual("server_matrix_share", ".0f", OF_RATE, 100),
        usual("bytes_per_second", ".2f", "MB/s", 1e-6),
        joined(*(f"{max(values) / 1e6:.0f} MB{MEMORY[kind]}" for kind, values in peaks.items() if values)),
    )


def speed_line(rows: Sequence[Row]) -> str:
    """The speed of a run in one line; "" if nothing is known."""
    found = speed(rows)
    site = f"a site trains {found.site} ({found.site_more})" if found.site else ""
    server = f"the server {found.server} ({found.server_more})" if found.server else ""
    messages = f"messages {found.messages}" if found.messages else ""
    memory = f"peak memory {found.memory}" if found.memory else ""
    parts = [part for part in (site, server, messages, memory) if part]
    return f"Speed: {'; '.join(parts)}" if parts else ""
