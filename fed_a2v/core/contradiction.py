"""Sites whose prototypes of a class look like another class, compared with the other sites'; the bank ignores them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fed_a2v.core.statistics import ClassStatistics

# Sites that a median needs: with two, a single site could set it.
ENOUGH_SITES = 3
# A site's mean of a class is contradicted if another class's median is nearer than its own by this factor.
CONTRADICTION_RATIO = 2.0
# A whole site is contradicted if, at the median site's rate, at least this many of its classes should be nearest to
# their own median, and at most one in this many of those is.
EXPECTED_RIGHT = 8


def contradicted_classes(statistics: Iterable[tuple[str, ClassStatistics]]) -> frozenset[tuple[str, str]]:
    """Find the prototypes that other sites contradict.

    A class of three or more sites is represented by the coordinate-wise median of the sites' means, which one site
    cannot move far (Yin et al. 2018). A site's class is contradicted if another class's median is at less than half the
    distance of its own; and a whole site is if hardly any of its classes is nearest to its own median although most of
    the median site's are. In measurements on real sounds, honest sites had hardly any contradicted class and were never
    contradicted as a whole.

    Args:
        statistics: pairs of a site and its statistics of a class, in a fixed order.

    Returns:
        The contradicted pairs of a site and the name of a class.
    """
    entries = [(site, each.name, each.audio) for site, each in statistics if each.audio is not None]
    owners = [(site, name) for site, name, _ in entries]
    of_class: dict[str, list[int]] = {}
    for row, (_, name) in enumerate(owners):
        of_class.setdefault(name, []).append(row)
    of_class = {name: rows for name, rows in of_class.items() if len(rows) >= ENOUGH_SITES}
    if len(of_class) < 2:
        return frozenset()
    # (P, Da) means of each pair's clips, over tokens as well.
    means = torch.stack(
        [(audio.counts / audio.counts.sum()) @ audio.means.float().mean(dim=1) for *_, audio in entries]
    )
    medians = torch.stack([means[rows].median(dim=0).values for rows in of_class.values()])
    judged = torch.tensor([row for rows in of_class.values() for row in rows])
    own = torch.arange(len(of_class)).repeat_interleave(torch.tensor([len(rows) for rows in of_class.values()]))
    # Without a matrix product, whose rounding errors could decide between medians that are close to each other.
    distances = torch.cdist(means[judged], medians, compute_mode="donot_use_mm_for_euclid_dist")
    to_own = distances.gather(1, own[:, None]).flatten()
    to_others = distances.scatter(1, own[:, None], torch.inf).min(dim=1).values
    single = {owners[int(row)] for row in judged[CONTRADICTION_RATIO * to_others < to_own]}
    right: dict[str, list[bool]] = {}
    for row, is_right in zip(judged.tolist(), (to_own <= to_others).tolist(), strict=True):
        right.setdefault(owners[row][0], []).append(is_right)
    usual = float(torch.tensor([sum(each) / len(each) for each in right.values()]).median())
    whole = {
        site
        for site, each in right.items()
        if usual * len(each) >= EXPECTED_RIGHT and EXPECTED_RIGHT * sum(each) <= usual * len(each)
    }
    return frozenset(single | {owner for owner in owners if owner[0] in whole})
