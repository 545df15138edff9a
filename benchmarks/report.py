"""Size of the report of a run with 50 classes, 50 sites and 20 rounds, and the times to build and to open it.

The run is a real one on random embeddings. Opening is measured in headless Chromium, from the request until the first
figure is visible and until the last is drawn; the best of three. The time of the page's own thread excludes other
programs.

    python benchmarks/report.py
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from common import machine, write_block
from playwright.sync_api import sync_playwright
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.report.page import write_report

CLASSES, SITES, ROUNDS, CLIPS = 50, 50, 20, 20
OPENINGS = 3


def embeddings(path: Path) -> Path:
    """A file of random embeddings of width 64 around a mean for each class."""
    random = np.random.default_rng(0)
    names = [f"class {number:02d}" for number in range(CLASSES)]
    means = random.normal(size=(CLASSES, 64))
    rows = np.repeat(means, CLIPS, axis=0) + 0.5 * random.normal(size=(CLASSES * CLIPS, 64))
    np.savez(
        path,
        embeddings=rows.astype(np.float32),
        filename=np.array([f"{number}.wav" for number in range(len(rows))]),
        category=np.repeat(names, CLIPS),
        fold=np.tile(np.arange(CLIPS) % 5 + 1, CLASSES),
    )
    return path


def seconds_to_open(page: Path, program: str) -> list[float]:
    """Times until the first and the last figure, and of the page's thread alone; minima of several openings."""
    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(OPENINGS):
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            tab = context.new_page()
            session = context.new_cdp_session(tab)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            start = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_selector("figure[data-drawn]", state="attached")
            first = time.perf_counter() - start
            tab.wait_for_selector("html[data-state=ready]", state="attached")
            last = time.perf_counter() - start
            metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
            times.append((first, last, metrics["TaskDuration"]))
            context.close()
        browser.close()
    return [min(each) for each in zip(*times, strict=True)]


def main() -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no chromium, chromium-browser or google-chrome on the PATH")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        settings = compose_settings(
            [
                *("dataset=embeddings", f"dataset.path={embeddings(Path(place) / 'embeddings.npz')}"),
                *(f"partition.sites={SITES}", f"rounds={ROUNDS}", "partition.classes_per_site=1", "site.epochs=1"),
                *("generator.training_epochs=5", "adapters.hidden_width=32", "wandb.mode=disabled", "report=false"),
            ]
        )
        run_in_process(settings, folder, Console(quiet=True))
        start = time.perf_counter()
        page = write_report([folder], folder / "report.html")
        built = time.perf_counter() - start
        size = page.stat().st_size
        first, last, thread = seconds_to_open(page, program)
    write_block(
        "report",
        f"{CLASSES} classes, {SITES} sites, {ROUNDS} rounds ({machine()}):\n\n"
        "| | measured | goal |\n|---|---|---|\n"
        f"| size | {size / 1e6:.2f} MB | under 5 MB |\n"
        f"| built in | {built:.1f} s | under 10 s |\n"
        f"| opens, first figure drawn after | {first:.1f} s | under 2 s |\n"
        f"| last figure drawn after | {last:.1f} s | under 2 s |\n"
        f"| of which work of the page's thread | {thread:.1f} s | |",
    )
    print(f"{size / 1e6:.2f} MB, built in {built:.2f} s")
    print(f"first figure after {first:.2f} s, last after {last:.2f} s, {thread:.2f} s of them the page's thread")


if __name__ == "__main__":
    main()
