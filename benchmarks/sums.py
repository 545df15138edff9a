"""Sums instead of prototypes (`share=statistics`): accuracy, gain of generators, bytes, privacy, the server's cost.

    FED_A2V_DATA=FOLDER python benchmarks/sums.py [TABLE ...] [--jobs N] [--write]

FOLDER has `esc50_yamnet.npz` (embeddings of a frozen YAMNet with target and fold) and `esc50_yamnet_head.npz` (the
weight of its label head, whose strongest directions are the public space). Each of folds 1 to 4 is the test once while
the other three train: *all folds* is the mean over them, *fold 4* that fold alone. Each finished run is a row of a CSV
(`docs/sums.csv`) and is not repeated. `--write` writes the tables and `docs/sums.png`, which also has the runs of
`docs/generators.csv`.

* *federations*: one exchange and a closed form, in five federations with the same clips;
* *generator*: MLP adapters of as many steps on the class means, on draws from the shared Gaussian, on the samples of
  generators that have learned these draws, and, as a placebo, on draws with isotropic noise of the same size;
* *privacy*: the closed form under differential privacy, with the noise of secure sums or of each of five sites;
* *bytes*: other widths, and prototypes without weights, for the picture;
* *server*: seconds and memory of the server with a thousand sites, in a fresh process.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from common import ROOT, data, head, machine, measured, read_rows, write_block
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.class_sums import ClassSums, SharedGaussian, shared_gaussian
from fed_a2v.core.public_space import random_space
from fed_a2v.core.server_step import ClientUpdate
from fed_a2v.core.statistics import ClassStatistics
from fed_a2v.errors import UserError
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.protocol import ReplySpec, TrainReply, decode_reply
from fed_a2v.federation.protocol.train_reply import encode_reply
from fed_a2v.federation.server.step_factory import make_step
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.storage.files import read_jsonl

FOLDS = (1, 2, 3, 4)
CSV = ROOT / "docs" / "sums.csv"
OTHER_RUNS = ROOT / "docs" / "generators.csv"
# Disables what takes time without affecting the tables.
LEAN = ("wandb.mode=disabled", "report=false", "federation.evaluate_before=false", "checkpoint.keep_best=false")


class Arm(NamedTuple):
    """A kind of run: its settings, its seeds, and the simpler covariance that its draws have."""

    settings: tuple[str, ...]
    seeds: int = 1
    covariance: str = "shared"


FIFTY, FIVE = (
    ("partition.sites=50", "partition.classes_per_site=1"),
    ("partition.sites=5", "partition.classes_per_site=10"),
)
ONE_SHOT = ("experiment=one_shot",)
FEDERATIONS = {
    "50 sites x 1 class": Arm((*ONE_SHOT, *FIFTY)),
    "5 sites x 10 classes": Arm((*ONE_SHOT, *FIVE)),
    "20 sites, Dirichlet 0.1": Arm(
        (*ONE_SHOT, "partition=dirichlet", "partition.sites=20", "partition.alpha=0.1", "share.min_clips=1")
    ),
    "200 sites x 6 clips": Arm((*ONE_SHOT, "partition=iid", "partition.sites=200", "share.min_clips=1")),
    "5 x 10, one site after another": Arm(
        (
            *("experiment=class_incremental", "share=statistics", "adapters=closed_form", "generator=none"),
            *("site.epochs=0", "rounds=5", "scenario.rounds_per_step=1"),
        )
    ),
}
# Site training off, one round: the server step alone, from fresh adapters.
SERVER = ("share=statistics", "site.epochs=0", "rounds=1", "finetune.first_steps=300", *FIVE)
DRAWS = (*SERVER, "generator=gaussian", "finetune.synthetic_share=0")
GENERATORS = {
    "class means": Arm((*SERVER, "generator=none"), 3),
    "placebo: means + isotropic noise": Arm(DRAWS, 3, "isotropic"),
    "means + variance of each column": Arm(DRAWS, 3, "diagonal"),
    "draws: means + shared covariance": Arm(DRAWS, 3),
    "generator=gaussian": Arm((*SERVER, "generator=gaussian", "finetune.synthetic_share=1"), 3),
    "generator=vae": Arm((*SERVER, "generator=vae", "finetune.synthetic_share=1"), 3),
    "generator=vae, untrained": Arm(
        (*SERVER, "generator=vae", "finetune.synthetic_share=1", "generator.learning_rate=1e-12"), 3
    ),
    "closed form": Arm((*ONE_SHOT, *FIVE)),
}
SEEDS_OF_NOISE = 5
SECURE = (*ONE_SHOT, *FIVE, "projection.columns=64", "privacy=dp", "secure_sums=secagg")
# Every site has clips of every class, so that a class's sum has the noise of five sites.
LOCAL = (*ONE_SHOT, "partition=iid", "partition.sites=5", "share.min_clips=1", "projection.columns=64", "privacy=dp")


# Labels of the head for each class are chosen by hand.
BUDGETS, PRIOR = (8, 4, 2, 1), ("prior=labels", f"prior.ties={ROOT / 'benchmarks' / 'esc50_labels.json'}")
PRIVACY = {
    "secure sums, no noise": Arm((*ONE_SHOT, *FIVE, "projection.columns=64", "secure_sums=secagg")),
    **{f"secure sums, epsilon {each}": Arm((*SECURE, f"privacy.epsilon={each}"), SEEDS_OF_NOISE) for each in BUDGETS},
    **{
        f"secure sums, epsilon {each}, prior": Arm((*SECURE, f"privacy.epsilon={each}", *PRIOR), SEEDS_OF_NOISE)
        for each in BUDGETS
    },
    **{f"five sites, epsilon {each}": Arm((*LOCAL, f"privacy.epsilon={each}"), SEEDS_OF_NOISE) for each in BUDGETS[:2]},
    **{
        f"five sites, epsilon {each}, prior": Arm((*LOCAL, f"privacy.epsilon={each}", *PRIOR), SEEDS_OF_NOISE)
        for each in BUDGETS[:2]
    },
}
BYTES = {
    **{
        f"statistics, {columns} columns": Arm((*ONE_SHOT, *FIFTY, f"projection.columns={columns}"))
        for columns in (32, 64)
    },
    "statistics, secure sums": Arm((*ONE_SHOT, *FIFTY, "secure_sums=secagg")),
    "prototypes, one exchange": Arm(
        ("generator=none", "aggregation=none", "rounds=1", "site.epochs=0", "finetune.first_steps=300", *FIFTY), 3
    ),
}
TABLES = {"federations": FEDERATIONS, "generator": GENERATORS, "privacy": PRIVACY, "bytes": BYTES}
ARMS = {name: arm for table in TABLES.values() for name, arm in table.items()}


class Case(NamedTuple):
    """One run."""

    arm: str
    fold: int
    seed: int


COLUMNS = (*Case._fields, "accuracy", "bytes_of_a_site", "epsilon", "seconds")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = (*TABLES, "server")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"default: all of {', '.join(choices)}")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--write", action="store_true", help="write tables and picture into docs/")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    if unknown := [name for name in given.tables if name not in choices]:
        parser.error(f"no table {unknown[0]!r}; choose from {', '.join(choices)}")
    chosen = given.tables or choices
    fill(given.csv, [case for name in chosen if name != "server" for case in cases(TABLES[name])], given.jobs)
    rows = read(given.csv)
    blocks: dict[str, Callable[[], str]] = {
        "federations": lambda: federations(rows),
        "generator": lambda: generator(rows),
        "privacy": lambda: privacy(rows),
        "bytes": lambda: table({name: of(rows, name) for name in BYTES}),
        "server": server,
    }
    for name in chosen:
        text = f"{blocks[name]()}\n\n{machine()}."
        print(f"## {name}\n\n{text}\n", flush=True)
        if given.write and name != "bytes":
            write_block(f"sums {name}", text)
    if given.write:
        plot(rows, ROOT / "docs" / "sums.png")


def cases(arms: dict[str, Arm]) -> list[Case]:
    """The runs of some arms, seed by seed."""
    most = max(arm.seeds for arm in arms.values())
    return [
        Case(name, fold, seed)
        for seed in range(most)
        for fold in FOLDS
        for name, arm in arms.items()
        if seed < arm.seeds
    ]


def fill(path: Path, wanted: Sequence[Case], jobs: int) -> None:
    """Execute the runs that are missing in the CSV; one that cannot run is left out with its reason."""
    done = {tuple(row[name] for name in Case._fields) for row in read(path)}
    missing = [case for case in wanted if tuple(map(str, case)) not in done]
    start = time.perf_counter()
    print(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them in the CSV")
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=quietly) as pool:
        for number, future in enumerate(as_completed([pool.submit(run, case) for case in missing]), start=1):
            row = future.result()
            took = f"{number}/{len(missing)} {time.perf_counter() - start:.0f} s:"
            if isinstance(row, str):
                print(took, row, flush=True)
                continue
            append(path, row)
            print(took, " | ".join(str(row[name]) for name in ("arm", "fold", "seed", "accuracy")), flush=True)


def quietly() -> None:
    """Initialise a process of the pool: no log lines of Flower."""
    logging.getLogger("flwr").setLevel(logging.ERROR)


def overrides(case: Case) -> list[str]:
    """The settings of a run."""
    where = [*data("yamnet"), "dataset.square_root=always", "projection=head", *head()]
    where += [f"dataset.test_fold={case.fold}"]
    return [*ARMS[case.arm].settings, *where, f"seed={case.seed}", *LEAN]


def run(case: Case, *more: str) -> Row | str:
    """One run, with `more` overrides, as a row of the CSV; the reason if it cannot run."""
    start = time.perf_counter()
    covariance = ARMS[case.arm].covariance
    patch = mock.patch("fed_a2v.core.sum_bank.shared_gaussian", simpler(covariance))
    try:
        settings = compose_settings([*overrides(case), *more])
        with (
            tempfile.TemporaryDirectory() as folder,
            Path(os.devnull).open("w") as nowhere,
            nullcontext() if covariance == "shared" else patch,
        ):
            run_in_process(settings, Path(folder), Console(file=nowhere))
            rows = read_jsonl(Path(folder) / "metrics.jsonl")
    except UserError as error:
        return f"{' | '.join(map(str, case))} left out: {error}"
    last = rows[-1]
    epsilon = next((value for key, value in last.items() if key.rpartition("/")[2] == "epsilon"), None)
    if settings.privacy.name == "dp" and not epsilon:
        return f"{' | '.join(map(str, case))} left out: the run states no epsilon"
    sent = sum(row.get("bytes_up", 0) + row.get("bytes_registration", 0) for row in rows)
    return {
        **case._asdict(),
        "accuracy": round(last["accuracy"], 4),
        "bytes_of_a_site": round(sent / settings.partition.sites),
        "epsilon": epsilon or "",
        "seconds": round(time.perf_counter() - start, 2),
    }


def simpler(covariance: str) -> Callable[..., SharedGaussian]:
    """`shared_gaussian` with less of the covariance and the same trace: `isotropic`, or `diagonal`."""

    def model(*args: Any, **named: Any) -> SharedGaussian:
        found = shared_gaussian(*args, **named)
        diagonal = found.covariance.diagonal()
        kept = diagonal.mean().expand(len(diagonal)) if covariance == "isotropic" else diagonal
        return replace(found, covariance=torch.diag(kept))

    return model


def read(path: Path) -> list[Row]:
    """All rows of the CSV; empty if it has other columns."""
    return read_rows(path, COLUMNS)


def append(path: Path, row: Row) -> None:
    """Add a row to the CSV, which is replaced if it has other columns."""
    new = not read(path)
    with path.open("w" if new else "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


# Tables


class Figures(NamedTuple):
    """The runs of an arm: accuracy by fold and seed, and bytes of a site."""

    accuracy: dict[tuple[int, int], float]
    bytes_of_a_site: float

    def fold(self, *folds: int) -> str:
        """Mean accuracy, with the deviation over the seeds if there are several."""
        seeds = sorted({seed for _, seed in self.accuracy})
        means = [
            statistics.fmean(v for (f, s), v in self.accuracy.items() if s == seed and f in folds) for seed in seeds
        ]
        spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
        return f"{statistics.fmean(means):.3f}{spread}"

    def mean(self) -> float:
        """Mean accuracy over folds and seeds."""
        return statistics.fmean(self.accuracy.values())


def of(rows: Sequence[Row], arm: str) -> Figures | None:
    """The runs of an arm; None if any is missing."""
    own = {(int(row["fold"]), int(row["seed"])): row for row in rows if row["arm"] == arm}
    wanted = [(fold, seed) for seed in range(ARMS[arm].seeds) for fold in FOLDS]
    if not set(wanted) <= own.keys():
        return None
    bytes_of_a_site = statistics.fmean(float(own[pair]["bytes_of_a_site"]) for pair in wanted)
    return Figures({pair: float(own[pair]["accuracy"]) for pair in wanted}, bytes_of_a_site)


def paired(mine: Figures, other: Figures) -> str:
    """Mean difference with its standard error over folds and seeds; an arm with one seed is compared with all."""
    differences = [
        value - other.accuracy.get(pair, other.accuracy.get((pair[0], 0), math.nan))
        for pair, value in mine.accuracy.items()
    ]
    if len(set(differences)) == 1:
        return f"{differences[0]:+.3f}"
    return f"{statistics.fmean(differences):+.3f} ± {statistics.stdev(differences) / math.sqrt(len(differences)):.3f}"


def table(figures: dict[str, Figures | None], **columns: Callable[[Figures], str]) -> str:
    """Rows of the arms whose runs are complete."""
    columns = {
        "all folds": lambda arm: arm.fold(*FOLDS),
        "fold 4": lambda arm: arm.fold(4),
        **{name.replace("_", " "): column for name, column in columns.items()},
        "kB up, a site": lambda arm: f"{arm.bytes_of_a_site / 1000:.1f}",
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, arm in figures.items():
        if arm is not None:
            lines.append(f"| {name} | " + " | ".join(column(arm) for column in columns.values()) + " |")
    return "\n".join(lines)


def federations(rows: Sequence[Row]) -> str:
    """The closed form in each federation, and the largest difference between two of them."""
    figures = {name: of(rows, name) for name in FEDERATIONS}
    joint = figures["5 sites x 10 classes"]
    whole = [arm for arm in figures.values() if arm]
    apart = max(
        (abs(one.accuracy[pair] - two.accuracy[pair]) for one in whole for two in whole for pair in one.accuracy),
        default=0,
    )
    return (
        table(figures, minus_joint=lambda arm: paired(arm, joint) if joint else "-")
        + f"\n\nThe largest difference of two federations on one fold is {100 * apart:.2f} points. `projection=head`, "
        "128 columns; *minus joint*: minus 5 sites x 10 classes at once."
    )


def generator(rows: Sequence[Row]) -> str:
    """Gains over the class means and over the placebo."""
    figures = {name: of(rows, name) for name in GENERATORS}
    means, placebo = figures["class means"], figures["placebo: means + isotropic noise"]
    return (
        table(
            figures,
            minus_means=lambda arm: paired(arm, means) if means and arm is not means else "-",
            minus_placebo=lambda arm: paired(arm, placebo) if placebo and arm not in (means, placebo) else "-",
        )
        + "\n\nMLP adapters of 300 server steps, no training at the sites, four folds x three seeds; ± of a difference "
        "is its standard error over folds and seeds, of an accuracy the deviation over the seeds."
    )


def privacy(rows: Sequence[Row]) -> str:
    """Accuracy under each budget, and what it costs."""
    figures = {name: of(rows, name) for name in PRIVACY}
    free = figures["secure sums, no noise"]
    return (
        table(figures, minus_no_noise=lambda arm: paired(arm, free) if free and arm is not free else "-")
        + f"\n\n64 columns, delta 1e-5, level=clip, {SEEDS_OF_NOISE} draws of the noise x four folds."
    )


# The server's cost

CLASSES, SITES = 300, 1000


def server() -> str:
    """Seconds and memory with many sites, each of some classes."""
    lines = [
        "| classes of a site | decode 1,000 replies | bank + solve | peak beyond the start | of which sums |",
        "|---|---|---|---|---|",
    ]
    for own in (10, CLASSES):
        decode, solve, peak, sums = measured(__file__, own)
        lines.append(f"| {own} | {decode:.2f} s | {solve:.2f} s | {peak:.0f} MB | {sums:.0f} MB |")
    return "\n".join(lines) + f"\n\n{CLASSES} classes, 128 columns, {SITES:,} sites; seconds of one core."


def measure(own: int) -> list[float]:
    """Decode the replies of many sites with `own` classes each, fill the bank, and solve.

    Returns:
        Seconds of decoding and of solving, MB of memory beyond the start, and MB of the sums.
    """
    torch.set_num_threads(1)
    settings = compose_settings(["experiment=one_shot", f"partition.sites={SITES}"])
    names = tuple(f"class {number:03d}" for number in range(CLASSES))
    prompts = prompt_set(settings, names)
    width, columns = 1024, settings.projection.columns
    step = make_step(settings, prompts, (1, width), random_space(width, columns, 0).centred(torch.zeros(columns)))
    messages = (message(names, own, columns, number) for number in range(SITES))
    decode_reply(*next(messages))  # imports and caches
    before, updates, decoding = peak_megabytes(), [], 0.0
    for arrays, metrics, clips, spec in messages:
        start = time.process_time()
        reply = decode_reply(arrays, metrics, clips, spec)
        decoding += time.process_time() - start
        updates.append(ClientUpdate(reply.site, reply.statistics, reply.fingerprint, sums=reply.sums))
    start = time.process_time()
    step.run(1, updates)
    solving = time.process_time() - start
    assert step.sums is not None
    sums = sum(tensor.nbytes for site in step.sums.sites.values() for tensor in vars(site).values())
    return [decoding, solving, peak_megabytes() - before, sums / 1e6]


def message(names: Sequence[str], own: int, columns: int, number: int) -> tuple[list[Any], Any, int, ReplySpec]:
    """An encoded reply of a site with two clips of each of its classes, and what the server expects."""
    random = torch.Generator().manual_seed(number)
    first = number * own % len(names)
    labels = torch.tensor([(first + place) % len(names) for place in range(own)]).sort().values.repeat(2)
    rows = torch.nn.functional.normalize(torch.randn(len(labels), columns, generator=random), dim=1)
    sums = ClassSums.of(rows, labels, len(names))
    classes = [ClassStatistics(names[label], 2) for label in sorted(set(labels.tolist()))]
    site = f"site-{number:03d}"
    reply = TrainReply(site, 0, "sums", len(labels), [], classes, sums.fingerprint, True, sums=sums)
    spec = ReplySpec(site, 0, "sums", [], names, (1, 1024), (1, 512), None, True, prototypes=False, sums=columns)
    return *encode_reply(reply, "float16"), len(labels), spec


def peak_megabytes() -> float:
    """The largest resident size of this process so far, in MB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


# The picture


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against the bytes that a site sends, and against epsilon."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for colour, method in enumerate(("FedAvg", "prototypes")):
        for federation, sites, line in (("50 sites x 1", 50, "-"), ("5 sites x 10", 5, ":")):
            found = by_round(federation, method, sites)
            if found:
                label = {"prototypes": "prototypes + FedAvg"}.get(method, method)
                left.plot(
                    *zip(*found, strict=True), line, marker=".", color=f"C{colour}", label=f"{label}, {federation}"
                )
    points = {
        "prototypes, one exchange": ("prototypes, one exchange", "s", "C1"),
        "50 sites x 1 class": ("statistics", "*", "C2"),
        "statistics, secure sums": ("statistics, secure sums (without keys)", "D", "C3"),
    }
    for arm, (label, marker, colour) in points.items():
        if found := of(rows, arm):
            left.plot(found.bytes_of_a_site, found.mean(), marker, color=colour, label=label, markersize=9)
    widths = [found for columns in (32, 64) if (found := of(rows, f"statistics, {columns} columns"))]
    if widths and (whole := of(rows, "50 sites x 1 class")):
        curve = [*widths, whole]
        left.plot(
            [each.bytes_of_a_site for each in curve], [each.mean() for each in curve], "--", color="C2", marker="."
        )
    left.set(xscale="log", xlabel="bytes that a site sends, all in all", ylabel="accuracy@1", title="Bytes")
    lines = {
        "statistics, secure sums": ("secure sums, epsilon {}", BUDGETS, "C3", "-"),
        "the same, with the label prior": ("secure sums, epsilon {}, prior", BUDGETS, "C3", "--"),
        "statistics, noise of each of five sites": ("five sites, epsilon {}", BUDGETS[:2], "C2", "-"),
        "the same, with the label prior ": ("five sites, epsilon {}, prior", BUDGETS[:2], "C2", "--"),
    }
    for label, (arm, budgets, colour, line) in lines.items():
        known = [(epsilon, found.mean()) for epsilon in budgets if (found := of(rows, arm.format(epsilon)))]
        if known:
            right.plot(*zip(*known, strict=True), line, marker=".", color=colour, label=label)
    for label, colour, height in (
        ("statistics, no noise", "C2", of(rows, "50 sites x 1 class")),
        ("prototypes, no noise", "C1", of(rows, "prototypes, one exchange")),
    ):
        if height:
            right.axhline(height.mean(), color=colour, linestyle=":", label=label)
    for federation, sites, line in (("50 sites x 1", 50, "-."), ("5 sites x 10", 5, ":")):
        if found := by_round(federation, "FedAvg", sites):
            right.axhline(found[-1][1], color="C0", linestyle=line, label=f"FedAvg, {federation}, no noise")
    right.set(xscale="log", xlabel="epsilon (delta 1e-5, one clip)", title="Privacy", xticks=[1, 2, 4, 8])
    right.set_xticklabels(["1", "2", "4", "8"])
    right.minorticks_off()
    for axis, corner in ((left, "lower left"), (right, "lower right")):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small", loc=corner)
    left.set_ylim(0.5, 0.92)
    figure.savefig(path, dpi=110)


def by_round(federation: str, method: str, sites: int) -> list[tuple[float, float]]:
    """Bytes of a site and accuracy after each round, from the benchmark of the federations (YAMNet, 8 prototypes)."""
    with OTHER_RUNS.open(newline="", encoding="utf-8") as file:
        own = [
            row
            for row in csv.DictReader(file)
            if (row["data"], row["federation"], row["share"], row["method"]) == ("yamnet", federation, "8", method)
        ]
    if not own:
        return []
    accuracies = [statistics.fmean(each) for each in zip(*(json.loads(row["by_round"]) for row in own), strict=True)]
    sent = statistics.fmean(float(row["bytes_up"]) for row in own) / sites / len(accuracies)
    return [(sent * number, accuracy) for number, accuracy in enumerate(accuracies, start=1)]


if __name__ == "__main__":
    main()
