"""`fed-a2v targets`: writes the prompt embeddings of the classes to a file, for sites without text models."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v targets FILE [KEY=VALUE ...]   write the class prompts to a file for targets=file
  fed-a2v targets flux.npz adapters=flux targets=t5 dataset=esc50 dataset.root=/data/ESC-50
"""


def run(words: list[str]) -> None:
    """Compute or read the targets, and write them to the file."""
    parser = argparse.ArgumentParser(
        "fed-a2v targets", description="Write the class prompts to a file for targets=file targets.path=FILE."
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args(words)

    from fed_a2v.config.compose import ConfigError, compose_settings
    from fed_a2v.data.site import class_names
    from fed_a2v.encoders.targets_file import save_targets
    from fed_a2v.federation.factory import prompt_set

    if "=" in str(given.file):
        raise ConfigError(f"fed-a2v targets needs a file as its first argument, not {given.file}")
    given.file = given.file.expanduser()
    settings = compose_settings(given.overrides)
    here = settings.model_copy(update={"device": "cpu"})  # the text models run on targets.device
    targets = prompt_set(here, class_names(settings.dataset))
    save_targets(targets, given.file)
    shapes = [f"CLIP {targets.clip.shape[1]} x {targets.clip.shape[2]}"]
    if targets.t5 is not None:
        shapes.append(f"T5 {targets.t5.shape[1]} x {targets.t5.shape[2]}")
    size = given.file.stat().st_size / 1e6
    say(Console(), f"Wrote {given.file}: {len(targets.names)} classes, {', '.join(shapes)}, {size:.1f} MB")
