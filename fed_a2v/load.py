"""Python interface: train a run or load one, sample its generator, map sounds to prompts, continue it, compare runs.

```python
from fed_a2v import load_run, train

run = train("experiment=quick", "outputs/mine")
run = load_run("outputs/mine")
dogs = run.generator.sample("dog", 8)
prompts = run.prompts("dog.wav")
run = run.continue_training(rounds=5)
```
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from fed_a2v.config.plugins import foreign_code, refuse_code
from fed_a2v.config.schema import Settings
from fed_a2v.core.adapters import AdapterOutput, Adapters
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.metrics import ClassScore, ranked_classes
from fed_a2v.core.names import clean_name, listed
from fed_a2v.core.public_space import PublicSpace, is_orthonormal
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.server_step import ServerStep
from fed_a2v.data.audio import FloatArray
from fed_a2v.data.clips import square_roots
from fed_a2v.data.datasets.base import data_set
from fed_a2v.data.index import parts
from fed_a2v.data.sounds import RunError, Sound, are_embeddings, as_waveform, embed_sounds, find_class, whole_number
from fed_a2v.encoders.audio import AudioEncoder, load_encoder
from fed_a2v.errors import ConfigError, UserError
from fed_a2v.federation.factory import torch_device
from fed_a2v.federation.server.step_factory import check_buildable, make_step, model_bytes
from fed_a2v.install import install_hint
from fed_a2v.runs.checkpoint import load_state, read_state
from fed_a2v.runs.compare import find_runs, run_rows
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.summary import run_html, run_line
from fed_a2v.storage.files import free_folder
from fed_a2v.storage.torch_files import CheckpointError, tensor_bytes
from fed_a2v.storage.untrusted import UntrustedFileError

if TYPE_CHECKING:
    import pandas


def load_run(path: str | Path, device: str = "cpu", *, trust_code: bool = False) -> LoadedRun:
    """Load a run as it was after its newest finished round, or after the round of one of its checkpoints.

    Args:
        path: the run's folder, or a file `checkpoints/state_round_N.pt` in it.
        device: device of the adapters and the generator.
        trust_code: whether custom classes that the run names by import path (generator, loss, encoder, data set) may
            be imported and called. By default no code of the folder is run, so it may be untrusted.

    Raises:
        FileNotFoundError: there is no run.
        UntrustedCodeError: the run names code outside this program; the message lists it.
        CheckpointError: the state is damaged, of another version, or the file is not the state of a run.

    Examples:
        >>> run = load_run(folder)
        >>> run.round, len(run.classes)
        (2, 10)
        >>> run.generator.sample("dog", 8, seed=0).shape
        torch.Size([8, 1, 512])
        >>> run.prompts(wav).clip.shape
        torch.Size([1, 1, 768])
    """
    path = Path(path).expanduser().absolute()
    if path.is_file():
        return LoadedRun(RunFolder(path.parent.parent), read_state(path), device, trust_code)
    state = load_state(path)
    if state is None:
        raise FileNotFoundError(
            f"no run in {path}: it has no checkpoints/state_round_N.pt; choose a folder written by `fed-a2v train`, or "
            "a checkpoint in it"
        )
    return LoadedRun(RunFolder(path), state, device, trust_code)


def train(overrides: str | Sequence[str] = (), folder: str | Path | None = None, *, quiet: bool = False) -> LoadedRun:
    """Train across sites in this process, as `fed-a2v train` does, and load the run.

    A second call with the same folder and overrides loads the finished run; with more `rounds` it continues it. A run
    that was stopped continues after its last finished round.

    Args:
        overrides: settings as on the command line, one by one or in one string: `["experiment=quick", "rounds=1"]`.
        folder: folder of the run; default: a new one, `outputs/DATE/TIME`.
        quiet: show errors only; by default progress and warnings are printed.

    Returns:
        The run, on the device of its settings.

    Raises:
        ConfigError: a setting is unknown, or its value is not allowed.
        DataError: the data set cannot be used.
        CheckpointError: the folder contains a run with other settings.

    Examples:
        >>> run = train(["experiment=quick", "rounds=1", "report=false"], new_folder, quiet=True)
        >>> run.round
        1
    """
    from fed_a2v.config.compose import compose_settings
    from fed_a2v.federation.simulation import run_in_process

    given = overrides.split() if isinstance(overrides, str) else [str(word) for word in overrides]
    if wrong := next((word for word in given if word.startswith(("-", "hydra."))), None):
        raise ConfigError(f"{wrong}: `train` takes settings, KEY=VALUE, and the folder of the run as `folder`")
    settings = compose_settings(overrides if isinstance(overrides, str) else given)
    check_buildable(settings)
    path = free_folder(Path(f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}")) if folder is None else Path(folder)
    path = path.expanduser().absolute()
    run_in_process(settings, path, output="quiet" if quiet else "full")
    # The overrides are the user's own; a folder that has been there before is trusted with no more than they name.
    return load_run(path, settings.device, trust_code=bool(foreign_code(settings.as_dict())))


def compare_runs(runs: str | Path | Iterable[str | Path | LoadedRun]) -> pandas.DataFrame:
    """Finished runs side by side: accuracy, the settings in which they differ, then the other results.

    Args:
        runs: folders or loaded runs; or one folder that contains runs, such as that of a sweep or a comparison. Runs
            in it that have not finished are left out with a warning.

    Returns:
        One row per run, named by its folder; settings under their dotted keys.

    Raises:
        ConfigError: pandas is not installed.
        FileNotFoundError: the folder contains no finished run, or a run of the list has no `results.json`.

    Examples:
        >>> table = compare_runs([folder, other])
        >>> list(table["generator.name"])
        ['vae', 'gaussian']
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError(f"compare_runs needs pandas: {install_hint('notebook')}") from error
    if isinstance(runs, str | Path):
        folders, names = _finished_runs(Path(runs).expanduser().absolute())
    else:
        folders = [run.folder if isinstance(run, LoadedRun) else RunFolder(Path(run).expanduser()) for run in runs]
        names = [folder.path.absolute().name for folder in folders]
        names = [
            name if names.count(name) == 1 else str(folder.path) for name, folder in zip(names, folders, strict=True)
        ]
    return pandas.DataFrame(run_rows(folders), index=pandas.Index(names, name="run"))


def _finished_runs(folder: Path) -> tuple[list[RunFolder], list[str]]:
    """The finished runs in a folder, and their names: their paths in it, or the name of the folder if it is one."""
    found = find_runs(folder)
    names = [folder.name if path == folder else path.relative_to(folder).as_posix() for path in found]
    finished = [RunFolder(path).results.is_file() for path in found]
    missing = [name for name, done in zip(names, finished, strict=True) if not done]
    left = f"not finished: {listed(missing)}; resume a run by the command that started it" if missing else ""
    if not any(finished):
        raise FileNotFoundError(
            f"no finished run in {folder}; {left or 'choose a folder of runs, of `fed-a2v compare` or of a sweep'}"
        )
    if missing:
        warnings.warn(f"{len(missing)} of {len(found)} runs in {folder} are left out, {left}", stacklevel=3)
    pairs = zip(found, names, finished, strict=True)
    kept = [(RunFolder(path), name) for path, name, done in pairs if done]
    return [run for run, _ in kept], [name for _, name in kept]


@dataclass(frozen=True)
class ClassSampler:
    """A run's generator, with classes by name.

    Attributes:
        model: the generator itself, for its other methods.
        step: the server step of the generator.
    """

    model: Generator
    step: ServerStep

    @torch.no_grad()
    def sample(self, name: str, num_samples: int = 1, seed: int = 0) -> Tensor:
        """Draw synthetic audio embeddings of a class.

        Args:
            name: name of the class; case, spaces, hyphens and underscores do not matter.
            num_samples: number of embeddings, each different; at least 1.
            seed: seed of the samples; the same seed gives the same embeddings.

        Returns:
            (num_samples, S, Da) inputs of the adapters, after the square root if the run uses it; with
            share=statistics (num_samples, 1, R) rows of the public space.

        Raises:
            RunError: the run does not have the class, or a number is not a whole one.
        """
        name = find_class(name, self.step.prompts.names)
        num_samples, seed = whole_number("num_samples", num_samples, 1), whole_number("seed", seed)
        random = torch_generator(seed, "sample", clean_name(name))
        return self.model.sample(num_samples, self.step.conditions_of([name])[0], None, random)


class LoadedRun:
    """A loaded run; created by `load_run`.

    Attributes:
        folder: folder of the run.
        settings: typed settings.
        round: round after which the state was saved.
        classes: names of the classes.
        targets: class prompts that the adapters were trained to produce.
    """

    def __init__(self, folder: RunFolder, state: dict[str, Any], device: str, trust_code: bool = False) -> None:
        self.folder = folder
        self.trust_code = trust_code
        try:
            self.settings = Settings.model_validate(state["config"])
        except ValidationError as error:
            raise CheckpointError(
                f"the settings of {folder.path} do not fit this version: {error.errors()[0]['msg']} "
                f"({'.'.join(map(str, error.errors()[0]['loc']))}); load it with the version that wrote it"
            ) from error
        if not trust_code:
            # Checks the typed settings, since the raw ones may spell a key in several ways.
            refuse_code(
                self.config,
                f"the run in {folder.path}",
                "if you trust the author of the folder, load it with trust_code=True (--trust-code)",
            )
        self.device = torch_device(device)
        self.targets = folder.read_targets().to(device)
        self.classes = self.targets.names
        try:
            self.round = int(state["round"])
            self._components = state["components"]
            space = self._space()
            tokens, width = self._components["strategy"]["audio_shape"]
            # With a public space the state has the shape of its rows; tokens are averaged before.
            self._clip_shape = (tokens, width) if space is None else (1, len(space.matrix))
            if not trust_code:
                self._check_size(self._clip_shape)
            self.step = make_step(self.settings, self.targets, self._clip_shape, space)
            self.step.load_state_dict(self._components)
            self._try_out()
        except UserError:
            raise
        except Exception as error:  # with an untrusted state, torch may raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"the state in {folder.path} does not fit its settings: {reason}") from error
        self.step.adapters.eval()

    @torch.no_grad()
    def _try_out(self) -> None:
        """Use adapters and generator once: the parts of a state may fit the settings but not each other."""
        self.adapt(self.inputs(torch.zeros(1, *self._clip_shape)))
        if self.step.sums is not None and self.step.sums.sites:
            self.step.sums.model()
        names = {statistics.name for _, statistics in self.step.bank} | {*self.step.replayed}
        if self.step.generator is not None and self.step.trains_generator and self.step.finetuned_rounds and names:
            random = torch_generator(0, "trial")
            self.step.generator.sample_classes(self.step.conditions_of(sorted(names)), 1, random)

    def _space(self) -> PublicSpace | None:
        """The public space in the state, if the run has share=statistics."""
        stored, columns = self._components["strategy"]["space"], self.settings.projection.columns
        if not self.settings.shares_sums:
            return None
        matrix, centre = stored
        if matrix.ndim != 2 or (matrix.shape[1:], centre.shape) != ((columns,), (columns,)):
            raise CheckpointError(
                f"the public space in {self.folder.path} has the shapes {tuple(matrix.shape)} and "
                f"{tuple(centre.shape)}, its settings describe {columns} columns; copy the folder of the run again"
            )
        # At most as many columns as rows: the product of columns would be larger than what is stored.
        if columns > len(matrix) or not is_orthonormal(matrix) or not centre.isfinite().all():
            raise CheckpointError(
                f"the public space in {self.folder.path} is not orthonormal or not finite; copy the folder of the run "
                "again"
            )
        return PublicSpace(matrix.float(), centre.float())

    def _check_size(self, audio_shape: tuple[int, int]) -> None:
        """Refuse settings that describe larger models than the state contains: they could exhaust the memory."""
        described, stored = model_bytes(self.settings, self.targets, audio_shape), tensor_bytes(self._components)
        if described > stored:
            raise CheckpointError(
                f"the settings of {self.folder.path} describe {described / 1e6:.1f} MB of adapters and generator, but "
                f"its state has {stored / 1e6:.1f} MB; copy the folder of the run again"
            )

    def __repr__(self) -> str:
        return run_line(self.folder, self.round, self.settings.rounds, self.classes)

    def _repr_html_(self) -> str:
        """The run in a notebook."""
        return run_html(self.folder, self.round, self.settings.rounds, self.classes, self.settings.generator.name)

    # Content

    @property
    def config(self) -> dict[str, Any]:
        """All settings as nested dictionaries."""
        return self.settings.as_dict()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` up to the loaded round; `pandas.DataFrame(run.metrics)` gives a table.

        Raises:
            UntrustedFileError: a line is no JSON object, or has no number of its round.
        """
        rows = self.folder.rows()
        if any(type(row.get("round")) is not int for row in rows):
            raise UntrustedFileError(f"{self.folder.metrics}: a line has no number of its round; copy the folder again")
        return [row for row in rows if row["round"] <= self.round]

    @property
    def results(self) -> dict[str, Any]:
        """The final figures.

        Raises:
            FileNotFoundError: the run has not finished.
        """
        return self.folder.read_results()

    @property
    def adapters(self) -> Adapters:
        """The global adapters."""
        return self.step.adapters

    @cached_property
    def generator(self) -> ClassSampler:
        """The generator.

        Raises:
            RunError: the run has no generator.
        """
        if self.step.generator is None:
            raise RunError(f"{self.folder.path.name} was trained with generator=none, so it cannot be sampled")
        return ClassSampler(self.step.generator, self.step)

    @cached_property
    def encoder(self) -> AudioEncoder:
        """The frozen audio encoder that the run was trained with.

        Raises:
            RunError: the run was trained on a file of embeddings, whose encoder is unknown.
        """
        if not self.has_audio:
            raise RunError(
                f"{self.folder.path.name} was trained on files of embeddings, whose encoder is unknown: pass "
                "embeddings of the same kind to `inputs`, and its result to `adapt`"
            )
        return load_encoder(self.settings.encoder)

    @property
    def has_audio(self) -> bool:
        """Whether the run was trained on sounds; else on files of embeddings, whose encoder is unknown."""
        return any(data_set(part.name).has_audio for part in parts(self.settings.dataset))

    @property
    def clip_seconds(self) -> float:
        """Length in seconds that sounds are cropped or padded to."""
        return max(part.clip_seconds for part in parts(self.settings.dataset))

    @property
    def clip_shape(self) -> tuple[int, int]:
        """(S, Da) of the encoder's embedding of a clip."""
        return self._clip_shape

    @property
    def takes_square_roots(self) -> bool:
        """Whether the adapters take square roots of the encoder's embeddings."""
        return bool(self._components["strategy"]["square_root"])

    # From sounds to prompts

    def waveform(self, sound: Sound, rate: int | None = None) -> FloatArray:
        """A sound as input of the encoder: mono, at its rate, cropped or padded to the run's length of a clip.

        Args:
            sound: see `embed`.
            rate: sample rate of a waveform in Hz.

        Returns:
            (samples,).

        Raises:
            BadClipError, RunError: see `embed`.
        """
        return as_waveform(sound, rate, self.encoder.sample_rate, self.clip_seconds)

    def embed(self, sounds: Sound | Sequence[Sound], rate: int | None = None) -> Tensor:
        """Audio embeddings of sounds, as inputs of the adapters.

        Args:
            sounds: a sound file, or a waveform of numpy or torch, (samples,), (samples, channels) or
                (channels, samples), integers at full scale or floats between -1 and 1; or several of them.
            rate: sample rate of waveforms in Hz.

        Returns:
            (B, S, Da); with share=statistics (B, 1, R) rows of the public space.

        Raises:
            BadClipError: a sound cannot be read, is empty, has NaN or infinite samples, or is not a waveform.
            RunError: a waveform without `rate`, something that is no sound, or the run's encoder is unknown.
        """
        embeddings = embed_sounds(self.encoder, self.clip_seconds, sounds, rate)
        return self.inputs(square_roots(embeddings) if self.takes_square_roots else embeddings)

    @torch.no_grad()
    def inputs(self, embeddings: Tensor | NDArray[Any]) -> Tensor:
        """Inputs of the adapters for embeddings of clips, such as those in a file of embeddings.

        Args:
            embeddings: (B, S, Da) of torch or numpy, after the square root if the run uses it.

        Returns:
            (B, 1, R) rows of the public space with share=statistics, else the embeddings.

        Raises:
            RunError: another shape or type.
        """
        tokens, width = self._clip_shape
        # The public space averages tokens, whatever their number.
        return self.adapters.mapped(self._checked(embeddings, None if self.adapters.space else tokens, width))

    @torch.no_grad()
    def adapt(self, embeddings: Tensor | NDArray[Any]) -> AdapterOutput:
        """Prompt embeddings for an image model.

        Args:
            embeddings: (B, S, Da) results of `embed`, `inputs` or the generator; with share=statistics (B, 1, R).

        Returns:
            clip (B, Tc, Dc) and, with a T5 adapter, t5 (B, T, Dt), including the mean prompt of the classes.

        Raises:
            RunError: another shape or type, such as that of embeddings which `inputs` has not mapped into the public
                space.
        """
        width, shape = self.adapters.audio_width, getattr(embeddings, "shape", ())
        if self.adapters.space is not None and shape and shape[-1] != width:
            raise RunError(
                f"embeddings of width {shape[-1]}, but the adapters of this run take rows of a public space "
                f"with {width} columns (share=statistics): run.adapt(run.inputs(embeddings))"
            )
        tokens = self._clip_shape[0] if self.adapters.space is None else 1
        prompts: AdapterOutput = self.adapters(self._checked(embeddings, tokens, width))
        return prompts

    def _checked(self, embeddings: Any, tokens: int | None, width: int) -> Tensor:
        """Embeddings as (B, tokens, width) float32 on the run's device; tokens None: any number of them."""
        expected = f"({', '.join(map(str, ('B', 'S' if tokens is None else tokens, width)))})"
        if not isinstance(embeddings, Tensor | np.ndarray):
            raise RunError(f"embeddings are {type(embeddings).__name__}; expected a tensor or array {expected}")
        shape, kind = tuple(embeddings.shape), str(embeddings.dtype).removeprefix("torch.")
        if len(shape) != 3 or shape[2] != width or not shape[1] or tokens not in (None, shape[1]):
            flat = len(shape) == 2 and shape[1] == width
            hint = f"; give embeddings[{':, None' if tokens == 1 else 'None'}]" if flat else ""
            raise RunError(f"embeddings have shape {shape}; this run expects B of them, {expected}{hint}")
        if "float" not in kind:
            raise RunError(f"embeddings have type {kind}; expected floats {expected}")
        return torch.as_tensor(embeddings).to(self.device, torch.float32)

    def prompts(self, sounds: Sound | Sequence[Sound], rate: int | None = None) -> AdapterOutput:
        """Prompt embeddings of sounds: `embed`, then `adapt`."""
        return self.adapt(self.embed(sounds, rate))

    def classify(
        self, sounds: Sound | Sequence[Sound], rate: int | None = None, top: int = 5
    ) -> list[ClassScore] | list[list[ClassScore]]:
        """The classes whose prompts are nearest to a sound's, with their scores, best first.

        Args:
            sounds: a sound or several, see `embed`; or embeddings (B, S, Da) of torch or numpy, as `adapt` takes them.
            rate: sample rate of waveforms in Hz.
            top: number of classes for each sound; all if there are fewer.

        Returns:
            For one sound a list of `(name, score)`; for several sounds or embeddings, a list of such lists. The score
            is the cosine to the class prompt, with the mean of all class prompts subtracted from both, as in accuracy.

        Raises:
            BadClipError, RunError: see `embed` and `adapt`; or `top` is below 1.
        """
        top = whole_number("top", top, 1)
        outputs = self.adapt(sounds) if are_embeddings(sounds) else self.prompts(sounds, rate)
        ranked = ranked_classes(outputs.clip, self.targets.clip, self.classes, top)
        return ranked[0] if isinstance(sounds, Sound) and not are_embeddings(sounds) else ranked

    def class_name(self, name: str) -> str:
        """A class name in the run's spelling; case, spaces, hyphens and underscores do not matter.

        Raises:
            RunError: the run does not have the class.
        """
        return find_class(name, self.classes)

    # Continuing

    def continue_training(self, rounds: int = 0, changes: Mapping[str, Any] | None = None) -> LoadedRun:
        """Continue the run in its folder, with all sites in this process; a stopped run is finished first.

        A folder may be untrusted, so its settings do not choose the cache or use W&B or MLflow: embeddings go to this
        user's cache and both are disabled, unless `changes` sets them. The data are read from the run's paths.

        Args:
            rounds: number of rounds to add to those of the settings.
            changes: settings that differ from the run's, under their dotted keys, e.g.
                `{"dataset.root": "~/ESC-50", "wandb.mode": "online"}`; default none.

        Returns:
            The continued run.

        Raises:
            RunError: this is an older checkpoint; the folder has a newer one.
            ConfigError: a setting is unknown, or its value is not allowed.
            UntrustedCodeError: a change names code outside this program, and `trust_code` is not set.
            CheckpointError: a change affects the results of the run.
        """
        from fed_a2v.config.compose import complete_settings
        from fed_a2v.federation.simulation import run_in_process

        newest = load_state(self.folder.path)
        if newest is None or newest["round"] != self.round:
            raise RunError(
                f"this is round {self.round} of a run with newer states; load the folder itself, {self.folder.path}"
            )
        defaults = {"rounds": self.settings.rounds + whole_number("rounds", rounds, 0), "resume": "auto"}
        defaults |= {"cache_dir": None, "wandb.mode": "disabled", "tracking.mlflow": False, "tracking.mlflow_uri": None}
        # OmegaConf would resolve interpolations: environment variables of this user in untrusted settings.
        tree = self.config
        for key, value in (defaults | dict(changes or {})).items():
            _set(tree, key, value)
        settings = complete_settings(tree)
        if not self.trust_code:
            refuse_code(settings.as_dict(), "`changes`", "load the run with trust_code=True")
        run_in_process(settings, self.folder.path)
        return load_run(self.folder.path, str(self.device), trust_code=self.trust_code)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a value under its dotted key."""
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"unknown key {key}: {section} is not a section")
    tree[name] = value
