"""`fed-a2v config`: all settings of an experiment, with the origin of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from fed_a2v.commands.parser import Parser
from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v config [KEY=VALUE ...]     print all settings as YAML, each with what sets it
  fed-a2v config experiment=guide generator.latent_dim=64
  fed-a2v config --config my_experiment.json
"""


def run(words: list[str]) -> None:
    """Compose and check the settings, and print them."""
    parser = Parser(USAGE, "docs/settings.md describes all settings.\n")
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="a JSON file in the guide's format"
    )
    given = parser.parse(words)
    overrides = given.overrides

    from fed_a2v.commands.guide_file import compose_with, read_guide, show_guide
    from fed_a2v.config.compose import sources

    guide = read_guide(given.config)
    try:
        settings = compose_with(guide, overrides).as_dict()
    finally:
        if guide:
            show_guide(guide, Console(stderr=True))
    from_file = guide.overrides(overrides) if guide else []
    origins = sources([*from_file, *overrides])
    if guide:
        file_keys = {word: f"{guide.path}: {guide.key_of(word.split('=')[0])}" for word in from_file}
        origins = {key: file_keys.get(origin, origin) for key, origin in origins.items()}
    lines = list(_lines(settings))
    width = min(max(len(text) for text, _ in lines), 60)
    say(Console(), *(f"{text:<{width}}  # {_origin(key, origins)}" if key else text for text, key in lines))


def _lines(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Lines of YAML, each with the dotted key of its value; "" for the start of a section."""
    import yaml

    indent = "  " * len(path)
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", ""
            yield from _lines(value, (*path, name))
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
            yield f"{indent}{name}: {text.removesuffix('...' + chr(10)).strip()}", ".".join((*path, name))


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """Origin of the value of a key, or of its section."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if origin := origins.get(".".join(parts[:length])):
            return origin
    return "?"
