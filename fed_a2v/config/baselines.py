"""The baselines of `fed-a2v compare`."""

from __future__ import annotations

# The arms that others are measured against: fine-tuning without a generator, on prototypes or on sums.
REFERENCE, SUMS_REFERENCE = "prototypes", "sums"
# The baseline that takes the steps of the experiment, and so runs after it.
STEPPED = "pooled, as many steps"
# Overrides of each baseline; None for pooled training, which has no federation.
BASELINES: dict[str, list[str] | None] = {
    "FedAvg": ["finetune.enabled=false", "site.server_steps=false"],
    "FedAvg, as many steps": ["finetune.enabled=false", "site.server_steps=true"],
    REFERENCE: ["generator=none"],
    SUMS_REFERENCE: ["generator=none"],
    "gaussian": ["generator=gaussian"],
    "pooled": None,
    STEPPED: None,
}
# Baselines of an experiment whose sites send prototypes, and of one whose sites send sums.
DEFAULT = ("FedAvg", REFERENCE, "pooled")
DEFAULT_OF_SUMS = ("FedAvg", SUMS_REFERENCE, "pooled")
