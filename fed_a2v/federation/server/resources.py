"""What an experiment needs: bytes on the wire, memory, and room on the disk, told before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from fed_a2v.config.schema import Settings
from fed_a2v.core.server_step import ServerStep

# An optimiser of the Adam family keeps two numbers for each weight that it trains.
ADAM = 3
# For what a generator keeps of its classes, and for the file's own tables.
MARGIN = 1.2
# Python, torch, Flower and W&B before any work.
PROGRAM = 500_000_000


@dataclass(frozen=True)
class ResourceEstimate:
    """What a federation takes, in bytes.

    Attributes:
        down: to each site in a round: the adapters, for training and for evaluation.
        up: from each site in a round, as far as they are needed: the adapters, and its mean outputs of each class.
        prototypes: from each site once, and where they are needed again when its data change.
        memory: of the server at its peak, the program itself included.
        disk: of the saved states.
    """

    down: int
    up: int
    prototypes: int
    memory: int
    disk: int


def resource_estimate(settings: Settings, step: ServerStep, audio_shape: tuple[int, int]) -> ResourceEstimate:
    """What an experiment takes, if every site has as many classes as its partition says, or else all.

    Args:
        settings: of the experiment.
        step: made from them.
        audio_shape: (S, Da) of the embeddings.
    """
    item = 2 if settings.share.dtype == "float16" else 4
    sites, classes = settings.partition.sites, len(step.prompts.names)
    own = classes
    if settings.partition.kind == "classes":
        own = settings.partition.classes_per_site or -(-classes // sites)
    adapters = item * sum(weight.numel() for weight in step.adapters.weights())
    before = item * sum(weight.numel() for weight in step.adapters.clip_weights())
    outputs = item * own * _output(step) if settings.needs_outputs else 0
    groups = settings.share.prototypes if settings.needs_prototypes and settings.share.kind != "mean" else 1
    rows = own * (groups + {"groups": groups, "class": 1, "none": 0}[settings.share.variance])
    prototypes = item * rows * audio_shape[0] * audio_shape[1]
    up = (adapters if settings.needs_weights else 0) + outputs
    trained = 4 * sum(weight.numel() for weight in step.adapters.weights())
    generator = 0 if step.generator is None else _bytes(step.generator.parameters())
    asked = max(1, round(settings.federation.sites_per_round * sites))
    state = round(MARGIN * (trained + ADAM * generator + sites * (prototypes + outputs)))
    checkpoint = settings.checkpoint
    return ResourceEstimate(
        down=adapters + adapters + (before if settings.federation.evaluate_before else 0),
        up=up,
        prototypes=prototypes,
        # Adam's numbers and the gradient of what is trained; the replies that wait; the bank.
        memory=PROGRAM + (ADAM + 2) * (trained + generator) + asked * up + sites * (prototypes + outputs),
        disk=state * (checkpoint.keep + checkpoint.keep_best),
    )


def state_bytes(step: ServerStep, outputs: bool) -> int:
    """Size of a saved state, once the generator has been trained and every site in the bank has sent its `outputs`."""
    adapters = _bytes(step.adapters.state_dict().values())
    generator = 0 if step.generator is None else ADAM * _bytes(step.generator.parameters())
    bank = 0
    for _, prompt in step.bank:
        bank += 4 * _output(step) if outputs else 0
        if prompt.audio is not None:
            bank += _bytes((prompt.audio.means, prompt.audio.counts, prompt.audio.variances))
    return round(MARGIN * (adapters + generator + bank))


def _output(step: ServerStep) -> int:
    """Numbers that a class's outputs consist of."""
    return step.prompts.clip[0].numel() + (0 if step.prompts.t5 is None else step.prompts.t5[0].numel())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
