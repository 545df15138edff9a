"""The results of a finished run, as `results.json` has them, from the rows of its rounds."""

from __future__ import annotations

from typing import Any

from fed_a2v.config.schema import Settings
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.data.clips import unseen_classes
from fed_a2v.runs.folder import RunFolder, has_server_step
from fed_a2v.runs.rounds import best_row, fully_evaluated, gains, total

# Metrics of the last round that become results.
OF_LAST_ROUND = (
    *("accuracy", "accuracy_at_5", "accuracy_before", "cosine", "loss"),
    *("test_clips", "test_clips_total", "sites_evaluated", "sites_total"),
)
# With a T5 adapter, these as well.
OF_T5 = ("t5/accuracy", "t5/cosine", "t5/loss")


def final_results(folder: RunFolder, settings: Settings, prompts: ClassPrompts) -> dict[str, Any]:
    """What `results.json` holds.

    Args:
        folder: has the row of every round.
        settings: of the run.
        prompts: of its classes.
    """
    rows = folder.rows()
    last, best = rows[-1], best_row(rows)
    results = {name: last.get(name) for name in OF_LAST_ROUND + (OF_T5 if prompts.t5 is not None else ())}
    if has_server_step(folder.read_config()):
        results |= gains(rows, folder.rows_without_step())
    results |= {
        "best_round": best and best["round"],
        "best_accuracy": best and best["accuracy"],
        "best_fully_evaluated": best and fully_evaluated(best),
        "rounds": last["round"],
        "seed": settings.seed,
        "dataset": settings.dataset.name,
        "generator": settings.generator.name if settings.finetune.enabled else "no fine-tuning",
        "aggregation": settings.aggregation.mode,
        "sites": settings.partition.sites,
        "site_steps": total(rows, "site/optimiser_steps"),
        "server_steps": total(rows, "server/optimiser_steps"),
        "bytes_up": total(rows, "bytes_up") + total(rows, "bytes_registration"),
        "bytes_down": total(rows, "bytes_down"),
        "seconds": sum(row["seconds"] + row.get("seconds_registration", 0.0) for row in rows),
        "rejected": total(rows, "rejected"),
        "failures": total(rows, "failures"),
    }
    lost = last.get("lost_classes", [])
    results |= {"classes_lost": len(lost), "lost_classes": lost}
    if set(lost) | set(unseen_classes(settings.dataset, prompts.names)) == set(prompts.names):
        results["generator"] = "no fine-tuning"  # there is nothing to train on
    if settings.dataset.validates:
        results["accuracy_validation"] = last.get("accuracy_validation")
    return results
