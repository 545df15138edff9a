"""`fed-a2v synth`: writes the built-in sounds to files."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v synth FOLDER               write the built-in sounds as WAV files
"""


def run(words: list[str]) -> None:
    """Write the sounds in ESC-50's layout."""
    parser = argparse.ArgumentParser("fed-a2v synth", description="Write the built-in sounds in ESC-50's layout.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips-per-class", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--classes", help="names, separated by commas; default: all ten")
    given = parser.parse_args(words)

    from fed_a2v.data.datasets.synth import TARGETS, write_wavs

    classes = given.classes.split(",") if given.classes else list(TARGETS)
    write_wavs(given.folder, given.clips_per_class, given.seed, classes)
    say(Console(), f"Wrote {len(classes) * given.clips_per_class} clips to {given.folder / 'audio'}")
