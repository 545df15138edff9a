"""The results of a finished run, for `results.json`, from the rows of its rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.config.sections.data import DatasetSettings
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.data.selection import unseen_classes
from fed_a2v.runs.folder import RunFolder, has_server_step
from fed_a2v.runs.rounds import best_row, fully_evaluated, gains, total

# Metrics of the last round that are part of the results.
OF_LAST_ROUND = (
    *("accuracy", "accuracy_low", "accuracy_high"),
    *("accuracy_at_5", "accuracy_at_5_low", "accuracy_at_5_high"),
    *("accuracy_before", "accuracy_before_low", "accuracy_before_high"),
    *("cosine", "loss", "test_clips", "test_clips_total", "sites_evaluated", "sites_total"),
)
# Further ones with a T5 adapter, with a server step, and with validation clips.
OF_T5 = ("t5/accuracy", "t5/accuracy_low", "t5/accuracy_high", "t5/cosine", "t5/loss")
OF_STEP = ("server_step/better", "server_step/worse", "server_step/p")
OF_VALIDATION = ("accuracy_validation", "accuracy_validation_low", "accuracy_validation_high", "validation_clips")


def final_results(
    folder: RunFolder, config: Mapping[str, Any], dataset: DatasetSettings, prompts: ClassPrompts
) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
        folder: folder of the run, with the row of every round.
        config: all settings of the run as plain values.
        dataset: settings of its data set.
        prompts: class prompts of the run.
    """
    rows = folder.rows()
    last, best = rows[-1], best_row(rows)
    results = {name: last.get(name) for name in OF_LAST_ROUND + (OF_T5 if prompts.t5 is not None else ())}
    if has_server_step(config):
        results |= gains(rows, folder.rows_without_step()) | {name: last.get(name) for name in OF_STEP}
    results |= {
        "best_round": best and best["round"],
        "best_accuracy": best and best["accuracy"],
        "best_accuracy_low": best and best.get("accuracy_low"),
        "best_accuracy_high": best and best.get("accuracy_high"),
        "best_fully_evaluated": best and fully_evaluated(best),
        "rounds": last["round"],
        "seed": config["seed"],
        "dataset": dataset.name,
        "generator": config["generator"]["name"] if config["finetune"]["enabled"] else "no fine-tuning",
        "aggregation": config["aggregation"]["mode"],
        "sites": config["partition"]["sites"],
        "site_steps": total(rows, "site/optimiser_steps"),
        "server_steps": total(rows, "server/optimiser_steps"),
        "bytes_up": total(rows, "bytes_up") + total(rows, "bytes_registration"),
        "bytes_down": total(rows, "bytes_down") + total(rows, "bytes_down_registration"),
        "seconds": sum(row["seconds"] + row.get("seconds_registration", 0.0) for row in rows),
        "rejected": total(rows, "rejected"),
        "failures": total(rows, "failures"),
    }
    if space := next((row["space"] for row in rows if "space" in row), None):
        results["space"] = space
    results |= {name: value for name, value in last.items() if name.startswith("privacy/")}
    lost = last.get("lost_classes", [])
    results |= {"classes_lost": len(lost), "lost_classes": lost}
    if set(lost) | set(unseen_classes(dataset, prompts.names)) == set(prompts.names):
        results["generator"] = "no fine-tuning"  # no site has sent statistics to train on
    if dataset.validates:
        results |= {name: last.get(name) for name in OF_VALIDATION}
    return results
