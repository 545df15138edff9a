"""What a person sees of a run on the console."""

from __future__ import annotations

import os
from typing import Literal

# full: live in a terminal, lines elsewhere; quiet: errors only; json: each round as JSON on standard output.
Output = Literal["full", "quiet", "json"]

# Set by `fed-a2v train --quiet` and `--json`; the processes of a parallel sweep inherit it.
OUTPUT_VARIABLE = "FED_A2V_OUTPUT"


def wanted_output() -> Output:
    """What the user wants to see."""
    wanted = os.environ.get(OUTPUT_VARIABLE)
    return "quiet" if wanted == "quiet" else "json" if wanted == "json" else "full"
