"""Estimates of network traffic, memory and disk space of an experiment, for `fed-a2v doctor` and the trainer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from fed_a2v.config.schema import Settings
from fed_a2v.core.class_sums import triangle_size
from fed_a2v.core.server_step import ServerStep
from fed_a2v.federation.protocol.int8 import WEIGHT_BYTES

# Numbers for each trained weight: the weight, and the two moments of an optimiser of the Adam family.
ADAM = 3
# Factor for a generator's statistics of classes and for the overhead of the file format.
MARGIN = 1.2
# Bytes of Python, torch, Flower and W&B before any work.
PROGRAM = 500_000_000


@dataclass(frozen=True)
class ResourceEstimate:
    """The resources that a federation needs, in bytes.

    Attributes:
        down: traffic to each site in a round: the adapters, for training and for evaluation.
        up: traffic from each site in a round: the adapters and the mean outputs of each class, if they are needed.
        prototypes: traffic from each site once, and again when its data change if prototypes are still needed; with
            share=statistics its sums.
        memory: peak memory of the server, including the program itself.
        disk: size of all saved states.
    """

    down: int
    up: int
    prototypes: int
    memory: int
    disk: int


def resource_estimate(settings: Settings, step: ServerStep, audio_shape: tuple[int, int]) -> ResourceEstimate:
    """The resources of an experiment, with all classes at every site unless the partition sets the number.

    Args:
        settings: settings of the experiment.
        step: the server step that was made from them.
        audio_shape: (S, Da) of the embeddings.
    """
    number_bytes = 2 if settings.share.float_dtype == "float16" else 4
    sites, classes = settings.partition.sites, len(step.prompts.names)
    site_classes = classes
    if settings.partition.kind == "classes":
        site_classes = settings.partition.classes_per_site or -(-classes // sites)
    adapters = number_bytes * sum(weight.numel() for weight in step.adapters.weights())
    clip_side = number_bytes * sum(weight.numel() for weight in step.adapters.clip_weights())
    outputs = number_bytes * site_classes * _output_size(step) if settings.needs_outputs else 0
    groups = settings.share.prototypes if settings.needs_prototypes and settings.share.kind != "mean" else 1
    rows = site_classes * (groups + {"groups": groups, "class": 1, "none": 0}[settings.share.variance])
    prototypes = number_bytes * rows * audio_shape[0] * audio_shape[1]
    fixed = _bytes(step.adapters.fixed())
    down = adapters + adapters + (clip_side if settings.federation.evaluate_before else 0)
    if step.sums is not None:  # sums instead of prototypes; and the public space goes to the sites in every message
        columns = step.sums.columns
        scatter = triangle_size(columns) if settings.sends_scatter else 0
        prototypes = number_bytes * ((site_classes + 1) * columns + scatter)
        down += 2 * fixed - (0 if settings.sends_adapters else adapters)
    trained = 4 * sum(weight.numel() for weight in step.adapters.weights())
    # A reply's weights in the message, and in memory, where int8 differences are float32 weights again.
    sent, kept = (round(trained / 4 * WEIGHT_BYTES), trained) if settings.share.sends_differences else (adapters,) * 2
    if not settings.needs_weights:
        sent = 0
    # A mean takes the replies as they come, and keeps those whose outputs are compared with the other sites'.
    if not settings.needs_weights or (settings.aggregation.mode in ("avg", "weighted") and not outputs):
        kept = 0
    generator = 0 if step.generator is None else _bytes(step.generator.parameters())
    sampled = max(1, round(settings.federation.sites_per_round * sites))
    state = round(MARGIN * (trained + ADAM * generator + sites * (prototypes + outputs)))
    checkpoint = settings.checkpoint
    return ResourceEstimate(
        down=down,
        up=sent + outputs,
        prototypes=prototypes,
        # The model, Adam's moments and gradients; the replies of a round; the bank.
        memory=PROGRAM
        + (ADAM + 2) * (trained + generator)
        + sampled * (kept + outputs)
        + sites * (prototypes + outputs),
        disk=state * (checkpoint.keep + checkpoint.keep_best),
    )


def state_bytes(step: ServerStep, outputs: bool) -> int:
    """Size of a saved state after the generator was trained and, with `outputs`, all sites have sent mean outputs."""
    adapters = _bytes(step.adapters.state_dict().values())
    generator = 0 if step.generator is None else ADAM * _bytes(step.generator.parameters())
    bank = 0 if step.sums is None else _bytes(tensor for each in step.sums.sites.values() for tensor in each.tensors)
    for _, prompt in step.bank:
        bank += 4 * _output_size(step) if outputs else 0
        if prompt.audio is not None:
            bank += _bytes((prompt.audio.means, prompt.audio.counts, prompt.audio.variances))
    return round(MARGIN * (adapters + generator + bank))


def _output_size(step: ServerStep) -> int:
    """Number of values of the adapters' outputs for one class."""
    return step.prompts.clip[0].numel() + (0 if step.prompts.t5 is None else step.prompts.t5[0].numel())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
