"""The strategy with failing and disconnected sites: the round continues, and its row and state are right."""

import json

import numpy as np
import pytest
import torch
from flwr.common import ndarrays_to_parameters

from fed_a2v.core.weight_cap import cap_client_weights
from fed_a2v.federation.client.local_training import Site
from fed_a2v.federation.protocol.errors import FederationError
from fed_a2v.federation.server.embedding_spec import EmbeddingSpec
from tests.federation.helpers import (
    BAD,
    PLAIN,
    SITES,
    Federation,
    Node,
    assert_same,
    lie,
    overwrite,
    rewrite,
    set_manifest,
    with_nan,
    without_seconds,
)
from tests.refusals import refused

# Too few good replies


def test_too_few_good_replies_keep_the_old_adapters_and_the_round_is_evaluated_and_recorded():
    federation = Federation("aggregation.min_replies=5", tamper=lie(overwrite(0, with_nan))).start()
    before = federation.weights
    row = federation.round()
    assert_same(federation.weights, before)
    assert row["skipped"]
    assert row["accuracy"] == row["accuracy_before"]
    assert row["test_clips"] == 30


def test_just_enough_good_replies_are_enough():
    federation = Federation("aggregation.min_replies=4", tamper=lie(overwrite(0, with_nan))).start()
    before = federation.weights
    row = federation.round()
    assert "skipped" not in row
    assert not torch.equal(federation.weights[0], before[0])


def test_a_round_in_which_every_site_fails_is_recorded_and_the_next_goes_on():
    def tamper(task, site, work):
        if down:
            raise ConnectionError("down")
        return work()

    down = []
    federation = Federation(tamper=tamper).start()
    before = federation.weights
    down.append(True)
    row = federation.round(1)
    assert (row["failures"], row["replies"]) == (10, 0)  # five in training, five in the evaluation
    assert "accuracy" not in row
    assert_same(federation.weights, before)
    down.clear()
    assert federation.round(2)["replies"] == 5


def down_while(broken, task="train"):
    """Sites that cannot be reached in one task while `broken()` is true."""

    def tamper(asked, site, work):
        if asked == task and broken():
            raise ConnectionError(f"{site} is down")
        return work()

    return tamper


def test_more_than_max_skipped_rounds_in_a_row_end_the_run_with_one_line():
    federation = Federation("aggregation.max_skipped_rounds=2", tamper=down_while(lambda: True)).start()
    assert all(federation.round(number)["skipped"] for number in (1, 2))
    named = ("round 3", "aggregation.min_replies=1", "aggregation.max_skipped_rounds=2", "is down")
    with refused(FederationError, *named) as error:
        federation.round(3)
    assert len(str(error.value).splitlines()) == 1
    assert len(federation.states) == 2, "the run can go on behind round 2"


def test_a_valid_round_resets_the_count_of_skipped_rounds():
    down = iter([True] * 5 + [False] * 5 + [True] * 5)
    federation = Federation("aggregation.max_skipped_rounds=1", tamper=down_while(lambda: next(down))).start()
    assert [federation.round(number).get("skipped", False) for number in (1, 2, 3)] == [True, False, True]


def test_a_repeated_round_gives_the_same_bits_as_one_that_went_well_at_once():
    down = iter([True] * 5)
    overrides = ("aggregation.if_too_few=repeat", "aggregation.min_replies=5")
    repeated = Federation(*overrides, tamper=down_while(lambda: next(down, False))).start()
    row = repeated.round()
    at_once = Federation(*overrides).start()
    plain = at_once.round()
    assert_same(repeated.weights, at_once.weights)
    assert (row["repetitions"], row["replies"], row["failures"], row["accuracy"]) == (1, 5, 5, plain["accuracy"])
    assert "repetitions" not in plain
    assert row["bytes_down"] > plain["bytes_down"], "what was sent twice counts twice"


def test_a_round_is_repeated_at_most_max_skipped_rounds_times():
    asked = []
    federation = Federation(
        "aggregation.if_too_few=repeat",
        "aggregation.max_skipped_rounds=2",
        tamper=down_while(lambda: asked.append(1) or True),
    ).start()
    named = ("round 1", "aggregation.min_replies=1", "aggregation.max_skipped_rounds=2", "is down")
    with refused(FederationError, *named):
        federation.round()
    assert len(asked) == 3 * 5
    assert federation.states == []


def test_the_log_names_the_sites_without_a_good_reply(caplog):
    federation = Federation(tamper=down_while(lambda: True)).start()
    federation.round()
    assert ", ".join(SITES) in caplog.text


# Sites that fail in the evaluation


def failing(*bad, tasks=("evaluate",)):
    """Sites that cannot be reached in some tasks."""

    def tamper(task, site, work):
        if task in tasks and site in bad:
            raise ConnectionError(f"{site} is down")
        return work()

    return tamper


def coverage_of(row):
    return tuple(row[key] for key in ("test_clips", "test_clips_total", "sites_evaluated", "sites_total"))


def test_the_row_gives_the_part_of_the_test_clips_that_its_figures_cover(honest_row, caplog):
    assert coverage_of(honest_row) == (30, 30, 5, 5)
    assert honest_row["not_evaluated"] == []
    row = Federation(tamper=failing("site-001", "site-004")).start().round()
    assert coverage_of(row) == (18, 30, 3, 5)
    assert row["not_evaluated"] == ["site-001", "site-004"]
    missing = {name for name, accuracy in row["per_class"].items() if accuracy is None}
    assert row["per_class"].keys() == honest_row["per_class"].keys()
    assert len(missing) == 4, "two classes of each site"
    right = sum(3 * accuracy for name, accuracy in honest_row["per_class"].items() if name not in missing)
    assert row["accuracy"] == pytest.approx(right / 18)
    assert "site-001, site-004" in caplog.text


def test_refused_scores_count_as_missing():
    row = Federation(tamper=lie(set_manifest(round_number=7), task="evaluate")).start().round()
    assert coverage_of(row) == (24, 30, 4, 5)
    assert row["not_evaluated"] == [BAD]


def set_score(**entries):
    def change(arrays, manifest):
        for scores in manifest["models"].values():
            next(iter(scores.values())).update(entries)

    return change


@pytest.mark.parametrize(
    "entries",
    [{"loss": 1e6}, {"loss": -5.0}, {"right_among": 1}],
    ids=["an impossible loss", "a loss below zero", "a count that was not requested"],
)
def test_impossible_scores_are_refused(entries):
    row = Federation(tamper=lie(set_score(**entries), task="evaluate")).start().round()
    assert coverage_of(row) == (24, 30, 4, 5)
    assert row["rejected"] == 1


def test_a_site_must_score_as_many_test_clips_of_each_class_as_it_reported():
    def more(arrays, manifest):
        for scores in manifest["models"].values():
            for score in scores.values():
                score.update(clips=score["clips"] + 7)

    def tamper(task, site, work):
        reply = work()
        if (task, site) == ("evaluate", BAD):
            reply = rewrite(reply, more)
            reply.num_examples += 14  # of two classes
        return reply

    row = Federation(tamper=tamper).start().round()
    assert coverage_of(row) == (24, 30, 4, 5)


def test_the_total_of_test_clips_is_unknown_until_every_site_has_reported():
    broken = ["register", "train", "evaluate"]

    def tamper(task, site, work):
        if site == BAD and task in broken:
            raise ConnectionError("not up yet")
        return work()

    federation = Federation(tamper=tamper).start()
    assert coverage_of(federation.round(1)) == (24, None, 4, 5)
    broken.remove("evaluate")
    assert coverage_of(federation.round(2)) == (30, 30, 5, 5)
    broken.append("evaluate")
    assert coverage_of(federation.round(3)) == (24, 30, 4, 5)


def test_a_round_without_evaluated_sites_has_no_accuracy_and_a_warning():
    row = Federation(tamper=failing(*SITES)).start().round()
    assert coverage_of(row) == (0, 30, 0, 5)
    assert "accuracy" not in row


def test_reported_numbers_of_test_clips_are_saved_in_the_state():
    federation = Federation().start()
    federation.round(1)
    resumed = Federation(
        state=federation.states[0], after=1, tamper=failing("site-000", tasks=("train", "evaluate"))
    ).start()
    assert coverage_of(resumed.round(1)) == (24, 30, 4, 5)


def test_a_node_without_a_name_counts_as_a_site_that_was_not_evaluated(tmp_path):
    configs = []
    for name in ("lab", "field"):
        rows = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
        folds = np.tile([1, 2, 3, 4], 4)
        np.savez(tmp_path / f"{name}.npz", embeddings=rows, category=np.repeat(["dog", "rain"], 8), fold=folds)
        configs.append({"site": name, "data-dir": str(tmp_path / f"{name}.npz")})
    own = ("partition=own", "dataset=embeddings", "dataset.classes=[dog,rain]", "share.min_clips=1")
    federation = Federation(*own, node_configs=configs).start()
    silent = Node("000009", None, {})
    silent.get_properties = lambda *words: (_ for _ in ()).throw(ConnectionError("no answer"))
    federation.manager.register(silent)
    row = federation.round(1)
    assert coverage_of(row) == (8, None, 2, 3)
    assert row["not_evaluated"] == []


# The registration


def narrower(arrays, manifest):
    for entry in manifest["classes"]:
        for index in (entry["prototypes"]["means"], entry["prototypes"]["variances"]):
            arrays[index] = arrays[index][..., :100]


def other_scale(arrays, manifest):
    manifest["square_root"] = not manifest["square_root"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [(narrower, EmbeddingSpec(1, 100, False)), (other_scale, EmbeddingSpec(1, 512, True))],
    ids=["another width", "another scale"],
)
def test_a_site_with_other_embeddings_is_rejected_at_the_registration(change, kind):
    federation = Federation(tamper=lie(change, task="register")).start()
    assert set(federation.strategy.step.bank.entries) == set(SITES) - {BAD}
    assert federation.strategy.audio_shape == (1, 512)
    row = federation.round()
    assert row["rejected"] == 1
    assert str(kind) in row["rejections"][0]
    assert str(EmbeddingSpec(1, 512, False)) in row["rejections"][0]


def test_a_site_with_other_embeddings_stays_out_of_the_standardisation():
    federation = Federation(tamper=lie(other_scale, task="register")).start()
    honest = Federation().start()
    moments = [f.strategy.step.adapters.audio_mean for f in (federation, honest)]
    assert not torch.equal(*moments)
    without = {site: classes for site, classes in honest.strategy.step.bank.entries.items() if site != BAD}
    honest.strategy.step.bank.entries = without
    honest.strategy.step.standardise_adapters()
    assert torch.equal(moments[0], honest.strategy.step.adapters.audio_mean)


def test_the_shape_of_embeddings_is_that_of_the_servers_encoder_whatever_most_sites_send():
    def tamper(task, site, work):
        return rewrite(work(), narrower) if task == "register" and site != "site-004" else work()

    federation = Federation(tamper=tamper).start()
    assert federation.strategy.audio_shape == (1, 512)
    assert list(federation.strategy.step.bank.entries) == ["site-004"]


def test_a_site_that_misses_the_registration_joins_in_the_first_round():
    def tamper(task, site, work):
        if (task, site) == ("register", BAD):
            raise TimeoutError("still booting")
        return work()

    federation = Federation(tamper=tamper).start()
    assert BAD not in federation.strategy.step.bank.entries
    row = federation.round()
    assert row["replies"] == 5
    assert BAD in federation.strategy.step.bank.entries
    assert row["failures"] == 1
    assert "still booting" in row["failure_reasons"][0]


def test_if_no_site_can_register_the_error_gives_the_reason():
    def tamper(task, site, work):
        raise FileNotFoundError("meta/esc50.csv: no such file")

    with refused(FederationError, "meta/esc50.csv: no such file"):
        Federation(tamper=tamper).start()


def test_if_every_registration_is_invalid_the_error_gives_the_reason():
    with refused(FederationError, "schema_version", 78):
        Federation(tamper=lambda t, s, work: rewrite(work(), set_manifest(schema_version=78))).start()


def test_if_no_site_has_clips_enough_of_a_class_the_error_names_the_setting():
    with refused(FederationError, "share.min_clips"):
        Federation("share.min_clips=100").start()


def test_prototypes_are_sent_once():
    federation = Federation("rounds=2").start()
    arrived = []

    def tamper(task, site, work):
        reply = work()
        if task == "train":
            arrived.append([entry["prototypes"] for entry in json.loads(reply.metrics["manifest"])["classes"]])
        return reply

    for node in federation.nodes:
        node.tamper = tamper
    federation.round(1)
    federation.round(2)
    assert len(arrived) == 10
    assert all(prototypes is None for classes in arrived for prototypes in classes)
    assert federation.strategy.step.bank.rows() is not None


# The row and the state


def test_replies_in_another_order_give_the_same_bits():
    first, second = Federation(), Federation()
    rows = [first.start().round(), second.start().round(order=lambda results: results[::-1])]
    assert without_seconds(rows[0]) == without_seconds(rows[1])
    assert_same(first.states, second.states)


def test_the_average_before_the_server_step_is_evaluated_only_if_the_settings_request_it():
    federation = Federation("federation.evaluate_before=false").start()
    row = federation.round()
    assert "accuracy_before" not in row
    evaluations = [m for node in federation.nodes for m in node.messages if m["task"] == "evaluate"]
    assert all(json.loads(message["models"]) == ["after"] for message in evaluations)


def test_the_bytes_of_a_round_are_those_of_the_arrays_sent(honest_row):
    federation = Federation().start()
    federation.round()
    weights = sum(weight.numel() for weight in federation.weights)
    standardisation = 2 * 512 * 4
    down_per_site = (2 * weights + standardisation) + (2 * 2 * weights + standardisation)
    assert honest_row["bytes_down"] == 5 * down_per_site
    assert honest_row["bytes_up"] == 5 * 2 * weights
    assert honest_row["bytes_registration"] > 0


def test_only_the_first_round_has_the_cost_of_the_registration():
    federation = Federation().start()
    first, second = federation.round(1), federation.round(2)
    assert first["bytes_registration"] > 0
    assert "bytes_registration" not in second


def test_a_strategy_with_a_loaded_state_continues_without_a_registration():
    whole = Federation().start()
    for number in (1, 2, 3):
        whole.round(number)
    resumed = Federation(state=whole.states[1], after=2).start()
    assert not [m for node in resumed.nodes for m in node.messages], "nobody is asked to register"
    row = resumed.round(1)
    assert row["round"] == 3
    assert without_seconds(row) == without_seconds(whole.rows[2])
    assert_same(resumed.states[-1], whole.states[2])


def test_messages_to_the_sites_have_only_types_that_flower_can_send():
    federation = Federation().start()
    federation.round()
    for node in federation.nodes:
        for message in node.messages:
            assert {type(value) for value in message.values()} <= {bool, int, float, str, bytes}


# Whole rounds


def test_parameters_that_flower_hands_over_are_not_needed():
    federation = Federation().start()
    federation.parameters = ndarrays_to_parameters([])
    assert federation.round()["replies"] == 5


@pytest.mark.parametrize(("mode", "moved"), [("avg", True), ("median", False), ("trimmed", False), ("krum", False)])
def test_a_site_that_sends_garbage_moves_the_mean_but_no_robust_rule(mode, moved):
    def garbage(arrays, manifest):
        for position in range(manifest["weights"]):
            arrays[position] = arrays[position].copy()
            arrays[position].flat[0] = 10.0

    largest = []
    for node in (None, lie(garbage)):
        overrides = (f"aggregation.mode={mode}", "aggregation.trimmed_share=0.2", "finetune.enabled=false")
        federation = Federation(*overrides, tamper=node).start()
        federation.train(1)
        assert federation.strategy._row["rejected"] == 0  # it is well-formed garbage
        largest.append(max(float(weight.abs().max()) for weight in federation.weights))
    honest, attacked = largest
    assert (attacked > honest + 0.5) == moved


@pytest.mark.parametrize(("setting", "rejected"), [("10", 1), ("null", 0)])
def test_adapters_ten_times_as_large_as_those_sent_are_refused(setting, rejected):
    def larger(arrays, manifest):
        arrays[: manifest["weights"]] = [array * np.float32(30) for array in arrays[: manifest["weights"]]]

    federation = Federation(f"aggregation.max_scale={setting}", tamper=lie(larger)).start()
    federation.train(1)
    assert federation.strategy._row["rejected"] == rejected
    assert ("aggregation.max_scale" in " ".join(federation.strategy._row["rejections"])) == bool(rejected)


def test_distillation_runs_in_a_federation_and_trains_the_global_adapters():
    plain, distilled = (
        Federation(f"aggregation.mode={mode}", "finetune.enabled=false", "generator=gaussian").start()
        for mode in ("avg", "kd")
    )
    for federation in (plain, distilled):
        federation.train(1)
    row = distilled.strategy._row
    assert row["distil/loss"] > 0
    assert row["seconds/distil"] > 0
    assert "server/adapter_finetuning_loss" not in row
    assert not all(torch.equal(a, b) for a, b in zip(plain.weights, distilled.weights, strict=True))


def test_saving_memory_changes_no_metric_beyond_rounding():
    rows = [Federation(f"optimize_memory_usage={flag}").start().round() for flag in (False, True)]
    for name in ("accuracy", "cosine", "server/adapter_finetuning_loss"):
        assert rows[0][name] == pytest.approx(rows[1][name], abs=0.01), name


INCREMENTAL = ("scenario=class_incremental", "scenario.steps=5", "scenario.rounds_per_step=1", "rounds=5")


def asked(federation, task):
    return sorted(
        {message["site"] for node in federation.nodes for message in node.messages if message["task"] == task}
    )


def test_sites_come_one_after_the_other_and_all_are_scored():
    federation = Federation(*INCREMENTAL).start()
    assert asked(federation, "register") == SITES[:1]
    for number in (1, 2, 3):
        for node in federation.nodes:
            node.messages.clear()
        row = federation.round(number)
        assert asked(federation, "train") == [SITES[number - 1]]
        assert asked(federation, "evaluate") == SITES
        assert (row["classes_known"], row["classes_old"]) == (2 * number, 2 * (number - 1))
    federation.round(4)
    federation.round(5)
    federation.train(6)  # the last group stays
    assert federation.strategy._row["replies"] == 1


def test_replay_keeps_what_averaging_forgets():
    """In the mean over two seeds: one of them alone has 24 clips of the old classes."""

    def accuracy_old(*words):
        last = []
        for seed in (0, 1):
            federation = Federation(
                *INCREMENTAL, "finetune.steps=60", "finetune.first_steps=60", f"seed={seed}", *words
            )
            federation.start()
            for number in range(1, 6):
                federation.round(number)
            assert federation.rows[0]["accuracy_old"] is None
            last.append(federation.rows[-1]["accuracy_old"])
        return sum(last) / 2

    forgotten = accuracy_old("finetune.enabled=false")
    assert accuracy_old("generator=none") > forgotten + 0.2
    assert accuracy_old("generator=gaussian", "bank.keep=generator") > forgotten + 0.2


def test_classes_without_a_recording_are_scored_with_and_without_calibration():
    federation = Federation("dataset.unseen=2", "finetune.first_steps=40", "site.epochs=2").start()
    row = federation.round(1)
    figures = {key.removeprefix("unseen/"): value for key, value in row.items() if key.startswith("unseen/")}
    assert figures["calibration"] == federation.strategy.step.calibration
    clips = row["test_clips"]
    share = 2 / 10  # of the test clips; synthesised classes are of the same size
    assert row["accuracy"] == pytest.approx(share * figures["unseen"] + (1 - share) * figures["seen"], abs=1 / clips)
    assert (figures["unseen_clips"], figures["seen_clips"]) == (share * clips, (1 - share) * clips)
    for name in ("among_unseen", "unseen", "seen", "unseen_calibrated", "seen_calibrated"):
        low, high = (figures[f"{name}_{end}"] for end in ("low", "high"))
        assert 0 <= low <= figures[name] <= high <= 1
        assert high - low > 0.1
    assert figures["unseen_calibrated"] >= figures["unseen"]
    assert figures["seen_calibrated"] <= figures["seen"]
    both = figures["unseen_calibrated"], figures["seen_calibrated"]
    assert figures["harmonic_calibrated"] == pytest.approx(2 * both[0] * both[1] / sum(both) if sum(both) else 0)


def test_the_calibration_is_chosen_once_and_saved_in_the_state():
    federation = Federation("dataset.unseen=2").start()
    federation.round(1)
    chosen = federation.strategy.step.calibration
    assert "seconds/calibration" in federation.rows[0]
    federation.round(2)
    assert "seconds/calibration" not in federation.rows[1]
    resumed = Federation("dataset.unseen=2", state=federation.states[0], after=1)
    assert resumed.strategy.step.calibration == chosen


def test_without_unseen_classes_there_are_no_metrics_of_them():
    assert not any(key.startswith("unseen/") for key in Federation().start().round())


def test_the_steps_of_sites_of_different_sizes_are_counted_in_their_mean():
    federation = Federation("partition=dirichlet", "partition.alpha=0.5", "site.batch_size=4", "site.epochs=3").start()
    row = federation.round()
    sites = [Site(federation.settings, federation.strategy.classes, number) for number in range(5)]
    batches = [-(-len(site.data.train) // 4) for site in sites]
    assert len(set(batches)) > 1
    assert row["site/optimiser_steps"] == pytest.approx(3 * sum(batches) / 5)
    assert row["server/optimiser_steps"] == 2


def test_capped_sites_of_a_weighted_mean_are_in_the_row_and_once_in_the_log(caplog):
    dirichlet = ("partition=dirichlet", "partition.alpha=0.5", PLAIN)
    with caplog.at_level("WARNING", "fed_a2v"):
        federation = Federation(*dirichlet, "aggregation.mode=weighted", "aggregation.max_site_share=0.25").start()
        rows = [federation.round(number) for number in (1, 2)]
    sites = [Site(federation.settings, federation.strategy.classes, number) for number in range(5)]
    sizes = {site.name: len(site.data.train) for site in sites}
    counted = dict(zip(sizes, cap_client_weights(list(sizes.values()), 0.25), strict=True))
    cut = [name for name in sizes if counted[name] < sizes[name]]
    assert 0 < len(cut) < 5
    assert [row["aggregation/capped_sites"] for row in rows] == [len(cut)] * 2
    (line,) = [record.getMessage() for record in caplog.records if "aggregation.max_site_share" in record.getMessage()]
    for name in cut:
        has, counts = sizes[name] / sum(sizes.values()), counted[name] / sum(counted.values())
        assert f"{name} ({has:.2f} of the clips, weight {counts:.2f})" in line
    free = Federation(*dirichlet, "aggregation.mode=weighted", "aggregation.max_site_share=1").start().round()
    assert free["aggregation/capped_sites"] == 0
    assert "aggregation/capped_sites" not in Federation(*dirichlet).start().round()


def test_a_round_without_a_server_step_and_a_skipped_one_count_no_steps_for_it():
    assert Federation(PLAIN).start().round()["server/optimiser_steps"] == 0
    skipped = Federation("aggregation.min_replies=5", tamper=lie(overwrite(0, with_nan))).start().round()
    assert not {"site/optimiser_steps", "server/optimiser_steps"} & set(skipped)


def test_closed_form_adapters_are_solved_for_by_the_server_and_left_alone_by_the_sites():
    federation = Federation("adapters=bilinear", "generator=none", "dataset.unseen=2").start()
    row = federation.round(1)
    solved = federation.weights
    assert row["accuracy"] > 0.3  # chance is 0.1
    assert row["unseen/calibration"] > 0
    assert row["server/adapter_finetuning_loss"] > 0
    assert {key for key in row if key.startswith("site/")} == {"site/optimiser_steps"}
    assert row["site/optimiser_steps"] == row["server/optimiser_steps"] == 0
    federation.train(2)
    for one, other in zip(solved, federation.weights, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


# Requests to the sites


ADAPTERS = "weights"
OUTPUTS = "weights and outputs"


@pytest.mark.parametrize(
    ("overrides", "sent"),
    [
        (("finetune.enabled=false",), ADAPTERS),
        (("finetune.enabled=false", "share=samples"), ADAPTERS),
        (("finetune.enabled=false", "aggregation.mode=weighted", "finetune.from_nodes_adapters=true"), ADAPTERS),
        (("finetune.enabled=false", "aggregation.mode=kd"), ADAPTERS),
        ((), ADAPTERS),
        (("finetune.from_nodes_adapters=true",), OUTPUTS),
        (("adapters=bilinear",), None),
        (("aggregation.mode=none",), None),
    ],
)
def test_a_round_sends_only_what_the_settings_need(overrides, sent):
    """Five sites with two classes each; the prototypes have come with the registration."""
    federation = Federation(*overrides).start()
    row = federation.round(1)
    assert (row["replies"], row["rejected"]) == (5, 0)
    weights = 5 * 2 * sum(weight.numel() for weight in federation.weights)
    outputs = 10 * 2 * federation.strategy.prompts.clip[0].numel()
    assert row["bytes_up"] == {ADAPTERS: weights, OUTPUTS: weights + outputs, None: 0}[sent]
    assert len(federation.strategy.step.bank.counts()) == 10


def test_federated_averaging_gets_one_mean_per_class_once_and_keeps_none():
    plain, tuned = (Federation(f"finetune.enabled={tuned}").start() for tuned in ("false", "true"))
    for federation, groups in ((plain, 1), (tuned, 3)):
        rows = federation.strategy.step.bank.rows()
        assert rows.labels.bincount().tolist() == [groups] * 10
        # In half precision each group's mean and a variance of the class, and each group's number of clips.
        told = 10 * (groups * (2 * 512 + 8) + 2 * 512)
        assert federation.round(1)["bytes_registration"] == told
    assert plain.strategy.step.bank.rows() is None
    assert tuned.strategy.step.bank.rows() is not None
    one, other = (federation.strategy.step.adapters for federation in (plain, tuned))
    torch.testing.assert_close(one.audio_mean, other.audio_mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.audio_std, other.audio_std, rtol=1e-3, atol=1e-3)


def test_a_site_that_comes_after_the_registration_needs_no_prototypes_for_an_average():
    federation = Federation(
        "finetune.enabled=false", "scenario=class_incremental", "scenario.steps=5", "scenario.rounds_per_step=1"
    ).start()
    for number in (1, 2):
        row = federation.round(number)
        assert (row["replies"], row["rejected"], row["failures"]) == (1, 0, 0)
    assert row["classes_known"] == 4
    assert row["bytes_up"] == 2 * sum(weight.numel() for weight in federation.weights)
