"""Check that a site and the server use the same class prompts.

Adapters that are trained towards different prompts cannot be averaged, and the only symptom is a bad result. So every
message contains the server's fingerprint of the class prompts, and a site with other prompts refuses the task. All
classes are compared, not only those of the site, because the contrastive loss and the centre and scale of the adapters
depend on all prompts.

The fingerprint is a short random projection of each prompt, not a hash of its bytes: the output of a text model
differs slightly between processors and in half precision, and such differences do not matter.
"""

from __future__ import annotations

import json
from functools import lru_cache

import torch
from torch import Tensor

from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.core.names import listed
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.encoders.text import TargetsError

PROJECTIONS = 8
# Relative to the norm of a prompt. Half precision gives about 0.01, another template for the same class 0.3 or more.
TOLERANCE = 0.05


class OtherPromptsError(TargetsError):
    """A site's class prompts differ from the server's; the message contains only class names that the server sent."""


def fingerprint(prompts: ClassPrompts) -> str:
    """Eight projections of each class prompt, as JSON: about 80 characters a class, twice that with T5."""
    sides = {"clip": prompts.clip, "t5": prompts.t5}
    return json.dumps(
        {
            kind: [[float(f"{value:.5g}") for value in row] for row in _projected(kind, side).tolist()]
            for kind, side in sides.items()
            if side is not None
        }
    )


def check_same_prompts(prompts: ClassPrompts, expected: str) -> None:
    """Check a site's prompts against the server's fingerprint.

    Args:
        prompts: the site's prompts of all classes, in the server's order.
        expected: the result of `fingerprint` on the server.

    Raises:
        OtherPromptsError: prompts differ; the message gives the classes and the remedy.
    """
    server_sides = _parsed(expected)
    for kind, side in (("clip", prompts.clip), ("t5", prompts.t5)):
        if side is None:
            continue
        own, servers = _projected(kind, side), server_sides[kind]
        distance = (own - servers).norm(dim=1) / servers.norm(dim=1).clamp(min=1e-12)
        if differing := [name for name, differs in zip(prompts.names, distance > TOLERANCE, strict=True) if differs]:
            raise OtherPromptsError(
                f"this site's {kind.upper()} prompts of {listed(differing)} differ from the server's by "
                f"{float(distance.max()):.0%}: give this node the server's file (targets=FILE in its node "
                "configuration, written by `fed-a2v targets`), or the same text models, templates and captions"
            )


@lru_cache(maxsize=2)
def _parsed(text: str) -> dict[str, Tensor]:
    # Every message of a run has the same fingerprint.
    return {kind: torch.tensor(rows, dtype=torch.float64) for kind, rows in json.loads(text).items()}


def _projected(kind: str, prompts: Tensor) -> Tensor:
    """(C, T, D) prompts as (C, 8) float64."""
    return prompts.detach().cpu().flatten(1).double() @ _directions(kind, prompts[0].numel())


@lru_cache(maxsize=4)
def _directions(kind: str, size: int) -> Tensor:
    # Seeded by a constant, because the server and all sites need the same directions.
    return torch.from_numpy(numpy_generator("targets", kind).standard_normal((size, PROJECTIONS)))
