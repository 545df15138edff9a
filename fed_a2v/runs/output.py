"""Choice of a run's console output."""

from __future__ import annotations

import os
from typing import Literal

# full: live view in a terminal, lines elsewhere; quiet: errors only; json: each round as JSON on standard output.
Output = Literal["full", "quiet", "json"]

# Set by `fed-a2v train --quiet` and `--json`; the processes of a parallel sweep inherit it.
OUTPUT_VARIABLE = "FED_A2V_OUTPUT"


def wanted_output() -> Output:
    """The output that the user has chosen; default "full"."""
    output = os.environ.get(OUTPUT_VARIABLE)
    return "quiet" if output == "quiet" else "json" if output == "json" else "full"
