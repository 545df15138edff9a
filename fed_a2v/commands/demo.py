"""`fed-a2v demo`: a page in the browser to try a run with own sounds."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fed_a2v.commands.parser import Parser
from fed_a2v.commands.runs import check_one_run
from fed_a2v.errors import ConfigError
from fed_a2v.install import require
from fed_a2v.storage.plain_text import say

if TYPE_CHECKING:
    from fed_a2v.images.pipelines import ImageModel
    from fed_a2v.load import LoadedRun

USAGE = """\
fed-a2v demo RUN                   open a page that classifies sounds you drop or record
  fed-a2v demo outputs/mine
"""


def run(words: list[str]) -> None:
    """Serve the page until Ctrl-C."""
    given = _parser().parse(words)
    require("gradio", "demo", "fed-a2v demo")
    check_one_run(given.run)
    if not 0 <= given.port < 2**16:
        raise ConfigError(f"--port {given.port}: set a number up to 65535, or 0 for any free port")
    if given.images is None and given.settings:
        raise ConfigError(f"{given.settings[0]} needs an image model: add --images sd or --images flux")
    console = Console(stderr=True)
    say(console, f"Loading {given.run} ...")

    from fed_a2v.demo.explorer import Explorer
    from fed_a2v.demo.server import is_loopback, make_app, make_server, opened, temporary_files
    from fed_a2v.load import load_run

    with opened(given.host, given.port) as socket, temporary_files():
        loaded = load_run(given.run, trust_code=given.trust_code)
        explorer = Explorer(loaded, _image_model(loaded, given.images, given.settings))
        server = make_server(make_app(explorer, given.host))
        host = f"[{given.host}]" if ":" in given.host else given.host
        say(Console(), f"Page: http://{host}:{socket.getsockname()[1]} (Ctrl-C ends it)")
        if not is_loopback(given.host):
            say(console, f"Whoever reaches {given.host} can use the page; it has no password.", style="yellow")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # delete the temporary files then, too
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[socket])
    say(console, "Stopped; uploaded sounds are deleted.")


def _parser() -> Parser:
    parser = Parser(USAGE, "The image model has settings as in training: images.seed=1 images.model=FOLDER\n")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or a checkpoint in it")
    parser.add_argument(
        "settings", nargs="*", default=[], metavar="images.KEY=VALUE", help="settings of the image model"
    )
    parser.add_argument("--images", choices=["sd", "flux"], help="also generate an image of each sound")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--port", type=int, default=7860, help="0: any free one; default: %(default)s")
    parser.add_argument("--trust-code", action="store_true", help="import the classes that RUN names by import path")
    return parser


def _image_model(loaded: LoadedRun, kind: str | None, overrides: list[str]) -> ImageModel | None:
    """The image model that is asked for.

    Raises:
        ConfigError: it does not accept the prompts of the run's adapters, or a setting is wrong.
        ModelError: it is missing.
    """
    if kind is None:
        return None

    from fed_a2v.commands.generate import image_settings
    from fed_a2v.images.pipelines import load_image_model

    settings = image_settings(loaded, overrides)
    if settings.name != kind:
        raise ConfigError(
            f"--images {kind}: {loaded.folder.path.name} was trained with adapters={loaded.settings.adapters.name}, "
            f"whose prompts fit --images {settings.name}"
        )
    return load_image_model(settings)
