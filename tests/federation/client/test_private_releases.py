"""What leaves a site with privacy=dp: noisy sums, and nothing else that depends on its clips."""

import json
import shutil
from dataclasses import fields, replace

import pytest
import torch

pytest.importorskip("dp_accounting")

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.gaussian_release import GRID, seeded_normals
from fed_a2v.core.public_space import random_space
from fed_a2v.data.site import class_names
from fed_a2v.federation.client.local_training import Site
from fed_a2v.federation.client.message_handler import MessageHandler
from fed_a2v.federation.client.node_config import NodeConfig, NodeConfigError
from fed_a2v.federation.client.privacy_ledger import PrivacyLedger
from fed_a2v.federation.client.privacy_policy import PolicyViolationError, check_noise_sites, check_privacy
from fed_a2v.federation.client.private_releases import PrivateReleases
from fed_a2v.federation.factory import prompt_set, release_noise
from fed_a2v.federation.protocol import (
    InvalidReplyError,
    ReplySpec,
    TrainReply,
    decode_reply,
    encode_reply,
    encode_weights,
    join_arrays,
    pack_reply,
)
from fed_a2v.federation.protocol.instruction import InvalidInstructionError
from fed_a2v.federation.protocol.prompt_check import fingerprint
from tests.federation.helpers import SMALL
from tests.refusals import refused

COLUMNS = 8
PRIVATE = (
    *SMALL,
    "share=statistics",
    "projection=random",
    f"projection.columns={COLUMNS}",
    "privacy=dp",
    "site.epochs=0",
    "dataset.square_root=never",
)
# Fields of a reply that depend on the clips through the noisy sums alone.
NOISY = {"moments", "sums", "fingerprint"}


@pytest.fixture(scope="module")
def settings():
    settings = compose_settings(PRIVATE)
    torch.set_num_threads(settings.threads)
    return settings


def space():
    return random_space(512, COLUMNS, 0)


@pytest.fixture
def make_site(settings):
    def make(changed=False, ledger=None, sites=None, privacy=settings.privacy):
        def releases(name):
            def normals(key):
                return seeded_normals(torch.Generator().manual_seed(5))

            return PrivateReleases(privacy, release_noise(privacy, settings.secure_sums), normals, ledger, sites)

        site = Site(settings, class_names(settings.dataset), 0, releases=releases)
        if changed:
            train = site.data.train
            embeddings = train.embeddings.clone()
            embeddings[3] = -embeddings[3].flip(-1)
            site.data = replace(site.data, train=replace(train, embeddings=embeddings))
        return site

    return make


def loaded(site, centred):
    """The site's adapters in a public space, with weights of zero."""
    adapters = site.new_adapters()
    weights = [torch.zeros(weight.shape) for weight in adapters.weights()]
    width = adapters.audio_width
    adapters.adopt(weights, [torch.zeros(width), torch.ones(width), centred.matrix, centred.centre])
    return adapters


def replies(site):
    centre = site.centre(space())
    centred = space().centred(torch.full((COLUMNS,), 0.1))
    adapters = loaded(site, centred)
    return {"centre": centre, "sums": site.send_sums("sums", centred), "train": site.train(1, adapters, "")}


@pytest.mark.parametrize("task", ["centre", "sums", "train"])
def test_a_clip_changes_nothing_but_the_noisy_sums(make_site, task):
    one, other = (replies(make_site(changed))[task] for changed in (False, True))
    for field in fields(TrainReply):
        if field.name not in NOISY:
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    assert (one.fingerprint == other.fingerprint) == (task == "centre")
    (arrays, sent), (other_arrays, other_sent) = (pack_reply(each, "float32") for each in (one, other))
    assert [array.shape for array in arrays] == [array.shape for array in other_arrays]
    assert sent.keys() == other_sent.keys() == {"manifest"}
    manifest, other_manifest = (json.loads(each["manifest"]) for each in (sent, other_sent))
    assert {key for key in manifest if manifest[key] != other_manifest[key]} <= {"fingerprint"}
    assert (manifest["losses"], manifest["seconds"], manifest["weights"]) == ({}, 0.0, 0)
    if task == "centre":
        assert manifest["moments"]["variance"] == 0.0
        released = [reply.moments.mean.double() * len(make_site().data.train) for reply in (one, other)]
    else:
        assert torch.equal(one.sums.counts, other.sums.counts)
        released = [reply.sums.sums for reply in (one, other)]
        assert all(torch.equal((each / GRID).round() * GRID, each) for each in released)
    assert 0 < float((released[0] - released[1]).norm()) <= 2 + 1e-4, "with the same noise: one clip out, one in"


def test_leaving_out_a_clip_changes_the_sums_by_that_clip_alone(make_site, monkeypatch):
    # Rows are computed in float64, in which the last bits that differ with the number of rows are below the grid.
    monkeypatch.setattr("fed_a2v.federation.client.private_releases.noisy", lambda values, *_: values)
    site, plain = make_site(), space()
    train = site.data.train
    fewer = replace(train, embeddings=train.embeddings[1:], labels=train.labels[1:])
    total, rest = (site.releases.centre(clips, plain) for clips in (train, fewer))
    first = plain.rows(train.embeddings[:1].double())[0]
    assert float((total - rest - first).norm()) < GRID / 100


def test_the_noise_is_that_of_the_budget(make_site, settings):
    noisy, centred = make_site(), space().centred(torch.zeros(COLUMNS))
    exact = Site(settings, class_names(settings.dataset), 0)
    released, true = (site.send_sums("sums", centred).sums for site in (noisy, exact))
    noise = release_noise(settings.privacy, settings.secure_sums)
    present = true.counts > 0
    error = (released.sums - true.sums)[present]
    assert float(error.square().mean().sqrt()) == pytest.approx(noise.classes, rel=0.6)
    assert float((released.scatter - true.scatter).std()) == pytest.approx(noise.scatter, rel=0.6)
    assert not released.sums[~present].any()
    shared = make_site(sites=4).send_sums("sums", centred).sums
    error = shared.sums - true.sums
    assert float(error.square().mean().sqrt()) == pytest.approx(noise.classes / 2, rel=0.6)
    assert error.all(), "the noise of a class that this site lacks is missing in the total else"


def test_a_request_is_answered_once_and_again_with_the_same_release(make_site, tmp_path):
    ledger = PrivacyLedger(tmp_path, max_epsilon=8.0)
    first = replies(make_site(ledger=ledger))
    assert ledger.epsilon() == pytest.approx(8.0, rel=1e-6), "centre and sums; a round's sums are those of the start"
    assert first["train"].fingerprint == first["sums"].fingerprint
    second = replies(make_site(ledger=PrivacyLedger(tmp_path, max_epsilon=8.0)))
    assert torch.equal(first["centre"].moments.mean, second["centre"].moments.mean)
    assert first["sums"].fingerprint == second["sums"].fingerprint
    with refused(PolicyViolationError, "max-epsilon=8"):
        make_site(changed=True, ledger=ledger).centre(space())
    with refused(PolicyViolationError, "max-epsilon=8"):
        make_site(ledger=ledger).send_sums("sums", space().centred(torch.full((COLUMNS,), 0.2)))


def test_a_site_that_shares_noise_counts_the_noise_of_the_sum(make_site, tmp_path):
    replies(make_site(ledger=(ledger := PrivacyLedger(tmp_path)), sites=5))
    assert ledger.epsilon() == pytest.approx(8.0, rel=1e-6)


def test_a_site_as_a_whole_is_scaled_down(make_site, settings, tmp_path):
    privacy = settings.privacy.model_copy(update={"level": "site", "max_norm": 1.5})
    ledger = PrivacyLedger(tmp_path)
    reply = replies(make_site(ledger=ledger, privacy=privacy))["sums"]
    assert len(reply.sums.scatter) == 0
    assert ledger.epsilon() == pytest.approx(8.0, rel=1e-6)


def test_scores_are_counts_only(make_site):
    site = make_site()
    for score in site.evaluate(loaded(site, space().centred(torch.zeros(COLUMNS)))).classes.values():
        assert score.clips >= score.right_at_5 >= score.right_at_1 >= 0
        assert (score.cosine, score.loss) == (0.0, 0.0)


def spec(settings, reply, noise, **changes):
    return ReplySpec(
        site=reply.site,
        round_number=0,
        task=reply.task,
        weight_shapes=[],
        classes=class_names(settings.dataset),
        audio_shape=None,
        clip_shape=(1, 1),
        t5_shape=None,
        prototypes=False,
        sums=COLUMNS,
        space=space().digest,
        sums_noise=(noise.classes, noise.scatter),
        centre_noise=noise.centre,
        **changes,
    )


def test_the_server_reads_noisy_sums_and_no_longer_ones(make_site, settings):
    noise = release_noise(settings.privacy, settings.secure_sums)
    site = make_site()
    for task, limit in (("centre", "length"), ("sums", "longer")):
        reply = replies(site)[task]
        arrays, sent = encode_reply(reply, "float32")
        read = decode_reply(arrays, sent, reply.num_examples, spec(settings, reply, noise))
        assert read.statistics == reply.statistics
        arrays[0][:] += 100 * noise.centre
        with refused(InvalidReplyError, limit):
            decode_reply(arrays, sent, reply.num_examples, spec(settings, reply, noise))


def test_a_scatter_is_read_if_the_budget_has_a_part_for_it(make_site, settings):
    whole = settings.privacy
    means = whole.model_copy(update={"scatter": False})
    noises = [release_noise(privacy, settings.secure_sums) for privacy in (whole, means)]
    for sent_with in (0, 1):
        reply = replies(make_site(privacy=(whole, means)[sent_with]))["sums"]
        arrays, sent = encode_reply(reply, "float32")
        read = decode_reply(arrays, sent, reply.num_examples, spec(settings, reply, noises[sent_with]))
        assert read.sums.scatter.shape == reply.sums.scatter.shape
        with refused(InvalidReplyError, "scatter"):
            decode_reply(arrays, sent, reply.num_examples, spec(settings, reply, noises[1 - sent_with]))


def test_a_scatter_that_is_scaled_down_has_a_smaller_trace(make_site, settings):
    privacy = settings.privacy.model_copy(update={"level": "site", "max_norm": 0.5, "epsilon": 1000.0, "scatter": True})
    noise = release_noise(privacy, settings.secure_sums)
    reply = replies(make_site(privacy=privacy))["sums"]
    arrays, sent = encode_reply(reply, "float32")
    read = decode_reply(arrays, sent, reply.num_examples, spec(settings, reply, noise)).sums
    assert float(read.scatter_matrix().trace()) == pytest.approx(0.5, abs=0.3)


LEDGER = {"privacy-ledger": "/ledger"}


@pytest.mark.parametrize(
    ("overrides", "own", "task", "named"),
    [
        (["privacy=none"], {"max-epsilon": 2.0, **LEDGER}, "sums", ("max-epsilon=2", "privacy=none")),
        ([], LEDGER, "register", ("register",)),
        ([], LEDGER, "evaluate", ("allow-scores", "privacy.scores")),
        (["privacy.scores=false"], {"allow-scores": True, **LEDGER}, "evaluate", ("privacy.scores",)),
    ],
)
def test_what_a_deployed_site_refuses(overrides, own, task, named):
    with refused(PolicyViolationError, *named):
        check_privacy(compose_settings([*PRIVATE, *overrides]), NodeConfig(**own), True, task)


def test_what_a_deployed_site_needs_and_allows(settings):
    with refused(NodeConfigError, "privacy-ledger"):
        check_privacy(settings, NodeConfig(), True, "sums")
    with refused(NodeConfigError, "privacy-ledger", "max-epsilon"):
        NodeConfig(**{"cache-dir": "/c", "max-epsilon": 2.0}).check_deployed()
    check_privacy(settings, NodeConfig(**LEDGER), True, "sums")
    check_privacy(settings, NodeConfig(**LEDGER, **{"allow-scores": True}), True, "evaluate")
    check_privacy(settings, NodeConfig(), False, "evaluate")


def test_noise_is_shared_among_as_many_sites_as_the_owner_allows():
    check_noise_sites(NodeConfig(), 1)
    check_noise_sites(NodeConfig(**{"noise-sites": 5}), 5)
    with refused(PolicyViolationError, "noise-sites=5", 6):
        check_noise_sites(NodeConfig(**{"noise-sites": 5}), 6)


def test_a_deployed_site_does_not_take_its_noise_from_the_seed(settings):
    from fed_a2v.core.gaussian_release import secure_normals
    from fed_a2v.federation.protocol.instruction import Instruction

    text = settings.model_dump_json(by_alias=True)
    instruction = Instruction.model_validate(
        {"task": "sums", "round": 0, "number": 0, "site": "a", "settings": text, "classes": "[]", "prompts": ""}
    )
    handlers = [
        MessageHandler({"cache-dir": "/c", "privacy-ledger": "/ledger"}, deployed=True),
        MessageHandler({}, deployed=False),
    ]
    deployed, simulated = (handler._releases(instruction)("a")._normals("key") for handler in handlers)
    assert deployed is secure_normals
    assert torch.equal(simulated(1000, 9), handlers[1]._releases(instruction)("a")._normals("key")(1000, 9))


def test_a_deployed_site_from_message_to_message(settings, tmp_path):
    """Secure noise, one release for a request however often it comes, and the owner's limit over runs."""
    text = settings.model_dump_json(by_alias=True)
    prompts = fingerprint(prompt_set(settings, class_names(settings.dataset)))
    own = {
        "cache-dir": str(tmp_path / "cache"),
        "privacy-ledger": str(tmp_path / "privacy"),
        "max-epsilon": 8.0,
        "min-clips": 1,
        "ledger": str(tmp_path / "ledger.json"),
    }

    def answer(task, *arrays):
        config = {
            "task": task,
            "round": 0,
            "number": 0,
            "site": "site-000",
            "settings": text,
            "classes": json.dumps(class_names(settings.dataset)),
            "prompts": prompts,
        }
        work = MessageHandler(own, deployed=True)
        parameters = [join_arrays(encode_weights(arrays, "float32"))]
        if task == "evaluate":
            return work.evaluate(parameters, config | {"models": '["after"]'})
        parts, _, metrics = work.fit(parameters, config)
        return [part.tobytes() for part in parts], metrics

    centre, sums = space().matrix, torch.full((COLUMNS,), 0.1)
    first = answer("centre", centre), answer("sums", centre, sums)
    assert (answer("centre", centre), answer("sums", centre, sums)) == first
    assert PrivacyLedger(tmp_path / "privacy").epsilon() == pytest.approx(8.0, rel=1e-6)
    with refused(PolicyViolationError, "max-epsilon=8"):
        answer("sums", centre, 2 * sums)
    with refused(PolicyViolationError, "allow-scores"):
        answer("evaluate", centre)
    with refused(InvalidInstructionError, "register"):
        answer("register")
    assert not (tmp_path / "ledger.json").exists(), "it is for averages without noise"
    shutil.rmtree(tmp_path / "privacy")
    assert answer("centre", centre) != first[0], "the noise does not come from the seed"
    del own["max-epsilon"]
    answer("centre", centre)
    assert (tmp_path / "ledger.json").exists(), "without a limit of epsilon there may be hardly any noise"
