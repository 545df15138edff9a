"""What a run with `privacy=dp` reveals of a clip, or of a site: epsilon of all noisy sums that the server has received.

The strategy counts them; the figures are in every row, in the results and in the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fed_a2v.config.sections.federation import PrivacySettings, SecureSumsSettings
from fed_a2v.core.gaussian_release import epsilon_of
from fed_a2v.federation.factory import release_noise

# What the guarantee takes as known to everybody.
PUBLIC = ("class names", "numbers of clips", "numbers of test clips")
# What is added or removed, by level.
RELATIONS = {"clip": "add or remove one clip", "site": "add or remove all clips of a site"}


class PrivacyAccount:
    """Counts the releases of each site.

    Sites have different clips, so the run's epsilon is that of the site that has released most.

    Args:
        privacy, secure_sums: sections of the settings.

    Raises:
        ConfigError: the library that computes epsilon is not installed.
    """

    def __init__(self, privacy: PrivacySettings, secure_sums: SecureSumsSettings) -> None:
        self.privacy = privacy
        self.noise = release_noise(privacy, secure_sums)
        self._centres: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()

    def count(self, site: str, centre: bool) -> None:
        """Count a release of a site: its part of the centre, or its class sums with the scatter."""
        (self._centres if centre else self._sums)[site] += 1

    @property
    def epsilon(self) -> float:
        """Epsilon of the run so far; 0 before the first release."""
        if self.noise is None:
            return 0.0
        centre, classes, scatter = self.noise
        of_sites = {(self._centres[site], self._sums[site]) for site in self._centres | self._sums}
        norm = self.privacy.site_norm or 1.0
        return max(
            (
                epsilon_of(
                    [*_repeated(centre, centres), *_repeated(classes, sums), *_repeated(scatter, sums)],
                    self.privacy.delta,
                    norm,
                )
                for centres, sums in of_sites
            ),
            default=0.0,
        )

    def figures(self) -> dict[str, Any]:
        """Values of the row; none without privacy."""
        if self.noise is None:
            return {}
        return {
            "privacy/epsilon": self.epsilon,
            "privacy/delta": self.privacy.delta,
            "privacy/level": self.privacy.level,
            "privacy/relation": RELATIONS[self.privacy.level],
            "privacy/public": list(PUBLIC),
            "privacy/scores": self.privacy.scores,
        }

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"centres": dict(self._centres), "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self._centres, self._sums = Counter(state["centres"]), Counter(state["sums"])


def _repeated(deviation: float, times: int) -> list[float]:
    """The deviation of one release that reveals as much as several with the same noise; none for no release."""
    return [deviation / times**0.5] if times else []
