"""`fed-a2v targets`: writes the prompt embeddings of the classes to a file, for sites without text models."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fed_a2v.commands.parser import Parser, loading, one_of
from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v targets FILE [KEY=VALUE ...]   write the class prompts to a file for targets=file
  fed-a2v targets flux.npz adapters=flux targets=t5
"""


def run(words: list[str]) -> None:
    """Compute or read the targets, and write them to the file."""
    parser = Parser(USAGE)
    parser.add_argument("--out", type=Path, metavar="FILE", help="another spelling of FILE")
    # The first word is the file, unless it is an override.
    pairs = zip(["", *words], words, strict=False)
    first = next((word for before, word in pairs if not word.startswith("-") and before != "--out"), "")
    named = [first] if first and "=" not in first else []
    given = parser.parse([word for word in words if word not in named])
    file = one_of(Path(*named) if named else None, given.out, "FILE", "fed-a2v targets prompts.npz")

    from fed_a2v.config.compose import compose_settings
    from fed_a2v.config.requirements import check_requirements

    settings = compose_settings(given.overrides)
    check_requirements(settings)
    with loading():
        from fed_a2v.data.site import class_names
        from fed_a2v.encoders.targets_file import save_targets
        from fed_a2v.federation.factory import prompt_set

    here = settings.model_copy(update={"device": "cpu"})  # the text models run on targets.device
    targets = prompt_set(here, class_names(settings.dataset))
    save_targets(targets, file)
    shapes = [f"CLIP {targets.clip.shape[1]} x {targets.clip.shape[2]}"]
    if targets.t5 is not None:
        shapes.append(f"T5 {targets.t5.shape[1]} x {targets.t5.shape[2]}")
    size = file.stat().st_size / 1e6
    say(Console(), f"Wrote {file}: {len(targets.names)} classes, {', '.join(shapes)}, {size:.1f} MB")
