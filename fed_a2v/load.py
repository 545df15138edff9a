"""Runs in Python: load one, sample its generator, map sounds to prompts, go on training, compare several.

```python
from fed_a2v import load_run

run = load_run("outputs/mine")
dogs = run.generator.sample("dog", 8)
prompts = run.prompts("dog.wav")
run = run.continue_training(rounds=5)
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from fed_a2v.core.adapters import Adapters, Prompts, PromptSet
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.names import clean_name, nearest
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.server_step import ServerStep
from fed_a2v.data.audio import FloatArray, check_samples, fit_clip, read_clip
from fed_a2v.data.clips import square_roots
from fed_a2v.data.errors import BadClipError
from fed_a2v.data.index import parts
from fed_a2v.encoders.audio import AudioEncoder, load_encoder
from fed_a2v.errors import UserError
from fed_a2v.federation.build import make_step, model_bytes
from fed_a2v.plugins import refuse_code
from fed_a2v.runs.checkpoint import CheckpointError, load_state, read_state, tensor_bytes
from fed_a2v.runs.folder import RunFolder
from fed_a2v.settings import ConfigError, Settings

if TYPE_CHECKING:
    import pandas

# Sounds that are read and embedded at once.
BATCH = 16

Sound = str | Path | NDArray[Any] | Tensor
# Of a waveform; more are samples.
MOST_CHANNELS = 64


class RunError(UserError, ValueError):
    """A run has not what is asked of it; the message says what it has."""


def load_run(path: str | Path, device: str = "cpu", *, trust_code: bool = False) -> LoadedRun:
    """Load a run as it was after its newest finished round, or after the round of one of its checkpoints.

    Args:
        path: the run's folder, or a file `checkpoints/state_round_N.pt` in it.
        device: where the adapters and the generator work.
        trust_code: whether classes that the run names by their import path, its own generator, loss, encoder or data
            set, may be imported and called. Without it a run's folder is data, whoever has made it.

    Raises:
        FileNotFoundError: there is no run.
        ForeignCodeError: the run names code that is not this program's; the message names it.
        CheckpointError: the state is damaged, the file is no state of a run, or another version's.

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
            f"no run in {path}: it has no checkpoints/state_round_N.pt; name a folder that `fed-a2v train` has "
            "written, or a checkpoint in it"
        )
    return LoadedRun(RunFolder(path), state, device, trust_code)


def compare_runs(runs: Iterable[str | Path | LoadedRun]) -> pandas.DataFrame:
    """Finished runs side by side: the settings in which they differ, then their results.

    Args:
        runs: folders, or loaded runs.

    Returns:
        A row a run, named by its folder; settings under their dotted keys.

    Raises:
        ConfigError: pandas is not installed.
        FileNotFoundError: a run has not finished: it has no `results.json`.

    Examples:
        >>> table = compare_runs([folder, other])
        >>> list(table["generator.name"])
        ['vae', 'gaussian']
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("compare_runs needs pandas: pip install 'fed-a2v[notebook]'") from error
    folders = [run.folder if isinstance(run, LoadedRun) else RunFolder(Path(run).expanduser()) for run in runs]
    names = [folder.path.absolute().name for folder in folders]
    index = [name if names.count(name) == 1 else str(folder.path) for name, folder in zip(names, folders, strict=True)]
    settings = pandas.json_normalize([folder.read_config() for folder in folders])
    results = pandas.json_normalize([folder.read_results() for folder in folders])
    # Lists among the settings cannot be counted as they are; as text they can.
    differing = [key for key in settings if settings[key].map(repr).nunique() > 1 and key not in results]
    table = pandas.concat([settings[differing], results], axis=1)
    table.index = pandas.Index(index, name="run")
    return table


@dataclass(frozen=True)
class ClassSampler:
    """A run's generator, asked for classes by name.

    Attributes:
        model: the generator itself, for everything else that it can do.
        step: the server step that it belongs to.
    """

    model: Generator
    step: ServerStep

    @torch.no_grad()
    def sample(self, name: str, num_samples: int = 1, seed: int = 0) -> Tensor:
        """Draw synthetic audio embeddings of a class.

        Args:
            name: of the class; case, spaces, hyphens and underscores do not matter.
            num_samples: number of embeddings, each different.
            seed: the same seed gives the same embeddings.

        Returns:
            (num_samples, S, Da), as the adapters take them: square roots where the run took those.

        Raises:
            RunError: the run has no such class.
        """
        name = find_class(name, self.step.prompts.names)
        random = torch_generator(seed, "sample", clean_name(name))
        return self.model.sample(num_samples, self.step.conditions_of([name])[0], None, random)


class LoadedRun:
    """A run, loaded to be used. Made by `load_run`.

    Attributes:
        folder: its folder.
        settings: its settings, typed.
        round: the round behind which it stands.
        classes: the names of the classes.
        targets: the class prompts that the adapters were trained to produce.
    """

    def __init__(self, folder: RunFolder, state: dict[str, Any], device: str, trust_code: bool = False) -> None:
        self.folder = folder
        self.trust_code = trust_code
        try:
            self.settings = Settings.model_validate(state["config"])
        except ValidationError as error:
            raise CheckpointError(
                f"the settings of {folder.path} are not those of this version: {error.errors()[0]['msg']} "
                f"({'.'.join(map(str, error.errors()[0]['loc']))}); load it with the version that wrote it"
            ) from error
        if not trust_code:
            # The typed settings, as they are built: a key may be spelt in more than one way.
            refuse_code(
                self.config,
                f"the run in {folder.path}",
                "if you trust whoever made the folder, load it with trust_code=True (--trust-code)",
            )
        self.device = torch.device(device)
        targets = folder.read_targets()
        self.targets = PromptSet(
            targets.names, targets.clip.to(device), None if targets.t5 is None else targets.t5.to(device)
        )
        self.classes = self.targets.names
        try:
            self.round = int(state["round"])
            self._state = state["strategy"]
            tokens, width = self._state["audio_shape"]
            if not trust_code:
                self._check_size((tokens, width))
            self.step = make_step(self.settings.model_copy(update={"device": device}), self.targets, (tokens, width))
            self.step.load_state_dict(self._state["step"])
            self._try_out((tokens, width))
        except UserError:
            raise
        except Exception as error:  # whatever a state that was put together by others makes of torch
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"the state in {folder.path} does not fit its settings: {reason}") from error
        self.step.adapters.eval()

    @torch.no_grad()
    def _try_out(self, audio_shape: tuple[int, int]) -> None:
        """Use adapters and generator once: parts of a state may fit the settings, and not one another."""
        self.step.adapters(torch.zeros(1, *audio_shape, device=self.device))
        names = {prompt.name for _, prompt in self.step.bank} | {*self.step.remembered}
        if self.step.generator is not None and self.step.trains_generator and self.step.finetuned_rounds and names:
            random = torch_generator(0, "trial")
            self.step.generator.sample_classes(self.step.conditions_of(sorted(names)), 1, random)

    def _check_size(self, audio_shape: tuple[int, int]) -> None:
        """A few digits of text can ask for more memory than there is; a state holds what its settings ask for."""
        asked, held = model_bytes(self.settings, self.targets, audio_shape), tensor_bytes(self._state)
        if asked > held:
            raise CheckpointError(
                f"the settings of {self.folder.path} describe {asked / 1e6:.1f} MB of adapters and generator, and its "
                f"state holds {held / 1e6:.1f} MB"
            )

    def __repr__(self) -> str:
        return f"<run {self.folder.path.name}: round {self.round}, {len(self.classes)} classes>"

    # What it is

    @property
    def config(self) -> dict[str, Any]:
        """All settings as nested dictionaries."""
        return self.settings.model_dump(mode="json", by_alias=True)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl` up to the loaded round; `pandas.DataFrame(run.metrics)` makes a table of them."""
        return [row for row in self.folder.rows() if row["round"] <= self.round]

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
            RunError: the run has none.
        """
        if self.step.generator is None:
            raise RunError(f"{self.folder.path.name} was trained with generator=none: there is nothing to sample from")
        return ClassSampler(self.step.generator, self.step)

    @cached_property
    def encoder(self) -> AudioEncoder:
        """The frozen audio encoder that the run was trained with.

        Raises:
            RunError: it was trained on a file of embeddings, and nobody knows what made them.
        """
        if all(part.name == "embeddings" for part in parts(self.settings.dataset)):
            raise RunError(
                f"{self.folder.path.name} was trained on files of embeddings, and what made them is not known: hand "
                "embeddings of the same kind to `adapt`"
            )
        return load_encoder(self.settings.encoder)

    # What it does with sound

    def waveform(self, sound: Sound, rate: int | None = None) -> FloatArray:
        """A sound as the encoder hears it: mono, at its rate, cropped or padded to the run's length of clips.

        Args:
            sound: see `embed`.
            rate: of a waveform, in Hz.

        Returns:
            (samples,).

        Raises:
            BadClipError, RunError: see `embed`.
        """
        wanted, seconds = self.encoder.sample_rate, max(part.clip_seconds for part in parts(self.settings.dataset))
        if isinstance(sound, str | Path):
            return read_clip(Path(sound).expanduser(), wanted, seconds)
        if rate is None or rate <= 0:
            raise RunError(f"a waveform needs its rate in Hz, not {rate}: run.prompts(waveform, rate=44_100)")
        return fit_clip(mono(np.asarray(sound)), rate, wanted, seconds)

    def embed(self, sounds: Sound | Sequence[Sound], rate: int | None = None) -> Tensor:
        """Audio embeddings of sounds, as the adapters take them.

        Args:
            sounds: a sound file, or a waveform of numpy or torch, (samples,), (samples, channels) or
                (channels, samples), integers at full scale or fractions of it; or several of them.
            rate: of waveforms, in Hz.

        Returns:
            (B, S, Da).

        Raises:
            BadClipError: a sound cannot be read, is empty, holds NaN or infinite samples, or is no waveform.
            RunError: a waveform comes without `rate`, or the run's encoder is not known.
        """
        each = [sounds] if isinstance(sounds, str | Path | np.ndarray | Tensor) else list(sounds)
        embedded = []
        for start in range(0, len(each), BATCH):
            waveforms = [self.waveform(sound, rate) for sound in each[start : start + BATCH]]
            embedded.append(torch.from_numpy(self.encoder.encode(np.stack(waveforms))))
        if not embedded:
            return torch.empty(0, *self._state["audio_shape"], device=self.device)
        embeddings = torch.cat(embedded).to(self.device)
        return square_roots(embeddings) if self._state["square_root"] else embeddings

    @torch.no_grad()
    def adapt(self, embeddings: Tensor) -> Prompts:
        """Prompt embeddings, ready for an image model, of (B, S, Da) audio embeddings.

        Returns:
            clip (B, Tc, Dc) and, with a T5 adapter, t5 (B, T, Dt); the classes' common centre is in them.
        """
        prompts: Prompts = self.adapters(embeddings.to(self.device))
        return prompts

    def prompts(self, sounds: Sound | Sequence[Sound], rate: int | None = None) -> Prompts:
        """Prompt embeddings of sounds: `embed`, then `adapt`."""
        return self.adapt(self.embed(sounds, rate))

    def class_name(self, name: str) -> str:
        """A class's name as the run spells it; case, spaces, hyphens and underscores do not matter.

        Raises:
            RunError: the run has no such class.
        """
        return find_class(name, self.classes)

    # Going on

    def continue_training(self, rounds: int = 0, changes: Mapping[str, Any] | None = None) -> LoadedRun:
        """Go on in the run's folder, all sites in this process; a run that was stopped is first brought to its end.

        The folder decides nothing outside itself: embeddings go to the cache of this user, and nothing to W&B, unless
        `changes` says otherwise. The data are read from where the run has them.

        Args:
            rounds: how many beyond those that the run was set to.
            changes: settings that differ from the run's, under their dotted keys, e.g.
                `{"dataset.root": "~/ESC-50", "wandb.mode": "online"}`; default none.

        Returns:
            The run as it is then.

        Raises:
            RunError: this is an older checkpoint: a newer one is in the folder.
            ConfigError: there is no such setting, or a value of it that is not allowed.
            ForeignCodeError: a change names code that is not this program's, and `trust_code` was not set.
            CheckpointError: a change would make another experiment of the run.
        """
        from fed_a2v.config import complete_settings
        from fed_a2v.federation.engine import run_in_process

        newest = load_state(self.folder.path)
        if newest is None or newest["round"] != self.round:
            raise RunError(
                f"this is round {self.round} of a run that has gone on; load the folder itself, {self.folder.path}"
            )
        going_on = {"rounds": self.settings.rounds + rounds, "resume": "auto"}
        of_this_user = {"cache_dir": None, "wandb.mode": "disabled"}
        # Not by OmegaConf: it would put this user's environment into what a stranger has written.
        tree = self.config
        for key, value in (going_on | of_this_user | dict(changes or {})).items():
            _set(tree, key, value)
        settings = complete_settings(tree)
        if not self.trust_code:
            refuse_code(
                settings.model_dump(mode="json", by_alias=True), "`changes`", "load the run with trust_code=True"
            )
        run_in_process(settings, self.folder.path)
        return load_run(self.folder.path, str(self.device), trust_code=self.trust_code)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a value under its dotted key."""
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"unknown key {key}: {section} is no section")
    tree[name] = value


def mono(waveform: NDArray[Any]) -> FloatArray:
    """A waveform as (samples,) float32 between -1 and 1: the mean of its channels, which are the shorter axis.

    Args:
        waveform: (samples,), (samples, channels) as soundfile gives it, or (channels, samples) as librosa and
            torchaudio do. Integers count from the full scale of their type, as in a WAV file.

    Raises:
        BadClipError: it has another shape, no samples, as many channels as samples, numbers of another type, or NaN or
            infinite ones.
    """
    shape, kind = waveform.shape, waveform.dtype
    if waveform.ndim not in (1, 2) or not waveform.size or (waveform.ndim == 2 and not _is_sound(shape)):
        raise BadClipError(
            f"a waveform has shape {shape}; (samples,), (samples, channels) or (channels, samples) with 1 to "
            f"{MOST_CHANNELS} channels, fewer than samples, is needed"
        )
    if kind.kind in "iu" and kind.itemsize <= 4:
        scale = 2.0 ** (8 * kind.itemsize - 1)
        waveform = (waveform.astype(np.float64) - (scale if kind.kind == "u" else 0.0)) / scale
    elif kind.kind != "f":
        raise BadClipError(f"a waveform has numbers of type {kind}; floats, or integers of 8 to 32 bits, are needed")
    with np.errstate(over="ignore"):
        waveform = waveform.astype(np.float32)
    if not np.isfinite(waveform).all():
        raise BadClipError(f"a waveform of shape {shape} holds NaN or infinite samples (finite: False)")
    check_samples(waveform, f"a waveform of shape {shape}")
    return waveform if waveform.ndim == 1 else waveform.mean(axis=int(np.argmin(shape)))


def _is_sound(shape: tuple[int, ...]) -> bool:
    """Whether the shorter axis of two can be that of the channels."""
    return min(shape) <= MOST_CHANNELS and shape[0] != shape[1]


def find_class(name: str, classes: Sequence[str]) -> str:
    """The one of `classes` that `name` means; case, spaces, hyphens and underscores do not matter.

    Raises:
        RunError: there is none; names the nearest.
    """
    by_clean_name = {clean_name(known): known for known in classes}
    if clean_name(name) in by_clean_name:
        return by_clean_name[clean_name(name)]
    near = nearest(clean_name(name), by_clean_name, cutoff=0.6)
    hint = f"did you mean {by_clean_name[near]!r}?" if near else f"the classes are {', '.join(classes)}"
    raise RunError(f"no class {name!r} in this run; {hint}")
