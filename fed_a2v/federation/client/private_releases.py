"""What leaves a site with `privacy=dp`: sums with noise, drawn once for each request; `Site` calls it.

Noise that is drawn again for the same sums could be averaged out, so a deployed site stores its releases in its
privacy ledger. In a simulation the noise is seeded by the request, so that a run repeats with the same bits in every
engine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fed_a2v.config.sections.federation import PrivacySettings
from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.gaussian_release import Normals, ReleaseNoise, bounded, noisy, noisy_sums
from fed_a2v.core.public_space import PublicSpace
from fed_a2v.data.site import LabelledClips
from fed_a2v.federation.client.privacy_ledger import PrivacyLedger


class PrivateReleases:
    """The noisy sums of a site.

    Args:
        privacy: the section `privacy` of the run's settings.
        noise: the noise that the site adds.
        normals: source of the noise of the release with a key.
        ledger: the site's privacy ledger; None in a simulation.
        sites: number of sites among which noise is shared, so that only their sum has all of it, and which then add
            it to every class; None: the site adds all noise, to its own classes.
    """

    def __init__(
        self,
        privacy: PrivacySettings,
        noise: ReleaseNoise,
        normals: Callable[[str], Normals],
        ledger: PrivacyLedger | None = None,
        sites: int | None = None,
    ) -> None:
        self.noise = noise.shared_by(sites or 1)
        self._shares = sites is not None
        self._max_norm = privacy.site_norm
        self._normals = normals
        self._ledger = ledger
        # A site that shares noise relies on the others: it counts the noise of the sum.
        self._counted = noise

    def centre(self, clips: LabelledClips, space: PublicSpace) -> Tensor:
        """(R,) float64 noisy sum of the rows of all clips, in the space without a centre."""

        def make(normals: Normals) -> list[Tensor]:
            total = _rows(clips, space).sum(dim=0)
            if self._max_norm is None:
                return [noisy(total, self.noise.centre, normals)]
            total = bounded(total[None], self._max_norm)[0]
            return [noisy(total, self.noise.centre, normals, self._max_norm)]

        (total,) = self._released("centre", clips, space, 0, make)
        return total

    def sums(self, clips: LabelledClips, space: PublicSpace, classes: int) -> ClassSums:
        """The noisy class sums of some clips, for so many classes."""
        counts = torch.bincount(clips.labels, minlength=classes)

        def make(normals: Normals) -> list[Tensor]:
            exact = ClassSums.of(_rows(clips, space), clips.labels, classes)
            released = noisy_sums(exact, self.noise, normals, self._max_norm, self._shares)
            return [released.sums, released.scatter]

        return ClassSums(counts, *self._released("sums", clips, space, classes, make))

    def _released(
        self,
        task: str,
        clips: LabelledClips,
        space: PublicSpace,
        classes: int,
        make: Callable[[Normals], list[Tensor]],
    ) -> Sequence[Tensor]:
        digest = hashlib.sha256(repr((task, classes, self._max_norm, self._shares, *self.noise)).encode())
        for tensor in (clips.embeddings, clips.labels, space.matrix, space.centre):
            if tensor is not None:
                digest.update(repr((tensor.dtype, tensor.shape)).encode() + tensor.contiguous().cpu().numpy().tobytes())
        key = digest.hexdigest()
        if self._ledger is None:
            return make(self._normals(key))
        counted = self._counted
        sums = _together(counted.classes, counted.scatter)
        now = counted.centre if task == "centre" else sums
        planned = _together(counted.centre, sums) if task == "centre" else sums
        # At level=site a clip changes a release by 1, as scaling down brings no two vectors further apart, and a site
        # by the maximum norm: the larger counts.
        norm = max(1.0, self._max_norm or 1.0)
        return self._ledger.release(key, now / norm, planned / norm, lambda: make(self._normals(key)))


def _rows(clips: LabelledClips, space: PublicSpace) -> Tensor:
    """(N, R) float64 rows of length 1 at most.

    In float64, because the last bits of a row depend on how many rows are multiplied at once: in float32 leaving out a
    clip would change the sums of the others by more than what the noise allows for rounding.
    """
    return bounded(space.rows(clips.embeddings.mean(dim=1, keepdim=True).double()))


def _together(*deviations: float) -> float:
    """Deviation of the noise on one release that reveals as much as several."""
    return 1 / math.sqrt(sum(deviation**-2 for deviation in deviations))
