"""The one place that judges scale: what a site sends is of about the size of what the other sites send.

A frozen encoder gives embeddings of about one size everywhere, whatever the sound. What is ten times off is no average
of sounds by that encoder, but a fault or an attack, and moves every mean that it goes into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from torch import Tensor

from fed_a2v.core.prototype_bank import ENOUGH_SITES, ClassStatistics, PooledMoments, PrototypeBank
from fed_a2v.federation.protocol import TrainReply


def sizes(prompts: Iterable[ClassStatistics], moments: PooledMoments | None = None) -> dict[str, float]:
    """Root mean squares of what a site says, by what they are of; without what it does not say.

    `typical prototype` is the mean over them, the others are of the largest one of the kind.
    """
    said = [*prompts, *([] if moments is None else [moments.as_prompts("")])]
    audio = [each.audio for each in said if each.audio is not None]
    squares = [_means(each.means, power=2) for each in audio]
    found = {
        "largest prototype": [float(rows.max()) for rows in squares],
        "deviation within a group": [float(_means(each.variances).max()) for each in audio],
        "CLIP output": [float(_means(each.clip[None], power=2)) for each in said if each.clip is not None],
        "T5 output": [float(_means(each.t5[None], power=2)) for each in said if each.t5 is not None],
    }
    largest = {what: max(values) ** 0.5 for what, values in found.items() if values}
    if audio:
        mean = sum(float(rows.sum()) for rows in squares) / sum(len(rows) for rows in squares)
        largest["typical prototype"] = mean**0.5
    return largest


def off_scale(replies: Sequence[TrainReply], bank: PrototypeBank | None, factor: float) -> dict[str, str]:
    """The sites whose reply is `factor` times off the median site's scale, each with the reason.

    Prototypes and variances are compared with those of all sites, the ones that the bank holds of sites that have sent
    none this time among them; mean outputs with the other replies', for they change from round to round. A site's
    prototypes together may not be too small either; a single one may, for silence is a sound, too. Nothing is said
    where fewer than three sites can be compared.

    Args:
        replies: checked ones of one round.
        bank: what has been said before; None in the registration.
        factor: more than 1; math.inf refuses nothing.
    """
    now = {reply.site: sizes(reply.prompts, reply.moments) for reply in replies}
    held: dict[str, dict[str, float]] = {}
    if bank is not None and any("typical prototype" in size for size in now.values()):
        held = {
            site: sizes(entry.prompts for entry in classes.values() if entry.prompts.audio is not None)
            for site, classes in bank.entries.items()
        }
    before_and_now = held | {site: size for site, size in now.items() if "typical prototype" in size}
    typical = _median(before_and_now, "typical prototype")
    usual = {
        "largest prototype": typical,
        # Copies of one clip have none; where most groups are such, embeddings are the measure.
        "deviation within a group": _median(before_and_now, "deviation within a group") or typical,
        "CLIP output": _median(now, "CLIP output"),
        "T5 output": _median(now, "T5 output"),
    }
    found: dict[str, str] = {}
    for site, size in now.items():
        for what, limit in usual.items():
            if limit and size.get(what, 0) > factor * limit:
                found.setdefault(site, f"{what} of size {size[what]:.3g}, the median site's {limit:.3g}")
        if size.get("typical prototype", typical) < typical / factor:
            mean = size["typical prototype"]
            found.setdefault(site, f"prototypes of size {mean:.3g}, the median site's {typical:.3g}")
    return {site: f"{reason}; aggregation.max_scale is {factor:g}" for site, reason in found.items()}


def _means(rows: Tensor, power: int = 1) -> Tensor:
    """(K,) means of (K, ...) rows, or of their squares."""
    return rows.flatten(1).double().pow(power).mean(dim=1)


def _median(of_sites: Mapping[str, Mapping[str, float]], what: str) -> float:
    """The median over the sites that have said it; 0 where they are too few."""
    values = [size[what] for size in of_sites.values() if what in size]
    return median(values) if len(values) >= ENOUGH_SITES else 0.0
