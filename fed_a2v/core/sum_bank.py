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

from fed_a2v.core.class_sums import ClassSums, SharedGaussian, shared_gaussian, triangle_size
from fed_a2v.core.statistics import PrototypeBatch


@dataclass
class SumBank:
    """The class sums of each site, in the public space.

    Attributes:
        classes: names of all C classes.
        columns: R, columns of the public space.
        sites: sums by site.
        class_noise, scatter_noise: deviations of the privacy noise on the entries of one site's sums; 0 without.
    """

    classes: Sequence[str]
    columns: int
    class_noise: float = 0.0
    scatter_noise: float = 0.0
    sites: dict[str, ClassSums] = field(default_factory=dict)

    def update(self, site: str, sums: ClassSums) -> None:
        """Store a site's sums, which replace its earlier ones."""
        self.sites[site] = sums

    def withdraw(self, sites: Iterable[str]) -> None:
        """Remove sites: everything that is computed afterwards is as if they had never sent anything."""
        for site in sites:
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

    def class_means(self) -> PrototypeBatch | None:
        """`means` of the present model; None without a clip."""
        model = self.model()
        return None if model is None else self.means(model)

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
        return {"sites": {site: vars(sums) for site, sums in self.sites.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`.

        Raises:
            ValueError: sums are of other classes or another space.
        """
        sites = {site: ClassSums(**sums) for site, sums in state["sites"].items()}
        classes, columns = len(self.classes), self.columns
        expected = [(classes,), (classes, columns), (triangle_size(columns),)]
        # Tensors of other shapes may still add up, to larger ones.
        if wrong := [site for site, sums in sites.items() if [tensor.shape for tensor in sums.tensors] != expected]:
            raise ValueError(
                f"the sums of {wrong[0]} are not of {len(self.classes)} classes and {self.columns} columns"
            )
        self.sites = sites
