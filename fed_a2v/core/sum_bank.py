"""The sums that the server keeps with `share=statistics`, and the training rows that it draws from them.

The server step fills it from the sites' replies. Sums of all sites together are all that training uses, so the result
does not depend on the order in which sites come, and a site that leaves is subtracted exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from fed_a2v.core.class_sums import ClassSums, SharedGaussian, shared_gaussian, triangle_size
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.weight_cap import cap_client_weights

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
        max_site_share: largest share of all clips that one site counts for; 1: no limit. Sums of a site count as a
            whole, as its scatter is of all its classes.
        class_noise, scatter_noise: deviations of the privacy noise on the entries of one site's sums, or of the total,
            for the classes in them; 0 without, and an infinite one of the scatter if sites do not send it.
        prior: (C, R) weights of the classes in a label head, see `fed_a2v.core.label_prior`; None: no prior.
    """

    classes: Sequence[str]
    columns: int
    max_site_share: float = 1.0
    class_noise: float = 0.0
    scatter_noise: float = 0.0
    prior: Tensor | None = None
    sites: dict[str, ClassSums] = field(default_factory=dict)
    within: tuple[str, ...] = ()
    _model: SharedGaussian | None = None

    def update(self, site: str, sums: ClassSums) -> None:
        """Store a site's sums, which replace its earlier ones."""
        self.sites[site], self._model = sums, None

    def store_total(self, sites: Iterable[str], sums: ClassSums) -> None:
        """Store the total over sites, whose own sums are not known."""
        self.within = tuple(sorted(sites))
        self.sites[TOTAL], self._model = sums, None

    def withdraw(self, sites: Iterable[str]) -> None:
        """Remove sites: everything that is computed afterwards is as if they had never sent anything.

        Raises:
            ValueError: a site is in the total, out of which none can be taken.
        """
        for site in sites:
            if site in self.within:
                raise ValueError(f"{site} cannot be withdrawn: its sums are known in the total of all sites only")
            self.sites.pop(site, None)
        self._model = None

    @property
    def total(self) -> ClassSums:
        """The sums over all sites, in the order of their names, as sums of floats depend on it in the last bits."""
        zero = ClassSums.zero(len(self.classes), self.columns, math.isfinite(self.scatter_noise))
        weights = self.capped()
        parts = (self.sites[site].scaled(weights[site]) if site in weights else self.sites[site] for site in self.order)
        return reduce(add, parts, zero)

    @property
    def order(self) -> list[str]:
        """The names of the sites, sorted."""
        return sorted(self.sites)

    def capped(self) -> dict[str, float]:
        """The weights of the sites whose clips count for less than 1 each, as they have too large a share of all."""
        clips = [int(self.sites[site].counts.sum()) for site in self.order]
        counted = cap_client_weights(clips, self.max_site_share)
        return {
            site: counts / own
            for site, own, counts in zip(self.order, clips, counted, strict=True)
            if own and counts < own * (1 - 1e-9)  # more than rounding
        }

    def model(self) -> SharedGaussian | None:
        """The Gaussian model of all clips; None without a clip. It is computed once for the same sums."""
        if self._model is None:
            self._model = self._estimate()
        return self._model

    def _estimate(self) -> SharedGaussian | None:
        total = self.total
        if not total.counts.any():
            return None
        weights = self.capped()
        squares = {site: weights.get(site, 1.0) ** 2 for site in self.order}
        with_class = sum(
            (square * (self.sites[site].counts > 0) for site, square in squares.items()),
            torch.zeros(len(self.classes), dtype=torch.float64),
        )
        scatter_noise = sum(squares.values()) ** 0.5 * self.scatter_noise
        return shared_gaussian(total, with_class.sqrt() * self.class_noise, scatter_noise, prior=self.prior)

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

    def _batch(self, model: SharedGaussian, rows: Tensor, labels: Tensor, counts: Tensor) -> PrototypeBatch:
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
        sites = {site: vars(sums) for site, sums in self.sites.items()}
        return {"sites": sites, "within": list(self.within), "prior": self.prior}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`.

        Raises:
            ValueError: the sums of a site or the prior do not fit the classes and the space, or are none; or there are
                sites in a total, and no total.
        """
        classes, triangle = len(self.classes), triangle_size(self.columns) if math.isfinite(self.scatter_noise) else 0
        wanted = {"counts": (classes,), "sums": (classes, self.columns), "scatter": (triangle,)}
        floats = {"counts": False, "sums": True, "scatter": True}
        for site, sums in state["sites"].items():
            fits = {name: tuple(tensor.shape) for name, tensor in sums.items()} == wanted
            types = {name: tensor.is_floating_point() for name, tensor in sums.items()}
            integer = fits and sums["counts"].dtype == torch.int64
            if types != floats or not integer or any(not tensor.isfinite().all() for tensor in sums.values()):
                raise ValueError(f"the sums of {site!r:.80} do not fit {classes} classes and {self.columns} columns")
            if sums["counts"].min() < 0 or not sums["counts"].any():
                raise ValueError(f"the sums of {site!r:.80} are over no clips")
        prior, within = state["prior"], tuple(state["within"])
        if prior is not None:
            fits = isinstance(prior, Tensor) and tuple(prior.shape) == wanted["sums"] and prior.is_floating_point()
            if not fits or not prior.isfinite().all():
                raise ValueError(f"the prior does not fit {classes} classes and {self.columns} columns")
        if (TOTAL in state["sites"]) != bool(within) or any(type(site) is not str for site in within):
            raise ValueError("the sites of the total and the total do not fit together")
        self.sites = {site: ClassSums(**sums) for site, sums in state["sites"].items()}
        self.prior, self.within, self._model = prior, within, None
