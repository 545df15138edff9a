"""Entry point of `fed-a2v`: runs one of the commands in `fed_a2v/commands/`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console

from fed_a2v.commands import COMMANDS, TAKE_OVERRIDES
from fed_a2v.commands.parser import resume_command, synopsis
from fed_a2v.config.own_class import add_origin, explained
from fed_a2v.errors import Stopped, interrupted
from fed_a2v.storage.plain_text import say
from fed_a2v.version import __version__

HELP = """\
usage: fed-a2v COMMAND ...

Train adapters from sounds to the prompts of image models, across sites that
keep their recordings.

commands:
{commands}

Start with `fed-a2v train experiment=quick`: built-in sounds, no downloads.
`fed-a2v COMMAND --help` has the options and examples of a command,
`fed-a2v config` all settings. Documentation: docs/index.md
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error that the user can fix gives one line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # as for standard error: no name ends a command in a Latin-1 terminal
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(stderr=True)
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        Console().print(usage(), end="", highlight=False, markup=False, soft_wrap=True)
        return
    if words[0] in ("-V", "--version"):
        Console().print(__version__, highlight=False)
        return
    if words[0] not in COMMANDS:
        say(console, f"fed-a2v: {_unknown(words)}", style="red")
        sys.exit(2)
    typed = words
    try:
        if words[0] in TAKE_OVERRIDES and any(word.startswith(("--config-dir", "-cd")) for word in words):
            from fed_a2v.config.compose import as_overrides

            words = [words[0], *as_overrides(words[1:])]
        import_module(f"fed_a2v.commands.{words[0]}").run(words[1:])
    except (Exception, KeyboardInterrupt) as error:
        if interrupted(error):
            folder = error.folder if isinstance(error, Stopped) else None
            say(console, f"Stopped. Resume with: {resume_command(typed, folder)}" if folder else "fed-a2v: stopped")
            sys.exit(130)
        message = explained(error)
        if message is None:
            add_origin(error)
            raise
        say(console, f"fed-a2v: {message}", style="red")
        sys.exit(2)


def usage() -> str:
    """The help: a line for each command."""
    lines = (f"  {name:<11} {synopsis(import_module(f'fed_a2v.commands.{name}').USAGE)[1]}" for name in COMMANDS)
    return HELP.format(commands="\n".join(lines))


def _unknown(words: Sequence[str]) -> str:
    """Message for a first word that is no command."""
    import shlex

    from fed_a2v.core.names import nearest

    word = words[0]
    if "=" in word or word in ("-m", "--config", "--quiet", "--json"):
        return f"{word!r} is no command; did you mean fed-a2v train {shlex.join(words)}?"
    near = nearest(word.lstrip("-"), COMMANDS, cutoff=0.6)
    return f"unknown command {word!r}; " + (f"did you mean {near}?" if near else f"choose from {', '.join(COMMANDS)}")
