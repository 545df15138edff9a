"""`fed-a2v export`: writes a run's adapters to a folder that others load without Flower."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fed_a2v.commands.parser import Parser, loading
from fed_a2v.commands.runs import check_one_run
from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v export RUN --to FOLDER     write the trained adapters with a model card, for others
  fed-a2v export outputs/mine --to my-adapter
"""


def run(words: list[str]) -> None:
    """Export the run, and print how to load it."""
    parser = Parser(USAGE, "fed_a2v.A2VAdapter.from_pretrained(FOLDER) loads the adapters.\n")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or a checkpoint in it")
    parser.add_argument("--to", "--out", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--licence",
        "--license",
        metavar="ID",
        help="licence of the weights for the model card, e.g. cc-by-4.0; default: that of the data if known",
    )
    parser.add_argument("--trust-code", action="store_true", help="import the classes that RUN names by import path")
    given = parser.parse(words)
    check_one_run(given.run)
    with loading():
        from fed_a2v.export import export_run
        from fed_a2v.load import load_run
        from fed_a2v.model_card import UNKNOWN

    folder = given.to.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; choose another folder, or remove it")
    adapter = export_run(load_run(given.run, trust_code=given.trust_code), folder, given.licence)
    size, console = sum(path.stat().st_size for path in folder.iterdir()) / 1e6, Console()
    say(console, f"Exported to {given.to}, {size:.1f} MB. In Python:")
    say(console, "  from fed_a2v import A2VAdapter")
    say(console, f"  adapter = A2VAdapter.from_pretrained({str(given.to)!r})")
    licence = str(getattr(adapter.generate_model_card().data, "license", UNKNOWN))
    choose = "; choose one with --licence ID before you publish it" if licence == UNKNOWN else ""
    say(console, f"Licence in the model card: {licence}{choose}.")
