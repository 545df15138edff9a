"""Summaries of the rows of `metrics.jsonl`: totals, the clips of a figure, the best round, the gain of the server step.

Used by the results, the tables, the progress and the report. Rows without these figures, such as those of pooled
training, cover all test clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# With fewer test clips the 95 % interval of an accuracy of one half is wider than 0.19.
FEW_CLIPS = 100
# Differences with a larger p-value are not established.
SIGNIFICANT = 0.05


def fully_evaluated(row: Row) -> bool:
    """Whether the figures of a row, or of a run's results, are those of all sites."""
    return bool(row.get("sites_evaluated") == row.get("sites_total"))


def scored_on(row: Row) -> str:
    """The clips that the figures of a row cover, e.g. "48 of 80 test clips, 3 of 5 sites"."""
    clips = row.get("test_clips", 0)
    if fully_evaluated(row):
        return f"{clips} test clips"
    total = row.get("test_clips_total")
    of_all = "an unknown number of" if total is None else total
    return f"{clips} of {of_all} test clips, {row['sites_evaluated']} of {row['sites_total']} sites"


def interval_words(row: Row, figure: str = "accuracy") -> str:
    """The 95 % interval of an accuracy in a row or in results, e.g. "95 % 0.815 to 0.884"; "" for an unknown one."""
    low, high = row.get(f"{figure}_low"), row.get(f"{figure}_high")
    return "" if low is None or high is None else f"95 % {low:.3f} to {high:.3f}"


def total(rows: Iterable[Row], name: str) -> Any:
    """Sum of a metric over the rounds; rounds without it count as 0."""
    return sum(row.get(name, 0) for row in rows)


def steps_of(rows: Sequence[Row]) -> list[int]:
    """Consecutive optimiser steps in each round of a run: those of a site plus those of the server."""
    return [round(row.get("site/optimiser_steps", 0) + row.get("server/optimiser_steps", 0)) for row in rows]


def best_row(rows: Iterable[Row]) -> Row | None:
    """The row of the most accurate round, the first of equals; None if no row has an accuracy.

    Accuracy on the validation clips decides, if there are any. Rounds in which every site was evaluated rank before all
    others, and those before rounds on fewer clips, as a high accuracy on few clips may be chance.
    """
    rows = list(rows)
    validated = any(row.get("accuracy_validation") is not None for row in rows)
    figure, clips = ("accuracy_validation", "validation_clips") if validated else ("accuracy", "test_clips")

    def rank(row: Row) -> tuple[bool, int, float]:
        full = fully_evaluated(row)
        return full, 0 if full else int(row.get(clips, 0)), float(row[figure])

    return max((row for row in rows if row.get(figure) is not None), key=rank, default=None)


def gain(row: Row) -> float | None:
    """Accuracy after the server step less that of the average before it, in the same round."""
    after, before = row.get("accuracy"), row.get("accuracy_before")
    return None if after is None or before is None else after - before


def gain_over(row: Row, other: Row | None) -> float | None:
    """The accuracy of a row less that of another run's; None unless both cover all sites."""
    if other is None or not (fully_evaluated(row) and fully_evaluated(other)):
        return None
    mine, its = row.get("accuracy"), other.get("accuracy")
    return None if mine is None or its is None else mine - its


def gains(rows: Sequence[Row], without_step: Sequence[Row] = ()) -> dict[str, float | None]:
    """Three measures of what the server step adds.

    Only the average of the first round does not contain it: later averages are of adapters that an earlier step has
    improved, so a small gain there means little. The gain over FedAvg needs a run without the server step.

    Args:
        rows: rows of a run with a server step, at least one.
        without_step: rows of the same run without the server step.

    Returns:
        `gain_first_round` and `gain_last_round`: see `gain`. `gain_over_fedavg`: accuracy after the last round less
        that of `without_step` after the same round. None if it is unknown.
    """
    last = rows[-1]
    first = next((row for row in rows if row["round"] == 1), {})
    same_round = next((row for row in without_step if row["round"] == last["round"]), None)
    return {
        "gain_first_round": gain(first),
        "gain_last_round": gain(last),
        "gain_over_fedavg": gain_over(last, same_round),
    }


def gain_words(results: Mapping[str, Any]) -> str:
    """The gains among a run's results in one line; "" if none is known.

    Args:
        results: with `rounds` and the result of `gains`.
    """
    rounds = results.get("rounds")
    by_round = {1: results.get("gain_first_round"), rounds: results.get("gain_last_round")}
    steps = [f"{value:+.3f} in round {number}" for number, value in by_round.items() if value is not None]
    words = [f"the server step adds {' and '.join(steps)} to the average of the same round"] if steps else []
    over = results.get("gain_over_fedavg")
    if over is not None:
        words.append(f"the run ends {over:+.3f} over FedAvg, the same run without the server step")
    return "; ".join(words)


def step_words(rows: Sequence[Row]) -> str:
    """What the server step did to single test clips in the first and in the last round; "" if it is unknown.

    Args:
        rows: rows of a run with a server step, with `server_step/...` if the adapters before the step were scored.
    """
    by_round = {row["round"]: row for row in (*(row for row in rows if row["round"] == 1), *rows[-1:])}
    words = [f"in round {number}: {_changes(row)}" for number, row in by_round.items() if "server_step/p" in row]
    return f"the server step {'; '.join(words)}" if words else ""


def _changes(row: Row) -> str:
    if not row["server_step/better"] + row["server_step/worse"]:
        return "no test clip better, none worse"
    clips, chance = changed_clips(row)
    established = "" if row["server_step/p"] < SIGNIFICANT else ", no difference shown"
    return f"{clips} (McNemar's test: {chance}{established})"


def changed_clips(row: Row) -> tuple[str, str]:
    """The test clips that a server step changed, and the p-value of McNemar's test, in words.

    Args:
        row: row with `server_step/...`.

    Returns:
        Such as "6 test clips better, 1 worse" and "p = 0.12".
    """
    better, worse, p = (row[f"server_step/{name}"] for name in ("better", "worse", "p"))
    chance = f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
    return f"{better} test clip{'s' * (better != 1)} better, {worse} worse", chance


def accuracy_words(row: Row) -> str:
    """The accuracies of a row with their 95 % intervals, and their clips, in one line; "" if no interval is known."""
    names = {"accuracy": "accuracy", "accuracy_before": "before the server step", "t5/accuracy": "T5"}
    parts = [f"{name} {row[key]:.3f} ({words})" for key, name in names.items() if (words := interval_words(row, key))]
    return f"after round {row['round']}, on {scored_on(row)}: {', '.join(parts)}" if parts else ""


def privacy_words(row: Row) -> str:
    """What differential privacy promises for the clips behind a row, in one line; "" without it."""
    epsilon = row.get("privacy/epsilon")
    if epsilon is None:
        return ""
    scores = "leave" if row.get("privacy/scores") else "do not leave"
    return (
        f"differential privacy of the training clips: epsilon={epsilon:.4g}, delta={row['privacy/delta']:g} "
        f"({row['privacy/relation']}); taken as public: {', '.join(row['privacy/public'])}; counts of right test clips "
        f"{scores} the sites"
    )


def closing_lines(rows: Sequence[Row], results: Mapping[str, Any]) -> list[str]:
    """The lines below the table of the rounds: the clips of the figures with an asterisk, intervals, gains, privacy."""
    partly: dict[str, list[str]] = {}
    for row in rows:
        if not fully_evaluated(row):
            partly.setdefault(scored_on(row), []).append(str(row["round"]))
    lines = [f"* Round {', '.join(rounds)}: {clips}." for clips, rounds in partly.items()]
    step = step_words(rows) if "gain_last_round" in results else ""  # without a server step nothing changes
    sentences = (accuracy_words(rows[-1]), gain_words(results), step, privacy_words(results))
    return lines + [f"{words[0].upper()}{words[1:]}." for words in sentences if words]


def remarks(rows: Sequence[Row], few_clips: bool = True) -> list[str]:
    """Caveats about the figures of a run, one line each.

    Args:
        rows: rows of the run, at least one.
        few_clips: warn of few test clips.
    """
    last, best = rows[-1], best_row(rows)
    found = []
    if last.get("privacy/scores") is False:
        return ["There is no accuracy, as no scores leave the sites (privacy.scores=false)"]
    if few_clips and (interval := interval_words(last)) and last["test_clips"] < FEW_CLIPS:
        found.append(
            f"There are only {last['test_clips']} test clips, so the accuracy {last['accuracy']:.3f} is uncertain "
            f"({interval}): test on more clips, or on all folds (fed-a2v compare --folds)"
        )
    if not fully_evaluated(last):
        found.append(f"The figures of the last round, {last['round']}, cover only {scored_on(last)}")
    if best is not None and not fully_evaluated(best):
        found.append(
            f"No round evaluated all sites; round {best['round']} is the best of those that evaluated the most test "
            f"clips: {scored_on(best)}"
        )
    if last.get("t5/far_behind"):
        found.append(
            f"T5 is far behind CLIP: cosine {last['t5/cosine']:.3f} against {last['cosine']:.3f}, accuracy "
            f"{last['t5/accuracy']:.3f} against {last['accuracy']:.3f}; raise "
            "adapters.hidden_width, finetune.first_steps or site.epochs"
        )
    return found
