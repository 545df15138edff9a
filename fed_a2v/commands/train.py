"""`fed-a2v train`: one run, or a Hydra sweep with -m."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console

from fed_a2v.commands.guide_file import compose_with, show_guide, take_guide
from fed_a2v.config.compose import ConfigError, compose_settings, conf_dir, settings_from
from fed_a2v.config.schema import Settings
from fed_a2v.config.tree import options
from fed_a2v.errors import MENDABLE, interrupted
from fed_a2v.storage.plain_text import say

USAGE = """\
fed-a2v train [KEY=VALUE ...]      train across sites on this machine; -m runs a sweep over comma-separated values
  fed-a2v train
  fed-a2v train experiment=esc50_50x1 dataset.root=/data/ESC-50
  fed-a2v train experiment=esc50_50x1 dataset=embeddings dataset.path=embeddings.npz generator=gaussian
  fed-a2v train -m generator=none,gaussian,vae seed=0,1,2
  fed-a2v train -m hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.sweep.dir=sweeps/mine seed=0,1,2,3
  fed-a2v train hydra.run.dir=runs/mine rounds=20      # the same command again resumes a stopped run
  fed-a2v train --quiet seed=1                         # the result in one line; --json: one object per round
  fed-a2v train --config my_experiment.json seed=1     # a file in the guide's format; overrides win
"""


SWEEP_DIR = "hydra.sweep.dir="
# Options of Hydra that take a value.
VALUED = ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-i", "--info")


def run(words: list[str]) -> None:
    """Check the overrides, for better error messages than Hydra's, and run Hydra."""
    from fed_a2v.runs.output import OUTPUT_VARIABLE

    words, guide = take_guide(words)
    words, output = _take_output(words)
    if any(word in ("-h", "--help") for word in words):
        Console().print(USAGE, end="", highlight=False, markup=False, soft_wrap=True)
    elif not {"-sc", "--shell-completion"} & set(words):
        overrides = _overrides(words)
        sweep = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words)
        try:
            samples = [compose_with(guide, sample) for sample in (_samples(overrides) if sweep else [overrides])]
            # Imported after the first checks: importing torch takes seconds.
            from fed_a2v.data.errors import PartitionError
            from fed_a2v.federation.server.step_factory import check_buildable

            for sample in samples:
                # In a sweep, a job with too few clips fails alone and the others run.
                with suppress(*([PartitionError] if sweep else [])):
                    check_buildable(sample)
        except ConfigError as error:
            if any("=glob(" in word for word in overrides):
                raise ConfigError(f"{error}; glob(*,exclude=[OPTION]) excludes options") from error
            raise
        finally:
            if guide:
                show_guide(guide, Console(stderr=True))
        # All overrides first: argparse does not accept them both before and after an option such as -m.
        given = [*overrides, *_search_defaults(words), *(guide.overrides(overrides) if guide else [])]
        if sweep:
            given += _naming(given)
            _check_same(given, samples[0])
        words = [*given, *(word for word in words if word not in overrides)]
    if output:
        os.environ[OUTPUT_VARIABLE] = output
    argv, sys.argv = sys.argv, ["fed-a2v train", *words]
    # Makes Hydra pass exceptions on unchanged, such as a folder that cannot be written, for `cli.py` to report.
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _job()
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    finally:
        sys.argv = argv
        os.environ.pop(OUTPUT_VARIABLE, None)
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _job(config: DictConfig) -> float | None:
    """One run in Hydra's output folder; returns the final accuracy for sweepers, on validation clips if any."""
    from fed_a2v.callbacks.progress import result_line
    from fed_a2v.federation.simulation import run_in_process
    from fed_a2v.runs.exchange import exchange_lines
    from fed_a2v.runs.output import wanted_output
    from fed_a2v.runs.rounds import closing_lines
    from fed_a2v.runs.sweep import key_of, run_job
    from fed_a2v.runs.table import rounds_table
    from fed_a2v.storage.files import read_jsonl

    folder, output = Path(HydraConfig.get().runtime.output_dir), wanted_output()
    sweep = HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN
    errors, title = _console(), _title()
    if title and output == "full":
        same = HydraConfig.get().job.config.override_dirname.exclude_keys
        overrides = " ".join(word for word in HydraConfig.get().overrides.task if key_of(word) not in same)
        say(errors, f"{title}: {overrides}", style="bold")

    alone = output == "full" and not title  # then the table and the paths are printed below

    def run(settings: Settings, folder: Path) -> dict[str, Any]:
        return run_in_process(settings, folder, errors, output=output, title=title, announce=not alone)

    try:
        settings = settings_from(config)
        results = run_job(settings, folder, run) if sweep else run(settings, folder)
    except (Exception, KeyboardInterrupt) as error:
        if interrupted(error):
            say(Console(stderr=True), f"Stopped. Resume with hydra.run.dir={folder}")
            sys.exit(130)
        if not sweep and not isinstance(error, MENDABLE):
            raise
        # Hydra would print a traceback. A single run ends here; a sweep continues with its next job.
        say(Console(stderr=True), f"fed-a2v: {error}", style="red")
        if not sweep:
            sys.exit(2)
        if HydraConfig.get().runtime.choices["hydra/sweeper"] != "basic":
            raise  # a search must not use NaN as a result
        return math.nan
    console = Console()
    if alone:
        rows = read_jsonl(folder / "metrics.jsonl")
        console.print(rounds_table(rows).rich())
        for line in [*closing_lines(rows, results), *(f"{line}." for line in exchange_lines(config, rows))]:
            say(console, line, wrap=True)
        say(console, f"Results: {folder}")
        if (report := folder / "report.html").is_file():
            say(console, f"Report: {report}")
    elif output != "json":
        say(console, f"{title}: {result_line(results, folder)}" if title else result_line(results, folder))
    # A sweeper chooses settings, so it gets validation accuracy if there are validation clips.
    validation = results.get("accuracy_validation")
    accuracy = results["accuracy"] if validation is None else validation
    return None if accuracy is None else float(accuracy)


def _overrides(words: Sequence[str]) -> list[str]:
    """The words that are neither an option of Hydra nor the value of one."""
    pairs = zip(("", *words), words, strict=False)
    return [word for before, word in pairs if not word.startswith("-") and before not in VALUED]


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


def _take_output(words: Sequence[str]) -> tuple[list[str], str]:
    """The words without `--quiet` and `--json`, and "quiet", "json" or ""."""
    given = [word for word in words if word in ("--quiet", "--json")]
    if len(set(given)) > 1:
        raise ConfigError("--quiet and --json contradict each other; keep one of them")
    return [word for word in words if word not in given], given[0].removeprefix("--") if given else ""


def _title() -> str:
    """Name of a sweep's job; "" for a single run."""
    hydra_config = HydraConfig.get()
    return f"Job {hydra_config.job.num}" if hydra_config.mode == hydra.types.RunMode.MULTIRUN else ""


def _console() -> Console:
    """Standard error; without a live view if several jobs of a sweep run in parallel."""
    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == hydra.types.RunMode.MULTIRUN
    parallel = sweep and not str(hydra_config.launcher.get("_target_", "")).endswith("BasicLauncher")
    return Console(stderr=True, force_terminal=False) if parallel else Console(stderr=True)


def _search_defaults(words: Sequence[str]) -> list[str]:
    """Overrides for the Optuna sweeper: maximise accuracy, and continue after a failed job."""
    if "hydra/sweeper=optuna" not in words:
        return []
    defaults = {"hydra.sweeper.direction": "maximize", "hydra.sweeper.max_failure_rate": "1.0"}
    return [f"{key}={value}" for key, value in defaults.items() if not any(word.startswith(key) for word in words)]


def _before(overrides: Sequence[str]) -> tuple[Path, dict[str, list[str]]] | None:
    """The folder of a sweep and the overrides of one that has begun there; None if it is new."""
    from fed_a2v.runs.sweep import sweep_words

    chosen = [Path(word.partition("=")[2].strip("'\"")) for word in overrides if word.startswith(SWEEP_DIR)]
    words = sweep_words(chosen[-1]) if chosen else None
    return None if words is None else (chosen[-1], words)


def _tasks(overrides: Sequence[str]) -> list[Override]:
    """The overrides that are not Hydra's own."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [each for each in parsed if not each.is_hydra_override()]


def _naming(overrides: Sequence[str]) -> list[str]:
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


def _check_same(overrides: Sequence[str], first: Settings) -> None:
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
        f"{SWEEP_DIR}FOLDER, or the same settings"
    )


def _samples(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides with the first and with the last value of each sweep: enough to find a wrong key or option."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    chosen: list[list[str]] = [[], []]
    for override in parsed:
        lines = [str(override.input_line)]
        if override.is_sweep_override():
            lines = [f"{override.get_key_element()}={value}" for value in _values(override)]
        for sample, line in zip(chosen, (lines[0], lines[-1]), strict=True):
            sample.append(line)
    return chosen
