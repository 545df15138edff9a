"""Sites that train together have the weights and losses that each has alone."""

import copy

import pytest
import torch

from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.stacked_adapters import STACK_BYTES, StackedAdapters, sites_at_once
from fed_a2v.core.training import AdamWSettings, TrainingTask, train_epochs

OPTIMISER = AdamWSettings(batch_size=8, weight_decay=0.01)
CLASSES = tuple("abcdef")


def of_sites(sizes, tokens=1, clip_tokens=1, t5_tokens=0, more_steps=0, unseen=False, epochs=2):
    """The loss, and the tasks of sites with these numbers of clips."""
    torch.manual_seed(0)
    t5 = torch.randn(len(CLASSES), t5_tokens, 32) if t5_tokens else None
    prompts = ClassPrompts(CLASSES, torch.randn(len(CLASSES), clip_tokens, 24), t5)
    adapters = Adapters(40, prompts, 32)
    adapters.set_standardisation(torch.randn(40), torch.rand(40) + 0.5)
    with torch.no_grad():  # biases and the scales of the layer norms differ from their simple initial values
        for parameter in adapters.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    mask = torch.tensor([unseen and name == "f" for name in CLASSES])
    loss = AdapterLoss(prompts, AdapterLossWeights(mse=1.0, cosine=0.5, contrastive=2.0), mask)
    tasks = [
        TrainingTask(
            copy.deepcopy(adapters),
            torch.randn(size, tokens, 40),
            torch.randint(0, 5, (size,)),
            epochs=epochs,
            random=torch.Generator().manual_seed(number),
            more_steps=more_steps,
        )
        for number, size in enumerate(sizes)
    ]
    return loss, tasks


@pytest.mark.parametrize(
    "case",
    [
        {"sizes": [20]},
        {"sizes": [9, 33, 7]},
        {"sizes": [9, 20], "tokens": 3, "clip_tokens": 2},
        {"sizes": [9, 20], "t5_tokens": 4},
        {"sizes": [20, 9], "t5_tokens": 4, "tokens": 3, "proximal": 0.5},
        {"sizes": [9, 20], "more_steps": 3, "unseen": True},
        {"sizes": [20, 30], "more_steps": 2, "epochs": 0},
    ],
    ids=["one site", "unequal sites", "tokens", "T5", "proximal", "more steps, unseen class", "no epoch"],
)
def test_each_site_has_the_weights_and_losses_that_it_has_alone(case):
    case = dict(case)
    proximal = case.pop("proximal", 0.0)
    loss, tasks = of_sites(**case)
    _, alone = of_sites(**case)
    start = [weight.clone() for weight in alone[0].adapters.weights()]
    wanted = [
        train_epochs(
            *(task.adapters, task.audio, task.labels, loss, task.epochs, OPTIMISER, task.random),
            *(proximal, task.more_steps),
        )
        for task in alone
    ]
    found = StackedAdapters(tasks[0].adapters, len(tasks)).train(tasks, loss, OPTIMISER, proximal)
    for one, other in zip(tasks, alone, strict=True):
        for weight, expected, before in zip(one.adapters.weights(), other.adapters.weights(), start, strict=True):
            assert float((weight - expected).abs().max()) < 1e-5
            assert not torch.equal(weight, before)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_buffers_of_a_group_serve_the_next_one():
    loss, tasks = of_sites([9, 20, 12])
    _, again = of_sites([9, 20, 12])
    stack = StackedAdapters(tasks[0].adapters, 3)
    stack.train(tasks[:2], loss, OPTIMISER)
    stack.train(tasks[2:], loss, OPTIMISER)
    StackedAdapters(again[0].adapters, 1).train(again[2:], loss, OPTIMISER)
    assert all(
        torch.equal(one, other)
        for one, other in zip(tasks[2].adapters.weights(), again[2].adapters.weights(), strict=True)
    )


def test_memory_of_a_stack_is_bounded_and_one_site_always_trains():
    _, (task,) = of_sites([8])
    weights = sum(weight.numel() for weight in task.adapters.weights())
    few, many = (sites_at_once(task.adapters, rows) for rows in (1, 1000))
    assert 16 * weights * few <= STACK_BYTES["cpu"]
    outputs = task.adapters.clip.centre.numel()
    assert many < few
    assert many * 1000 * 4 * outputs <= STACK_BYTES["cpu"]
    with torch.device("meta"):
        large = Adapters(40_000, ClassPrompts(("a", "b"), torch.zeros(2, 1, 8), None), 4096)
    assert sites_at_once(large, 32) == 1
