"""A node: messages and replies, without state in between."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.common import FitIns, GetPropertiesIns, ndarrays_to_parameters, parameters_to_ndarrays

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.core.statistics import AudioPrototypes
from fed_a2v.data.datasets.synth import write_wavs
from fed_a2v.data.errors import DataError
from fed_a2v.federation.client import message_handler as node_module
from fed_a2v.federation.client.client_app import client_fn
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.privacy_policy import PolicyViolationError
from fed_a2v.federation.client.time_limit import DeadlineError
from fed_a2v.federation.protocol import (
    Changes,
    EvalReplySpec,
    InvalidReplyError,
    ReplySpec,
    decode_reply,
    decode_scores,
    encode_weights,
    join_arrays,
    split_arrays,
)
from tests.federation.helpers import SITES, Federation
from tests.refusals import refused


@pytest.fixture(scope="module")
def federation():
    return Federation().start()


@pytest.fixture(scope="module")
def message(federation):
    """The message for one site, as the strategy writes it."""

    def make(task, number=1, held="", round_number=None):
        round_number = round_number if round_number is not None else (0 if task == "register" else 1)
        written = federation.strategy._message(task, round_number, SITES[number], number)
        if task == "evaluate":
            return written | {"models": json.dumps(["before", "after"])}
        return written | {"held": held}

    return make


@pytest.fixture(scope="module")
def weights(federation):
    return [join_arrays(federation.strategy._weights())]


def read(federation, fit_result, task, **changes):
    parts, clips, metrics = fit_result
    arrays = split_arrays(parts, 100)
    expected = federation.strategy._expected(SITES[1], 0 if task == "register" else 1, task)
    return decode_reply(arrays, metrics, clips, ReplySpec(**{**vars(expected), **changes}))


def test_asked_to_register_it_sends_prototypes_and_no_weights(federation, message):
    reply = read(federation, A2VClient({}).fit([], message("register")), "register")
    assert reply.weights == []
    assert (len(reply.statistics), reply.num_examples) == (2, 18)
    assert all(isinstance(prompt.audio, AudioPrototypes) and prompt.clip is None for prompt in reply.statistics)


def test_asked_to_train_it_sends_changed_weights_and_where_it_is_asked_its_mean_outputs(federation, message, weights):
    asked = message("train")
    settings = json.loads(asked["settings"])
    settings["finetune"]["from_nodes_adapters"] = True
    fitted = A2VClient({}).fit(weights, asked | {"settings": json.dumps(settings)})
    reply = read(federation, fitted, "train", outputs=True)
    sent = federation.strategy.step.adapters.weights()
    assert [w.shape for w in reply.weights] == [w.shape for w in sent]
    assert not torch.allclose(reply.weights[0].float(), sent[0], atol=1e-5)
    assert all(prompt.clip.shape == (1, 768) for prompt in reply.statistics)
    assert reply.losses["loss"] > 0
    with refused(InvalidReplyError, "clip"):
        read(federation, fitted, "train")


def test_prototypes_that_the_server_holds_are_not_sent_again(federation, message, weights):
    fingerprint = federation.strategy.step.bank.fingerprints[SITES[1]]
    again = read(federation, A2VClient({}).fit(weights, message("train", held=fingerprint)), "train")
    assert all(prompt.audio is None for prompt in again.statistics)
    anew = read(federation, A2VClient({}).fit(weights, message("train", held="other")), "train")
    assert all(prompt.audio is not None for prompt in anew.statistics)


def test_asked_to_evaluate_it_scores_each_model_on_its_own_test_clips(federation, message):
    weights = federation.strategy._weights()
    zeros = [np.zeros_like(array) for array in weights[:-2]]
    loss, clips, metrics = A2VClient({}).evaluate([join_arrays(zeros + weights)], message("evaluate"))
    scores = decode_scores(metrics, clips, EvalReplySpec(SITES[1], 1, federation.strategy.classes))
    assert clips == scores["before"].clips == scores["after"].clips == 6
    assert scores["before"].accuracy == 0, "weights of zero find nothing"
    assert scores["before"].loss != scores["after"].loss
    assert loss == pytest.approx(scores["after"].loss)


def test_only_the_clip_side_of_the_adapters_before_the_server_step_is_needed():
    federation = Federation("adapters=flux", "adapters.t5_width=64").start()
    asked = federation.strategy._message("evaluate", 1, SITES[1], 1) | {"models": json.dumps(["before", "after"])}
    weights = federation.strategy._weights()
    others = [np.roll(array, 1, axis=0) for array in weights[:-2]]
    clip_side = others[: len(federation.strategy._clip_side())]
    assert len(clip_side) < len(others)

    def scores(arrays):
        _, clips, metrics = A2VClient({}).evaluate([join_arrays(arrays)], asked)
        expected = EvalReplySpec(SITES[1], 1, federation.strategy.classes, t5_models=("after",))
        return decode_scores(metrics, clips, expected)

    whole, part, same = scores(others + weights), scores(clip_side + weights), scores(weights[:-2] + weights)
    for name, score in part["before"].classes.items():
        assert (score.right_at_1, score.cosine) == (
            whole["before"].classes[name].right_at_1,
            whole["before"].classes[name].cosine,
        )
    assert part["before"].cosine != same["before"].cosine
    assert part["after"] == whole["after"]
    assert same["after"].changes == Changes(better=0, worse=0)
    for name, score in part["after"].classes.items():
        assert score.model_copy(update={"changes": same["after"].classes[name].changes}) == same["after"].classes[name]


def test_one_node_may_act_for_several_sites(federation, message):
    node = A2VClient({})
    manifests = [json.loads(node.fit([], message("register", number))[2]["manifest"]) for number in (0, 3)]
    assert [manifest["site"] for manifest in manifests] == ["site-000", "site-003"]
    assert not {c["name"] for c in manifests[0]["classes"]} & {c["name"] for c in manifests[1]["classes"]}


def test_a_reply_does_not_depend_on_earlier_messages(message, weights):
    used = A2VClient({})
    used.fit([], message("register", 4))
    used.fit(weights, message("train", 1))
    first, second = (node.fit(weights, message("train", 1)) for node in (used, A2VClient({})))
    assert all(np.array_equal(a, b) for a, b in zip(first[0], second[0], strict=True))


def test_the_servers_arrays_stay_as_they_are(message, weights):
    copies = [array.copy() for array in weights]
    A2VClient({}).fit(weights, message("train"))
    assert all(np.array_equal(a, b) for a, b in zip(weights, copies, strict=True))


def test_replies_have_only_types_that_flower_can_send(message, weights):
    node = A2VClient({"site": "lab"})
    answers = [
        *node.fit(weights, message("train"))[1:],
        *node.evaluate(weights, message("evaluate") | {"models": json.dumps(["after"])}),
        node.get_properties({}),
    ]
    for answer in answers:
        for value in answer.values() if isinstance(answer, dict) else [answer]:
            assert type(value) in (bool, int, float, str, bytes)


@pytest.mark.parametrize(
    ("node_config", "properties"),
    [({}, {}), ({"site": "lab"}, {"site": "lab"}), ({"partition-id": 3}, {"site": "3"})],
)
def test_it_gives_the_name_that_its_operator_gave_it(node_config, properties):
    assert A2VClient(node_config).get_properties({}) == properties


def test_its_own_device_wins_over_the_settings(message, weights):
    with refused(ConfigError, "device=xpu:99"):
        A2VClient({"device": "xpu:99"}).fit(weights, message("train"))


def test_its_own_cache_wins_over_the_settings(message, tmp_path):
    asked = message("register")
    few = json.loads(asked["settings"])
    few["dataset"]["clips_per_class"] = 4
    A2VClient({"cache-dir": str(tmp_path / "own")}).fit([], asked | {"settings": json.dumps(few)})
    assert list((tmp_path / "own").rglob("*"))


def test_its_own_kind_of_data_wins_over_the_settings(message, tmp_path):
    write_wavs(tmp_path / "sounds", clips_per_class=8, seed=1)
    asked = message("register")
    settings = json.loads(asked["settings"])
    settings["partition"]["kind"] = "own"
    node = A2VClient({"dataset": "esc50", "data-dir": str(tmp_path / "sounds")})
    arrays, clips, metrics = node.fit([], asked | {"settings": json.dumps(settings)})
    assert clips == 60
    assert len(json.loads(metrics["manifest"])["classes"]) == 10


@pytest.mark.parametrize("task", ["register", "train"])
@pytest.mark.parametrize("share", ["share=prototypes", "share=samples"])
def test_its_owner_may_refuse_averages_of_few_clips(message, weights, task, share):
    asked = message(task)
    asked["settings"] = compose_settings(["experiment=quick", share, "share.min_clips=3"]).model_dump_json()
    fewest = 1 if share == "share=samples" else 3
    with refused(PolicyViolationError, "min-clips", 4, share, "share.min_clips=3", fewest):
        A2VClient({"min-clips": 4}).fit(weights, asked)


def test_averages_of_as_many_clips_as_its_owner_wants_are_given(message):
    assert A2VClient({"min-clips": 3}).fit([], message("register"))[1] > 0


def test_a_kind_of_data_that_there_is_not_is_refused_by_name(message):
    with refused(ConfigError, "dataset = 'esc51'", "esc50"):
        A2VClient({"dataset": "esc51"}).fit([], message("register"))


@pytest.mark.parametrize("task", ["register", "evaluate"])
def test_a_site_that_hangs_answers_with_an_error_in_time(message, weights, monkeypatch, task):
    stuck = threading.Event()
    monkeypatch.setattr(node_module, "Site", lambda *words, **more: stuck.wait())
    asked = message(task)
    settings = json.loads(asked["settings"])
    settings["federation"]["site_timeout"] = 0.2
    node = A2VClient({})
    with refused(DeadlineError, "site-001", "federation.site_timeout=0.2"):
        (node.evaluate if task == "evaluate" else node.fit)(weights, asked | {"settings": json.dumps(settings)})
    stuck.set()
    monkeypatch.undo()
    assert node.fit([], message("register"))[1] == 18, "and works again when it can"


def test_a_folder_of_its_own_makes_no_sense_with_the_built_in_sounds(message, tmp_path):
    with refused(DataError, "dataset=synth", "data-dir", tmp_path, "dataset=esc50"):
        A2VClient({"data-dir": str(tmp_path)}).fit([], message("register"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda arrays: arrays[1:], lambda arrays: ("weights", len(arrays) - 1, len(arrays))),
        (lambda arrays: [*arrays, arrays[0]], lambda arrays: ("arrays", len(arrays))),
        (lambda arrays: [arrays[0][:, :3], *arrays[1:]], lambda arrays: ("weight 0", arrays[0][:, :3].shape)),
        (lambda arrays: [arrays[0] * np.nan, *arrays[1:]], lambda arrays: ("weight 0", "nan")),
    ],
)
def test_weights_that_do_not_fit_are_refused(federation, message, change, named):
    arrays = federation.strategy._weights()
    with refused(InvalidReplyError, *named(arrays)):
        A2VClient({}).fit([join_arrays(change(arrays))], message("train"))


def test_however_many_arrays_it_sends_flower_moves_no_more_than_two(message, weights):
    """Flower pays for each array of a message, whatever its size."""
    assert [len(A2VClient({}).fit(weights, message(task))[0]) for task in ("register", "train")] == [1, 2]


def test_classes_that_its_data_has_not_are_refused(message):
    foreign = message("register") | {"classes": json.dumps(["banjo"])}
    with refused(DataError, "banjo"):
        A2VClient({}).fit([], foreign)


def test_flowers_entry_point_hands_over_what_only_the_node_knows():
    client = client_fn(SimpleNamespace(node_config={"site": "lab", "partition-id": 0}))
    assert client.get_properties(GetPropertiesIns({})).properties == {"site": "lab"}


def test_through_flowers_own_packing_the_reply_stays_the_same(federation, message, weights):
    wrapped = A2VClient({}).to_client().fit(FitIns(ndarrays_to_parameters(weights), message("train")))
    plain = A2VClient({}).fit(weights, message("train"))
    assert all(np.array_equal(a, b) for a, b in zip(parameters_to_ndarrays(wrapped.parameters), plain[0], strict=True))
    assert wrapped.num_examples == plain[1]


def test_standardisation_travels_in_full_precision(federation, weights):
    adapters = federation.strategy.step.adapters
    mean, std = encode_weights([adapters.audio_mean, adapters.audio_std], "float32")
    arrays = split_arrays(weights, 100)
    assert np.array_equal(arrays[-2], mean)
    assert np.array_equal(arrays[-1], std)
    assert arrays[0].dtype == np.float16
