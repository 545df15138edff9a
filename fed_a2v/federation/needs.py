"""What an experiment needs: bytes on the wire, memory, and room on the disk, told before it starts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fed_a2v.core.server_step import ServerStep

# An optimiser of the Adam family keeps two numbers for each weight that it trains.
ADAM = 3
# For what a generator keeps of its classes, and for the file's own tables.
MARGIN = 1.2


def state_bytes(step: ServerStep) -> int:
    """Size of a saved state, once the generator has been trained and every site in the bank has sent its outputs."""
    adapters = _bytes(step.adapters.state_dict().values())
    generator = 0 if step.generator is None else ADAM * _bytes(step.generator.parameters())
    prompts = step.prompts
    outputs = 4 * (prompts.clip[0].numel() + (0 if prompts.t5 is None else prompts.t5[0].numel()))
    bank = 0
    for _, prompt in step.bank:
        bank += outputs
        if prompt.audio is not None:
            bank += _bytes((prompt.audio.means, prompt.audio.counts, prompt.audio.variances))
    return round(MARGIN * (adapters + generator + bank))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
