"""Text on its way out of the program: into a terminal, a log, a table, a CSV file.

Names of classes, sites and files, and what errors say of them, were written by others. A terminal would obey an escape
sequence in them, a reader be misled by a direction mark or a line of its own, a spreadsheet compute a formula. What
leaves the program goes through one of the functions here.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Control characters (C0, C1, ESC), halves of pairs (bytes of a name that is not UTF-8), ends of lines and paragraphs,
# and what orders, hides or joins letters. The two joiners are a part of words in Persian and in Indian scripts.
_HIDDEN = ("Cc", "Cs", "Zl", "Zp", "Cf")
_JOINERS = "\u200c\u200d"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# What begins a formula in a spreadsheet, in its wide form, too; behind a semicolon, which separates cells in some.
_FORMULA = re.compile(r"(^|;)(\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def one_line(text: object) -> str:
    r"""A text in one line of letters, signs and blanks; other characters are named, `\n`, `\x1b`, `\u202e`."""
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in _HIDDEN and letter not in _JOINERS
        else letter
        for letter in str(text)
    )


def printable(text: object) -> str:
    """A text whose lines are as in `one_line`; those behind the first are indented, so that none passes for another."""
    first, *rest = (one_line(line) for line in str(text).replace("\r\n", "\n").split("\n"))
    return "\n".join([first, *(line if not line or line.startswith("  ") else f"  {line}" for line in rest)])


def csv_cell(text: object) -> str:
    """A text as a cell of a table that a spreadsheet may open: a number, or words, never a formula."""
    cell = one_line(text)
    return cell if cell == "-" or _NUMBER.fullmatch(cell) else _FORMULA.sub(r"\1'\2", cell)


def markdown_cell(text: object) -> str:
    """A text as a cell of a Markdown table: no other cell, no tag, no link."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def say(console: Console, *lines: object, style: str = "", wrap: bool = False) -> None:
    """Print lines as they are: without markup, highlights or pictures for words.

    Args:
        console: where people read.
        lines: one or several; of one with line ends in it, what follows is indented.
        style: of all, e.g. "red".
        wrap: break long lines between words; else the terminal breaks them where they end.
    """
    from rich.text import Text

    console.print(Text("\n".join(printable(line) for line in lines), style), soft_wrap=not wrap)


class PlainLines(logging.Filter):
    """Makes each record that passes printable, its traceback included, whoever shows it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        try:
            record.msg, record.args = printable(record.getMessage()), ()
        except (TypeError, ValueError):  # arguments that do not fit: said by whoever shows it
            return True
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = printable("\n" + record.exc_text).removeprefix("\n")
        return True
