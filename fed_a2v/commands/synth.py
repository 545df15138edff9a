"""`fed-a2v synth`: writes the built-in sounds to files."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fed_a2v.commands.parser import Parser, one_of
from fed_a2v.errors import ConfigError
from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v synth FOLDER               write the built-in sounds as WAV files, in ESC-50's layout
  fed-a2v synth sounds --clips-per-class 20
"""


def run(words: list[str]) -> None:
    """Write the sounds in ESC-50's layout."""
    parser = Parser(USAGE)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="another spelling of FOLDER")
    parser.add_argument("--clips-per-class", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--classes", help="names, separated by commas; default: all ten")
    given = parser.parse(words)
    if given.clips_per_class < 1:
        raise ConfigError(f"--clips-per-class {given.clips_per_class}: write at least one")
    folder = one_of(given.folder, given.out, "FOLDER", "fed-a2v synth sounds")

    from fed_a2v.data.datasets.synth import TARGETS, write_wavs

    classes = given.classes.split(",") if given.classes else list(TARGETS)
    write_wavs(folder, given.clips_per_class, given.seed, classes)
    say(Console(), f"Wrote {len(classes) * given.clips_per_class} clips to {folder / 'audio'}")
