"""The benchmark of federations: its settings, the runs it does and does not do, and what its tables claim."""

import json

import numpy as np
import pytest

from fed_a2v.config.compose import compose_settings
from fed_a2v.runs.intervals import paired_interval

PAIRS = [(fold, seed) for seed in (0, 1, 2) for fold in (1, 2, 3, 4)]
TINY = (
    *("rounds=2", "site.epochs=1", "adapters.hidden_width=8", "finetune.first_steps=3", "finetune.steps=2"),
    *("partition.sites=2", "partition.classes_per_site=null", "share.min_clips=2"),
)


@pytest.fixture(scope="module")
def generators(benchmark_module):
    return benchmark_module("generators")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Embeddings of six classes in four folds, and text vectors of five of them, where the real ones would lie."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    names = np.array([f"class {number}" for number in range(6)])
    category, fold = np.repeat(names, 16), np.tile(np.arange(16) % 4 + 1, 6)
    rows = np.repeat(random.normal(size=(6, 8)), 16, axis=0) + 0.3 * random.normal(size=(96, 8))
    np.savez(
        folder / "esc50_yamnet.npz",
        embeddings=rows.astype(np.float32),
        filename=np.array([f"{number}.wav" for number in range(96)]),
        category=category,
        fold=fold,
    )
    vectors = random.normal(size=(5, 12)).astype(np.float32)
    np.savez(folder / "clip_vitb32_text.npz", category=names[:5], vectors=vectors)
    return folder


@pytest.fixture(autouse=True)
def _data(made_up, monkeypatch):
    monkeypatch.setenv("FED_A2V_DATA", str(made_up))


def made_up_rows(generators, table, accuracies):
    """A row of the CSV for each method, fold and seed; `accuracies` by method and pair."""
    return [
        {
            **dict.fromkeys(generators.COLUMNS, ""),
            **{"data": table.data, "federation": table.federation, "share": table.share, "method": method},
            **{"fold": fold, "seed": seed, "site_steps": 25, "server_steps": 280, "seconds": 9, "bytes_up": 3e6},
            "by_round": json.dumps([0.1, accuracies(method, fold, seed)]),
        }
        for method in table.methods
        for fold, seed in PAIRS
    ]


# Settings and runs


def test_every_run_of_the_standard_has_valid_settings_of_its_own(generators):
    tables = generators.standard()
    cases = list(dict.fromkeys(generators.cases(tables.values(), PAIRS)))
    # Two tables of one federation have runs in common.
    assert len(cases) == 12 * len({(table[:3], method) for table in tables.values() for method in table.methods})
    for case in cases[: len(cases) // 12]:
        settings = compose_settings(generators.overrides(case))
        assert (settings.dataset.test_fold, settings.seed) == (case.fold, case.seed)
        assert (settings.targets.name == "file") == (case.data == "clip")
    assert {method for table in tables.values() for method in table.methods} >= {
        *("FedAvg, as many steps", "vae, untrained", "noise"),
    }
    assert all("prototypes" in table.methods for table in tables.values())


@pytest.mark.parametrize("method", ["FedAvg, as many steps", "prototypes", "pooled, as many steps"])
def test_a_run_leaves_its_figures(generators, method):
    case = generators.Case("yamnet", "5 sites x 10", "8", method, 2, 1)
    row = generators.run(case, *TINY)
    assert set(row) <= set(generators.COLUMNS)
    accuracies = json.loads(row["by_round"])
    assert len(accuracies) == 2
    assert all(0 <= value <= 1 for value in accuracies)
    # Two sites of 36 clips, two batches an epoch; the server takes three steps, then two.
    wanted = {"prototypes": (4, 5)}.get(method, (9, 0))
    assert (row["site_steps"], row["server_steps"]) == wanted


def test_the_table_of_real_prompts_has_only_classes_that_have_one(generators):
    case = generators.Case("clip", "5 sites", "8", "prototypes", 1, 0)
    settings = compose_settings([*generators.overrides(case), *TINY])
    assert settings.dataset.classes == [f"class {number}" for number in range(5)]
    assert settings.targets.path.endswith("clip_vitb32_text.npz")
    assert json.loads(generators.run(case, *TINY)["by_round"])


def test_runs_in_the_csv_are_not_repeated(generators, tmp_path):
    table = generators.TABLES["logmel 5x10"]
    path = tmp_path / "runs.csv"
    path.write_text("encoder,federation\nyamnet,5 sites x 10\n")  # of an earlier version
    rows = made_up_rows(generators, table, lambda *_: 0.5)
    for row in rows[1:]:
        generators.append(path, row)
    assert len(generators.read(path)) == len(rows) - 1
    missing = generators.missing_of(path, list(generators.cases([table], PAIRS)))
    assert [generators.key(case) for case in missing] == [generators.key_of(rows[0])]


# Tables


def cells(text):
    """The table's rows, by the first cell."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_a_table_begins_with_the_verdict_of_its_intervals(generators):
    table = generators.TABLES["yamnet 5x10"]
    noise = {fold: 0.002 * (fold - 2.5) for fold in (1, 2, 3, 4)}

    def accuracy(method, fold, seed):
        gain = {
            "FedAvg": noise[fold] - 0.3,
            "server only": noise[fold] + 0.05,
            "vae": 0.001 * (seed - 1) + noise[fold],
        }.get(method, 0.0)
        return round(0.9 + 0.01 * fold + gain, 4)

    text = generators.block(table, made_up_rows(generators, table, accuracy), PAIRS)
    says = text.splitlines()[0]
    known, unclear = says.split("no established difference")
    assert '"FedAvg" (-0.300)' in known.split("above")[0]
    assert '"server only" (+0.050)' in known.split("above")[1]
    assert '"vae"' in unclear
    assert '"gaussian"' in unclear
    of_vae = [0.001 * (seed - 1) + noise[fold] for fold, seed in PAIRS]
    rows = cells(text)
    assert rows["vae"][3] == str(paired_interval(of_vae, 1 / 3))
    assert rows["FedAvg"][4] == "25 + 280"
    assert rows["prototypes"][2:4] == ["0.925 ± 0.012", "-"]
    trained = paired_interval(of_vae, 1 / 3)
    assert f'"vae" minus "vae, untrained": {trained}' in text


@pytest.mark.parametrize(("name", "prompts"), [("yamnet 5x10", "targets=random"), ("clip", "CLIP ViT-B/32")])
def test_a_table_has_a_note_on_its_prompts(generators, name, prompts):
    table = generators.TABLES[name]
    text = generators.block(table, made_up_rows(generators, table, lambda *_: 0.5), PAIRS)
    assert [words for words in ("targets=random", "CLIP ViT-B/32") if words in text] == [prompts]


def test_only_folds_and_seeds_with_all_their_runs_count(generators):
    table = generators.TABLES["logmel 5x10"]
    rows = made_up_rows(generators, table, lambda method, fold, seed: fold / 10)
    whole = generators.block(table, [row for row in rows if row["seed"] == 0], PAIRS)
    assert "4 folds x 1 seed," in whole
    assert cells(whole)["vae"][2] == "0.250 ± 0.129"
    assert not cells(generators.block(table, rows[:-12], PAIRS))
