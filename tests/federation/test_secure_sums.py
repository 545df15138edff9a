"""Secure aggregation of the sums by Flower's protocol, with the whole federation in one process."""

import json
import re

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from flwr.common import bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.server.server import fit_clients
from flwr.supercore.task_identity import TaskIdentity

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.sum_bank import TOTAL
from fed_a2v.errors import ConfigError
from fed_a2v.federation.protocol import FederationError
from fed_a2v.federation.simulation import run_in_process
from tests.federation.helpers import SITES, Finished, assert_same
from tests.federation.secure import SECURE, LocalGrid, SecureFederation
from tests.refusals import refused

NODES = [101, 102, 103, 104]
# Of the centre that sites without secure aggregation send in half precision, on sums of up to 27 clips.
PLAIN_ROUNDING = 5e-3
STAGES = ("setup", "share_keys", "collect_masked_vectors", "unmask")


@pytest.fixture(autouse=True)
def _flower_process(monkeypatch):
    """Messages name the run and the node of their process."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    """Finished runs in one process, by the setting of secure_sums."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {name: compose_settings([*SECURE, f"secure_sums={name}", "rounds=2"]) for name in ("secagg", "none")}
    return {name: Finished(folder / name, run_in_process(each, folder / name)) for name, each in settings.items()}


@pytest.fixture(scope="module")
def masked():
    """A federation that has registered by SecAgg+."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        return SecureFederation().start()


def lose(*lost):
    """Loses messages of (stage, node), in the second exchange alone: that of the class sums."""
    seen = []

    def disturb(stage, node, message):
        del message
        seen.append((stage, node))
        return not ((stage, node) in lost and seen.count((stage, node)) == 2)

    return disturb


def records(federation, stage):
    """What nodes replied in a stage: (node, record of secure aggregation)."""
    return [
        (node, content.config_records[RECORD_KEY_CONFIGS])
        for at, node, content in federation.grid.replies
        if at == stage
    ]


# Results


def test_masks_leave_the_bits_of_the_total_in_one_process(masked, in_process):
    saved = in_process["secagg"].state["sums"]
    assert_same(masked.bank.state_dict(), saved)
    assert list(saved["sites"]) == [TOTAL]
    assert saved["within"] == SITES[:4]


def test_the_total_is_that_of_plain_sums_within_the_quantisation(masked, in_process):
    plain = in_process["none"].state["sums"]["sites"]
    assert list(plain) == SITES[:4]
    for part in ("counts", "sums", "scatter"):
        exact = sum(sums[part].double() for sums in plain.values())
        assert torch.allclose(getattr(masked.bank.total, part).double(), exact, atol=PLAIN_ROUNDING)
    left, right = (in_process[name].rows[-1] for name in ("secagg", "none"))
    assert left["test_clips"] == right["test_clips"]
    assert abs(left["accuracy"] - right["accuracy"]) <= 1 / left["test_clips"]


def test_runs_repeat(in_process, tmp_path):
    again = Finished(tmp_path, run_in_process(compose_settings([*SECURE, "rounds=2"]), tmp_path))
    assert_same(again.state["sums"], in_process["secagg"].state["sums"])


# What leaves a site


def test_no_site_sends_an_array_in_the_registration(masked):
    replies = masked.grid.replies
    assert [stage for stage, node, _ in replies if node == 101] == ["counts", *STAGES, *STAGES]
    for stage, _, content in replies:
        assert not any(len(record) and list(record) != ["_empty"] for record in content.array_records.values())
        if "fitres.metrics" in content.config_records:
            manifest = json.loads(content.config_records["fitres.metrics"]["manifest"])
            assert (manifest["sums"], manifest["moments"]) == (None, None), stage
            assert manifest["task"] in ("counts", "masked_centre", "masked_sums")


def test_a_masked_vector_says_nothing_and_all_together_the_total(masked):
    vectors = [
        [bytes_to_ndarray(part) for part in record["masked_params"]]
        for _, record in records(masked, "collect_masked_vectors")[4:]
    ]
    sizes = {(arrays[0].shape, arrays[1].shape, arrays[1].dtype.name) for arrays in vectors}
    assert sizes == {((1,), (10 * 8 + 36,), "uint32")}
    # Most entries of a site's sums are near 0, which is quantised to half of 2**22.
    for _, masked_vector in vectors:
        assert np.mean(masked_vector < 2**22) < 0.1
    assert len({arrays[1].tobytes() for arrays in vectors}) == 4


def test_no_later_message_has_sums_even_if_the_clips_have_changed(masked):
    number, strategy = len(masked.grid.replies), masked.strategy
    asked = strategy.configure_fit(1, None, masked.manager)
    assert {request.config["held"] for _, request in asked} == {"nothing"}
    for _, request in asked:
        request.config["held"] = "something else"
    results, failures = fit_clients(asked, 1, None, 1)
    assert (len(results), failures) == (4, [])
    for stage, _, content in masked.grid.replies[number:]:
        manifest = json.loads(content.config_records["fitres.metrics"]["manifest"])
        assert (stage, manifest["sums"], manifest["weights"]) == ("train", None, 0)
        assert all(list(record) in ([], ["_empty"]) for record in content.array_records.values())


# Sites that are lost


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_that_is_lost_leaves_the_total_of_the_others(stage, in_process):
    federation = SecureFederation("secure_sums.threshold=0.7", disturb=lose((stage, 103))).start()
    stayed = [site for site in SITES[:4] if site != SITES[2] or stage == "unmask"]
    plain = in_process["none"].state["sums"]["sites"]
    assert list(federation.bank.within) == stayed
    assert torch.equal(federation.bank.total.counts, sum(plain[site]["counts"] for site in stayed))
    exact = sum(plain[site]["sums"].double() for site in stayed)
    assert torch.allclose(federation.bank.total.sums, exact, atol=PLAIN_ROUNDING)
    assert {site for site, _ in federation.strategy.step.bank} == {*stayed}


def test_two_sites_may_be_lost_at_different_stages():
    federation = SecureFederation(
        "partition.sites=6",
        "secure_sums.threshold=0.6",
        nodes=6,
        disturb=lose(("setup", 102), ("collect_masked_vectors", 105)),
    ).start()
    assert list(federation.bank.within) == ["site-000", "site-002", "site-003", "site-005"]
    # The entries of a wrong total are anywhere in the range of the quantisation.
    assert (federation.bank.total.sums.norm(dim=1) <= federation.bank.total.counts + 1e-3).all()
    assert abs(federation.bank.total.scatter_matrix().trace() - federation.bank.total.counts.sum()) < 1e-2


@pytest.mark.parametrize("stage", STAGES)
def test_fewer_than_the_threshold_end_the_run(stage):
    federation = SecureFederation(disturb=lose((stage, 103)))
    with refused(FederationError, "3 of 4 sites", "secure_sums.threshold=1", "needs 4", "federation.round_timeout"):
        federation.start()


def test_several_sites_on_a_node_need_more_nodes():
    with refused(FederationError, "4 sites", "num-supernodes=4"):
        SecureFederation(nodes=3).start()


# Sites that send something else


def replaced(key, value, stage="collect_masked_vectors", node=103):
    """Replaces an entry of a node's replies."""

    def answer(at, sender, reply):
        if (at, sender) == (stage, node):
            reply.content.config_records[RECORD_KEY_CONFIGS][key] = value

    return answer


HUGE = [ndarray_to_bytes(np.zeros(1, "uint32")), ndarray_to_bytes(np.zeros((8, 1), "uint32"))]


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("setup", "pk1", 1),
        ("setup", "pk2", bytes(5000)),
        ("share_keys", "dsts", [101, 101, 104]),
        ("share_keys", "dsts", [101, 102, 999]),
        ("share_keys", "ctxts", [b""]),
        ("collect_masked_vectors", "masked_params", HUGE),
        ("collect_masked_vectors", "masked_params", [bytes(10**6)]),
        ("collect_masked_vectors", "masked_params", [b"nothing", b"nothing"]),
        ("collect_masked_vectors", "masked_params", "nothing"),
        ("unmask", "nids", [101, 101, 102, 104]),
        ("unmask", "nids", [101, 102, 104, 999]),
        ("unmask", "shares", [bytes(5000)] * 4),
    ],
)
def test_a_wrong_reply_is_dropped_and_its_site_is_lost(stage, key, value):
    federation = SecureFederation("secure_sums.threshold=0.7", answer=replaced(key, value, stage))
    federation.start()
    stayed = {*SITES[:4]} - ({SITES[2]} if stage != "unmask" else set())
    assert {*federation.bank.within} == stayed
    assert federation.strategy._registration["rejected"] >= 1


@pytest.mark.parametrize("change", [{"site": "site-001"}, {"classes": []}, {"task": "sums"}, {"weights": 3}])
def test_a_manifest_of_another_site_or_with_other_clips_is_dropped(change):
    def answer(stage, node, reply):
        if (stage, node) == ("collect_masked_vectors", 103):
            metrics = reply.content.config_records["fitres.metrics"]
            metrics["manifest"] = json.dumps(json.loads(metrics["manifest"]) | change)

    federation = SecureFederation("secure_sums.threshold=0.7", answer=answer).start()
    assert SITES[2] not in federation.bank.within
    assert len(federation.bank.within) == 3


# A server that does something else


def test_sums_do_not_leave_without_a_mask(masked):
    asked = masked.grid.sent
    plain = next(content for stage, node, content in asked if (stage, node) == ("collect_masked_vectors", 101))
    config = plain.config_records["fitins.config"]

    def reason(task, **records):
        grid = LocalGrid([101])
        changed = {"fitins.config": ConfigRecord({**config, "task": task}), **records}
        content = type(plain)({"fitins.parameters": plain.array_records["fitins.parameters"], **changed})
        return reply_to(grid, content)

    assert "only through secure aggregation" in reason("masked_sums")
    assert "secure_sums=secagg" in reason("sums")
    assert "secure_sums=secagg" in reason("centre")
    assert "share=statistics" in reason("register")


def reply_to(grid, content):
    """The reason with which a node refuses a message."""
    from flwr.app import Message

    (reply,) = grid.send_and_receive([Message(content, 101, "train", group_id="0")])
    assert reply.has_error()
    return reply.error.reason


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("setup", {"threshold": 2}),
        ("setup", {"threshold": 9}),
        ("setup", {"sample_num": 2, "share_num": 2}),
        ("setup", {"mod_range": 2**20}),
        ("setup", {"clipping_range": 1e-9}),
        ("setup", {"max_weight": 0.0}),
        ("setup", {"target_range": 2**30}),
        ("setup", {"more": 1}),
        ("share_keys", {"stage": "unmask"}),
        ("share_keys", {"one": [b"", b""]}),
        ("share_keys", {"105": [b"a", b"b"]}),
        ("collect_masked_vectors", {"srcs": [102, 102, 104]}),
        ("collect_masked_vectors", {"srcs": [102, 103, 999]}),
        ("unmask", {"dead_nids": [103]}),  # both secrets of one site
        ("unmask", {"active_nids": [101, 101, 102, 103, 104]}),
        ("unmask", {"active_nids": [999, 101, 102, 103]}),
        ("unmask", {"active_nids": [101], "dead_nids": []}),
    ],
)
def test_a_site_refuses_what_an_honest_server_does_not_send(stage, change):
    def disturb(at, node, message):
        if (at, node) == (stage, 101):
            for key, value in change.items():
                message.content.config_records[RECORD_KEY_CONFIGS][key] = value

    federation = SecureFederation("secure_sums.threshold=0.7", disturb=disturb)
    if stage == "unmask":  # its vector is there already, and enough others remain to unmask it
        federation.start()
    else:
        federation.start()
        assert SITES[0] not in federation.bank.within
    (reason, *_) = federation.strategy._registration["failure_reasons"]
    assert re.match(r"SecureSumsError: secure aggregation: [\w ,.:()]+$", reason), reason


def test_a_site_takes_part_in_one_total_of_a_task(masked):
    with refused(FederationError, "has already taken part in masked_centre"):
        SecureFederation(grid=masked.grid).start()


def test_owners_set_the_smallest_number_of_sites():
    own = {101: {"require-secure-sums": True, "min-sites": 4}}
    assert len(SecureFederation(node_configs=own).start().bank.within) == 4
    federation = SecureFederation("secure_sums.threshold=0.7", node_configs=own).start()
    assert SITES[0] not in federation.bank.within
    assert "min-sites=4" in federation.strategy._registration["failure_reasons"][0]


PRIVATE = ("privacy=dp", "privacy.epsilon=8", "site.epochs=0", "dataset.square_root=never")


def test_the_sites_share_the_privacy_noise_of_the_total(tmp_path):
    pytest.importorskip("dp_accounting")
    federation = SecureFederation(*PRIVATE).start()
    assert federation.strategy.privacy.epsilon == pytest.approx(8.0, rel=1e-6)
    settings = compose_settings([*SECURE, *PRIVATE, "rounds=1"])
    here = Finished(tmp_path, run_in_process(settings, tmp_path))
    assert_same(federation.bank.state_dict(), here.state["sums"])
    assert here.results["privacy/epsilon"] == pytest.approx(8.0, rel=1e-6)


def test_noise_is_not_shared_among_more_sites_than_the_threshold_keeps():
    def disturb(stage, node, message):
        if (stage, node) == ("collect_masked_vectors", 101):
            message.content.config_records["fitins.config"]["sites"] = 4

    federation = SecureFederation("secure_sums.threshold=0.7", disturb=disturb).start()
    assert SITES[0] not in federation.bank.within
    assert "shared by 4 sites" in federation.strategy._registration["failure_reasons"][0]


def test_scales_that_would_clip_are_refused():
    def disturb(stage, node, message):
        if (stage, node) == ("collect_masked_vectors", 101):
            # The last array of the message are the scales.
            (array,) = message.content.array_records["fitins.parameters"].values()
            array.data = array.data[:-4] + np.float32(1e-3).tobytes()

    federation = SecureFederation("secure_sums.threshold=0.7", disturb=disturb).start()
    assert SITES[0] not in federation.bank.within
    assert "InvalidReplyError" in federation.strategy._registration["failure_reasons"][0]


# Settings


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["partition.sites=2"], "secure_sums=secagg"),
        (["secure_sums.bits=30"], "secure_sums.bits=30"),
        (["aggregation.max_age=3"], "aggregation.max_age=3"),
        (["scenario=class_incremental", "scenario.steps=2"], "scenario=class_incremental"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, named):
    with refused(ConfigError, named):
        compose_settings([*SECURE, *overrides])


def test_numbers_of_shares_and_of_sites_that_must_stay():
    settings = compose_settings([*SECURE]).secure_sums
    assert [settings.shares(sites) for sites in (3, 50, 51, 100, 1000)] == [3, 50, 47, 49, 51]
    assert [settings.needed(sites) for sites in (3, 50)] == [3, 50]
    half = settings.model_copy(update={"threshold": 0.51})
    assert [half.needed(sites) for sites in (3, 4, 10, 50)] == [2, 3, 6, 26]
    for sites in (3, 50, 1000, 1023, 1024):
        with refused(ValueError, "secure_sums.bits=30") as caught:
            settings.model_copy(update={"bits": 30}).check_sites(sites + 1)
        bits = int(re.search(r"lower it to (\d+)", str(caught.value))[1])
        settings.model_copy(update={"bits": bits}).check_sites(sites + 1)
        with pytest.raises(ValueError, match=f"bits={bits + 1}"):
            settings.model_copy(update={"bits": bits + 1}).check_sites(sites + 1)
