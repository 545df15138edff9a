"""The benchmarks of sums and of attacks: their settings and runs, and what their pure functions compute."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.gaussian_release import ReleaseNoise

TINY = ("partition.sites=2", "partition.classes_per_site=null", "projection.columns=4", "share.min_clips=2")


@pytest.fixture(scope="module")
def sums(benchmark_module):
    return benchmark_module("sums")


@pytest.fixture(scope="module")
def attacks(benchmark_module):
    return benchmark_module("attacks")


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    """Embeddings of three classes in four folds, and a label head."""
    random = np.random.default_rng(0)
    rows = np.repeat(random.normal(size=(3, 8)), 16, axis=0) + 0.3 * random.normal(size=(48, 8))
    np.savez(
        tmp_path / "esc50_yamnet.npz",
        embeddings=np.abs(rows).astype(np.float32),
        filename=np.array([f"{number}.wav" for number in range(48)]),
        category=np.repeat([f"class {number}" for number in range(3)], 16),
        fold=np.arange(48) % 4 + 1,
    )
    np.savez(tmp_path / "esc50_yamnet_head.npz", weight=random.normal(size=(12, 8)).astype(np.float32))
    monkeypatch.setenv("FED_A2V_DATA", str(tmp_path))


def rows_of(sums, arm, accuracies):
    """Rows of the CSV of an arm; `accuracies` by fold and seed."""
    return [
        {"arm": arm, "fold": str(fold), "seed": str(seed), "accuracy": str(accuracies(fold, seed)), "epsilon": ""}
        | {"bytes_of_a_site": "17000", "seconds": "1"}
        for seed in range(sums.ARMS[arm].seeds)
        for fold in sums.FOLDS
    ]


@pytest.mark.parametrize(
    ("arm", "closed_form", "epsilon"),
    [
        ("5 x 10, one site after another", True, None),
        ("generator=vae", False, None),
        ("secure sums, epsilon 2, prior", True, 2.0),
        ("prototypes, one exchange", False, None),
    ],
)
def test_an_arm_has_valid_settings(sums, arm, closed_form, epsilon):
    settings = compose_settings(sums.overrides(sums.Case(arm, 3, 1)))
    assert (settings.dataset.test_fold, settings.seed) == (3, 1)
    assert settings.adapters.closed_form is closed_form
    assert (settings.privacy.epsilon if settings.privacy.name == "dp" else None) == epsilon
    assert not settings.site_trains


def test_a_run_leaves_its_figures_and_is_not_repeated(sums, tmp_path):
    case = sums.Case("5 sites x 10 classes", 2, 0)
    row = sums.run(case, *TINY)
    assert tuple(row) == sums.COLUMNS
    assert 0 <= row["accuracy"] <= 1
    # Four columns of 1.5 classes, the triangle of their matrix, and the mean of all clips, in half precision.
    assert row["bytes_of_a_site"] == 2 * (1.5 * 4 + 10 + 4)
    sums.append(tmp_path / "runs.csv", row)
    assert sums.read(tmp_path / "runs.csv") == [{name: str(value) for name, value in row.items()}]


def test_the_placebo_has_noise_of_the_same_size_in_all_directions(sums):
    rows = torch.nn.functional.normalize(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    of = ClassSums.of(rows * torch.tensor([3.0, 1, 1, 1, 0.1]), torch.arange(200) % 4, 4)
    whole, isotropic, diagonal = (sums.simpler(kind)(of) for kind in ("shared", "isotropic", "diagonal"))
    trace = whole.covariance.trace()
    assert isotropic.covariance.trace() == pytest.approx(trace)
    assert diagonal.covariance.trace() == pytest.approx(trace)
    assert len(isotropic.covariance.diagonal().unique()) == 1
    assert len(diagonal.covariance.diagonal().unique()) == 5
    assert torch.equal(isotropic.means, whole.means)


def test_differences_are_paired(sums):
    mine = rows_of(sums, "draws: means + shared covariance", lambda fold, seed: 0.8 + fold / 100 + 0.04)
    other = rows_of(sums, "class means", lambda fold, seed: 0.8 + fold / 100 + 0.001 * seed)
    text = sums.generator([*mine, *other])
    cells = next(line for line in text.splitlines() if line.startswith("| draws")).split(" | ")
    differences = [0.04 - 0.001 * seed for seed in range(3) for _ in sums.FOLDS]
    error = stats.sem(differences)
    assert cells[3] == f"+0.039 ± {error:.3f}"
    assert sums.of(other[1:], "class means") is None


# Attacks


def test_figures_of_a_ranking(attacks):
    member = np.arange(400) < 200
    assert attacks.measured(member, member.astype(float)) == {"auc": 1.0, "tpr": 1.0}
    assert attacks.measured(member, np.zeros(400)) == {"auc": 0.5, "tpr": pytest.approx(0.01)}


def test_the_bound_on_epsilon_is_that_of_clopper_and_pearson(attacks):
    number = 1000
    low = 0.025 ** (1 / number)
    assert attacks.epsilon_at_least(number, 0, number, 1e-5) == pytest.approx(math.log((low - 1e-5) / (1 - low)))
    assert attacks.epsilon_at_least(number // 2, number // 2, number, 1e-5) == 0


def test_an_audit_of_gaussian_noise_stays_below_its_epsilon(attacks):
    pytest.importorskip("dp_accounting")
    from dp_accounting import get_sigma_gaussian

    random = np.random.default_rng(0)
    sigma = get_sigma_gaussian(1.0, 1e-5)
    with_clip, without = random.normal(1 / sigma, 1, 4000), random.normal(0, 1, 4000)
    threshold = attacks.best_threshold(with_clip[:2000], without[:2000], 1e-5)
    hits = [int((scores[2000:] > threshold).sum()) for scores in (with_clip, without)]
    assert 0 < attacks.epsilon_at_least(*hits, 2000, 1e-5) < 1
    assert attacks.largest_auc(1.0, 1e-5) == pytest.approx(stats.norm.cdf(1 / sigma / math.sqrt(2)))


def test_who_knows_all_other_clips_finds_the_last_one(attacks):
    random = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(40, 6, generator=random, dtype=torch.float64), dim=1)
    labels, member = torch.arange(40) % 2, torch.arange(40) < 20
    sums = ClassSums.of(rows[member], labels[member], 2)
    scores = attacks.knowing_others(rows, labels, member, sums, ReleaseNoise(1e-3, 1e-3, 1e-3))
    assert scores[member].min() > 0 > scores[~member].max()
