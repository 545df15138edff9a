"""The words of a sweep, `fed-a2v train -m`: samples of its jobs to check, and the names of their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from fed_a2v.commands.parser import plain_value
from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.config.tree import options
from fed_a2v.errors import ConfigError

SWEEP_DIR = "hydra.sweep.dir="


def samples_of(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides with the first and with the last value of each sweep: enough to find a wrong key or option."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    chosen: list[list[str]] = [[], []]
    for override in parsed:
        lines = [str(override.input_line)]
        if override.is_sweep_override():
            try:
                lines = [f"{override.get_key_element()}={value}" for value in _values(override)]
            except ValueError as error:  # such as a range with steps of 0
                raise ConfigError(f"{override.input_line}: {error}") from error
            if not lines:
                raise ConfigError(f"{override.input_line} has no values; name at least one")
        for sample, line in zip(chosen, (lines[0], lines[-1]), strict=True):
            sample.append(line)
    return chosen


def _values(override: Override) -> list[str]:
    """The values of a sweep over one key; `glob(*)` gives options of a group, and an interval its ends."""
    pattern, group = override.value(), override.get_key_element()
    if isinstance(pattern, IntervalSweep):  # of a search, which draws from it
        return [str(pattern.start), str(pattern.end)]
    if not isinstance(pattern, Glob):
        return list(override.sweep_string_iterator())
    available = options(group)
    if not (matching := pattern.filter(available)):
        raise ConfigError(
            f"{override.input_line}: no option of {group} matches; it has {', '.join(available) or 'none'}"
        )
    return list(matching)


def search_defaults(words: Sequence[str]) -> list[str]:
    """Overrides for the Optuna sweeper: maximise accuracy, and continue after a failed job."""
    if "hydra/sweeper=optuna" not in words:
        return []
    defaults = {"hydra.sweeper.direction": "maximize", "hydra.sweeper.max_failure_rate": "1.0"}
    return [f"{key}={value}" for key, value in defaults.items() if not any(word.startswith(key) for word in words)]


def _before(overrides: Sequence[str]) -> tuple[Path, dict[str, list[str]]] | None:
    """The folder of a sweep and the overrides of one that has begun there; None if it is new."""
    from fed_a2v.runs.sweep import sweep_words

    chosen = [Path(plain_value(word)) for word in overrides if word.startswith(SWEEP_DIR)]
    words = sweep_words(chosen[-1]) if chosen else None
    return None if words is None else (chosen[-1], words)


def _tasks(overrides: Sequence[str]) -> list[Override]:
    """The overrides that are not Hydra's own."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [each for each in parsed if not each.is_hydra_override()]


def naming(overrides: Sequence[str]) -> list[str]:
    """The override by which Hydra names the folders of the jobs after what varies only, or did in the same folder."""
    from fed_a2v.runs.sweep import key_of

    before = _before(overrides)
    tasks = _tasks(overrides)
    varies = {str(each.key_or_group) for each in tasks if each.is_sweep_override()}
    varies |= {key_of(word) for word in before[1]["varied"]} if before else set()
    same = [str(each.key_or_group) for each in tasks if each.key_or_group not in varies]
    if len(same) == len(tasks):  # nothing varies, or the sweeper's own settings say what
        same = [key for key in same if key in ("experiment", "dataset.root", "dataset.path")]
    names = ",".join(f"'{key}'" for key in dict.fromkeys(same))
    return [f"hydra.job.config.override_dirname.exclude_keys=[{names}]"]


def check_same(overrides: Sequence[str], first: Settings) -> None:
    """Refuse a sweep in the folder of one whose jobs have other settings but the same names.

    Raises:
        ConfigError: names the folder, and the overrides of both.
    """
    from fed_a2v.runs.checkpoint import same_results
    from fed_a2v.runs.sweep import key_of

    found = _before(overrides)
    if found is None:
        return
    folder, before = found
    named = {key_of(word) for word in before["varied"]}
    same: list[str] = []
    sample: list[str] = []
    for each in _tasks(overrides):
        if each.is_sweep_override():
            sample.append(f"{each.get_key_element()}={_values(each)[0]}")
        else:
            (sample if each.key_or_group in named else same).append(str(each.input_line))
    then = [word for word in before["same"] if key_of(word) not in map(key_of, sample)]
    try:
        if same_results(compose_settings([*then, *sample]).as_dict(), first.as_dict()):
            return
    except ConfigError:  # a key or option that there is no more
        pass
    old, new = (" ".join(word for word in one if word not in other) for one, other in ((then, same), (same, then)))
    raise ConfigError(
        f"{folder} has jobs with {old or 'the defaults'}, not with {new or 'the defaults'}; choose another "
        "--out FOLDER, or the same settings"
    )
