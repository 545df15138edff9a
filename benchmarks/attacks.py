"""Membership inference against all that leaves a site, and an audit of the privacy noise.

    FED_A2V_DATA=FOLDER python benchmarks/attacks.py [--splits N] [--jobs N] [--write]

FOLDER has `esc50_yamnet.npz` and `esc50_yamnet_head.npz`. In each random split 12 of the 32 clips of each class of
ESC-50 are members (five sites of ten classes train on them), 12 are not, and the attacker has the other 8 as a
reference; for two of the runs these are 20, 6 and 6. What is attacked is the server's state after real runs, and the
weights in the sites' replies. Each attack ranks the clips, each against the site that has its class: an AUC of 0.5 is
chance, of 1 certainty; *TPR* is the share of the members that it finds at a false positive rate of 1 %. Each finished
split is rows of a CSV (`docs/attacks.csv`) and is not repeated. Intervals: percentile bootstrap over the splits, 95 %;
the best of the attacks by AUC counts.

* prototypes: the attacks of `membership.py`, and the distance to the nearest prototype;
* sums: the inner product of clip and class sum, both minus the reference (Homer et al. 2008; Dwork et al. 2015), the
  likelihood ratio of the class sum under Gaussians with and without the clip, and the clip's leverage on the scatter.
  *Knows all other clips*: the sums minus those of all other members of the site;
* VAE: reconstruction error and likelihood, also relative to the distance from the reference;
* adapters: the loss (Yeom et al. 2018), also relative to that of the adapters before the training.

The audit runs a site's own code on the same clips with and without one, with thousands of draws of the noise, and
bounds epsilon from below by the error rates of the optimal test, at 95 % by Clopper & Pearson (Jagielski et al. 2020).
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import membership
import numpy as np
import torch
from common import ROOT, head, machine, write_block
from flwr.common import Config, NDArrays, Scalar
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.class_sums import ClassSums, SharedGaussian, shared_gaussian, symmetric
from fed_a2v.core.gaussian_release import Budget, ReleaseNoise
from fed_a2v.core.likelihood import NOISE, column_scale
from fed_a2v.core.public_space import PublicSpace
from fed_a2v.errors import UserError
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.factory import seeded_adapters
from fed_a2v.federation.protocol import decode_weights, split_arrays
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.load import LoadedRun, load_run

CSV = ROOT / "docs" / "attacks.csv"
SITES, DELTA = 5, 1e-5
FALSE_POSITIVES = 0.01
LEAN = (
    *("wandb.mode=disabled", "report=false", "federation.evaluate_before=false", "checkpoint.keep_best=false"),
    "generator.validation_frequency=1000",
    *(f"partition.sites={SITES}", "partition.classes_per_site=10", "dataset.square_root=always"),
)
SUMS = ("experiment=one_shot", "projection=head", "projection.columns=64")


class Run(NamedTuple):
    """What makes the things to attack: settings, and of each class members, others, and clips that are a reference."""

    settings: tuple[str, ...]
    members: int = 12
    others: int = 12
    reference: int = 8


def private(epsilon: float) -> tuple[str, ...]:
    """Each site's own noise, without secure sums."""
    return (*SUMS, "privacy=dp", f"privacy.epsilon={epsilon}")


RUNS = {
    "prototypes": Run(("share=prototypes", "generator=vae")),
    "sums": Run(SUMS),
    "sums, VAE": Run(
        (
            *("share=statistics", "projection=head", "projection.columns=64", "site.epochs=0", "rounds=1"),
            "generator=vae",
        )
    ),
    "epsilon 8": Run(private(8)),
    "epsilon 1": Run(private(1)),
    # Nearer to the 24 clips of a class that train in other benchmarks.
    "sums, 20 clips": Run(SUMS, 20, 6, 6),
    "epsilon 8, 20 clips": Run(private(8), 20, 6, 6),
}
ONE_SITE = ("partition.sites=1", "partition.classes_per_site=null")
COLUMNS = ("split", "target", "attack", "auc", "tpr")
Rows = NDArray[np.float64]
Row = dict[str, Any]
Scores = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--draws", type=int, default=2000, help="draws of the noise for the audit, with and without")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--jobs", type=int, default=2, help="splits at the same time, of one thread each")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/privacy.md")
    given = parser.parse_args()
    fill(given.csv, given.splits, given.jobs)
    text = f"{table(read(given.csv), given.splits)}\n\n{audits(given.draws)}\n\n{machine()}."
    print(text)
    if given.write:
        write_block("attacks", text)


def fill(path: Path, splits: int, jobs: int) -> None:
    """Attack the splits and runs that are missing in the CSV."""
    done = {(row["split"], row["target"].partition(":")[0]) for row in read(path)}
    missing = [(split, name) for split in range(splits) for name in RUNS if (str(split), name) not in done]
    start = time.perf_counter()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=quietly) as pool:
        for number, future in enumerate(as_completed([pool.submit(attacked, *each) for each in missing]), start=1):
            found = future.result()
            took = f"{number}/{len(missing)} {time.perf_counter() - start:.0f} s:"
            if isinstance(found, str):
                print(took, found, flush=True)
                continue
            new = not path.is_file()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerows(found)
            print(took, f"split {found[0]['split']}, {found[0]['target'].partition(':')[0]}", flush=True)


def quietly() -> None:
    """Initialise a process of the pool: one thread, and no log lines of Flower."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)


def read(path: Path) -> list[Row]:
    """All rows of the CSV."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Data


@dataclass(frozen=True)
class Split:
    """A random split of the clips of ESC-50.

    Attributes:
        embeddings: (N, 1, Da) square roots, as the sites use them.
        labels: (N,).
        names: of the classes.
        members, others, reference: (n,) row numbers.
    """

    embeddings: Tensor
    labels: Tensor
    names: tuple[str, ...]
    members: Tensor
    others: Tensor
    reference: Tensor

    @property
    def candidates(self) -> Tensor:
        """Members, then others."""
        return torch.cat([self.members, self.others])

    def known(self) -> tuple[Tensor, Tensor]:
        """Embeddings and labels of the attacker's own clips."""
        return self.embeddings[self.reference], self.labels[self.reference]


def source() -> dict[str, NDArray[Any]]:
    """The file of YAMNet's embeddings."""
    with np.load(Path(os.environ.get("FED_A2V_DATA", "")) / "esc50_yamnet.npz", allow_pickle=False) as file:
        return {name: file[name] for name in ("embeddings", "filename", "category")}


def split_clips(number: int, folder: Path, run: Run) -> tuple[Split, list[str]]:
    """A split, and overrides for a file in `folder` with the members as training clips and the reference as test."""
    file = source()
    random = np.random.default_rng(number)
    role = np.empty(len(file["category"]), dtype=np.int64)
    for name in np.unique(file["category"]):
        own = random.permutation(np.flatnonzero(file["category"] == name))
        role[own] = np.repeat((1, 2, 3), run[1:])
    names, labels = np.unique(file["category"], return_inverse=True)
    embeddings = torch.from_numpy(file["embeddings"]).clamp(min=0).sqrt().unsqueeze(1)
    rows = [torch.from_numpy(np.flatnonzero(role == each)) for each in (1, 2, 3)]
    where = saved(file, role != 2, np.where(role == 1, 1, 4), folder / "members.npz")
    return Split(embeddings, torch.from_numpy(labels), tuple(map(str, names)), *rows), where


def saved(file: Mapping[str, NDArray[Any]], kept: NDArray[np.bool_], fold: NDArray[Any], path: Path) -> list[str]:
    """Save some clips as a file of embeddings; the overrides to use it, with fold 4 as the test."""
    np.savez(path, fold=fold[kept], **{name: values[kept] for name, values in file.items()})
    return ["dataset=embeddings", f"dataset.path={path}", "dataset.test_fold=4"]


# Attacks: higher scores for members


def attacked(number: int, name: str) -> list[Row] | str:
    """Rows of the CSV for one split and run; the reason if it cannot run."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        split, where = split_clips(number, Path(folder), RUNS[name])
        projection = head() if "projection=head" in RUNS[name].settings else []
        recorder = Recorder()
        try:
            settings = compose_settings([*RUNS[name].settings, *where, *projection, *LEAN, f"seed={number}"])
            run_in_process(settings, Path(folder) / "run", Console(file=nowhere), lambda: recorder)
            run = load_run(Path(folder) / "run")
        except UserError as error:
            return f"split {number}, {name} left out: {error}"
        if settings.privacy.name == "dp" and not any("epsilon" in key for key in run.metrics[-1]):
            return f"split {number}, {name} left out: the run states no epsilon"
        site_of = {each: site for site, known in run.step.bank for each in [known.name]}
        scores = {
            "prototypes": lambda: on_prototypes(split, run, recorder, site_of),
            "sums, VAE": lambda: {"VAE": on_vae(split, run)},
        }.get(name, lambda: on_sums(split, run, settings, site_of))()
    member = np.arange(len(split.candidates)) < len(split.members)
    return [
        {"split": number, "target": f"{name}: {target}", "attack": attack, **measured(member, each.numpy())}
        for target, by_attack in scores.items()
        for attack, each in by_attack.items()
    ]


def measured(member: NDArray[np.bool_], scores: Rows) -> dict[str, float]:
    """AUC, and the true positive rate at `FALSE_POSITIVES`."""
    false, true, _ = roc_curve(member, scores)
    return {
        "auc": round(float(roc_auc_score(member, scores)), 5),
        "tpr": round(float(np.interp(FALSE_POSITIVES, false, true)), 5),
    }


class Recorder(A2VClient):
    """A site's client that keeps the messages."""

    def __init__(self) -> None:
        super().__init__({})
        self.requests: dict[tuple[str, str, int], tuple[NDArrays, Config]] = {}
        self.replies: dict[tuple[str, str, int], NDArrays] = {}

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """See `A2VClient`."""
        key = (str(config["task"]), str(config["site"]), int(config["round"]))
        reply = super().fit(parameters, config)
        self.requests[key], self.replies[key] = (parameters, config), reply[0]
        return reply


def standardised(scores: Tensor) -> Tensor:
    """Scores with mean 0 and deviation 1, to add scores of different kinds."""
    return (scores - scores.mean()) / scores.std().clamp(min=1e-12)


def typical(split: Split, rows: Tensor, labels: Tensor) -> Tensor:
    """Distance of rows (N, D) from the reference's mean of their classes: how atypical a clip is, member or not."""
    known, known_labels = split.known()
    means = torch.stack([known[known_labels == label].flatten(1).mean(dim=0) for label in range(len(split.names))])
    return (rows - means[labels]).norm(dim=1)


def on_prototypes(split: Split, run: LoadedRun, recorder: Recorder, site_of: Mapping[str, str]) -> dict[str, Scores]:
    """Attacks on a run with prototypes: the prototypes, the VAE, the sites' weights, the finished adapters."""
    labels = split.labels[split.candidates]
    rows = split.embeddings[split.candidates].flatten(1).double().numpy()
    known, known_labels = split.known()
    reference = known.flatten(1).double().numpy()
    means = np.stack([reference[known_labels == label].mean(axis=0) for label in range(len(split.names))])
    whitening = membership.whitened(reference - means[known_labels])
    prototypes: dict[str, NDArray[Any]] = {}
    for _, known_class in run.step.bank:
        assert known_class.audio is not None
        label = split.names.index(known_class.name)
        own = (labels == label).numpy()
        scores = membership.attacks(rows[own], known_class.audio, means[label], whitening)
        nearest = np.linalg.norm(rows[own][:, None] - membership.flat(known_class.audio.means), axis=2).min(axis=1)
        for attack, values in {**scores, "nearest": -nearest}.items():
            prototypes.setdefault(attack, np.zeros(len(rows)))[own] = values
    start = seeded_adapters(run.settings.adapters, run.targets, split.embeddings.shape[-1], run.settings.seed)
    start.adopt(start.weights(), run.adapters.fixed())
    before = losses(split, start, run.targets)
    last = max(number for task, _, number in recorder.replies if task == "train")
    found = {
        "prototypes": {attack: torch.from_numpy(values) for attack, values in prototypes.items()},
        "VAE": on_vae(split, run),
    }
    for words, number in (("first", 1), ("last", last)):
        of_sites = [recorder.replies["train", site_of[split.names[label]], number] for label in range(len(split.names))]
        after = torch.zeros(len(labels))
        for label, arrays in enumerate(of_sites):
            shapes = [tuple(weight.shape) for weight in start.weights()]
            parts = split_arrays(arrays, 1000)[: len(shapes)]
            site_adapters = seeded_adapters(run.settings.adapters, run.targets, split.embeddings.shape[-1], 0)
            site_adapters.adopt(decode_weights(parts, shapes), run.adapters.fixed())
            own = labels == label
            after[own] = losses(split, site_adapters, run.targets)[own]
        found[f"weights of a site, {words} round"] = {"loss": -after, "loss, gain": before - after}
    return found | {"finished adapters": on_adapters(split, run)}


@torch.no_grad()
def losses(split: Split, adapters: Adapters, prompts: ClassPrompts) -> Tensor:
    """(n,) cross-entropy of the candidates' adapter outputs over the class prompts."""
    rows, labels = split.embeddings[split.candidates], split.labels[split.candidates]
    outputs = adapters(adapters.mapped(rows)).clip.flatten(1)
    targets = prompts.clip.flatten(1)
    centre = targets.mean(dim=0)
    cosines = F.normalize(outputs - centre, dim=1) @ F.normalize(targets - centre, dim=1).T
    return F.cross_entropy(cosines / 0.2, labels, reduction="none")


def on_adapters(split: Split, run: LoadedRun) -> Scores:
    """Attacks on the finished adapters."""
    loss = losses(split, run.adapters, run.targets)
    rows = split.embeddings[split.candidates].flatten(1)
    distance = typical(split, rows, split.labels[split.candidates])
    return {"loss": -loss, "loss, typical": standardised(-loss) + standardised(distance)}


def on_vae(split: Split, run: LoadedRun) -> Scores:
    """Attacks on the checkpoint of a VAE."""
    generator = run.step.generator
    assert generator is not None
    labels = split.labels[split.candidates]
    rows = run.adapters.mapped(split.embeddings[split.candidates])
    reference = run.adapters.mapped(split.known()[0]).flatten(1)
    conditions = run.step.conditions_of(split.names)[labels]
    error = (generator.reconstruct(rows, conditions) - rows).flatten(1).norm(dim=1)  # type: ignore[operator]
    noise = NOISE * column_scale(reference)[1]
    likelihood = generator.log_likelihood(rows, conditions, noise, torch.Generator().manual_seed(0))
    assert likelihood is not None
    known_labels = split.known()[1]
    means = torch.stack([reference[known_labels == label].mean(dim=0) for label in range(len(split.names))])
    distance = standardised((rows.flatten(1) - means[labels]).norm(dim=1))
    return {
        "reconstruction": -error,
        "reconstruction, typical": standardised(-error) + distance,
        "likelihood": likelihood,
        "likelihood, typical": standardised(likelihood) + distance,
    }


def on_sums(split: Split, run: LoadedRun, settings: Settings, site_of: Mapping[str, str]) -> dict[str, Scores]:
    """Attacks on the sums of each site, and on the adapters that are solved from them."""
    space = run.adapters.space
    assert space is not None
    assert run.step.sums is not None
    noise = noise_of(settings)
    rows, labels = space.rows(split.embeddings[split.candidates]).double(), split.labels[split.candidates]
    known, known_labels = split.known()
    reference = shared_gaussian(ClassSums.of(space.rows(known), known_labels, len(split.names)))
    weak: Scores = {}
    strong = torch.zeros(len(rows))
    for site, sums in run.step.sums.sites.items():
        own = torch.tensor([site_of[split.names[label]] == site for label in labels.tolist()])
        for attack, scores in on_site(rows[own], labels[own], sums, reference, noise).items():
            weak.setdefault(attack, torch.zeros(len(rows), dtype=torch.float64))[own] = scores
        is_member = torch.arange(len(rows)) < len(split.members)
        strong[own] = knowing_others(rows[own], labels[own], is_member[own], sums, noise).float()
    combined = standardised(weak["likelihood ratio"])
    if "leverage" in weak:
        combined = combined + standardised(weak["leverage"])
    weak["likelihood ratio + leverage"] = combined
    return {
        "sums of a site": weak,
        "sums of a site, knows all other clips": {"difference": strong},
        "finished adapters": on_adapters(split, run),
    }


def noise_of(settings: Settings) -> ReleaseNoise:
    """The noise that a site adds to its sums; without privacy that of rounding to half precision."""
    if settings.privacy.name != "dp":
        return ReleaseNoise(1e-3, 1e-3, 1e-3)
    privacy = settings.privacy
    scatter = privacy.epsilon >= 4 if privacy.scatter is None else privacy.scatter
    return Budget(privacy.epsilon, privacy.delta).noise(scatter=scatter)


def on_site(rows: Tensor, labels: Tensor, sums: ClassSums, reference: SharedGaussian, noise: ReleaseNoise) -> Scores:
    """Attacks on one site's sums by someone who knows other clips of its classes, and the noise's deviation."""
    columns, clips = rows.shape[1], sums.counts[labels].double()
    means = reference.means[labels]
    residual = sums.sums.double()[labels] - clips[:, None] * means
    found = {"inner product": ((rows - means) * residual).sum(dim=1)}
    values, vectors = torch.linalg.eigh(reference.covariance)
    # The sum varies with its clips, with the error of the reference's mean, and with the noise.
    per_class = reference.counts[labels].double()

    def log_density(offset: Tensor, number: Tensor) -> Tensor:
        variance = (number + number.square() / per_class)[:, None] * values + noise.classes**2
        return -0.5 * ((offset @ vectors).square() / variance + variance.log()).sum(dim=1)

    found["likelihood ratio"] = log_density(residual - (rows - means), clips - 1) - log_density(residual, clips)
    if len(sums.scatter) and math.isfinite(noise.scatter):
        matrix = symmetric(sums.scatter.double(), columns)
        spectrum, directions = torch.linalg.eigh(matrix)
        ridge = max(noise.scatter * math.sqrt(columns), 1e-2)
        found["leverage"] = -((rows @ directions).square() / (spectrum.clamp(min=0) + ridge)).sum(dim=1)
    return found


def knowing_others(rows: Tensor, labels: Tensor, member: Tensor, sums: ClassSums, noise: ReleaseNoise) -> Tensor:
    """The log-likelihood ratio of each clip for someone who knows every other member of the site.

    The centre, which is released before, is taken as it is.
    """
    columns = rows.shape[1]
    of_members = ClassSums.of(rows[member], labels[member], len(sums.counts))
    left = sums.sums.double() - of_members.sums  # what the members do not explain: noise
    scores = []
    places = torch.triu_indices(columns, columns)
    for row, label, is_member in zip(rows, labels.tolist(), member.tolist(), strict=True):
        score = (2 * row @ (left[label] + is_member * row) - row @ row) / (2 * noise.classes**2)
        if len(sums.scatter) and math.isfinite(noise.scatter):
            outer = torch.outer(row, row)[*places]
            rest = sums.scatter.double() - of_members.scatter + is_member * outer
            score = score + (2 * outer @ rest - outer @ outer) / (2 * noise.scatter**2)
        scores.append(score)
    return torch.stack(scores)


# Tables


def table(rows: Sequence[Row], splits: int) -> str:
    """The best attack on each target."""
    lines = [
        "| attacked | best attack | AUC | TPR at 1 % FPR | AUC at most |",
        "|---|---|---|---|---|",
    ]
    for target in dict.fromkeys(row["target"] for row in rows):
        of: dict[str, list[Row]] = {}
        for row in rows:
            if row["target"] == target and int(row["split"]) < splits:
                of.setdefault(row["attack"], []).append(row)
        attack, best = max(of.items(), key=lambda each: statistics.fmean(float(row["auc"]) for row in each[1]))
        cells = [interval([float(row[name]) for row in best]) for name in ("auc", "tpr")]
        run, _, what = target.partition(": ")
        bound = f"{largest_auc(float(run.split()[1].strip(',')), DELTA):.3f}" if run.startswith("epsilon") else "-"
        lines.append(f"| {what}, {run} | {attack} | {' | '.join(cells)} | {bound} |")
    return (
        "\n".join(lines)
        + f"\n\n{splits} splits; a site has ten classes of 12 clips, or of 20. *AUC at most*: of any attack on a "
        "Gaussian mechanism with this epsilon and delta 1e-5, whatever the attacker knows."
    )


def interval(values: Sequence[float]) -> str:
    """Mean, with the 95 % percentile bootstrap over the splits."""
    mean = statistics.fmean(values)
    if len(set(values)) < 2:
        return f"{mean:.3f}"
    found = stats.bootstrap((values,), np.mean, method="percentile", random_state=0).confidence_interval
    return f"{mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def largest_auc(epsilon: float, delta: float) -> float:
    """The largest AUC against a Gaussian mechanism with this budget, which is mu-GDP (Dong, Roth & Su 2022)."""
    from dp_accounting import get_sigma_gaussian

    return float(stats.norm.cdf(1 / get_sigma_gaussian(epsilon, delta) / math.sqrt(2)))


# The audit


class Audit(NamedTuple):
    """Result of an audit: the lower bound on epsilon, and the AUC of the optimal test."""

    epsilon: float
    auc: float


def audits(draws: int) -> str:
    """Lower bounds on epsilon, next to the claimed ones."""
    lines = ["| epsilon, claimed | at least, by the audit | AUC | AUC at most |", "|---|---|---|---|"]
    for epsilon in (8, 1):
        try:
            found = audit(epsilon, draws)
        except UserError as error:
            print(f"audit of epsilon {epsilon} left out: {error}")
            continue
        if found is None:
            print(f"audit of epsilon {epsilon} left out: the site adds no noise")
            continue
        lines.append(f"| {epsilon} | {found.epsilon:.2f} | {found.auc:.3f} | {largest_auc(epsilon, DELTA):.3f} |")
    return "\n".join(lines) + f"\n\n{draws:,} draws of the noise with the clip, as many without; one site, two classes."


def audit(epsilon: float, draws: int) -> Audit | None:
    """Distinguish a site with and without one clip by its replies; None if it adds no noise."""
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        file, clips = source(), 25
        names = np.unique(file["category"])[:2]
        kept = np.isin(file["category"], names)
        fold = np.array([1 if index < clips else 4 for index in ranks(file["category"])])
        canary = int(np.flatnonzero((file["category"] == names[0]) & (fold == 1))[0])
        without = kept.copy()
        without[canary] = False
        recorder = Recorder()
        with Path(os.devnull).open("w") as nowhere:
            where = saved(file, kept, fold, Path(folder) / "with.npz")
            settings = compose_settings([*private(epsilon), *where, *head(), *LEAN, *ONE_SITE])
            run_in_process(settings, Path(folder) / "run", Console(file=nowhere), lambda: recorder)
        other = saved(file, without, fold, Path(folder) / "without.npz")[1].partition("=")[2]
        (matrix, centre), config = requested(recorder, "sums")
        row = np.sqrt(np.maximum(file["embeddings"][canary], 0)).astype(np.float32)
        clip, space = torch.from_numpy(row)[None, None], PublicSpace(matrix, centre)
        uncentred = PublicSpace(matrix).rows(clip)[0].double().numpy()
        centred = space.rows(clip)[0].double().numpy()
        noise = noise_of(settings)
        classes = json.loads(str(config["classes"]))
        for world, path in ((1, None), (0, other)):
            scores[world] = np.array(
                [
                    score(recorder, seed, path, uncentred, centred, classes.index(names[0]), noise)
                    for seed in range(world * draws, (world + 1) * draws)
                ]
            )
    if scores[1].std() < 1e-6:
        return None
    threshold_from, counted = draws // 2, draws - draws // 2
    threshold = best_threshold(scores[1][:threshold_from], scores[0][:threshold_from], DELTA)
    hits = [int((scores[world][threshold_from:] > threshold).sum()) for world in (1, 0)]
    auc = roc_auc_score([1] * draws + [0] * draws, np.concatenate([scores[1], scores[0]]))
    return Audit(epsilon_at_least(hits[0], hits[1], counted, DELTA), float(auc))


def ranks(names: NDArray[Any]) -> list[int]:
    """Position of each clip among those of its class."""
    seen: dict[str, int] = {}
    found = []
    for name in names.tolist():
        seen[name] = seen.get(name, -1) + 1
        found.append(seen[name])
    return found


def requested(recorder: Recorder, task: str) -> tuple[list[Tensor], Config]:
    """The arrays and the instruction that the only site received for a task."""
    ((arrays, config),) = (each for key, each in recorder.requests.items() if key[0] == task)
    return [torch.from_numpy(np.array(array)) for array in split_arrays(arrays, 100)], config


def score(
    recorder: Recorder,
    seed: int,
    path: str | None,
    uncentred: Rows,
    centred: Rows,
    label: int,
    noise: ReleaseNoise,
) -> float:
    """The optimal test's score of a site's replies under a seed, up to a constant: inner products with the clip."""
    found = 0.0
    for task in ("centre", "sums"):
        ((parameters, config),) = (each for key, each in recorder.requests.items() if key[0] == task)
        settings = json.loads(str(config["settings"])) | {"seed": seed}
        if path is not None:
            settings["dataset"]["path"] = path
        arrays, clips, _ = A2VClient({}).fit(parameters, {**config, "settings": json.dumps(settings)})
        sent = [np.array(array, dtype=np.float64) for array in split_arrays(arrays, 100)]
        if task == "centre":
            found += float(uncentred @ sent[0].reshape(-1)) * clips / noise.centre**2
            continue
        for array in sent:
            if array.ndim == 2:
                found += float(centred @ array[label]) / noise.classes**2
            elif math.isfinite(noise.scatter):
                outer = np.outer(centred, centred)[np.triu_indices(len(centred))]
                found += float(outer @ array) / noise.scatter**2
    return found


def best_threshold(with_clip: Rows, without: Rows, delta: float) -> float:
    """The threshold with the largest lower bound on epsilon."""
    candidates = np.quantile(np.concatenate([with_clip, without]), np.linspace(0.005, 0.995, 100))
    number = len(with_clip)
    bounds = [
        epsilon_at_least(int((with_clip > each).sum()), int((without > each).sum()), number, delta)
        for each in candidates
    ]
    return float(candidates[int(np.argmax(bounds))])


def epsilon_at_least(true: int, false: int, number: int, delta: float) -> float:
    """Lower bound on epsilon, at 95 %, from the positives among `number` draws each with and without a clip.

    Under (epsilon, delta) the rate with the clip is at most exp(epsilon) times that without, plus delta; and the same
    for the rates of negatives.
    """
    found = 0.0
    for more, less in ((true, false), (number - false, number - true)):
        low = float(stats.beta.ppf(0.025, more, number - more + 1)) if more else 0.0
        high = float(stats.beta.ppf(0.975, less + 1, number - less)) if less < number else 1.0
        if low > delta:
            found = max(found, math.log((low - delta) / high))
    return found


if __name__ == "__main__":
    main()
