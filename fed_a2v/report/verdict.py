"""The first sentence of a report: what was reached, whether the server step helped, and what to do if it did not.

It claims a difference only where one is established: by McNemar's test on single clips, by the paired differences of
seeds, or else by a bound for two accuracies on the same clips.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fed_a2v.core.uncertainty import QUANTILE
from fed_a2v.report.collect import Collection
from fed_a2v.report.record import Row, RunRecord
from fed_a2v.report.styles import clean
from fed_a2v.runs.exchange import sites_train
from fed_a2v.runs.folder import has_server_step
from fed_a2v.runs.intervals import paired_interval
from fed_a2v.runs.rounds import SIGNIFICANT, changed_clips, fully_evaluated, gain, gain_over, scored_on


class Advice(NamedTuple):
    """What to do next, in sentences, and a command that does the last of them; "" without one."""

    words: list[str]
    command: str = ""


class Verdict(NamedTuple):
    """What a report says first.

    Attributes:
        says: one sentence.
        next: what to do.
        tone: "good" (an improvement is established), "bad" (a loss is) or "open" (neither).
    """

    says: str
    next: Advice = Advice([])
    tone: str = "open"


class Difference(NamedTuple):
    """A difference of two accuracies.

    Attributes:
        value: the first less the second.
        sign: 1 or -1 if it is established, else 0.
        why: how it is judged, in words.
    """

    value: float
    sign: int
    why: str


def verdict(collection: Collection) -> Verdict:
    """The verdict on the runs of a report."""
    arms = collection.arms
    reached = _reached(arms[0], len(arms) > 1)
    if arms[0].last.get("accuracy") is None:
        return Verdict(f"{reached}.")
    if collection.crossed:
        return _of_crossed(arms[0], collection.crossed, reached)
    if len(arms) > 1 and not collection.compared:
        return _of_many(arms)
    yardsticks = [*arms[1:], *collection.baselines]
    if yardsticks:
        return _against(arms[0], yardsticks, reached)
    return _of_one(arms[0], reached)


# What was reached


def _reached(run: RunRecord, several: bool) -> str:
    row = run.last
    name = f"{clean(run.label)}: " if several else ""
    if row.get("accuracy") is None:
        return f"{name}{'no' if name else 'No'} accuracy after round {row['round']}, as no scores have left the sites"
    notes = [_interval(run), _chance(run)]
    extra = f" ({'; '.join(filter(None, notes))})" if any(notes) else ""
    clips = row.get("test_clips")
    if run.members:
        return f"{name}{'mean' if name else 'Mean'} accuracy {row['accuracy']:.3f} over {run.repeats}{extra}"
    if not clips:
        return f"{name}{'accuracy' if name else 'Accuracy'} {row['accuracy']:.3f} after round {row['round']}{extra}"
    right = f"{round(row['accuracy'] * clips)} of {clips} test clips are recognised"
    missing = "" if fully_evaluated(row) else f", on {scored_on(row)}"
    return f"{name}{right} after round {row['round']}, accuracy {row['accuracy']:.3f}{missing}{extra}"


def _interval(run: RunRecord) -> str:
    low, high = run.last.get("accuracy_low"), run.last.get("accuracy_high")
    if low is None or high is None:
        return ""
    return f"lowest {low:.3f}, highest {high:.3f}" if run.members else f"95\u00a0% interval {low:.3f} to {high:.3f}"


def _chance(run: RunRecord) -> str:
    """What guessing gives; "" with classes that no site has recorded, which are candidates too."""
    classes = len(run.evaluation.get("classes", {}))
    return "" if not classes or run.config.get("dataset", {}).get("unseen") else f"guessing: {1 / classes:.3f}"


# Whether the server step has helped


def _of_one(run: RunRecord, reached: str) -> Verdict:
    if not has_server_step(run.config):
        return Verdict(f"{reached}; this run has no server step.", _compare(run))
    over = _over_average(run)
    if over is None:
        why = "the adapters before it were not scored" if sites_train(run.config) else "the sites train no adapters"
        return Verdict(f"{reached}; there is nothing to measure the server step against, as {why}.", _compare(run))
    where, found = over
    against = f"{found.value:+.3f} over {where}"
    if found.sign > 0:
        says = f"the server step helps: {against} ({found.why})"
        return Verdict(f"{reached}; {says}.", _compare(run), "good")
    if found.sign < 0:
        says = f"the server step makes it worse: {against} ({found.why})"
        return Verdict(f"{reached}; {says}.", _weaker(run), "bad")
    says = f"whether the server step helps is not established: {against} ({found.why})"
    return Verdict(f"{reached}; {says}.", _more(run))


def _against(run: RunRecord, yardsticks: Sequence[RunRecord], reached: str) -> Verdict:
    """The verdict on the experiment of a comparison."""
    found = {clean(other.label): _difference(run, other) for other in yardsticks}
    known = {name: each for name, each in found.items() if each is not None}
    parts = [
        f"{words} {_listed({name: each for name, each in known.items() if each.sign == sign})}"
        for sign, words in ((1, "better than"), (-1, "worse than"), (0, "no difference shown from"))
        if any(each.sign == sign for each in known.values())
    ]
    reasons = list(dict.fromkeys(each.why for each in known.values() if not each.sign))
    why = f" ({reasons[0]})" if reasons else ""
    says = f"{reached}; {'; '.join(parts)}{why}." if parts else f"{reached}."
    step = known.get("FedAvg")
    if step is not None and step.sign < 0:
        return Verdict(says, _weaker(run), "bad")
    established = [each.sign for each in known.values()]
    tone = "good" if step is not None and step.sign > 0 else "open"
    return Verdict(says, Advice([]) if all(established) else _more(run), tone)


def _of_crossed(run: RunRecord, summaries: Sequence[Row], reached: str) -> Verdict:
    """The verdict of cross-validations, by the paired differences on the same folds and seeds in their summaries."""
    *_, experiment = summaries[0].get("arms") or [""]
    if experiment:
        reached = f"{clean(experiment)}: {reached[0].lower()}{reached[1:]}"
    words = [clean(words) for each in summaries for words in each.get("sentences") or [each["says"]]]
    against = [each.get("against", {}).get("FedAvg", {}) for each in summaries]
    helps = bool(against) and all(each.get("low", 0) > 0 for each in against)
    worse = any(each.get("high", 0) < 0 for each in against)
    advice = _weaker(run) if worse else _more(run, *(["--folds"] if _folds(run) > 1 else []))
    return Verdict(f"{reached}. {'; '.join(words)}.", advice, "bad" if worse else "good" if helps else "open")


def _folds(run: RunRecord) -> int:
    """Number of test folds of the runs that an arm is the mean of; 1 for a single run."""
    return len({str(each.config.get("dataset", {}).get("test_fold")) for each in run.members or [run]})


def _listed(differences: Mapping[str, Difference]) -> str:
    return ", ".join(f"{name} ({each.value:+z.3f})" for name, each in differences.items())


def _of_many(arms: Sequence[RunRecord]) -> Verdict:
    """The verdict on runs that are no comparison, such as a sweep: the best and the worst."""
    known = [run for run in arms if run.last.get("accuracy") is not None]
    best, worst = (pick(known, key=lambda run: run.last["accuracy"]) for pick in (max, min))
    says = f"{_reached(best, True)}, the highest of {len(known)}"
    found = _difference(best, worst)
    if best is worst or found is None:
        return Verdict(f"{says}.")
    than = f"the lowest, {clean(worst.label)} ({found.value:+.3f})"
    if not found.sign:
        words = f"no difference shown, not even from {than}: {found.why}"
        return Verdict(f"{says}; {words}.", _more(best))
    luck = "The highest of several is partly luck: confirm it with other seeds before you choose it."
    return Verdict(f"{says}; better than {than}.", Advice([luck]))


def _over_average(run: RunRecord) -> tuple[str, Difference] | None:
    """The gain of the server step with its yardstick: FedAvg, else the average of the first round, else of the last."""
    if run.without_step:
        by_round = {row["round"]: row for row in run.without_step}
        value = gain_over(run.last, by_round.get(run.last["round"]))
        if value is not None:
            return "FedAvg, the same run without it", _judged(value, run.last, by_round[run.last["round"]])
    scored = [row for row in run.rows if gain(row) is not None]
    if not scored:
        return None
    row = scored[0]
    where = f"the adapters before it in round {row['round']}"
    if row["round"] == 1 and not run.shares_sums:
        where = "the plain average of round 1"
    of_members = [gain(_row(each, row["round"])) for each in run.members]
    gains = [value for value in of_members if value is not None]
    if len(gains) > 1:
        return where, _over_repeats(gains, run)
    p, value = row.get("server_step/p"), gain(row) or 0.0
    if p is None:
        return where, _judged(value, row, {**row, "accuracy": row["accuracy_before"]})
    return where, Difference(value, _sign(value) if p < SIGNIFICANT else 0, ", ".join(changed_clips(row)))


def _difference(run: RunRecord, other: RunRecord) -> Difference | None:
    """The accuracy of a run less that of another after the last round of both; None if they are not comparable."""
    value = gain_over(run.last, other.last)
    if value is None:
        return None
    if len(run.members) == len(other.members) > 1 and run.repeats == other.repeats:
        pairs = zip(run.members, other.members, strict=True)
        return _over_repeats([mine.last["accuracy"] - its.last["accuracy"] for mine, its in pairs], run)
    return _judged(value, run.last, other.last)


def _over_repeats(differences: Sequence[float], run: RunRecord) -> Difference:
    """A difference on several seeds and folds, paired."""
    folds = _folds(run)
    found = paired_interval(differences, 1 / (folds - 1) if folds > 1 else 0.0)
    sign = 1 if found.low > 0 else -1 if found.high < 0 else 0
    if not math.isfinite(found.reach):
        return Difference(found.mean, 0, f"the same difference in {run.repeats}, which gives no interval")
    return Difference(found.mean, sign, f"95\u00a0% {found.low:+.3f} to {found.high:+.3f} over {run.repeats}")


def _judged(value: float, one: Row, other: Row) -> Difference:
    """A difference of two accuracies on the same clips, by the larger error of independent ones."""
    clips = min(one.get("test_clips") or 0, other.get("test_clips") or one.get("test_clips") or 0)
    if not clips:
        return Difference(value, 0, "the number of test clips is unknown")
    spread = sum(row["accuracy"] * (1 - row["accuracy"]) for row in (one, other))
    error = QUANTILE * math.sqrt(spread / clips)
    established = abs(value) > error
    why = f"a difference up to {error:.3f} can be chance on {clips} test clips"
    return Difference(value, _sign(value) if established else 0, why)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _row(run: RunRecord, number: int) -> Row:
    return next((row for row in run.rows if row["round"] == number), {})


# What to do next


def _weaker(run: RunRecord) -> Advice:
    words = (
        "Fine-tune less (finetune.first_steps, finetune.steps, finetune.learning_rate), with fewer synthetic rows "
        "(finetune.synthetic_share), or not at all (finetune.enabled=false)."
    )
    return Advice([words, *_undone(run)])


def _more(run: RunRecord, *words: str) -> Advice:
    command = _command(run, *words, "--seeds", "0,1,2,3,4")
    return Advice([*_undone(run), "More test clips or more seeds would tell:"], command)


def _compare(run: RunRecord) -> Advice:
    what = "the server step and its generator add" if sites_train(run.config) else "the exchange costs"
    return Advice([*_undone(run), f"To see what {what}, compare with the baselines:"], _command(run))


def _undone(run: RunRecord) -> list[str]:
    rounds = [str(row["round"]) for row in run.rows if row.get("rolled_back") is True]
    if not rounds:
        return []
    return [
        f"In round{'s' * (len(rounds) > 1)} {', '.join(rounds)} the fine-tuning was undone, as it increased the "
        "held-out loss; fine-tune less (finetune.steps, finetune.learning_rate)."
    ]


def _command(run: RunRecord, *more: str) -> str:
    baselines = [] if sites_train(run.config) else ["--with", "prototypes,pooled"]  # nothing to average
    chosen = ("seed=", *(["dataset.test_fold="] if "--folds" in more else []))
    given = ["KEY=VALUE"] if run.overrides is None else run.overrides
    words = [word for word in given if not (more and word.startswith(chosen))]
    return clean(shlex.join(["fed-a2v", "compare", *words, *baselines, *more]))
