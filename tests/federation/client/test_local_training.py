"""The work of a site on its clips."""

import time
from collections import Counter

import numpy as np
import pytest
import torch

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.metrics import cosines, retrieval
from fed_a2v.data.site import class_names
from fed_a2v.federation.client import local_training as site_module
from fed_a2v.federation.client.local_training import Site
from fed_a2v.federation.factory import adapter_loss, prompt_set
from fed_a2v.federation.server.step_factory import make_step
from tests.federation.helpers import SMALL


@pytest.fixture(scope="module")
def make_site():
    def make(*overrides, number=0, name=None):
        settings = compose_settings([*SMALL, *overrides])
        torch.set_num_threads(settings.threads)
        return Site(settings, class_names(settings.dataset), number, name=name)

    return make


def adapters_for(site):
    return make_step(site.settings, prompt_set(site.settings, site.classes), (1, 512)).adapters


def trained(site, round_number=1):
    return site.train(round_number, adapters_for(site), "").weights


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_training_depends_on_seed_site_and_round_and_on_nothing_else(make_site):
    first = trained(make_site())
    torch.manual_seed(99)
    assert same(first, trained(make_site()))
    assert not same(first, trained(make_site(), round_number=2))
    assert not same(first, trained(make_site("seed=1")))
    assert not same(first, trained(make_site(name="site-other"))), "the same clips under another name"


def test_training_lowers_the_loss_on_the_sites_own_clips(make_site):
    site = make_site("site.epochs=20")
    short = make_site("site.epochs=1").train(1, adapters_for(site), "").losses["loss"]
    assert site.train(1, adapters_for(site), "").losses["loss"] < 0.8 * short


def test_fedprox_keeps_the_site_near_the_global_adapters(make_site):
    def distance(*overrides):
        site = make_site("site.epochs=10", *overrides)
        start = [weight.clone() for weight in adapters_for(site).weights()]
        return sum(float((a - b).square().sum()) for a, b in zip(trained(site), start, strict=True))

    assert distance("site.proximal=10") < 0.5 * distance()


def test_the_reply_has_the_numbers_of_its_clips(make_site):
    site = make_site()
    reply = site.register(0)
    assert (reply.site, reply.task, reply.round_number, reply.num_examples) == ("site-000", "register", 0, 18)
    assert {prompt.name for prompt in reply.statistics} == {
        site.classes[label] for label in site.data.train.labels.unique().tolist()
    }
    for prompt in reply.statistics:
        rows = site.data.train.embeddings[site.data.train.labels == site.classes.index(prompt.name)]
        counts = prompt.audio.counts[:, None, None].float()
        mean = (prompt.audio.means * counts).sum(dim=0) / counts.sum()
        torch.testing.assert_close(mean, rows.mean(dim=0))


def test_test_clips_are_never_shared_or_trained_on(make_site):
    site = make_site("share=samples")
    shared = torch.cat([prompt.audio.means for prompt in site.register(0).statistics])
    distances = torch.cdist(site.data.test.embeddings.flatten(1), shared.flatten(1))
    assert distances.min() > 1e-3


def test_classes_with_too_few_clips_are_trained_on_and_only_counted_together(make_site):
    site = make_site("share.min_clips=10")
    reply, clips = site.register(0), site.data.train.embeddings
    assert reply.statistics == []
    assert reply.num_examples == reply.moments.count == len(clips) == 18
    torch.testing.assert_close(reply.moments.mean, clips.mean(dim=0))
    assert reply.moments.variance == pytest.approx(float((clips - clips.mean(dim=0)).square().mean()), rel=1e-5)
    assert site.train(1, adapters_for(site), "").moments is None, "said once"


def test_the_floor_holds_for_the_average_of_all_clips_too(make_site):
    reply = make_site("share.min_clips=19").register(0)
    assert (reply.statistics, reply.moments) == ([], None)


def test_a_site_that_shares_a_class_sends_no_moments_of_all_clips(tmp_path):
    """The average of all, less that of the class, would be the average of two clips."""
    path, random = tmp_path / "e.npz", np.random.default_rng(0)
    labels = np.array(["dog"] * 6 + ["rain"] * 2 + ["dog", "rain"])
    folds = [1] * 8 + [2] * 2
    np.savez(path, embeddings=random.normal(size=(10, 5)).astype(np.float32), category=labels, fold=folds)
    settings = compose_settings([*SMALL, "dataset=embeddings", f"dataset.path={path}", "partition.sites=1"])
    reply = Site(settings, ("dog", "rain"), 0).register(0)
    assert [prompt.name for prompt in reply.statistics] == ["dog"]
    assert (reply.num_examples, reply.moments) == (8, None)


@pytest.mark.parametrize(
    "overrides", [(), ("share=samples",), ("share=mean",), ("share.variance=none",), ("share.variance=class",)]
)
def test_the_fingerprint_is_unchanged_while_the_data_are_unchanged(make_site, overrides):
    site = make_site(*overrides)
    mark = site.register(0).fingerprint
    assert mark == site.train(1, adapters_for(site), "").fingerprint
    assert mark != make_site(*overrides, number=1).register(0).fingerprint


OUTPUTS = "finetune.from_nodes_adapters=true"


def test_its_mean_outputs_are_those_of_the_trained_adapters(make_site):
    site = make_site(OUTPUTS)
    adapters = adapters_for(site)
    reply = site.train(1, adapters, "")
    for prompt in reply.statistics:
        rows = site.data.train.embeddings[site.data.train.labels == site.classes.index(prompt.name)]
        with torch.no_grad():
            torch.testing.assert_close(prompt.clip, adapters(rows).clip.mean(dim=0))


@pytest.mark.parametrize(
    ("overrides", "weights", "prototypes", "outputs"),
    [
        ((), True, True, False),
        (("finetune.enabled=false",), True, False, False),
        (("finetune.enabled=false", OUTPUTS), True, False, False),
        (("finetune.enabled=false", "share=samples"), True, False, False),
        (("finetune.enabled=false", "aggregation.mode=kd"), True, True, False),
        ((OUTPUTS,), True, True, True),
        (("aggregation.mode=none",), False, True, False),
        (("aggregation.mode=none", OUTPUTS), False, True, True),
        (("adapters=bilinear", OUTPUTS), False, True, False),
    ],
)
def test_a_site_sends_what_the_settings_need_and_nothing_else(make_site, overrides, weights, prototypes, outputs):
    site = make_site(*overrides)
    adapters = adapters_for(site)
    reply = site.train(1, adapters, "")
    assert [weight.shape for weight in reply.weights] == [weight.shape for weight in adapters.weights() if weights]
    assert len(reply.statistics) == 2, "names and numbers of clips are always told"
    for prompt in reply.statistics:
        assert prompt.count == 9
        assert (prompt.audio is not None) == prototypes
        assert (prompt.clip is not None) == outputs
    told = site.register(0).statistics
    groups = 9 if "share=samples" in overrides and prototypes else 3 if prototypes else 1
    assert [len(prompt.audio.counts) for prompt in told] == [groups] * 2


def test_with_a_t5_adapter_the_site_reports_both_outputs(make_site):
    site = make_site("adapters=flux", "adapters.t5_width=8", "adapters.t5_tokens=3", OUTPUTS)
    reply = site.train(1, adapters_for(site), "")
    assert all(prompt.clip.shape == (1, 768) and prompt.t5.shape == (3, 8) for prompt in reply.statistics)


def test_it_scores_its_test_clips_against_all_class_prompts(make_site):
    site = make_site("site.epochs=10")
    adapters = adapters_for(site)
    site.train(1, adapters, "")
    scores = site.evaluate(adapters).scores
    with torch.no_grad():
        found = retrieval(adapters(site.data.test.embeddings).clip, site.data.test.labels, site.prompts.clip)
    assert len(site.prompts.clip) == 10
    assert len(scores.classes) == 2
    assert scores.clips == len(site.data.test) == 6
    assert scores.accuracy == pytest.approx(found.accuracy)
    assert scores.accuracy_at_5 == pytest.approx(found.accuracy_at_5)
    assert scores.cosine == pytest.approx(found.mean_similarity, abs=1e-6)


def cosines_by_hand(outputs, prompts):
    """(N, C) cosines of flattened outputs with flattened prompts, the prompts' mean taken off both, in numpy."""
    flat, candidates = (np.asarray(each, dtype=np.float64).reshape(len(each), -1) for each in (outputs, prompts))
    flat, candidates = flat - candidates.mean(axis=0), candidates - candidates.mean(axis=0)
    norms = np.linalg.norm(flat, axis=1)[:, None] * np.linalg.norm(candidates, axis=1)
    return flat @ candidates.T / norms


def test_it_scores_t5_among_the_t5_prompts_and_only_where_t5_is_the_models_own(make_site):
    site = make_site("adapters=flux", "adapters.t5_width=8", "adapters.t5_tokens=3", "site.epochs=3")
    adapters = adapters_for(site)
    site.train(1, adapters, "")
    audio, labels = site.data.test.embeddings, site.data.test.labels
    with torch.no_grad():
        outputs = adapters(audio)
    near = cosines_by_hand(outputs.t5, site.prompts.t5)
    right = near[np.arange(len(labels)), labels]
    loss = float(adapter_loss(site.settings.loss, site.prompts).sides(outputs, labels)["t5"].mean())
    scores = site.evaluate(adapters).scores
    assert scores.t5.accuracy == pytest.approx((near.argmax(axis=1) == labels.numpy()).mean())
    assert scores.t5.cosine == pytest.approx(right.mean(), abs=1e-5)
    assert scores.t5.loss == pytest.approx(loss, rel=1e-4)
    for name, score in scores.classes.items():
        of_class = labels.numpy() == site.classes.index(name)
        assert score.t5.cosine == pytest.approx(right[of_class].sum(), abs=1e-5)
    assert site.evaluate(adapters, t5=False).scores.t5 is None
    plain = make_site()
    assert plain.evaluate(adapters_for(plain)).scores.t5 is None


def test_it_tells_how_many_test_clips_of_each_class_it_has(make_site):
    site = make_site()
    has = Counter(site.classes[label] for label in site.data.test.labels.tolist())
    assert sorted(has.values()) == [3, 3]
    assert site.register(0).test_clips == site.train(1, adapters_for(site), "").test_clips == dict(has)


def test_it_reports_confusions_only_on_request(make_site, monkeypatch):
    site = make_site()
    adapters = adapters_for(site)
    assert all(not score.predicted for score in site.evaluate(adapters).scores.classes.values())
    monkeypatch.setattr(site_module, "EVALUATION_ROWS", 2)
    scores = site.evaluate(adapters, confusion=True).scores
    with torch.no_grad():
        nearest = cosines(adapters(site.data.test.embeddings).clip, site.prompts.clip).argmax(1)
    for name, score in scores.classes.items():
        of_class = nearest[site.data.test.labels == site.classes.index(name)].tolist()
        assert score.predicted == Counter(site.classes[label] for label in of_class)


def test_it_counts_the_clips_that_another_model_alone_has_right_or_wrong(make_site, monkeypatch):
    site = make_site("site.epochs=10")
    adapters = adapters_for(site)
    site.train(1, adapters, "")
    monkeypatch.setattr(site_module, "EVALUATION_ROWS", 2)
    labels = site.data.test.labels.numpy()
    with torch.no_grad():
        near = cosines_by_hand(adapters(site.data.test.embeddings).clip, site.prompts.clip).argmax(axis=1)
    plain = site.evaluate(adapters)
    assert plain.scores.changes is None
    before = torch.zeros(len(labels), dtype=torch.bool)
    before[[int((labels == label).argmax()) for label in np.unique(labels)]] = True  # the first clip of each class
    scores = site.evaluate(adapters, before=before).scores
    for name, score in scores.classes.items():
        right = near[labels == site.classes.index(name)] == site.classes.index(name)
        assert plain.right[labels == site.classes.index(name)].tolist() == right.tolist()
        assert score.changes.better == right[1:].sum()
        assert score.changes.worse == 1 - right[0]
    assert min(scores.changes.better, scores.changes.worse) > 0


def test_scores_do_not_depend_on_how_many_rows_go_through_at_once(make_site, monkeypatch):
    site = make_site()
    adapters = adapters_for(site)
    whole = site.evaluate(adapters).scores
    monkeypatch.setattr(site_module, "EVALUATION_ROWS", 2)
    parts = site.evaluate(adapters).scores
    assert parts.accuracy == whole.accuracy
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.cosine == pytest.approx(whole.cosine, abs=1e-6)


def test_a_site_without_test_clips_scores_none(tmp_path):
    path = tmp_path / "e.npz"
    labels = np.array(["dog"] * 8 + ["rain"] * 8)
    folds = np.tile([1, 2, 3], 6)[:16]
    folds[0] = 4
    np.savez(
        path, embeddings=np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32), category=labels, fold=folds
    )
    settings = compose_settings([*SMALL, "dataset=embeddings", f"dataset.path={path}", "partition.sites=2"])
    sites = [Site(settings, ("dog", "rain"), number) for number in (0, 1)]
    clips = [site.evaluate(make_step(settings, site.prompts, (1, 5)).adapters).scores.clips for site in sites]
    assert sorted(clips) == [0, 1]


def test_the_time_of_a_reply_is_that_of_the_work(make_site):
    site, start = make_site(), time.monotonic()
    assert 0 < site.register(0).seconds <= time.monotonic() - start


def test_classes_are_identified_by_name_and_not_by_number(make_site, tmp_path):
    """Two sites whose own files number their classes differently still mean the same class."""
    files = {"a": ["dog", "rain"], "b": ["cat", "dog"]}
    replies = {}
    for name, classes in files.items():
        path = tmp_path / f"{name}.npz"
        random = np.random.default_rng(1)
        np.savez(
            path,
            embeddings=random.normal(size=(16, 5)).astype(np.float32),
            category=np.repeat(classes, 8),
            fold=np.tile([1, 2, 3, 4], 4),
        )
        settings = compose_settings(
            [*SMALL, "partition=own", "dataset=embeddings", "dataset.classes=[cat,dog,rain]", "share.min_clips=1"]
        )
        site = Site(settings, ("cat", "dog", "rain"), 0, data_dir=str(path), name=f"site-{name}")
        replies[name] = [prompt.name for prompt in site.register(0).statistics]
    assert replies == {"a": ["dog", "rain"], "b": ["cat", "dog"]}


def test_unseen_classes_are_tested_on_and_never_trained_on(make_site):
    sites = [make_site("dataset.unseen=2", number=number) for number in range(5)]
    unseen = {name for name, gone in zip(sites[0].classes, sites[0].unseen.tolist(), strict=True) if gone}
    assert len(unseen) == 2
    for site in sites:
        assert unseen.isdisjoint(prompt.name for prompt in site.register(0).statistics)
    tested = set().union(*(site.evaluate(adapters_for(site)).scores.classes for site in sites))
    assert unseen <= tested


def test_calibration_moves_clips_from_recorded_to_unseen_classes(make_site):
    site = make_site("dataset.unseen=2")
    adapters = adapters_for(site)
    unseen = {name for name, gone in zip(site.classes, site.unseen.tolist(), strict=True) if gone}
    plain, all_unseen = (site.evaluate(adapters, calibration).scores for calibration in (0.0, 10.0))
    for name, score in plain.classes.items():
        assert score.right_calibrated == score.right_at_1
        far = all_unseen.classes[name]
        # With a huge constant an unseen class always wins: those are told apart among each other alone.
        assert far.right_calibrated == (far.right_among if name in unseen else 0)
        assert far.right_at_1 == score.right_at_1
        assert far.right_among >= far.right_at_1
