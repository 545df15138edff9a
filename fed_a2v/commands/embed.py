"""`fed-a2v embed`: embeds a data set into the cache that training reads, or into a file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fed_a2v.commands.parser import Parser, loading
from fed_a2v.errors import ConfigError
from fed_a2v.storage.plain_text import say

if TYPE_CHECKING:
    from fed_a2v.data.cache.embed import Progress

USAGE = """\
fed-a2v embed [KEY=VALUE ...]      embed the clips of a data set before training, in parallel
  fed-a2v embed dataset=vggsound dataset.root=/data/VGGSound encoder=clap
  fed-a2v embed dataset=esc50 dataset.root=/data/ESC-50 --out esc50.npz
"""

# Seconds between two lines of progress without a terminal.
SECONDS_A_LINE = 10.0


def run(words: list[str]) -> None:
    """Embed all clips that the settings select, except those that are already in the cache."""
    parser = Parser(USAGE)
    parser.add_argument("--workers", type=int, help="number of processes; default: one per core, one on a GPU")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="also write a file for dataset=embeddings")
    given = parser.parse(words)

    from fed_a2v.config.compose import compose_settings
    from fed_a2v.config.requirements import check_requirements
    from fed_a2v.config.schema import cache_dir

    if given.workers is not None and given.workers < 1:
        raise ConfigError(f"--workers={given.workers}: set at least 1")
    settings = compose_settings(given.overrides)
    check_requirements(settings)
    with loading():
        from fed_a2v.data.cache.export import embed_dataset, write_embeddings
        from fed_a2v.runs.logs import on_console
    workers = given.workers or default_workers(settings.encoder.device)
    console = Console()
    start = time.perf_counter()
    with on_console(console), progress_bar(console) as progress:
        embedded = embed_dataset(
            settings.dataset,
            settings.encoder,
            settings.seed,
            cache_dir(settings.cache_dir),
            workers,
            settings.threads,
            progress,
        )
    seconds = time.perf_counter() - start
    speed = f", {embedded.new / seconds:.0f} clips/s with {workers} processes" if embedded.new else ""
    say(
        console,
        f"{len(embedded)} clips in {seconds:.1f} s: {embedded.new} embedded{speed}, "
        f"{len(embedded) - embedded.new} from the cache, {embedded.skipped} skipped",
    )
    if given.out:
        out = given.out.expanduser()
        write_embeddings(embedded, out)
        say(console, f"Wrote {out}: dataset=embeddings dataset.path={out}")
    else:
        say(console, f"Cache: {cache_dir(settings.cache_dir)}")


def default_workers(device: str | None) -> int:
    """One process per core; on a GPU one process is enough."""
    from fed_a2v.encoders.pretrained import pick_device

    if device is not None and pick_device(device).type != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A progress bar in a terminal, else a line every `SECONDS_A_LINE`."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Embedding"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, speed="", visible=False)
        start = time.perf_counter()

        def show(done: int, total: int) -> None:
            speed = f"{done / (time.perf_counter() - start):.0f} clips/s"
            bar.update(task, completed=done, total=total, speed=speed, visible=True)

        yield show


class _Lines:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.start = self.last = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self.last >= SECONDS_A_LINE or done == total:
            self.last = now
            say(self.console, f"Embedded {done} of {total} clips, {done / (now - self.start):.0f} clips/s")
