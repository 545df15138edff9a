"""Sections of the settings about the federation: messages, aggregation, the order of sites, timeouts."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from fed_a2v.config.sections.base import NO_RESULT, Count, Positive, Section, option_of

# With less epsilon, a noisy covariance costs more accuracy than it adds; measured on real embeddings.
# Without secure aggregation the matrix has the noise of all sites, a class sum that of the sites with the class alone.
FROM_EPSILON, FROM_LOCAL_EPSILON = 4.0, 8.0
# Sites of a total: with two, each would know the other's sums.
FEWEST_SITES = 3
# Up to as many sites, each shares masks with all others in secure aggregation; its work grows with their square.
FULL_GRAPH = 50


class ShareSettings(Section):
    """Statistics of each class that a site sends besides its adapters."""

    kind: Literal["prototypes", "mean", "samples", "statistics"] = Field(
        description="kind of statistics: means of groups of similar clips, one mean per class, single clips, or sums "
        "in the public space of `projection` (statistics)"
    )
    prototypes: Count = Field(description="maximum number of group means per class")
    min_clips: Count = Field(
        description="minimum number of clips per mean or class sum; without secure sums or noise, a class sum of one "
        "clip shows that clip's row to the server"
    )
    variance: Literal["groups", "class", "none"] = Field(
        description="variance within groups: one per group, one for all groups of a class, or none"
    )
    dtype: Literal["float16", "float32", "int8"] = Field(
        description="type of the arrays in a message; int8: a site sends its weights as differences from those that it "
        "received, rounded and compressed, and all other arrays are float16"
    )

    @property
    def float_dtype(self) -> Literal["float16", "float32"]:
        """Type of all arrays in a message but the weights that a site sends as int8."""
        return "float16" if self.dtype == "int8" else self.dtype

    @property
    def sends_differences(self) -> bool:
        """Whether a site sends its weights as int8 differences from those that it received."""
        return self.dtype == "int8"


class PrivacySettings(Section):
    """Differential privacy of what leaves a site (share=statistics)."""

    name: Literal["none", "dp"] = Field(description="none, or dp: Gaussian noise on the sums, inside the sites")
    # More protects nothing, and dp-accounting finds no noise for it.
    epsilon: Annotated[float, Field(gt=0.0, le=1e6)] = Field(
        description="bound on the log ratio of probabilities, for all releases together"
    )
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(description="probability with which the bound may fail")
    level: Literal["clip", "site"] = Field(description="what is added or removed: one clip, or all clips of a site")
    max_norm: Positive = Field(description="maximum norm of a site's sums; larger ones are scaled down (level=site)")
    scatter: bool | None = Field(
        description="whether the matrix for all classes is sent; null: with level=clip from epsilon 8, or from 4 with "
        "secure_sums=secagg"
    )
    scores: bool = Field(
        description="whether sites send the counts of an evaluation on their test clips, which carry no noise"
    )

    @property
    def adds_noise(self) -> bool:
        """Whether what leaves a site carries noise, and nothing else leaves it."""
        return self.name == "dp"

    def sends_scatter(self, secure: bool = False) -> bool:
        """Whether sites send the matrix for all classes; `secure`: with secure aggregation."""
        if not self.adds_noise or self.scatter is not None:
            return self.scatter is not False
        return self.level == "clip" and self.epsilon >= (FROM_EPSILON if secure else FROM_LOCAL_EPSILON)

    @property
    def site_norm(self) -> float | None:
        """Norm that a site's sums are scaled down to; None if clips are hidden, whose norm is 1."""
        return self.max_norm if self.adds_noise and self.level == "site" else None


class SecureSumsSettings(Section):
    """Secure aggregation of the sums (share=statistics)."""

    name: Literal["none", "secagg"] = Field(
        description="none: the server receives each site's sums; secagg: their total only, by Flower's SecAgg+"
    )
    threshold: Annotated[float, Field(gt=0.5, le=1.0)] = Field(
        description="share of the sites that must stay until the end of the exchange; fewer end the run"
    )
    bits: Annotated[int, Field(ge=8, le=30)] = Field(
        description="bits of a quantised entry of the sums; the total of all sites must fit into 32 bits"
    )

    def check_sites(self, sites: int) -> None:
        """Check that a number of sites can be aggregated.

        Raises:
            ValueError: too few, or their total overflows; the message gives the key and the remedy.
        """
        if sites < FEWEST_SITES:
            raise ValueError(
                f"secure_sums=secagg hides sites among at least {FEWEST_SITES}, and there are {sites}; add sites, or "
                "set secure_sums=none"
            )
        if sites * 2**self.bits >= 2**32:
            raise ValueError(
                f"secure_sums.bits={self.bits}: the total of {sites} sites does not fit into 32 bits; lower it to "
                f"{(2**32 // sites - 1).bit_length() - 1}"
            )

    @staticmethod
    def shares(sites: int) -> int:
        """Number of sites, itself included, that hold shares of a site's secrets and share masks with it.

        All, up to `FULL_GRAPH` sites. Among more, each has neighbours on a ring in random order (Bell et al. 2020):
        sites that are connected in it by others than those lost or in league with the server stay hidden. If these are
        at most a quarter, k / 2 in a row have a probability of at most sites * 4**(-k / 2), here below 2**-40.
        """
        return sites if sites <= FULL_GRAPH else 1 + 2 * math.ceil((40 + math.log2(sites)) / 2)

    def needed(self, sites: int) -> int:
        """Smallest number of so many sites, or shares, that must stay: more than half, whatever the threshold."""
        return max(math.ceil(self.threshold * sites - 1e-9), sites // 2 + 1)


class AggregationSettings(Section):
    """Aggregation of the sites' adapters."""

    model_config = ConfigDict(populate_by_name=True)

    # A rule is an option in `conf/aggregation/` and a file in `federation/server/aggregation/`.
    mode: Annotated[str, option_of("aggregation")] = Field(
        description="rule; avg: mean; weighted: mean by clips, limited by `max_site_share`; median; trimmed: trimmed "
        "mean; krum: Multi-Krum; kd: distillation; none: no averaging; custom: your own rule"
    )
    target: str | None = Field(alias="_target_", description="import path of a subclass of `AggregationRule` (custom)")
    arguments: dict[str, Any] = Field(description="arguments of the rule, in its `settings.arguments` (custom)")
    trimmed_share: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        description="share of the sites to leave out at either end, for each weight (trimmed)"
    )
    malicious_sites: Annotated[int, Field(ge=0)] = Field(description="number of sites to leave out (krum)")
    max_update_norm: Positive | None = Field(
        description="maximum norm of a site's update; larger ones are scaled down to it; null: no limit"
    )
    max_site_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        description="maximum weight of one site, as a share of all clips and of a class's clips (with "
        "share=statistics, of all clips alone); 1: no limit; the log and `aggregation/capped_sites`, "
        "`bank/capped_sites` report where it applies"
    )
    max_scale: Annotated[float, Field(gt=1.0)] | None = Field(
        description="maximum factor between a reply and its reference, else the reply is refused: adapters against "
        "those sent to the site; prototypes, deviations and mean outputs against the median of three or more sites; "
        "null: no limit"
    )
    min_replies: Count = Field(description="minimum number of valid replies of a round")
    if_too_few: Literal["skip", "repeat"] = Field(
        description="action on too few valid replies: skip the round and keep the old adapters, or repeat it"
    )
    max_skipped_rounds: Annotated[int, Field(ge=0)] = Field(
        json_schema_extra=NO_RESULT,
        description="maximum number of rounds skipped in a row, or of repeats of one round, before the run ends",
    )
    max_age: Annotated[int, Field(ge=0)] = Field(
        description="number of rounds that prototypes or sums of a site without replies are kept; 0: always"
    )

    @model_validator(mode="after")
    def _check_mode(self) -> AggregationSettings:
        if (self.mode == "custom") != (self.target is not None):
            raise ValueError("aggregation=custom needs aggregation._target_=MODULE.CLASS, and only custom takes it")
        return self

    @property
    def averages(self) -> bool:
        """Whether a rule combines the sites' adapters into the global ones."""
        return self.mode != "none"

    @property
    def distils(self) -> bool:
        """Whether the server step distils the sites' adapters."""
        return self.mode == "kd"

    @property
    def scale_limit(self) -> float:
        """`max_scale`; infinite for null."""
        return math.inf if self.max_scale is None else self.max_scale


class ScenarioSettings(Section):
    """Participation of the sites over time."""

    name: Literal["static", "class_incremental"] = Field(
        description="all sites in every round, or one group of sites after another"
    )
    steps: Count = Field(description="number of groups of sites (class_incremental)")
    rounds_per_step: Count = Field(description="number of rounds of each group (class_incremental)")

    @property
    def complete_from(self) -> int:
        """First round in which every site has taken part; 0, the registration, if all sites register."""
        return 0 if self.name == "static" else (self.steps - 1) * self.rounds_per_step + 1


class FederationSettings(Section):
    """Rounds, timeouts and nodes."""

    round_timeout: Positive = Field(
        json_schema_extra=NO_RESULT, description="maximum time in seconds that a round waits for its sites"
    )
    site_timeout: Positive | None = Field(
        json_schema_extra=NO_RESULT,
        description="maximum time in seconds of a site for one message; null: nine tenths of round_timeout",
    )
    start_timeout: Positive = Field(
        json_schema_extra=NO_RESULT,
        description="maximum time in seconds to wait for nodes, at the start or after all have disconnected",
    )
    min_nodes: Count = Field(description="number of nodes to wait for before the start")
    sites_per_round: Annotated[float, Field(gt=0.0, le=1.0)] = Field(description="share of the sites in a round")
    evaluate_frequency: Count = Field(
        description="rounds between two evaluations of the adapters; the last round is always evaluated"
    )
    evaluate_before: bool = Field(description="whether to also evaluate the average before the server step")
    evaluate_with_training: bool | None = Field(
        json_schema_extra=NO_RESULT,
        description="whether a round is evaluated by the training messages of the next, with the same figures in half "
        "as many messages; null: in a deployment, where each message starts a process",
    )
    bind_names: bool = Field(
        description="whether a site's name is bound to the first node that uses it, identified by its key (deployed, "
        "partition=own); false: for nodes without keys, whose number changes with each connection"
    )

    @property
    def site_seconds(self) -> float:
        """Maximum time of a site for one message, in seconds."""
        return 0.9 * self.round_timeout if self.site_timeout is None else self.site_timeout

    @model_validator(mode="after")
    def _check(self) -> FederationSettings:
        if self.site_timeout is not None and self.site_timeout >= self.round_timeout:
            raise ValueError(
                f"federation.site_timeout={self.site_timeout:g} must be below federation.round_timeout="
                f"{self.round_timeout:g}, or a site could not report in time that it was too slow"
            )
        return self
