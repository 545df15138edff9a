"""Quality of a VAE's network: likelihood of unseen clips, compared with closed forms.

    FED_A2V_DATA=FOLDER python benchmarks/likelihood.py [--folds N] [--write]

Class moments, the decoder's residuals and the calibration can give good samples without the network, but the likelihood
measures the network alone. Models are trained on all clips of three folds of ESC-50, or on 8 prototypes per class, and
evaluated on the clips of the fourth, each fold in turn. In nats per dimension of standardised rows, with noise of a
tenth of a standard deviation on all densities (`fed_a2v.core.likelihood`); that of a VAE is a bound with 64 draws.

* `Gaussian`: one per class, with a covariance shrunk towards that of all classes (`generator=gaussian`).
* `shared covariance`: class means, and one covariance for all classes (Ledoit & Wolf 2004).
* `vae`: as configured; `untrained`; ten times the epochs; trained on 200 draws per class from the shared covariance.
* `closed form`: `generator=vae_closed_form`, before and after its training, and after three times the epochs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

import torch
from common import machine, write_block
from quality import data, prepared

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import cache_dir
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.parts.moments import ClassMoments, ledoit_wolf_shrinkage
from fed_a2v.core.likelihood import NOISE, column_scale, gaussian_log_density
from fed_a2v.core.network import NetworkFigures, examine
from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.prototypes import summarise_class
from fed_a2v.core.quality import Rows
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.data.clips import EmbeddedClips
from fed_a2v.data.site import load_clips
from fed_a2v.federation.server.step_factory import make_generator
from fed_a2v.runs.intervals import paired_interval

FOLDS = (1, 2, 3, 4)
DRAWS_PER_CLASS = 200


class Arm(NamedTuple):
    """A VAE: its option, the factor of the configured epochs, and whether it is trained on draws."""

    option: str
    passes: float
    draws: bool = False


ARMS = {
    "vae, untrained": Arm("vae", 0),
    "vae": Arm("vae", 1),
    "vae, 10 x the epochs": Arm("vae", 10),
    "vae, on draws": Arm("vae", 1, draws=True),
    "closed form, untrained": Arm("vae_closed_form", 0),
    "closed form": Arm("vae_closed_form", 1),
    "closed form, 3 x the epochs": Arm("vae_closed_form", 3),
}
KINDS = {"samples": "all clips", "prototypes": "8 prototypes"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=len(FOLDS), help="number of test folds; default: all four")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| encoder | trained on | model | nats per dimension | less the Gaussian | reconstruction (class mean) "
        "| alone: tstr | c2st | nn | var | s |",
        "|---" * 11 + "|",
    ]
    for encoder, overrides in data().items():
        for kind, words in KINDS.items():
            found: dict[str, list[Found]] = {}
            for fold in FOLDS[: given.folds]:
                settings = compose_settings([*overrides, f"dataset.test_fold={fold}"])
                clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
                for name, one in measured(clips, kind).items():
                    found.setdefault(name, []).append(one)
            for name, of in found.items():
                lines.append(f"| {encoder} | {words} | {name} | {row(of, found['Gaussian'])} |")
                print(lines[-1], flush=True)
    words = (
        f"Mean over {given.folds} test folds, one seed; differences with 95 % intervals over the folds. {machine()}."
    )
    if given.write:
        write_block("likelihood", "\n".join(lines) + f"\n\n{words}")


class Found(NamedTuple):
    """A model on one fold; the fields except the likelihood are for networks."""

    likelihood: float
    figures: NetworkFigures | None = None
    seconds: float = 0.0


def measured(clips: EmbeddedClips, kind: str) -> dict[str, Found]:
    """All models on one fold."""
    test = torch.from_numpy(clips.rows("test"))
    settings = compose_settings(["generator=vae"])
    rows, conditions, _ = prepared(clips, kind, settings)
    order = torch.tensor([rows.names.index(name) for name in clips.classes])
    held_out = Rows(clips.embeddings[test], order[clips.labels[test]])
    moments = ClassMoments()
    moments.fit(rows)
    seen = Rows(moments.spread_rows(rows).view_as(rows.embeddings), rows.labels)
    found = {}
    for name, arm in ARMS.items():
        generator, seconds = trained(arm, drawn(moments, seen, rows) if arm.draws else rows, conditions)
        figures = examine(generator, moments, seen, held_out, conditions, 40, torch.Generator().manual_seed(1), seeds=1)
        assert figures is not None
        assert figures.likelihood is not None
        found[name] = Found(figures.likelihood, figures, seconds)
        gaussian = figures.gaussian
    closed = {"Gaussian": Found(gaussian), "shared covariance": Found(shared_covariance(moments, seen, held_out))}
    return closed | found


def trained(arm: Arm, rows: PrototypeBatch, conditions: torch.Tensor) -> tuple[Generator, float]:
    """A VAE after its training on `rows`, and the seconds of the training."""
    settings = compose_settings([f"generator={arm.option}"])
    generator = make_generator(settings, (rows.embeddings.shape[1], rows.embeddings.shape[2]), conditions.shape[1])
    assert generator is not None
    epochs, start = round(arm.passes * settings.generator.training_epochs), time.perf_counter()
    generator.fit(rows, conditions, epochs, settings.generator.augmentation_noise, torch.Generator().manual_seed(0))
    return generator, time.perf_counter() - start


def drawn(moments: ClassMoments, seen: Rows, rows: PrototypeBatch) -> PrototypeBatch:
    """Draws from the class means and the shared covariance, as a site would send clips."""
    offsets, share, scale = within(moments, seen)
    random = torch.Generator().manual_seed(2)
    prompts = []
    for label, name in enumerate(rows.names):
        pooled = torch.randn(DRAWS_PER_CLASS, len(offsets), generator=random) @ offsets / len(offsets) ** 0.5
        alone = torch.randn(pooled.shape, generator=random) * offsets.square().mean().sqrt()
        draws = moments.mean[label] + scale * ((1 - share) ** 0.5 * pooled + share**0.5 * alone)
        prompt = summarise_class(name, moments.rectify(draws).unsqueeze(1), "samples")
        assert prompt is not None
        prompts.append(prompt)
    bank = PrototypeBank()
    bank.update("draws", prompts, "", 1)
    made = bank.rows()
    assert made is not None
    assert made.names == rows.names
    return made


def within(moments: ClassMoments, seen: Rows) -> tuple[torch.Tensor, float, torch.Tensor]:
    """(N, D) standardised offsets from the class means, the shrinkage of their covariance, and the (D,) scale."""
    _, scale = column_scale(seen.embeddings.flatten(1))
    offsets = (seen.embeddings.flatten(1) - moments.mean[seen.labels]) / scale
    offsets = offsets * (len(offsets) / (len(offsets) - len(moments.mean))) ** 0.5
    return offsets, ledoit_wolf_shrinkage(offsets), scale


def shared_covariance(moments: ClassMoments, seen: Rows, held_out: Rows) -> float:
    """Mean log density of the held-out rows, as in `examine`."""
    offsets, share, scale = within(moments, seen)
    factors = (1 - share) ** 0.5 * offsets / len(offsets) ** 0.5
    variances = (share * offsets.square().mean() + NOISE**2).expand(len(scale))
    asked = (held_out.embeddings.flatten(1) - moments.mean[held_out.labels]) / scale
    return float((gaussian_log_density(asked, factors, variances) / len(scale)).mean())


def row(found: list[Found], gaussian: list[Found]) -> str:
    cells = [f"{statistics.fmean(one.likelihood for one in found):.3f}", "-"]
    if found is not gaussian:
        differences = [one.likelihood - other.likelihood for one, other in zip(found, gaussian, strict=True)]
        cells[1] = str(paired_interval(differences, 1 / (len(FOLDS) - 1)))
    figures = [one.figures.as_dict() | {"class_mean": one.figures.class_mean} for one in found if one.figures]
    if not figures:
        return " | ".join([*cells, *["-"] * 6])

    def mean(name: str) -> float:
        return statistics.fmean(one[name] for one in figures)

    cells.append(f"{mean('reconstruction'):.3f} ({mean('class_mean'):.3f})")
    cells += [f"{mean(f'raw_{name}'):.2f}" for name in ("tstr", "c2st", "nn_ratio", "variance_ratio")]
    return " | ".join([*cells, f"{statistics.fmean(one.seconds for one in found):.1f}"])


if __name__ == "__main__":
    main()
