"""Folders of runs as runs leave them, written in no time, and a browser to look at their report."""

import json
import time

import numpy as np
import pytest

from fed_a2v.config.compose import compose_settings, to_yaml
from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.report.page import write_report
from fed_a2v.runs.embedding_map import save_map
from fed_a2v.runs.environment import environment
from fed_a2v.runs.folder import RunFolder
from fed_a2v.storage.files import write_json

CLASSES = ("dog", "rain", "sea waves", "chainsaw")


def written_run(
    path,
    classes=CLASSES,
    sites=5,
    rounds=4,
    seed=0,
    before=True,
    trouble=True,
    overrides=(),
    lead=0.0,
    partly=(),
    t5=False,
):
    """A folder with all that a finished run leaves, by the program's own writers; figures are drawn at random.

    `lead` is added to its accuracy; in the rounds `partly` two sites fail in the evaluation; `t5` adds a T5 side.
    """
    random = np.random.default_rng(seed)
    settings = compose_settings(["experiment=quick", f"rounds={rounds}", f"partition.sites={sites}", *overrides])
    folder = RunFolder(path)
    names = [f"site-{number:03d}" for number in range(sites)]
    partition = {
        name: {"classes": {each: {"train": 4, "validation": 0, "test": 1} for each in classes[k::sites]}}
        for k, name in enumerate(names)
    }
    folder.start(to_yaml(settings.as_dict()), {"sites": partition, "unassigned": []})
    write_json(folder.environment, environment())
    accuracies = random.uniform(size=len(classes))
    for number in range(1, rounds + 1):
        bad = trouble and number == 2
        row = {
            "round": number,
            "replies": sites - bad,
            "rejected": int(bad),
            "rejections": ["weight 0: not finite <script>alert(1)</script>"] if bad else [],
            "failures": 0,
            "failure_reasons": [],
            "sites": {name: "rejected" if bad and name == names[-1] else "replied" for name in names},
            "site_seconds": {name: float(random.uniform()) for name in names},
            "bytes_up": 10**6,
            "bytes_down": 3 * 10**6,
            "site/loss": 1 / number,
            "server/generator_loss": 2 / number,
            "generator/kl": 0.1 * number,
            "server/adapter_finetuning_loss": 0.5 / number,
            "server/generator_validation_similarity": 0.9,
            "server/generator_validation_similarity_real": 0.92,
            "server/generator_validation_similarity_blind": 0.95,
            "server/generator_validation_rows": 12,
            "generator_quality/tstr": 0.8,
            "generator_quality/tstr_low": 0.7,
            "generator_quality/tstr_high": 0.95,
            "generator_quality/tstr_real": 0.85,
            "generator_network/likelihood": 0.2,
            "generator_network/likelihood_gaussian": 0.1,
            "generator_network/gain": 0.1,
            "generator_network/gain_low": 0.05,
            "generator_network/gain_high": 0.15,
            "generator_network/reconstruction": 0.3,
            "generator_network/reconstruction_class_mean": 0.4,
            "generator_validation_per_class": dict.fromkeys(classes, 0.5),
            "seconds/sites": 1.0,
            "seconds/finetune": 0.5,
            "seconds": 1.5,
            "accuracy": 0.5 + 0.1 * number + lead,
            "accuracy_at_5": 0.95,
            "cosine": 0.7,
            "loss": 1.0,
            "test_clips": 2 * len(classes) if number in partly else 4 * len(classes),
            "test_clips_total": 4 * len(classes),
            "sites_evaluated": sites - 2 if number in partly else sites,
            "sites_total": sites,
            "not_evaluated": names[:2] if number in partly else [],
            "per_class": dict(zip(classes, accuracies.tolist(), strict=True)),
        }
        if before:
            row["accuracy_before"] = 0.3 + 0.1 * number
        if t5:
            row |= {"t5/accuracy": 0.25, "t5/cosine": 0.125, "t5/loss": 3.0, "t5/far_behind": True}
        folder.append(row)
    figures = {
        name: {
            "sites": 1,
            "clips": 4,
            "test_clips": 2 if rounds in partly else 4,
            "test_clips_total": 4,
            "accuracy": float(accuracy),
            "accuracy_at_5": 1.0,
            "accuracy_before": None,
            "cosine": float(random.uniform()),
            **({"t5/accuracy": 0.25, "t5/cosine": 0.125} if t5 else {}),
        }
        for name, accuracy in zip(classes, accuracies, strict=True)
    }
    confusion = {name: {name: 3, classes[(k + 1) % len(classes)]: 1} for k, name in enumerate(classes)}
    write_json(folder.evaluation, {"round": rounds, "classes": figures, "confusion": confusion})
    save_map(folder.map, drawn_map(classes, random))
    folder.write_results({"accuracy": 0.9, "rounds": rounds})
    return path


def drawn_map(classes, random, real=8, synthetic=20):
    labels = np.repeat(np.arange(len(classes)), real + synthetic)
    drawn = np.tile(np.arange(real + synthetic) >= real, len(classes))
    centres = 10 * random.normal(size=(len(classes), 8))
    return EmbeddingMap(
        coordinates=(centres[labels] + random.normal(size=(len(labels), 8))).astype(np.float32),
        explained=np.linspace(0.3, 0.02, 8).astype(np.float32),
        labels=labels,
        synthetic=drawn,
        counts=np.where(drawn, 0, 3),
        sites=np.where(drawn, "", "site-000"),
        classes=np.array(classes),
    )


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return written_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="session")
def comparison(tmp_path_factory):
    """As `fed-a2v compare` leaves it: two baselines with folders, pooled training without, the experiment last."""
    folder = tmp_path_factory.mktemp("compared")
    rows = {}
    for seed, (name, overrides) in enumerate(
        {"FedAvg": ["finetune.enabled=false"], "prototypes": ["generator=none"], "vae": []}.items()
    ):
        rows[name] = RunFolder(written_run(folder / name, seed=seed, overrides=overrides)).rows()
    pooled = {"pooled": [{"round": number, "accuracy": 0.9, "accuracy_at_5": 1.0} for number in range(1, 5)]}
    ordered = {"FedAvg": rows["FedAvg"], "prototypes": rows["prototypes"], **pooled, "vae": rows["vae"]}
    (folder / "comparison.json").write_text(json.dumps(ordered))
    return folder


class Page:
    """A report, opened; what the console says and what it asks the network for is remembered."""

    def __init__(self, browser, path, **options):
        self.complaints, self.requests = [], []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-state=ready]", state="attached")

    def __call__(self, script):
        return self.page.evaluate(script)

    def until(self, script, seconds=240):
        """Wait until the script says true; Playwright's own way needs `eval`, which the page refuses."""
        deadline = time.monotonic() + seconds
        while not self(script):
            assert time.monotonic() < deadline, script
            self.page.wait_for_timeout(20)


@pytest.fixture
def opened(browser):
    pages = []

    def open_report(path, **options):
        pages.append(Page(browser, path, **options))
        return pages[-1]

    yield open_report
    for page in pages:
        page.context.close()


@pytest.fixture(scope="session")
def report(run_folder, tmp_path_factory):
    return write_report([run_folder], tmp_path_factory.mktemp("report") / "one.html")


@pytest.fixture(scope="session")
def report_of_three(comparison, tmp_path_factory):
    return write_report([comparison], tmp_path_factory.mktemp("report") / "three.html")
