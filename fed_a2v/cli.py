"""Entry point of `fed-a2v`: runs one of the commands in `fed_a2v/commands/`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console

from fed_a2v.commands import COMMANDS, TAKE_OVERRIDES
from fed_a2v.errors import MENDABLE, interrupted
from fed_a2v.storage.plain_text import say
from fed_a2v.version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error that the user can fix gives one line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True)
    if not words or words[0] in ("-h", "--help", "help"):
        Console().print(usage(), end="", highlight=False, markup=False, soft_wrap=True)
        return
    if words[0] == "--version":
        Console().print(__version__, highlight=False)
        return
    if words[0] not in COMMANDS:
        say(console, f"fed-a2v: unknown command {words[0]!r}; choose from {', '.join(COMMANDS)}")
        sys.exit(2)
    try:
        if words[0] in TAKE_OVERRIDES:
            from fed_a2v.config.compose import as_overrides

            words = [words[0], *as_overrides(words[1:])]
        import_module(f"fed_a2v.commands.{words[0]}").run(words[1:])
    except (Exception, KeyboardInterrupt) as error:
        if interrupted(error):
            say(console, "fed-a2v: stopped")
            sys.exit(130)
        if not isinstance(error, MENDABLE):
            raise
        say(console, f"fed-a2v: {error}", style="red")
        sys.exit(2)


def usage() -> str:
    """The help of all commands."""
    return "".join(import_module(f"fed_a2v.commands.{name}").USAGE for name in COMMANDS)
