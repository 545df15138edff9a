"""A site whose class prompts differ from the server's refuses to work."""

import json

import numpy as np
import pytest
import torch

from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.encoders.targets_file import save_targets
from fed_a2v.encoders.text import TargetsError
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.protocol.prompt_check import check_same_prompts, fingerprint
from tests.federation.helpers import SITES, Federation
from tests.refusals import refused

NAMES = ("dog", "cat", "rain", "wind")


def prompts(change=0.0, rows=(0, 1, 2, 3), with_t5=True):
    """Crowded prompts like CLIP's; those of `rows` are changed by a share of their length."""
    random = torch.Generator().manual_seed(0)

    def side(shape):
        made = torch.randn(1, *shape, generator=random) + 0.5 * torch.randn(4, *shape, generator=random)
        noise = torch.randn(made.shape, generator=random)
        for row in rows:
            made[row] += change * made[row].norm() / noise[row].norm() * noise[row]
        return made

    return ClassPrompts(NAMES, side((1, 64)), side((17, 96)) if with_t5 else None)


def test_the_same_prompts_agree_and_so_do_those_of_another_processor():
    for with_t5 in (True, False):
        servers = fingerprint(prompts(with_t5=with_t5))
        check_same_prompts(prompts(with_t5=with_t5), servers)
        check_same_prompts(prompts(change=0.01, with_t5=with_t5), servers)


def test_half_precision_agrees():
    exact = prompts()
    for dtype in (torch.float16, torch.bfloat16):
        half = ClassPrompts(NAMES, exact.clip.to(dtype).float(), exact.t5.to(dtype).float())
        check_same_prompts(half, fingerprint(exact))


@pytest.mark.parametrize("change", [0.2, 0.5, 2.0])
def test_other_prompts_are_refused_and_the_classes_named(change):
    servers = fingerprint(prompts())
    with refused(TargetsError, "CLIP", "cat", "%", "fed-a2v targets"):
        check_same_prompts(prompts(change, rows=(1,)), servers)
    with refused(TargetsError, "CLIP", "dog, cat, rain", "fed-a2v targets"):
        check_same_prompts(prompts(change), servers)


def test_t5_alone_may_differ():
    mine = prompts()
    with refused(TargetsError, "T5", "cat"):
        check_same_prompts(mine._replace(t5=prompts(0.5, rows=(1,)).t5), fingerprint(mine))


def test_two_classes_that_changed_places_are_found():
    mine = prompts()
    swapped = mine._replace(clip=mine.clip[[1, 0, 2, 3]])
    with refused(TargetsError, "CLIP", "dog, cat"):
        check_same_prompts(swapped, fingerprint(mine))


def test_the_fingerprint_is_short():
    assert len(fingerprint(prompts())) / len(NAMES) < 180


def test_a_site_with_other_prompts_never_enters_the_average(tmp_path, caplog):
    """Site 2 reads its prompts from a file; the file is that of another text model."""
    other = tmp_path / "other.npz"
    names = prompt_set(Federation().settings, Federation().strategy.classes).names
    np.savez(other, category=np.array(names), vectors=np.random.default_rng(0).normal(size=(len(names), 768)))
    configs = [{}, {}, {"targets": str(other)}, {}, {}]
    federation = Federation("adapters.clip_width=768", node_configs=configs).start()
    row = federation.round()
    assert row["failures"] > 0
    assert all("OtherPromptsError" in reason and "CLIP" in reason for reason in row["failure_reasons"])
    assert SITES[2] not in federation.strategy.step.bank.entries
    assert row["replies"] == 4
    assert "OtherPromptsError" in caplog.text

    honest = Federation("adapters.clip_width=768", node_configs=[{}] * 5)
    honest.nodes[2].tamper = lambda task, site, work: (_ for _ in ()).throw(RuntimeError("silent"))
    honest.start().round()
    assert all(torch.equal(a, b) for a, b in zip(federation.weights, honest.weights, strict=True))


def test_a_site_with_the_servers_file_takes_part_without_any_text_model(tmp_path):
    plain = Federation()
    save_targets(plain.strategy.prompts, tmp_path / "t.npz")
    federation = Federation(node_configs=[{"targets": str(tmp_path / "t.npz")}] * 5).start()
    assert federation.round()["failures"] == 0
    plain.start().round()
    assert all(torch.equal(a, b) for a, b in zip(federation.weights, plain.weights, strict=True))


def test_every_message_contains_the_fingerprint():
    federation = Federation().start()
    federation.round()
    sent = {message["prompts"] for node in federation.nodes for message in node.messages}
    assert sent == {fingerprint(federation.strategy.prompts)}
    assert {message["task"] for message in federation.nodes[0].messages} == {"register", "train", "evaluate"}
    assert json.loads(sent.pop()).keys() == {"clip"}
