"""Compares the scale of a site's prototypes and outputs with that of the other sites; the strategy rejects outliers.

A frozen encoder gives embeddings of about the same magnitude for every sound. A prototype that is ten times larger is
not an average of such embeddings but a fault or an attack, and it shifts every mean that it is part of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from torch import Tensor

from fed_a2v.core.contradiction import ENOUGH_SITES
from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.statistics import ClassStatistics, PooledMoments
from fed_a2v.federation.protocol import TrainReply


def sizes(classes: Iterable[ClassStatistics], moments: PooledMoments | None = None) -> dict[str, float]:
    """Root mean squares of a site's prototypes, deviations and outputs, by name, as far as the site has sent them.

    `typical prototype` is over all prototypes, the other values are of the largest one of their kind.
    """
    statistics = [*classes, *([] if moments is None else [moments.as_statistics("")])]
    audio = [each.audio for each in statistics if each.audio is not None]
    squares = [_means(each.means, power=2) for each in audio]
    values_of = {
        "largest prototype": [float(rows.max()) for rows in squares],
        "deviation within a group": [float(_means(each.variances).max()) for each in audio],
        "CLIP output": [float(_means(each.clip[None], power=2)) for each in statistics if each.clip is not None],
        "T5 output": [float(_means(each.t5[None], power=2)) for each in statistics if each.t5 is not None],
    }
    sizes_by_kind = {kind: max(values) ** 0.5 for kind, values in values_of.items() if values}
    if audio:
        mean = sum(float(rows.sum()) for rows in squares) / sum(len(rows) for rows in squares)
        sizes_by_kind["typical prototype"] = mean**0.5
    return sizes_by_kind


def is_compared(reply: TrainReply) -> bool:
    """Whether a reply brings anything whose size is compared with the other sites'."""
    return reply.moments is not None or any(
        part is not None for each in reply.statistics for part in (each.audio, each.clip, each.t5)
    )


def off_scale(replies: Sequence[TrainReply], bank: PrototypeBank | None, factor: float) -> dict[str, str]:
    """The sites whose reply differs in scale by more than `factor` from the median site, each with the reason.

    Prototypes and variances are compared with those of all sites, including stored ones of sites that sent none in this
    round. Mean outputs are only compared within a round, because they change from round to round. All prototypes of a
    site together must not be too small either; a single one may be, because clips may be silent. With fewer than three
    sites to compare, no site is an outlier.

    Args:
        replies: checked replies of one round.
        bank: the stored prototypes; None in the registration.
        factor: more than 1; math.inf turns the check off.
    """
    now = {reply.site: sizes(reply.statistics, reply.moments) for reply in replies}
    stored: dict[str, dict[str, float]] = {}
    if bank is not None and any("typical prototype" in size for size in now.values()):
        stored = {
            site: sizes(entry.statistics for entry in classes.values() if entry.statistics.audio is not None)
            for site, classes in bank.entries.items()
        }
    all_sites = stored | {site: size for site, size in now.items() if "typical prototype" in size}
    typical = _median(all_sites, "typical prototype")
    medians = {
        "largest prototype": typical,
        # Copies of one clip have no deviation; if most groups are like this, the scale of the prototypes is the limit.
        "deviation within a group": _median(all_sites, "deviation within a group") or typical,
        "CLIP output": _median(now, "CLIP output"),
        "T5 output": _median(now, "T5 output"),
    }
    outliers: dict[str, str] = {}
    for site, size in now.items():
        for kind, limit in medians.items():
            if limit and size.get(kind, 0) > factor * limit:
                outliers.setdefault(site, f"{kind} of size {size[kind]:.3g}, the median site's is {limit:.3g}")
        if size.get("typical prototype", typical) < typical / factor:
            mean = size["typical prototype"]
            outliers.setdefault(site, f"prototypes of size {mean:.3g}, the median site's is {typical:.3g}")
    return {site: f"{reason}; aggregation.max_scale is {factor:g}" for site, reason in outliers.items()}


def _means(rows: Tensor, power: int = 1) -> Tensor:
    """(K,) means of (K, ...) rows, or of their squares."""
    return rows.flatten(1).double().pow(power).mean(dim=1)


def _median(sizes_of: Mapping[str, Mapping[str, float]], kind: str) -> float:
    """The median over the sites with a value of this kind; 0 if there are too few of them."""
    values = [size[kind] for size in sizes_of.values() if kind in size]
    return median(values) if len(values) >= ENOUGH_SITES else 0.0
