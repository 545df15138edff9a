"""Trained adapters as a module of their own, which maps sounds to prompts, from a folder or the Hugging Face hub.

It needs neither Flower nor Hydra nor W&B. `fed_a2v.export` writes it from a run.

```python
from fed_a2v import A2VAdapter

adapter = A2VAdapter.from_pretrained("my-adapter")
prompts = adapter("dog.wav")
```
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fed_a2v.core.adapters import AdapterOutput, Adapters, ClassPrompts
from fed_a2v.core.metrics import ClassScore, ranked_classes
from fed_a2v.core.public_space import PublicSpace, is_orthonormal
from fed_a2v.data.clips import square_roots
from fed_a2v.data.sounds import RunError, Sound, are_embeddings, embed_sounds, find_class, whole_number
from fed_a2v.errors import UserError
from fed_a2v.storage.untrusted import inside, parse_json, read_bytes

logger = logging.getLogger("fed_a2v")

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
Size = Annotated[int, Field(ge=1, le=2**20)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
LARGEST = 1_000_000  # bytes of the configuration, and of the card
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class AdapterError(UserError, ValueError):
    """A folder or repository is no exported adapter, is damaged, or its encoder is missing."""


@dataclass(frozen=True, config=_STRICT)
class EncoderChoice:
    """The frozen audio encoder that the adapters were trained with.

    Attributes:
        name: an option of `encoder`, "custom" for a class of the exporter's own, or "unknown" for a run that was
            trained on a file of embeddings.
        model: repository on the hub; None for an encoder without a model, or if it was a local folder.
        revision: commit, tag or branch of the repository.
        tokens: see `encoder.tokens` in the settings.
        precision: type of the weights and the computation.
        fingerprint: see `AudioEncoder`; None if the exporting machine did not have the encoder.
    """

    name: Text
    model: Text | None = None
    revision: Text | None = None
    tokens: Annotated[int, Field(ge=1, le=2**16)] | Literal["cls", "mean", "full"] | None = None
    precision: Literal["float32", "float16", "bfloat16"] | None = None
    fingerprint: Text | None = None


@dataclass(frozen=True, config=_STRICT)
class AdapterConfig:
    """What `config.json` says: the shapes of the weights, and how sounds are prepared.

    Attributes:
        classes: C names.
        audio_shape: (S, Da) of the encoder's embedding of a clip.
        clip_shape: (Tc, Dc) of a CLIP prompt.
        t5_shape: (T, Dt) of a T5 prompt; None without a T5 adapter.
        hidden_width: see `PromptAdapter`.
        closed_form: see `Adapters`.
        space_columns: R columns of the public space (share=statistics); None without one.
        square_root: whether the adapters take square roots of the encoder's embeddings.
        clip_seconds: length that sounds are cropped or padded to.
        targets: source of the class prompts, an option of `targets`.
        encoder: the audio encoder.
        format: version of the layout.
    """

    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=2**16)]
    audio_shape: tuple[Annotated[int, Field(ge=1, le=2**16)], Size]
    clip_shape: tuple[Size, Size]
    t5_shape: tuple[Size, Size] | None
    hidden_width: Size
    closed_form: bool
    space_columns: Size | None
    square_root: bool
    clip_seconds: Annotated[float, Field(ge=0.01, le=600.0)]
    targets: Text
    encoder: EncoderChoice
    format: Literal[1] = 1


class PromptEmbeddings(AdapterOutput):
    """Prompt embeddings of B sounds, under the names of a diffusers pipeline's arguments, and as `clip` and `t5`."""

    __slots__ = ()

    @property
    def prompt_embeds(self) -> Tensor | None:
        """(B, T, Dt) T5 tokens for FLUX, (B, 77, 768) CLIP tokens for Stable Diffusion; None for one CLIP token."""
        return self.t5 if self.t5 is not None else self.clip if self.clip.shape[1] > 1 else None

    @property
    def pooled_prompt_embeds(self) -> Tensor | None:
        """(B, 768) CLIP's pooled output, for FLUX; None for several CLIP tokens."""
        return self.clip[:, 0] if self.clip.shape[1] == 1 else None

    def to(self, *args: Any, **options: Any) -> PromptEmbeddings:
        """The embeddings on another device or of another type: `prompts.to("cuda", torch.float16)`."""
        t5 = None if self.t5 is None else self.t5.to(*args, **options)
        return PromptEmbeddings(self.clip.to(*args, **options), t5)


class A2VAdapter(
    nn.Module, PyTorchModelHubMixin, library_name="fed_a2v", tags=["audio-to-image", "federated-learning", "flower"]
):
    """Maps sounds to the prompt embeddings of an image model, and finds the nearest class.

    Args:
        config: shapes, and how sounds are prepared.
        prompts: the class prompts that the adapters were trained to produce.

    Attributes:
        config: as given.
        adapters: the trained adapters, see `Adapters`.
        card: text of the model card, which `save_pretrained` and `push_to_hub` write; None writes a short one.

    Raises:
        AdapterError: prompts of another shape than that of `config`.
    """

    clip_prompts: Tensor
    t5_prompts: Tensor | None

    def __init__(self, config: AdapterConfig, prompts: ClassPrompts) -> None:
        super().__init__()
        self.config = config
        self.card: str | None = None
        self._encoder: Any = None
        self._encoder_model: str | None = None
        shapes = tuple(None if side is None else tuple(side.shape) for side in prompts[1:])
        if prompts.names != config.classes or shapes != _prompt_shapes(config):
            raise AdapterError(f"class prompts of shapes {shapes} do not fit {_prompt_shapes(config)} of the config")
        width = config.audio_shape[1]
        space = None
        if config.space_columns is not None:
            space = PublicSpace(torch.zeros(width, config.space_columns), torch.zeros(config.space_columns))
        self.adapters = Adapters(width, prompts, config.hidden_width, config.closed_form, space)
        self.register_buffer("clip_prompts", prompts.clip)
        self.register_buffer("t5_prompts", prompts.t5)
        self.eval()

    # Loading and saving

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        encoder: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> A2VAdapter:
        """Load an exported adapter.

        The files are data: no code in them is run, and weights that do not fit the configuration are refused before
        memory is allocated for them. The encoder is loaded when the first sound is given, by transformers if it is a
        pretrained one.

        Args:
            pretrained_model_name_or_path: a folder, or the name of a repository on the hub.
            device: device of the adapters.
            encoder: for a pretrained encoder, its folder or repository; needed if it is not one that the program's
                own settings name, since a repository may be anyone's. For an own encoder, an object of its class.
                Default: the encoder of the configuration.
            revision: commit, tag or branch of the repository.
            token: access token of the hub.
            cache_dir: folder of downloads.
            local_files_only: whether to use earlier downloads only.
            force_download: whether to download again.

        Raises:
            AdapterError: there is no such folder or repository, or it is not an exported adapter.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(name).expanduser()
        download = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }

        def file(part: str) -> Path:
            return folder / part if folder.is_dir() else _downloaded(name, part, **download)

        config = _read_config(file(CONFIG))
        adapter = _read_adapter(file(WEIGHTS), config)
        try:
            card = file(CARD)
            if folder.is_dir() and not _is_in_cache(card, folder):
                inside(card, folder)  # else `push_to_hub` would publish any file of this machine
            adapter.card = read_bytes(card, LARGEST).decode("utf-8", "replace")
            ModelCard(adapter.card)
        except Exception:  # a card is not needed; the one of a stranger may raise anything
            adapter.card = None
        if isinstance(encoder, str | Path):
            adapter._encoder_model = str(encoder)
        elif encoder is not None:
            adapter._encoder = adapter._checked_encoder(encoder)
        return adapter.to(device)

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        """The model card with which the adapter was exported, else a short one."""
        return super().generate_model_card(*args, **options) if self.card is None else ModelCard(self.card)

    # Use

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.config.classes

    @property
    def encoder(self) -> Any:
        """The frozen audio encoder; loaded on first use.

        Raises:
            AdapterError: the encoder is unknown, or is neither given nor one that the program's settings name.
            ModelError: its model or a package is missing.
        """
        if self._encoder is None:
            self._encoder = self._checked_encoder(_load_encoder(self.config.encoder, self._encoder_model))
        return self._encoder

    def _checked_encoder(self, encoder: Any) -> Any:
        """The encoder, if it is the one that the adapters were trained with."""
        shape, expected = (encoder.tokens, encoder.width), self.config.audio_shape
        if shape != expected:
            raise AdapterError(f"the encoder {encoder.name} gives embeddings {shape}, these adapters take {expected}")
        trained = self.config.encoder.fingerprint
        if trained is not None and encoder.fingerprint != trained:
            different = f"the encoder is {encoder.fingerprint!r}, but these adapters were trained with {trained!r}"
            if self._encoder_model is None:
                raise AdapterError(f"{different}: pass that one as from_pretrained(..., encoder=...)")
            # The same model has another identity in a folder than on the hub, and the user named it.
            logger.warning("%s: prompts are right only if both are the same model", different)
        return encoder

    @torch.no_grad()
    def embed(self, sounds: Sound | Sequence[Sound] | NDArray[Any], rate: float | None = None) -> Tensor:
        """Inputs of `adapters`: (B, S, Da) embeddings, or (B, 1, R) rows of the public space; see `forward`."""
        if are_embeddings(sounds):
            embeddings = torch.as_tensor(sounds)
            if tuple(embeddings.shape[1:]) != self.config.audio_shape or not embeddings.is_floating_point():
                raise RunError(
                    f"embeddings are {embeddings.dtype} of shape {tuple(embeddings.shape)}; these adapters take floats "
                    f"of shape (B, {', '.join(map(str, self.config.audio_shape))})"
                )
        else:
            embeddings = embed_sounds(self.encoder, self.config.clip_seconds, sounds, rate)
        embeddings = square_roots(embeddings) if self.config.square_root else embeddings
        return self.adapters.mapped(embeddings.to(self.clip_prompts))

    @torch.no_grad()
    def forward(self, sounds: Sound | Sequence[Sound] | NDArray[Any], rate: float | None = None) -> PromptEmbeddings:
        """Prompt embeddings of sounds.

        Args:
            sounds: a sound file, or a waveform of numpy or torch, (samples,), (samples, channels) or
                (channels, samples), integers at full scale or floats between -1 and 1; or a list of these. Or
                (B, S, Da) embeddings as the encoder gives them, the only input of adapters that were trained on a file
                of embeddings.
            rate: sample rate of waveforms in Hz.

        Raises:
            BadClipError: a sound cannot be read, is empty, has NaN or infinite samples, or is not a waveform.
            RunError: a waveform without `rate`, or embeddings of another shape.
            AdapterError, ModelError: see `encoder`.
        """
        return PromptEmbeddings(*self.adapters(self.embed(sounds, rate)))

    def classify(
        self, sounds: Sound | Sequence[Sound] | NDArray[Any], rate: float | None = None, top: int = 5
    ) -> list[ClassScore] | list[list[ClassScore]]:
        """The classes whose prompts are nearest to a sound's, best first, as `(name, score)`.

        Args:
            sounds: see `forward`.
            rate: see `forward`.
            top: number of classes for each sound; all if there are fewer.

        Returns:
            A list for one sound; a list of such lists for several sounds or embeddings.

        Raises:
            BadClipError, RunError, AdapterError, ModelError: see `forward`; or `top` is below 1.
        """
        top = whole_number("top", top, 1)
        ranked = ranked_classes(self(sounds, rate).clip, self.clip_prompts, self.classes, top)
        return ranked[0] if isinstance(sounds, Sound) and not are_embeddings(sounds) else ranked

    def class_prompts(self, *names: str) -> PromptEmbeddings:
        """The true text prompts of classes, which a sound's prompts are to resemble; without names those of all.

        Raises:
            RunError: there is no such class; names the nearest one.
        """
        rows = [self.classes.index(find_class(name, self.classes)) for name in names or self.classes]
        return PromptEmbeddings(self.clip_prompts[rows], None if self.t5_prompts is None else self.t5_prompts[rows])


def _prompt_shapes(config: AdapterConfig) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    count = len(config.classes)
    return (count, *config.clip_shape), None if config.t5_shape is None else (count, *config.t5_shape)


def _is_in_cache(path: Path, folder: Path) -> bool:
    """Whether a file of a folder in the cache of the hub is a link to where the cache has its content."""
    *_, above = folder.resolve().parents[:2]
    return path.resolve().parent == above / "blobs"


def _downloaded(name: str, part: str, **options: Any) -> Path:
    """A file of a repository on the hub.

    Raises:
        AdapterError: there is no such folder, repository or file, or no network.
    """
    try:
        return Path(hf_hub_download(name, part, **options))
    except HFValidationError as error:
        raise AdapterError(f"{name}: no such folder; name a folder of `fed-a2v export`, or OWNER/NAME") from error
    except LocalEntryNotFoundError as error:
        raise AdapterError(f"{name} is neither a folder nor on this machine, and cannot be downloaded") from error
    except EntryNotFoundError as error:
        raise AdapterError(f"{name} has no {part}: it is not an exported adapter") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise AdapterError(f"{name} cannot be downloaded: {reason[0] if reason else type(error).__name__}") from error


def _read_config(path: Path) -> AdapterConfig:
    """The configuration in `config.json`.

    Raises:
        AdapterError: the file is missing, or its content is not that of an exported adapter.
        UntrustedFileError: the file is damaged or too large.
    """
    if not path.is_file():
        raise AdapterError(f"{path.parent} has no {path.name}: choose a folder that `fed-a2v export` wrote")
    text = read_bytes(path, LARGEST)
    parse_json(text, path)
    try:
        config = TypeAdapter(AdapterConfig).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "content"
        raise AdapterError(f"{path}: {key}: {first['msg']}; export the run again with this version") from error
    if len(set(config.classes)) < len(config.classes):
        raise AdapterError(f"{path}: classes: a name is listed twice; export the run again")
    return config


def _read_adapter(path: Path, config: AdapterConfig) -> A2VAdapter:
    """The adapter with the tensors in `model.safetensors`, which must be those that the configuration describes.

    Raises:
        AdapterError: they are not, or are not finite.
    """
    if not path.is_file():
        raise AdapterError(f"{path.parent} has no {path.name}: choose a folder that `fed-a2v export` wrote")
    if (described := 4 * _least_numbers(config)) > path.stat().st_size:
        raise AdapterError(
            f"{path} has {path.stat().st_size / 1e6:.1f} MB, {CONFIG} describes at least {described / 1e6:.1f} MB of "
            "weights; export the run again"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        clip, t5 = tensors.pop("clip_prompts"), tensors.pop("t5_prompts", None)
        with torch.random.fork_rng(devices=()):
            adapter = A2VAdapter(config, ClassPrompts(config.classes, clip, t5))
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AdapterError(f"{path} is damaged, or does not fit {CONFIG} ({reason})") from error
    expected, found = _shapes(adapter.state_dict()), _shapes(tensors | {"clip_prompts": clip})
    found |= {} if t5 is None else {"t5_prompts": (tuple(t5.shape), t5.dtype)}
    if different := sorted(key for key in expected.keys() | found if expected.get(key) != found.get(key)):
        key = different[0]
        raise AdapterError(
            f"{path}: {key} is {found.get(key, 'missing')}, {CONFIG} describes {expected.get(key, 'no such tensor')}; "
            "export the run again"
        )
    adapter.adapters.load_state_dict({key.removeprefix("adapters."): value for key, value in tensors.items()})
    if wrong := next((key for key, value in adapter.state_dict().items() if not value.isfinite().all()), None):
        raise AdapterError(f"{path}: {wrong} has NaN or infinite values; export the run again")
    matrix = adapter.adapters.space_matrix
    if matrix is not None and not is_orthonormal(matrix):
        raise AdapterError(f"{path}: the columns of adapters.space_matrix are not orthonormal; export the run again")
    return adapter


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {key: (tuple(value.shape), value.dtype) for key, value in state.items()}


def _least_numbers(config: AdapterConfig) -> int:
    """A lower bound on the numbers of the weights, from which their memory is checked before they are created."""
    count, width = len(config.classes), config.audio_shape[1]
    columns = config.space_columns or width
    numbers = width * columns if config.space_columns else 0
    for tokens, out in filter(None, (config.clip_shape, config.t5_shape)):
        numbers += count * tokens * out  # the class prompts
        if not config.closed_form:
            numbers += config.hidden_width * (columns + 2 * tokens + config.hidden_width + out)
        else:
            numbers += count * columns if config.space_columns else columns * tokens * out
    return numbers


def _load_encoder(choice: EncoderChoice, model: str | None) -> Any:
    """The encoder of a configuration, with `model` in place of its own model if given.

    Raises:
        AdapterError: it is unknown, is an own class, or its model is neither given nor one that `conf/` names.
        ModelError: its model or a package is missing.
    """
    if choice.name == "unknown":
        raise AdapterError(
            "these adapters were trained on a file of embeddings, whose encoder is unknown: pass embeddings (B, S, Da) "
            "of the same kind in place of sounds"
        )
    # Imported here, since embeddings need no encoder and settings take time to import.
    from fed_a2v.config.sections.data import EncoderSettings
    from fed_a2v.config.tree import option_values, options
    from fed_a2v.encoders.audio import load_encoder

    if choice.name == "custom":
        raise AdapterError(
            f"these adapters were trained with an encoder of the exporter's own, {choice.fingerprint!r}: pass an "
            "object of its class, from_pretrained(..., encoder=OBJECT)"
        )
    if choice.name not in options("encoder"):
        raise AdapterError(f"{CONFIG}: encoder.name={choice.name!r} is not an encoder of this version")
    own = option_values("encoder", choice.name)
    if model is None and (choice.model, choice.revision) != (own["model"], own["revision"]):
        raise AdapterError(
            f"these adapters were trained with encoder={choice.name} and the model {choice.model or 'in a folder'}, "
            "which is fetched only if you name it: from_pretrained(..., encoder=OWNER/NAME or FOLDER)"
        )
    model = choice.model if model is None else model
    revision = choice.revision if model == choice.model else None  # another model does not have it
    chosen = {"model": model, "revision": revision, "tokens": choice.tokens, "precision": choice.precision}
    try:
        settings = EncoderSettings.model_validate(own | chosen)
    except ValidationError as error:
        raise AdapterError(f"{CONFIG}: encoder={choice.name}: {error.errors()[0]['msg']}") from error
    return load_encoder(settings)
