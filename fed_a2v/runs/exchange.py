"""What left the sites with `share=statistics`, and what rounds after the first added, in words.

The report and `fed-a2v train` show it. Other kinds of statistics have no such lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fed_a2v.config.sections.federation import PrivacySettings
from fed_a2v.runs.rounds import Row, fully_evaluated, total


def shares_sums(config: Mapping[str, Any]) -> bool:
    """Whether a run, by its settings as plain values, has `share=statistics`."""
    return bool(config.get("share", {}).get("kind") == "statistics")


def sites_train(config: Mapping[str, Any]) -> bool:
    """Whether the sites of a run, by its settings as plain values, train adapters; True if they are unknown."""
    site = config.get("site", {"epochs": 1})
    closed_form = config.get("adapters", {}).get("closed_form", False)
    return not closed_form and bool(site.get("epochs") or site.get("server_steps"))


def sums_bytes(config: Mapping[str, Any], rows: Sequence[Row]) -> float | None:
    """Bytes of the sums of a site, as a mean over the sites; None if it is unknown."""
    sites, sent = rows[-1].get("sites_total"), total(rows, "bytes_registration")
    if not _sent_each_round(config):  # sites that join later send their sums in a round
        sent += total(rows, "bytes_up")
    return sent / sites if sites and sent else None


def _sent_each_round(config: Mapping[str, Any]) -> str:
    """What sites send of their training clips in every round, in words; "" for nothing."""
    finetune, closed_form = config["finetune"], config["adapters"]["closed_form"]
    if sites_train(config):
        return "adapters trained on its clips"
    targets = finetune["enabled"] and finetune["from_nodes_adapters"] and not closed_form
    return "mean outputs of the adapters" if targets or config["generate_nodes_images_frequency"] else ""


def traffic(config: Mapping[str, Any], rows: Sequence[Row]) -> float:
    """Bytes of all sites in both directions; with `share=statistics` those of the registration are among them."""
    names = ["bytes_up", "bytes_down"]
    if shares_sums(config):
        names += ["bytes_registration", "bytes_down_registration"]
    return float(sum(total(rows, name) for name in names))


def exchange_lines(config: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """What left the sites, and what rounds after the first added; [] without `share=statistics`.

    Args:
        config: settings of the run as plain values.
        rows: rows of the run, at least one, the first of which is that of round 1.
    """
    return [_left(config, rows), *_added(config, rows)] if shares_sums(config) else []


def _left(config: Mapping[str, Any], rows: Sequence[Row]) -> str:
    columns, once = config["projection"]["columns"], sums_bytes(config, rows)
    size = "" if once is None else f", {once / 1e3:.1f} kB once"
    each = total(rows, "bytes_up") / (len(rows) * (rows[-1].get("sites_total") or 1))
    what = _sent_each_round(config)
    more = f"{what}, {each / 1e6:.2f} MB a round" if what else "nothing more of them"
    privacy, secure = PrivacySettings.model_validate(config["privacy"]), config["secure_sums"]["name"] == "secagg"
    sums = "their sum, the sum of each class" if secure else "their mean, the sum of each class"
    sums += " and one matrix for all classes" if privacy.sends_scatter(secure) else ""
    hidden = ["with noise"] * privacy.adds_noise + ["in totals of all sites only"] * secure
    return (
        f"What left each site of its training clips: numbers of clips, {sums}, in {columns} public columns"
        f"{''.join(f', {each}' for each in hidden)}{size}; then {more}"
    )


def _added(config: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """What rounds after the first added to the accuracy, where every site has taken part in the first."""
    first, last = rows[0], rows[-1]
    if first["round"] != 1 or config["scenario"]["name"] != "static":
        return []
    if config["adapters"]["closed_form"] and not (first.get("rejected") or first.get("failures")):
        return ["Rounds after the first add nothing: the closed form has the sums of all sites in round 1"]
    before, after, clips = first.get("accuracy"), last.get("accuracy"), last.get("test_clips")
    whole = fully_evaluated(first) and fully_evaluated(last)
    if first is last or before is None or after is None or not clips or not whole:
        return []
    # Both rounds are scored on the same clips, which makes the true error smaller.
    error = math.sqrt((before * (1 - before) + after * (1 - after)) / clips)
    numbers = "Round 2" if last["round"] == 2 else f"Rounds 2 to {last['round']}"
    return [
        f"{numbers} added {after - before:+.3f} to the accuracy of round 1 (standard error at most {error:.3f}, of "
        f"{clips} test clips)"
    ]
