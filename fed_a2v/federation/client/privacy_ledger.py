"""The privacy ledger of a site: a folder with every noisy release that the site has made, a file for each.

Releases add up, over runs, restarts and servers: the ledger refuses a release with which all of them together would
exceed the epsilon that the site's owner allows. A request that was answered before gets the same release again, which
costs nothing; so a reply that was lost, or a second run, does not use up the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from fed_a2v.core.gaussian_release import epsilon_of
from fed_a2v.federation.client.ledger import LedgerError
from fed_a2v.federation.client.privacy_policy import PolicyViolationError
from fed_a2v.storage.files import remove_leftovers, replacing
from fed_a2v.storage.npz import ArrayFileError, read_arrays

# Epsilon is the result of an iteration.
TOLERANCE = 1e-6
DEVIATION = "deviation"


class PrivacyLedger:
    """The releases of a site, and their sum.

    Args:
        folder: the folder; it is created if missing.
        max_epsilon: limit of all releases together; None: no limit.
        max_delta: delta at which epsilon is computed.
    """

    def __init__(self, folder: Path, max_epsilon: float | None = None, max_delta: float = 1e-5) -> None:
        self.folder = folder.expanduser()
        self.max_epsilon = max_epsilon
        self.max_delta = max_delta

    def release(
        self, key: str, deviation: float, planned: float, make: Callable[[], Sequence[Tensor]]
    ) -> Sequence[Tensor]:
        """The release stored under a key, else a new one, which is on the disk before it is returned.

        Several processes may call this at once.

        Args:
            key: what was requested of which clips, as the name of a file.
            deviation: deviation of the noise on the release, if a clip changes it by at most 1.
            planned: the same of this and all later releases of the run together; a run that does not fit is refused
                before its first release.
            make: draws a new release.

        Raises:
            PolicyViolationError: the releases together would exceed `max_epsilon`; the message gives both.
            LedgerError: the folder cannot be read or written, or a file in it is damaged.
        """
        path = self.folder / f"{key}.npz"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock"):
                if path.exists():
                    return _stored(path)
                remove_leftovers(self.folder)
                self._check(planned)
                made = make()
                with replacing(path) as file:
                    arrays: dict[str, Any] = {f"array{number}": tensor.numpy() for number, tensor in enumerate(made)}
                    np.savez(file, **arrays | {DEVIATION: np.float64(deviation)})
                return made
        except ArrayFileError as error:
            raise LedgerError(
                "this site's privacy ledger is damaged: its owner must restore it, or start a new one, which forgets "
                "what has been released"
            ) from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise LedgerError(f"this site's privacy ledger cannot be used: {reason}") from error

    def epsilon(self, planned: float = math.inf) -> float:
        """Epsilon of all releases together, and of one that is planned."""
        return epsilon_of([*self._deviations(), planned], self.max_delta)

    def _check(self, planned: float) -> None:
        spent, total = self.epsilon(), self.epsilon(planned)
        if self.max_epsilon is not None and total > self.max_epsilon * (1 + TOLERANCE):
            raise PolicyViolationError(
                f"this run would bring all releases of this site to epsilon {total:.4g} at delta {self.max_delta:g}, "
                f"of which {spent:.4g} is spent, and its node configuration has max-epsilon={self.max_epsilon:g}: "
                "lower privacy.epsilon"
            )

    def _deviations(self) -> Iterator[float]:
        for path in sorted(self.folder.glob("*.npz")):
            deviation = read_arrays(path, [DEVIATION], most="file")[DEVIATION]
            if deviation.shape != () or deviation.dtype != np.float64 or not deviation > 0:
                raise ArrayFileError(f"{path} has no deviation")
            yield float(deviation)


def _stored(path: Path) -> list[Tensor]:
    arrays = read_arrays(path, [DEVIATION, "array0"], ["array1"], most="file")
    return [torch.from_numpy(array) for name, array in arrays.items() if name != DEVIATION]
