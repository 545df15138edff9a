"""Do a site and the server mean the same prompts?

Adapters that learn to reach other prompts cannot be averaged, and the difference shows in nothing but bad results.
So the server's fingerprint of the class prompts travels with every message, and a site whose own prompts differ
refuses to work. All classes are compared, not only those that the site has: the contrastive term and the adapters'
centre and scale are made of all.

The fingerprint is a short random projection of each prompt instead of a hash of its bytes: a text model gives
slightly other numbers on another processor or in half precision, and that is no difference that matters.
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
# Of a prompt's length. Half precision makes about 0.01; another template for the same class 0.3 and more.
TOLERANCE = 0.05


class OtherPromptsError(TargetsError):
    """A site's class prompts are not the server's; the message names classes that the server has named itself."""


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


def check_same_prompts(prompts: ClassPrompts, servers: str) -> None:
    """Check a site's prompts against the server's fingerprint.

    Args:
        prompts: the site's, of the federation's classes in the server's order.
        servers: what `fingerprint` gave on the server.

    Raises:
        OtherPromptsError: names the classes that differ, and what to do.
    """
    given = json.loads(servers)
    for kind, side in (("clip", prompts.clip), ("t5", prompts.t5)):
        if side is None:
            continue
        mine, theirs = _projected(kind, side), torch.tensor(given[kind], dtype=torch.float64)
        distance = (mine - theirs).norm(dim=1) / theirs.norm(dim=1).clamp(min=1e-12)
        if differing := [name for name, far in zip(prompts.names, distance > TOLERANCE, strict=True) if far]:
            raise OtherPromptsError(
                f"this site's {kind.upper()} prompts of {listed(differing)} differ from the server's by "
                f"{float(distance.max()):.0%}: give this node the server's file (targets=FILE in its node "
                "configuration, written by `fed-a2v targets`), or the same text models, templates and captions"
            )


def _projected(kind: str, prompts: Tensor) -> Tensor:
    """(C, T, D) prompts as (C, 8) float64."""
    return prompts.detach().cpu().flatten(1).double() @ _directions(kind, prompts[0].numel())


@lru_cache(maxsize=4)
def _directions(kind: str, size: int) -> Tensor:
    return torch.from_numpy(numpy_generator("targets", kind).standard_normal((size, PROJECTIONS)))
