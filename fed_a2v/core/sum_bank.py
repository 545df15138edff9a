"""The sums that the server keeps with `share=statistics`, and the training rows that it draws from them.

The server step fills it from the sites' replies. Sums of all sites together are all that training uses, so the result
does not depend on the order in which sites come, and a site that leaves is subtracted exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch

from fed_a2v.core.class_sums import ClassSums, SharedGaussian, shared_gaussian
from fed_a2v.core.statistics import PrototypeBatch

# Name of a total in the bank; no site has it, as their names begin with "site-".
TOTAL = "all sites"


@dataclass
class SumBank:
    """The class sums of each site, in the public space; with secure aggregation, their total alone.

    Attributes:
        classes: names of all C classes.
        columns: R, columns of the public space.
        sites: sums by site; a total has the name `TOTAL`.
        within: the sites that the total is over.
        class_noise, scatter_noise: deviations of the privacy noise on the entries of one site's sums; 0 without.
    """

    classes: Sequence[str]
    columns: int
    class_noise: float = 0.0
    scatter_noise: float = 0.0
    sites: dict[str, ClassSums] = field(default_factory=dict)
    within: tuple[str, ...] = ()

    def update(self, site: str, sums: ClassSums) -> None:
        """Store a site's sums, which replace its earlier ones."""
        self.sites[site] = sums

    def store_total(self, sites: Iterable[str], sums: ClassSums) -> None:
        """Store the total over sites, whose own sums are not known."""
        self.within = tuple(sorted(sites))
        self.sites[TOTAL] = sums

    def withdraw(self, sites: Iterable[str]) -> None:
        """Remove sites: everything that is computed afterwards is as if they had never sent anything.

        Raises:
            ValueError: a site is in the total, out of which none can be taken.
        """
        for site in sites:
            if site in self.within:
                raise ValueError(f"{site} cannot be withdrawn: its sums are known in the total of all sites only")
            self.sites.pop(site, None)

    @property
    def total(self) -> ClassSums:
        """The sums over all sites, in the order of their names, as sums of floats depend on it in the last bits."""
        zero = ClassSums.zero(len(self.classes), self.columns)
        return reduce(add, (self.sites[site] for site in sorted(self.sites)), zero)

    def model(self) -> SharedGaussian | None:
        """The Gaussian model of all clips; None without a clip."""
        total, root = self.total, len(self.sites) ** 0.5
        if not total.counts.any():
            return None
        return shared_gaussian(total, root * self.class_noise, root * self.scatter_noise)

    def means(self, model: SharedGaussian) -> PrototypeBatch:
        """One row per class: its mean, of length 1."""
        rows = torch.nn.functional.normalize(model.means, dim=1).float()
        return self._batch(model, rows, torch.arange(len(model.labels)), model.counts.float())

    def draws(self, model: SharedGaussian, per_class: int, random: torch.Generator) -> PrototypeBatch:
        """`per_class` rows of every class, drawn from the model."""
        labels = torch.arange(len(model.labels)).repeat_interleave(per_class)
        counts = (model.counts / per_class).float()[labels]
        return self._batch(model, model.draw(labels, random), labels, counts)

    def _batch(
        self, model: SharedGaussian, rows: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor
    ) -> PrototypeBatch:
        """Rows as prototypes; `names` are in sorted order, as everywhere."""
        names = [self.classes[label] for label in model.labels.tolist()]
        order = sorted(range(len(names)), key=names.__getitem__)
        place = torch.empty(len(names), dtype=torch.int64)
        place[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(names))
        by_name = place[labels].argsort(stable=True)
        embeddings = rows[by_name].unsqueeze(1)
        return PrototypeBatch(
            embeddings,
            place[labels][by_name],
            counts[by_name],
            torch.zeros_like(embeddings),
            tuple(names[index] for index in order),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain dictionaries and tensors."""
        return {"sites": {site: vars(sums) for site, sums in self.sites.items()}, "within": list(self.within)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self.sites = {site: ClassSums(**sums) for site, sums in state["sites"].items()}
        self.within = tuple(state["within"])
