import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fed_a2v.core.quality import Figures, Gate, GeneratorQuality, Rows, assess, warnings_for
from fed_a2v.core.row_comparison import c2st_interval
from tests.refusals import refused


class World:
    """Non-negative embeddings: each class has its mean and its own correlated spread in few directions.

    Many entries are exactly zero and some columns never vary, as in the output of a rectified encoder.
    """

    def __init__(self, classes=16, width=128, directions=6):
        rng = np.random.default_rng(0)
        self.means = rng.normal(size=(classes, width))
        self.scale = np.exp(0.5 * rng.normal(size=width))
        decay = np.arange(1, directions + 1) ** -0.5
        self.spread = rng.normal(size=(classes, directions, width)) * decay[:, None]
        self.shared = rng.normal(size=(1, width))

    def __call__(self, per_class, seed):
        """`per_class` rows of every class; a sampler that is as good as real rows."""
        rng = np.random.default_rng(1000 + seed)
        labels = np.repeat(np.arange(len(self.means)), per_class)
        own = rng.normal(size=(len(labels), self.spread.shape[1]))
        rows = self.means[labels] + np.einsum("nr,nrd->nd", own, self.spread[labels])
        rows += rng.normal(size=(len(rows), 1)) @ self.shared + 0.3 * rng.normal(size=rows.shape)
        rows = np.maximum(rows * self.scale, 0)
        rows[:, :8] = 0
        return as_rows(rows, labels)


def as_rows(embeddings, labels):
    return Rows(torch.as_tensor(embeddings).float()[:, None], torch.as_tensor(labels))


def cheats(train):
    """Samplers that look good to one figure or another, by name."""
    x, y = train.embeddings.flatten(1).double().numpy(), train.labels.numpy()
    classes = np.unique(y)
    means = np.stack([x[y == c].mean(0) for c in classes])
    stds = np.stack([x[y == c].std(0, ddof=1) for c in classes])
    std = x.std(0)
    std = np.maximum(std, 0.3 * np.sqrt((std**2).mean()))
    residuals = x - means[y]

    def some(rng, per_class, of=None):
        picked = [np.resize(rng.permutation(np.flatnonzero(y == c))[:of], per_class) for c in classes]
        return x[np.concatenate(picked)]

    def sampler(draw):
        def sample(per_class, seed):
            labels = np.repeat(classes, per_class)
            rng = np.random.default_rng(seed)
            found = draw(rng, per_class, labels, rng.normal(size=(len(labels), x.shape[1])))
            return as_rows(found, labels) if not isinstance(found, tuple) else as_rows(*found)

        return sample

    return {
        "class means": sampler(lambda rng, n, labels, noise: means[labels]),
        "copies": sampler(lambda rng, n, labels, noise: some(rng, n)),
        "jittered copies": sampler(lambda rng, n, labels, noise: some(rng, n) + 0.1 * std * noise),
        "independent noise": sampler(lambda rng, n, labels, noise: means[labels] + stds[labels] * noise),
        "wide noise": sampler(lambda rng, n, labels, noise: means[labels] + 2 * stds[labels] * noise),
        "three rows repeated": sampler(lambda rng, n, labels, noise: some(rng, n, of=3)),
        "residuals of other classes": sampler(
            lambda rng, n, labels, noise: means[labels] + residuals[rng.integers(len(residuals), size=len(labels))]
        ),
        "shuffled labels": sampler(lambda rng, n, labels, noise: (some(rng, n), rng.permutation(labels))),
    }


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def train(world):
    return world(24, -1)


@pytest.fixture(scope="module")
def held_out(world):
    return world(16, -2)


@pytest.fixture(scope="module")
def qualities(world, train, held_out):
    """The quality of every cheat, and of the truth."""
    samplers = {**cheats(train), "truth": world}
    return {name: assess(train, held_out, sampler) for name, sampler in samplers.items()}


def verdicts(quality):
    return [gate.passed for gate in quality.gates()]


EVERY_GATE = ["tstr", "c2st", "nn_ratio"]


@pytest.mark.parametrize(
    ("cheat", "failed"),
    [
        ("class means", EVERY_GATE),
        ("copies", ["nn_ratio"]),
        ("jittered copies", ["nn_ratio"]),
        ("independent noise", EVERY_GATE),
        ("wide noise", EVERY_GATE),
        ("three rows repeated", EVERY_GATE),
        ("residuals of other classes", ["nn_ratio"]),
        ("shuffled labels", EVERY_GATE),
    ],
)
def test_each_cheat_fails_the_gates_that_it_should_and_no_other(qualities, cheat, failed):
    assert [gate.name for gate in qualities[cheat].gates() if gate.passed is False] == failed


def test_fresh_draws_from_the_true_distribution_pass_all_gates(qualities):
    truth = qualities["truth"]
    assert verdicts(truth) == [True] * 3
    assert warnings_for(truth) == []
    assert 0.9 < truth.synthetic.variance_ratio < 1.1


def test_real_rows_given_as_samples_pass_all_gates(world, train, held_out):
    assert verdicts(assess(train, held_out, world(24, -3))) == [True] * 3


def test_copies_are_nearer_and_noise_is_farther_than_unseen_rows(qualities):
    assert qualities["copies"].synthetic.nn_ratio < 1e-3
    assert qualities["jittered copies"].synthetic.nn_ratio < 0.5
    assert qualities["independent noise"].synthetic.nn_ratio > 1.2
    assert qualities["wide noise"].synthetic.nn_ratio > 2


def test_precision_recall_and_nearest_neighbours_distinguish_collapse_from_noise(qualities):
    means, noise = qualities["class means"].synthetic, qualities["wide noise"].synthetic
    assert (means.precision, means.recall, means.one_nn_synthetic) == (1, 0, 1)
    assert noise.precision < 0.1 < 0.9 < noise.recall
    assert noise.one_nn_synthetic < 0.1 < 0.9 < noise.one_nn_held_out
    assert means.variance_ratio < 1e-6
    assert noise.variance_ratio == pytest.approx(4, rel=0.1)


def test_each_gate_reports_the_figure_of_real_rows(qualities):
    tstr, c2st, nn_ratio = qualities["wide noise"].gates()
    assert tstr.real == 1
    assert 0.4 < c2st.real < 0.6
    assert 0.9 < nn_ratio.real < 1.1
    assert qualities["wide noise"].real == qualities["truth"].real
    assert 0.85 < qualities["truth"].real.variance_ratio < 1.15


def test_the_same_rows_and_samples_give_the_same_figures(world, train, held_out):
    assert assess(train, held_out, world, seeds=1) == assess(train, held_out, world, seeds=1)


def test_numbering_of_classes_and_order_of_rows_do_not_matter_to_the_distances(world, train, held_out):
    def renamed(rows):
        order = torch.randperm(len(rows.labels), generator=torch.Generator().manual_seed(0))
        return Rows(rows.embeddings[order], 7 * (20 - rows.labels[order]))

    same = assess(renamed(train), renamed(held_out), renamed(world(16, 0)), seeds=1).synthetic
    first = assess(train, held_out, world(16, 0), seeds=1).synthetic
    assert same.nn_ratio == pytest.approx(first.nn_ratio)
    assert same.variance_ratio == pytest.approx(first.variance_ratio)
    assert same.precision == pytest.approx(first.precision)


def test_the_logged_figures_are_plain_numbers(qualities):
    logged = qualities["truth"].as_dict()
    assert {"tstr", "c2st", "c2st_real", "nn_ratio", "variance_ratio", "precision", "recall"} <= logged.keys()
    for gate in qualities["truth"].gates():
        assert (logged[f"{gate.name}_low"], logged[f"{gate.name}_high"]) == gate.interval
    assert logged["rows"] == 256
    assert all(type(value) is float for value in logged.values())


def test_few_rows_give_only_the_figures_that_they_allow(world):
    small = World(classes=3)
    quality = assess(small(2, -1), small(2, -2), small)
    assert quality.rows == 6
    assert quality.synthetic.nn_ratio is not None
    assert quality.synthetic.variance_ratio is not None
    assert quality.synthetic.c2st is None, "six rows a side cannot tell chance from certainty"
    assert quality.synthetic.precision is None
    assert quality.real.nn_ratio is None, "none of two training rows can be left out"
    assert verdicts(quality) == [None] * 3
    assert "c2st" not in quality.as_dict()


def test_two_sample_figures_need_ten_rows():
    small = World(classes=2)
    quality = assess(small(5, -1), small(5, -2), small)
    assert None not in vars(quality.synthetic).values()


def test_one_class_has_no_classifier_to_train():
    single = World(classes=1)
    quality = assess(single(24, -1), single(16, -2), single)
    assert quality.tstr is None
    assert quality.synthetic.c2st < 0.7


def test_tstr_is_none_if_real_rows_are_not_better_than_chance():
    quality = GeneratorQuality(Figures(accuracy=0.5), Figures(accuracy=0.25), classes=4, rows=100)
    assert quality.tstr is None


def test_only_classes_that_all_three_sets_have_are_compared(world, train, held_out):
    def without(rows, label):
        return Rows(rows.embeddings[rows.labels != label], rows.labels[rows.labels != label])

    quality = assess(without(train, 0), without(held_out, 1), without(world(16, 0), 2), seeds=1)
    assert quality.classes == 13
    assert quality.rows == 13 * 16
    nothing = assess(train, Rows(held_out.embeddings, held_out.labels + 100), world)
    assert nothing.as_dict() == {}
    assert verdicts(nothing) == [None] * 3


def test_held_out_rows_that_are_training_rows_give_no_distance_to_compare_with(world, train):
    assert assess(train, train, world, seeds=1).synthetic.nn_ratio is None


@pytest.mark.parametrize("apart", [0, 1])
def test_classes_of_identical_rows_give_no_figures_but_no_crash(apart):
    labels = np.repeat(np.arange(4), 10)
    flat = as_rows(np.full((40, 8), 0.1) + apart * np.sqrt(labels + 2)[:, None], labels)
    quality = assess(flat, flat, flat, seeds=1)
    assert quality.synthetic.variance_ratio is None
    assert quality.synthetic.nn_ratio is None
    assert quality.synthetic.c2st is None


def test_two_rows_a_class_give_the_same_variance_ratio_as_many(world, train, held_out):
    ratios = [assess(train, held_out, world(2, seed), seeds=1).synthetic.variance_ratio for seed in range(10)]
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_a_column_that_hardly_varies_does_not_outweigh_the_others(world, train, held_out):
    def with_faint_column(rows, size):
        embeddings = rows.embeddings.clone()
        embeddings[..., 0] = size * torch.randn(len(embeddings), 1, generator=torch.Generator().manual_seed(0))
        return Rows(embeddings, rows.labels)

    samples = with_faint_column(world(24, 0), 0.1)
    quality = assess(with_faint_column(train, 1e-4), with_faint_column(held_out, 1e-4), samples, seeds=1)
    assert quality.synthetic.variance_ratio == pytest.approx(1, abs=0.1)
    assert verdicts(quality) == [True] * 3


def test_max_rows_bounds_what_is_compared(world, train, held_out):
    asked = []

    def sampler(per_class, seed):
        asked.append(per_class)
        return world(per_class, seed)

    assert assess(train, held_out, sampler, seeds=1, max_rows=160).rows == 160
    assert asked == [10]


def test_a_sequence_of_tokens_is_compared_as_one_row(world, train, held_out):
    def folded(rows):
        return Rows(rows.embeddings.reshape(len(rows.labels), 4, 32), rows.labels)

    whole = assess(train, held_out, world(16, 0), seeds=1)
    assert assess(folded(train), folded(held_out), folded(world(16, 0)), seeds=1) == whole


def test_bad_rows_are_named(world, train, held_out):
    broken = held_out.embeddings.clone()
    broken[3:16] = torch.nan
    with refused(ValueError, "held-out", 13, 256, "generator.learning_rate"):
        assess(train, Rows(broken, held_out.labels), world)
    with refused(ValueError, 64, 128):
        assess(train, Rows(held_out.embeddings[..., :64], held_out.labels), world)
    with refused(ValueError, "training", "labels", 384, "(383,)"):
        assess(Rows(train.embeddings, train.labels[1:]), held_out, world)
    with refused(ValueError, "seeds", 0):
        assess(train, held_out, world, seeds=0)


# Few rows


@pytest.mark.parametrize(("rows", "verdict"), [(10, None), (39, None), (40, False)])
def test_below_forty_rows_a_gate_has_a_value_and_no_verdict(rows, verdict):
    figures = Figures(accuracy=0.1, c2st=1.0, nn_ratio=0.0, variance_ratio=1.0)
    quality = GeneratorQuality(figures, Figures(0.9, 0.5, 1.0, 1.0), 10, rows, {"tstr": (0, 0.4), "nn_ratio": (0, 0.1)})
    assert verdicts(quality) == [verdict] * 3
    assert (warnings_for(quality) == []) == (verdict is None)


def test_there_is_no_warning_of_what_may_be_chance():
    within, beyond = ({"tstr": (0.8, high), "nn_ratio": (0.9, 1.1)} for high in (0.95, 0.93))
    for intervals, warned in ((within, 0), (beyond, 1)):
        quality = GeneratorQuality(Figures(0.78, 0.66, 1.0, 1.0), Figures(0.9, 0.5, 1.0, 1.0), 10, 50, intervals)
        assert verdicts(quality) == [False, False, True]
        assert len(warnings_for(quality)) == warned


def test_a_gate_surely_fails_on_either_side_of_its_range():
    def gate(*interval):
        return Gate("nn_ratio", sum(interval) / 2, 1.0, 0.85, 1.15, 100, interval)

    assert [gate(*ends).surely_failed for ends in ((0.5, 0.8), (0.6, 0.9), (1.1, 1.3), (1.2, 1.4))] == [
        True,
        False,
        False,
        True,
    ]


def test_the_interval_of_the_two_sample_test_contains_chance_in_19_of_20_cases():
    """Rows of one distribution: 0.5 is the truth. With twice the trials, all rows that are classified, it would not."""
    small = World(classes=8)
    held, twice = 0, 0
    for seed in range(40):
        quality = assess(small(24, 3 * seed), small(4, 3 * seed + 1), small(4, 3 * seed + 2), seeds=1)
        value, interval = quality.synthetic.c2st, quality.gates()[1].interval
        held += interval[0] <= 0.5 <= interval[1]
        low, high = c2st_interval(value, 2 * quality.rows)
        twice += low <= 0.5 <= high
    assert held >= 36
    assert twice < 36


def test_intervals_contain_the_value_and_narrow_with_more_rows(world, train):
    widths = []
    for per_class in (2, 16):
        quality = assess(train, world(per_class, -2), world, seeds=1)
        for gate in quality.gates():
            assert gate.interval[0] <= gate.value <= gate.interval[1]
        widths.append([gate.interval[1] - gate.interval[0] for gate in quality.gates()])
    assert all(few > many for few, many in zip(*widths, strict=True))


# Warnings


@pytest.mark.parametrize(
    ("cheat", "word"),
    [
        ("class means", "no spread"),
        ("copies", "copy training rows"),
        ("jittered copies", "copy training rows"),
        ("independent noise", "are noise"),
        ("wide noise", "are noise"),
        ("three rows repeated", "copy training rows"),
        ("residuals of other classes", "off their class"),
        ("shuffled labels", "do not carry their class"),
    ],
)
def test_a_warning_names_the_cheat_in_one_line_with_a_remedy(qualities, cheat, word):
    found = warnings_for(qualities[cheat])
    assert any(word in line for line in found)
    assert all("\n" not in line and line.count(". ") >= 1 for line in found)


def test_class_means_are_not_called_copies(qualities):
    assert not any("copy" in line for line in warnings_for(qualities["class means"]))


def test_a_two_sample_failure_alone_causes_a_warning():
    odd = GeneratorQuality(Figures(0.9, 0.8, 1.0, 1.0), Figures(0.9, 0.5, 1.0, 1.0), classes=10, rows=400)
    assert [line.split(":")[0] for line in warnings_for(odd)] == ["Samples vary unlike real rows"]


def test_a_collapsed_posterior_causes_a_warning(qualities):
    assert "posterior has collapsed" in warnings_for(qualities["truth"], active=0)[0]
    assert warnings_for(qualities["truth"], active=12) == []


# Real embeddings


@pytest.mark.real_data
@pytest.mark.skipif("FED_A2V_DATA" not in os.environ, reason="FED_A2V_DATA is not set")
def test_real_embeddings_give_the_known_figures_of_each_cheat():
    data = np.load(Path(os.environ["FED_A2V_DATA"]) / "esc50_yamnet.npz")

    def rows_of(folds):
        keep = np.isin(data["fold"], folds)
        return as_rows(data["embeddings"][keep], data["target"][keep].astype(np.int64))

    train, held_out = rows_of([1, 2, 3]), rows_of([4])
    known = {  # TSTR, C2ST, nearest-neighbour ratio
        "class means": (0.91, 1.00, 0.69),
        "copies": (1.00, 0.52, 0.00),
        "jittered copies": (1.00, 0.53, 0.34),
        "independent noise": (0.91, 0.93, 1.38),
        "residuals of other classes": (0.94, 0.54, 1.34),
    }
    samplers, quality = cheats(train), None
    for name, (tstr, c2st, nn_ratio) in known.items():
        quality = assess(train, held_out, samplers[name], known=quality)
        assert quality.tstr == pytest.approx(tstr, abs=0.03), name
        assert quality.synthetic.c2st == pytest.approx(c2st, abs=0.035), name
        # Three standard deviations over sampling seeds for the residuals of other classes, the noisiest of them.
        assert quality.synthetic.nn_ratio == pytest.approx(nn_ratio, abs=0.06), name
        assert False in verdicts(quality), name
    assert verdicts(assess(rows_of([1, 2]), held_out, rows_of([3]))) == [True] * 3


def test_known_figures_of_real_rows_are_reused():
    world = World()
    train, held_out, samples, others = world(12, 0), world(6, 1), world(12, 2), world(12, 3)
    once, alone = (assess(train, held_out, rows, seeds=1) for rows in (samples, others))
    found = assess(train, held_out, others, seeds=1, known=once)
    assert found.real == once.real
    assert found.synthetic == alone.synthetic
    assert found.tstr == alone.tstr
    assert found.intervals == {"nn_ratio": alone.intervals["nn_ratio"]}
