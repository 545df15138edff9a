"""Seconds until `fed-a2v demo` is ready, and until it answers a clip of 5 s.

The run is a short one on the built-in sounds. `answer` is the time of the server; `in the page` runs in headless
Chromium from the upload until the classes are visible, after one upload that loads the page's own programs. Medians.

    python benchmarks/demo.py [--run FOLDER] [--repeats 10] [--write]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import soundfile
from common import machine, write_block
from playwright.sync_api import sync_playwright
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.data.datasets.synth import RATE, TARGETS, synthesise
from fed_a2v.federation.simulation import run_in_process


def clips(folder: Path, number: int) -> list[Path]:
    """Sound files of 5 s that are no clips of the run."""
    names = list(TARGETS)
    paths = [folder / f"{index}.wav" for index in range(number)]
    for index, path in enumerate(paths):
        soundfile.write(path, synthesise(names[index % len(names)], 10_000 + index, 0), RATE)
    return paths


@contextmanager
def chromium(address: str) -> Iterator[object]:
    """The opened page."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no chromium, chromium-browser or google-chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(address)
        yield tab
        browser.close()


def seconds_in_page(tab, path: Path) -> float:
    tab.wait_for_selector("input[type=file]", state="attached")
    start = time.perf_counter()
    tab.set_input_files("input[type=file]", path)
    tab.wait_for_selector(".demo-best")
    taken = time.perf_counter() - start
    tab.click("button[aria-label=Clear]")
    tab.wait_for_selector(".demo-best", state="detached")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a run; default: a new one")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="write the table into docs/demo.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = given.run
        if run is None:
            run = Path(place) / "run"
            run_in_process(compose_settings(["experiment=quick", "rounds=2"]), run, Console(quiet=True))
        paths = clips(Path(place), given.repeats)
        start = time.perf_counter()
        from fed_a2v.demo.explorer import Explorer
        from fed_a2v.demo.server import make_app, make_server, opened, temporary_files
        from fed_a2v.load import load_run

        with temporary_files(), opened("127.0.0.1", 0) as socket:
            explorer = Explorer(load_run(run))
            server = make_server(make_app(explorer, "127.0.0.1"))
            loaded = time.perf_counter() - start
            from fed_a2v.demo.page import answers

            answered = []
            for path in paths:
                start = time.perf_counter()
                list(answers(explorer, str(path)))
                answered.append(time.perf_counter() - start)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
            thread.start()
            with chromium(f"http://127.0.0.1:{socket.getsockname()[1]}") as tab:
                seconds_in_page(tab, paths[0])
                shown = [seconds_in_page(tab, path) for path in paths]
            server.should_exit = True
            thread.join()
    rows = [
        f"| loading the run, its encoder and the page | {loaded:.1f} s | |",
        f"| answer | {statistics.median(answered):.2f} s | under 1 s |",
        f"| answer, in the page | {statistics.median(shown):.2f} s | under 1 s |",
    ]
    heading = f"A clip of 5 s, encoder `{explorer.run.settings.encoder.name}` ({machine()}):"
    text = "\n".join([heading, "", "| | measured | goal |", "|---|---|---|", *rows])
    print(text)
    if given.write:
        write_block("demo", text)


if __name__ == "__main__":
    main()
