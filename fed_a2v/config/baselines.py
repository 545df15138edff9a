"""The baselines of `fed-a2v compare`."""

from __future__ import annotations

# Overrides of each baseline; None for pooled training, which has no federation.
BASELINES: dict[str, list[str] | None] = {
    "FedAvg": ["finetune.enabled=false", "site.server_steps=false"],
    "FedAvg, as many steps": ["finetune.enabled=false", "site.server_steps=true"],
    "prototypes": ["generator=none"],
    "gaussian": ["generator=gaussian"],
    "pooled": None,
    "pooled, as many steps": None,
}
