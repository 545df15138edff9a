"""The words of a command: its options and help, and the remedies of mistakes that the words alone show.

Commands parse their words before they import what they run, so that a mistake is reported at once.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from fed_a2v.errors import ConfigError, Stopped, interrupted

SETTINGS = """\
KEY=VALUE changes a setting: `fed-a2v train --help` describes the main ones,
`fed-a2v config` prints all, docs/settings.md describes all.
"""


def synopsis(usage: str) -> tuple[str, str]:
    """The first line of a command's USAGE as its words and its summary."""
    words, _, summary = usage.splitlines()[0].partition("  ")
    return words, summary.strip()


class Parser(argparse.ArgumentParser):
    """The options of a command; a mistake is a `ConfigError` of one line.

    Args:
        usage: the command's USAGE: a line `fed-a2v NAME WORDS    summary`, then indented examples.
        more: text at the end of the help.
    """

    def __init__(self, usage: str, more: str = "") -> None:
        words, summary = synopsis(usage)
        examples = "\n".join(["examples:", *usage.splitlines()[1:]]) + "\n" if "\n  " in usage else ""
        self.takes_settings = "KEY=VALUE" in words
        super().__init__(
            " ".join(words.split()[:2]),
            f"{words} [OPTIONS]",
            f"{summary[0].upper()}{summary[1:]}.",
            "\n".join(filter(None, (examples, more or (SETTINGS if self.takes_settings else "")))),
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=80),
            allow_abbrev=False,
        )
        if self.takes_settings:
            self.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the experiment")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The values of all options; those of KEY=VALUE in `overrides`.

        Raises:
            ConfigError: names the wrong word and the remedy.
        """
        if not {"-h", "--help"} & set(words):
            for place, word in enumerate(words):
                following = words[place + 1] if place + 1 < len(words) else ""
                if re.match(r"--?[a-zA-Z]", word) and word.partition("=")[0] not in self._option_string_actions:
                    raise ConfigError(self._unknown_option(word, following))
        given = self.parse_intermixed_args(list(words))
        if self.takes_settings:
            check_overrides(given.overrides, self.prog)
        return given

    def error(self, message: str) -> NoReturn:
        """Raise argparse's own message, such as that of a missing word."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def _unknown_option(self, word: str, following: str) -> str:
        from fed_a2v.core.names import nearest

        name, sign, value = word.partition("=")
        if not sign:
            value = following if following and not re.match("-|.*=", following) else "VALUE"
        options = [option for option in self._option_string_actions if option.startswith("--")]
        begun = [option for option in options if option.startswith(name)]
        near = begun[0] if len(begun) == 1 else nearest(name, options, cutoff=0.7)
        # Settings are written like options by users of other programs.
        keys = settings_named(name.lstrip("-").replace("-", "_")) if self.takes_settings else []
        remedies = [f"{'-m ' if ',' in value and self.prog.endswith('train') else ''}{key}={value}" for key in keys]
        if near and not (keys and nearest(name, options, cutoff=0.9) is None):
            remedies = [near, *remedies]
        if not remedies:
            return f"{name}: no such option; {self.prog} has {', '.join(options)}"
        how = " (a setting is written without dashes)" if keys and remedies[0] != near else ""
        return f"{name}: no such option; did you mean {' or '.join(remedies[:3])}?{how}"


def check_overrides(words: Sequence[str], command: str) -> None:
    """Check that each word is KEY=VALUE, or ~KEY.

    Raises:
        ConfigError: names the word, and what was probably meant.
    """
    for place, word in enumerate(words):
        if re.match(r"~|[^=]+=", word) and not _continues(words, place):
            continue
        raise ConfigError(_no_override(words, place, command))


def plain_value(word: str) -> str:
    """The value of an override as text, without the quotes of Hydra's grammar."""
    value = word.partition("=")[2]
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return value
    return value[1:-1].replace(f"\\{value[0]}", value[0])


def settings_named(name: str) -> list[str]:
    """The keys and groups with this name, or whose last part has it; case does not count."""
    from fed_a2v.config.tree import conf_dir, known_keys

    folded = name.casefold()
    groups = [path.name for path in sorted(conf_dir().iterdir()) if path.is_dir()]
    keys = dict.fromkeys([*groups, *known_keys()])
    exact = [key for key in keys if key.casefold() == folded]
    return exact or [key for key in keys if key.casefold().rpartition(".")[2] == folded]


def _continues(words: Sequence[str], place: int) -> bool:
    """Whether the next word has no key: the value of a word that ends with =, or a sign between spaces."""
    following = words[place + 1] if place + 1 < len(words) else ""
    return words[place].endswith("=") and bool(following) and "=" not in following and not following.startswith("~")


def _no_override(words: Sequence[str], place: int, command: str) -> str:
    from fed_a2v.config.tree import options, sections

    word = words[place]
    rest = [following for following in words[place + 1 : place + 3] if following != "="]
    value = rest[0].removeprefix("=") if rest and "=" not in rest[0].removeprefix("=") else "VALUE"
    if word.endswith("=") and word != "=":
        return f"{word!r} {value!r}: write {word}{value}, without spaces"
    if word.startswith("="):
        before = words[place - 1] if place else "KEY"
        return f"{word!r}: write {before}={word.removeprefix('=') or value}, without spaces"
    if re.search(r"\.jsonc?$", word, re.IGNORECASE):
        return f"{word!r} is not KEY=VALUE; write --config {word}"
    if Path(word).expanduser().is_dir():
        if command.endswith("compare"):
            return f"{word!r} is a folder: compare trains; to compare finished runs, fed-a2v report {' '.join(words)}"
        return f"{word!r} is a folder: write dataset.root={word} for one with data, --out {word} for one to write to"
    if place and words[place - 1].endswith(","):
        return f"{words[place - 1]!r} {word!r}: write {words[place - 1]}{word}, without spaces"
    if keys := settings_named(word):
        return f"{word!r} is not KEY=VALUE; did you mean {' or '.join(f'{key}={value}' for key in keys[:3])}?"
    groups = [group for group in ("experiment", *sections()) if word.casefold() in options(group)]
    if groups:
        named = " or ".join(f"{group}={word.casefold()}" for group in groups[:3])
        return f"{word!r} is not KEY=VALUE; did you mean {named}?"
    return (
        f"{word!r} is not KEY=VALUE; quote a value with spaces, commas or brackets: KEY=\"'a, b'\"; "
        "`fed-a2v config` lists the keys"
    )


def one_of(word: Path | None, out: Path | None, name: str, example: str) -> Path:
    """The path that a command writes to, as its first word or as `--out`.

    Raises:
        ConfigError: there is none, or both are given.
    """
    if word is not None and out is not None:
        raise ConfigError(f"{word} and --out={out} name the same {name}; keep one of them")
    if word is None and out is None:
        raise ConfigError(f"{name} is missing: {example}")
    return (word or out or Path()).expanduser()


def resume_command(words: Sequence[str], folder: Path) -> str:
    """The command that resumes what was stopped, for a shell.

    Args:
        words: what the user has typed after `fed-a2v`.
        folder: folder of the run, comparison or sweep.
    """
    words = [word for word in words if word != "resume=never"]  # it would start again
    named = any(re.match(r"--out(=|$)|\+*hydra\.(run|sweep)\.dir=", word) for word in words)
    return shlex.join(["fed-a2v", *words, *([] if named else ["--out", str(folder)])])


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C in the block into `Stopped`: the same words with this folder go on."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if interrupted(error):
            raise Stopped(folder) from error
        raise


@contextmanager
def loading(quiet: bool = False) -> Iterator[None]:
    """Tell a terminal that libraries are loaded, which takes seconds; the line is erased afterwards.

    Args:
        quiet: show nothing.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal or console.is_dumb_terminal or "torch" in sys.modules:
        yield
        return
    console.file.write("Loading PyTorch and Flower ...")
    console.file.flush()
    try:
        yield
    finally:
        console.file.write("\r\x1b[K")
        console.file.flush()


def described(values: Mapping[str, str], width: int = 24) -> str:
    """Lines of names with their descriptions, wrapped at 80 columns."""
    import textwrap

    lines = []
    for name, text in values.items():
        wrapped = textwrap.wrap(text, 80 - width) or [""]
        start = f"  {name}"
        first = [f"{start:<{width}}{wrapped[0]}"] if len(start) < width - 1 else [start, " " * width + wrapped[0]]
        lines += [*first, *(" " * width + line for line in wrapped[1:])]
    return "\n".join(lines)
