"""Escaping text that the program prints, logs, or writes into tables and CSV files.

Names of classes, sites and files, and the error messages that quote them, are untrusted: a terminal would execute an
escape sequence in them, a direction mark or an extra line would mislead a reader, and a spreadsheet would compute a
formula. All output goes through one of these functions.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Unicode categories: control characters (C0, C1, ESC), surrogates (bytes of a name that is not UTF-8), line and
# paragraph separators, and format characters, which reorder or hide letters. The two joiners are allowed, because
# words in Persian and in Indian scripts contain them.
_HIDDEN = ("Cc", "Cs", "Zl", "Zp", "Cf")
_JOINERS = "\u200c\u200d"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}
_SIGNED = re.compile(r"(?<![\w.,/}])([+-])(?=\d)")
# The start of a spreadsheet formula, also in full-width characters; also after a semicolon, which separates cells in
# some locales.
_FORMULA = re.compile(r"(^|;)(\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def one_line(text: object) -> str:
    r"""The text in one line; control and hidden characters are escaped: `\n`, `\x1b`, `\u202e`."""
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in _HIDDEN and letter not in _JOINERS
        else letter
        for letter in str(text)
    )


def printable(text: object) -> str:
    """The text with each line as in `one_line`; lines after the first are indented, so that none imitates a message."""
    first, *rest = (one_line(line) for line in str(text).replace("\r\n", "\n").split("\n"))
    return "\n".join([first, *(line if not line or line.startswith("  ") else f"  {line}" for line in rest)])


def csv_cell(text: object) -> str:
    """The text as a CSV cell: a number or plain text, never a formula."""
    cell = one_line(text)
    return cell if cell == "-" or _NUMBER.fullmatch(cell) else _FORMULA.sub(r"\1'\2", cell)


def markdown_cell(text: object) -> str:
    """The text as a cell of a Markdown table; it cannot start another cell, a tag or a link."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def latex_text(text: object) -> str:
    """The text for LaTeX: no character is a command, and signs of numbers are those of mathematics."""
    # The signs last, since `_LATEX` would escape their dollars.
    escaped = "".join(_LATEX.get(letter, letter) for letter in one_line(text))
    return _SIGNED.sub(r"$\1$", escaped)


def say(console: Console, *lines: object, style: str = "", wrap: bool = False) -> None:
    """Print lines literally: without rich's markup, highlighting or emoji codes.

    Args:
        console: the console to print to.
        lines: each is escaped by `printable`.
        style: style of all lines, e.g. "red".
        wrap: wrap long lines at word boundaries; otherwise the terminal breaks them at its width.
    """
    from rich.text import Text

    console.print(Text("\n".join(printable(line) for line in lines), style), soft_wrap=not wrap)


class PlainLines(logging.Filter):
    """A logging filter that escapes each record, including its traceback, by `printable`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Escape the record in place; no record is dropped."""
        try:
            record.msg, record.args = printable(record.getMessage()), ()
        except (TypeError, ValueError):  # the arguments do not fit the format: the handler reports it
            return True
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = printable("\n" + record.exc_text).removeprefix("\n")
        return True
