"""Reading a CSV file of captions, from which the text models compute class prompts (`targets.captions`)."""

from __future__ import annotations

import csv
from pathlib import Path


class CaptionsError(ValueError):
    """The captions file cannot be used."""


def read_captions(path: str | Path) -> list[tuple[str, str]]:
    """The (category, caption) of each row of a CSV file; other columns, such as `filename`, are ignored.

    Raises:
        CaptionsError: the file is missing, is not a CSV with the two columns, has no rows, or has an empty field.
    """
    try:
        with Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, strict=True)
            columns = list(table.fieldnames or ())
            if missing := [name for name in ("category", "caption") if name not in columns]:
                raise CaptionsError(
                    f"{path} has no column {' and no '.join(missing)}; its first line is {','.join(columns) or 'empty'}"
                )
            captions = []
            for row in table:
                category, caption = (" ".join((row[name] or "").split()) for name in ("category", "caption"))
                if not category or not caption:
                    raise CaptionsError(f"{path}, line {table.line_num} needs a category and a caption")
                captions.append((category, caption))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CaptionsError(f"{path} cannot be read: {error}") from error
    if not captions:
        raise CaptionsError(f"{path} lists no caption; add lines with category and caption")
    return captions
