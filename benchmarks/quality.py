"""Quality of the generators' samples by three gates, on real embeddings.

    FED_A2V_DATA=FOLDER python benchmarks/quality.py [GENERATOR ...] [--steps] [--write]

Trained on folds 1 to 3 of ESC-50, once on every clip's embedding and once on 8 prototypes per class; compared with
the clips of fold 4, in the encoder's space. `tstr`: accuracy of a classifier trained on samples, divided by that of one
trained on real rows (target: 0.94 or more). `c2st`: accuracy of a classifier of samples against real rows within their
class (target: 0.63 or less). `nn`: distance to the nearest training row, divided by that of held-out rows (target: 0.85
to 1.15; 0 means copies, 1.4 independent noise). `var`: variance within classes, divided by that of the training rows.

`--steps`: the same after increasing numbers of optimiser steps of the generator, on YAMNet's prototypes; once with
regular samples, and once with samples of the network alone.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from common import machine, write_block

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.prototypes import summarise_class
from fed_a2v.core.quality import Rows, assess
from fed_a2v.core.statistics import ClassStatistics, PrototypeBatch
from fed_a2v.data.clips import EmbeddedClips
from fed_a2v.data.site import load_clips
from fed_a2v.federation.server.step_factory import make_generator

# Controls that should fail a gate: class-blind noise, and a VAE without training.
GENERATORS = {
    **{name: [f"generator={name}"] for name in ("gaussian", "gmm", "vae", "vae_closed_form", "flow", "gan", "noise")},
    "vae, untrained": ["generator=vae", "generator.learning_rate=1e-12"],
}
# Numbers of optimiser steps after which a network is measured.
STEPS = {
    "gan": (2, 5, 10, 25, 50, 100, 150, 250, 400, 700),
    "flow": (4, 8, 12, 32, 100, 300, 800, 1600),
    "vae": (2, 4, 6, 10, 20, 40, 60, 120, 300),
}
HEADER = (
    "| encoder | trained on | generator | tstr | c2st | nn | var | precision / recall | seconds |\n"
    + "|---" * 9
    + "|\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generators", nargs="*", help=f"default: all of {', '.join(GENERATORS)}")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--steps", action="store_true", help="measure after increasing numbers of steps instead")
    given = parser.parse_args()
    if unknown := [name for name in given.generators if name not in GENERATORS]:
        parser.error(f"no generator {unknown[0]!r}; choose from {', '.join(GENERATORS)}")
    torch.set_num_threads(1)
    if given.steps:
        text = steps_table()
        if given.write:
            write_block("steps", text)
        return
    lines = []
    for encoder, overrides in data().items():
        settings = compose_settings(overrides)
        clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
        for kind in ("samples", "prototypes"):
            for name in given.generators or GENERATORS:
                line = f"| {encoder} | {kind} | {name} | {measure(clips, kind, name)} |"
                print(line, flush=True)
                lines.append(line)
    text = HEADER + "\n".join(lines) + f"\n\nMean over three sampling seeds of one fit. {machine()}."
    if given.write:
        write_block("quality", text)


def data() -> dict[str, list[str]]:
    root = os.environ.get("FED_A2V_DATA")
    if not root:
        raise SystemExit("set FED_A2V_DATA to the folder that contains esc50_yamnet.npz and esc50/")
    return {
        "YAMNet": ["dataset=embeddings", f"dataset.path={Path(root) / 'esc50_yamnet.npz'}"],
        "log-mel": ["dataset=esc50", f"dataset.root={Path(root) / 'esc50'}"],
    }


def measure(clips: EmbeddedClips, kind: str, name: str) -> str:
    """Fit a generator with its default settings, as in the first round of a federation, and assess its samples."""
    settings = compose_settings(GENERATORS[name])
    rows, conditions, generator = prepared(clips, kind, settings)
    start = time.perf_counter()
    steps = generator.steps_per_epoch(rows)
    epochs = max(settings.generator.training_epochs, math.ceil(settings.generator.min_steps / steps) if steps else 0)
    generator.fit(rows, conditions, epochs, settings.generator.augmentation_noise, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - start
    figures = assessed(clips, rows, conditions, generator.sample_classes)
    return f"{gates(figures)} | {figures['precision']:.2f} / {figures['recall']:.2f} | {seconds:.1f}"


def prepared(clips: EmbeddedClips, kind: str, settings: Settings) -> tuple[PrototypeBatch, torch.Tensor, Generator]:
    """Bank of a federation in its first round, conditions of the classes, and an untrained generator."""
    bank = PrototypeBank()
    bank.update("pooled", shared(clips, torch.from_numpy(clips.rows("train")), kind), "", 1)
    rows = bank.rows()
    assert rows is not None
    # Random conditions, which only need to be distinct.
    conditions = torch.randn(len(rows.names), 768, generator=torch.Generator().manual_seed(1))
    generator = make_generator(settings, (clips.embeddings.shape[1], clips.embeddings.shape[2]), 768)
    assert generator is not None
    return rows, conditions, generator


Draw = Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]


def assessed(clips: EmbeddedClips, rows: PrototypeBatch, conditions: torch.Tensor, draw: Draw) -> dict[str, float]:
    """The gates of the samples of `draw` for the classes' conditions, compared with the clips of the test fold."""
    train, test = (torch.from_numpy(clips.rows(split)) for split in ("train", "test"))
    order = [rows.names.index(clips.classes[label]) for label in range(len(clips.classes))]
    quality = assess(
        Rows(native(clips, clips.embeddings[train]), clips.labels[train]),
        Rows(native(clips, clips.embeddings[test]), clips.labels[test]),
        lambda number, seed: samples(clips, draw, conditions[order], number, seed),
    )
    return quality.as_dict()


def gates(figures: dict[str, float]) -> str:
    return " | ".join(f"{figures[key]:.2f}" for key in ("tstr", "c2st", "nn_ratio", "variance_ratio"))


def steps_table() -> str:
    """The gates after increasing numbers of steps, of regular samples and of the network alone."""
    settings = compose_settings(data()["YAMNet"])
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
    lines = [
        "| generator | steps | tstr | c2st | nn | var | the network alone: tstr | c2st | nn | var |",
        "|---" * 10 + "|",
    ]
    for name, wanted in STEPS.items():
        for steps, one, other in after_steps(clips, name, wanted):
            lines.append(f"| {name} | {steps:.0f} | {one} | {other} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + f"\n\n8 prototypes per class; mean over three sampling seeds of one fit. {machine()}."


def after_steps(clips: EmbeddedClips, name: str, wanted: Sequence[int]) -> Iterator[tuple[float, str, str]]:
    """The steps of a network, at least `wanted` in whole epochs, and both kinds of gates after them."""
    settings = compose_settings([f"generator={name}"])
    rows, conditions, generator = prepared(clips, "prototypes", settings)
    random, done, a_pass = torch.Generator().manual_seed(0), 0.0, generator.steps_per_epoch(rows)

    def alone(conditions: torch.Tensor, number: int, random: torch.Generator) -> torch.Tensor:
        drawn = generator.sample_raw(conditions.repeat_interleave(number, 0), random)
        assert drawn is not None
        return drawn.unflatten(0, (-1, number))

    for number in wanted:
        epochs = max(1, math.ceil((number - done) / a_pass))
        generator.fit(rows, conditions, epochs, settings.generator.augmentation_noise, random)
        done += epochs * a_pass
        both = (gates(assessed(clips, rows, conditions, draw)) for draw in (generator.sample_classes, alone))
        yield done, *both


def shared(clips: EmbeddedClips, train: torch.Tensor, kind: str) -> list[ClassStatistics]:
    """The statistics that one site with all clips would send."""
    prompts = []
    for label, name in enumerate(clips.classes):
        rows = train[clips.labels[train] == label]
        prompt = summarise_class(name, clips.embeddings[rows], "samples" if kind == "samples" else "prototypes")
        assert prompt is not None
        prompts.append(prompt)
    return prompts


def samples(clips: EmbeddedClips, draw: Draw, conditions: torch.Tensor, number: int, seed: int) -> Rows:
    drawn = draw(conditions, number, torch.Generator().manual_seed(seed))
    return Rows(native(clips, drawn.flatten(0, 1)), torch.arange(len(conditions)).repeat_interleave(number))


def native(clips: EmbeddedClips, embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings in the encoder's space."""
    return embeddings.square() if clips.square_root else embeddings


if __name__ == "__main__":
    main()
