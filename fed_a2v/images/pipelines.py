"""Image models of diffusers, conditioned on prompt embeddings instead of text.

Prompts have the shapes of the adapters' outputs: clip (B, Tc, Dc), t5 (B, T, Dt) or None.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fed_a2v.config.sections.data import TargetSettings
from fed_a2v.config.sections.output import ImageSettings
from fed_a2v.core.adapters import AdapterOutput
from fed_a2v.encoders.pretrained import ModelError, pick_device, quiet
from fed_a2v.install import install_hint

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("fed_a2v")


class ImageModel(ABC):
    """A diffusers pipeline that generates one image for each prompt embedding.

    Args:
        settings: model and sampling settings.

    Raises:
        ModelError: a package, the model or the device is missing, or the model is another kind of pipeline.
    """

    pipeline: ClassVar[str]
    adapters: ClassVar[str]
    # Type on a GPU for precision=auto.
    half: ClassVar[torch.dtype]

    def __init__(self, settings: ImageSettings) -> None:
        self.settings = settings
        check_available(settings)
        self.device = pick_device(settings.device)
        self.pipe = self._load()
        self._prepare()
        if settings.offload == "none":
            self.pipe.to(self.device)
        elif settings.offload == "model":
            self.pipe.enable_model_cpu_offload(device=self.device)
        else:
            self.pipe.enable_sequential_cpu_offload(device=self.device)
        self.pipe.set_progress_bar_config(disable=True)

    @property
    def precision(self) -> torch.dtype:
        """Type of the weights."""
        if self.settings.precision == "auto":
            return torch.float32 if self.device.type == "cpu" else self.half
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.settings.precision]

    def draw(self, prompts: AdapterOutput, seeds: Sequence[int]) -> list[Image]:
        """Generate B images.

        Args:
            prompts: prompts of the B images.
            seeds: B seeds of the initial noise, which depends on nothing else: not on the prompt, the other images
                of the batch, the device, or the precision.

        Raises:
            ModelError: the model needs prompts of another width.
        """
        self._check_widths(prompts)
        pictures: list[Image] = []
        size = self.settings.batch_size
        for start in range(0, len(seeds), size):
            rows = slice(start, start + size)
            random = [torch.Generator().manual_seed(seed) for seed in seeds[rows]]
            with torch.inference_mode():
                output = self.pipe(
                    **self._conditions(prompts.clip[rows], None if prompts.t5 is None else prompts.t5[rows]),
                    num_inference_steps=self.settings.steps,
                    guidance_scale=self.settings.guidance,
                    latents=self._cast(self._noise(random)),
                    generator=random,  # some schedulers add noise in each step
                    height=self.settings.size,
                    width=self.settings.size,
                )
            if flagged := sum(getattr(output, "nsfw_content_detected", None) or ()):
                logger.warning("The model's safety checker has blacked out %d of %d images", flagged, len(output[0]))
            pictures += output.images
        return pictures

    @abstractmethod
    def _unused(self) -> tuple[str, ...]:
        """Components that are not loaded, because the prompts are already embeddings."""

    @abstractmethod
    def _prepare(self) -> None:
        """Prepare the pipeline once, before it is moved to its device."""

    @abstractmethod
    def _widths(self) -> dict[str, int]:
        """Widths of the model's prompts, by "clip" and "t5"."""

    @abstractmethod
    def _noise(self, random: Sequence[torch.Generator]) -> Tensor:
        """Initial noise of each image, in the shape that the pipeline expects.

        Always in single precision: in half precision, builds of torch differ in the numbers that they draw.
        """

    @abstractmethod
    def _conditions(self, clip: Tensor, t5: Tensor | None) -> dict[str, Tensor]:
        """Arguments of the pipeline that replace the text."""

    def _cast(self, prompts: Tensor) -> Tensor:
        return prompts.to(self.device, self.precision)

    def _check_widths(self, prompts: AdapterOutput) -> None:
        given = {"clip": prompts.clip.shape[-1], "t5": None if prompts.t5 is None else prompts.t5.shape[-1]}
        for side, width in self._widths().items():
            if given[side] != width:
                raise ModelError(
                    f"images.model={self.settings.model} needs {side} prompts of width {width}, but those of the "
                    f"adapters have {given[side]}: choose the model that they were trained for"
                )

    def _load(self) -> Any:
        import diffusers

        try:
            with _quiet():
                return getattr(diffusers, self.pipeline).from_pretrained(
                    _location(self.settings),
                    revision=self.settings.revision,
                    torch_dtype=self.precision,
                    use_safetensors=True,  # nothing is unpickled
                    **dict.fromkeys(self._unused()),
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
            raise ModelError(_explained(self.settings, error)) from error


class StableDiffusion(ImageModel):
    """Stable Diffusion 1.x or 2.x, conditioned on the last hidden state of CLIP's 77 tokens.

    Classifier-free guidance (guidance > 1) also needs the empty prompt: the model's text encoder computes it once and
    is then released.
    """

    pipeline = "StableDiffusionPipeline"
    adapters = "sd"
    half = torch.float16

    def _unused(self) -> tuple[str, ...]:
        return () if self.settings.guidance > 1 else ("text_encoder", "tokenizer")

    def _prepare(self) -> None:
        self._empty: Tensor | None = None
        if self.settings.guidance > 1:
            with torch.inference_mode():
                self._empty = self._cast(self.pipe.encode_prompt("", torch.device("cpu"), 1, False)[0])
            self.pipe.register_modules(text_encoder=None, tokenizer=None)

    def _widths(self) -> dict[str, int]:
        return {"clip": self.pipe.unet.config.cross_attention_dim}

    def _noise(self, random: Sequence[torch.Generator]) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        network, factor = self.pipe.unet.config, self.pipe.vae_scale_factor
        side = (self.settings.size or network.sample_size * factor) // factor
        noise: Tensor = randn_tensor((len(random), network.in_channels, side, side), generator=list(random))
        return noise

    def _conditions(self, clip: Tensor, t5: Tensor | None) -> dict[str, Tensor]:
        del t5
        conditions = {"prompt_embeds": self._cast(clip)}
        if self._empty is not None:
            conditions["negative_prompt_embeds"] = self._empty.expand(len(clip), -1, -1)
        return conditions


class Flux(ImageModel):
    """FLUX.1, conditioned on CLIP's pooled output and T5's tokens.

    Its guidance is an input of the network, so it needs neither an empty prompt nor a text encoder.
    """

    pipeline = "FluxPipeline"
    adapters = "flux"
    half = torch.bfloat16

    def _unused(self) -> tuple[str, ...]:
        return ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def _prepare(self) -> None:
        """Nothing to do."""

    def _widths(self) -> dict[str, int]:
        config = self.pipe.transformer.config
        return {"clip": config.pooled_projection_dim, "t5": config.joint_attention_dim}

    def _noise(self, random: Sequence[torch.Generator]) -> Tensor:
        channels = self.pipe.transformer.config.in_channels // 4
        side = self.settings.size or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        noise: Tensor = self.pipe.prepare_latents(
            len(random), channels, side, side, torch.float32, torch.device("cpu"), list(random)
        )[0]
        return noise

    def _conditions(self, clip: Tensor, t5: Tensor | None) -> dict[str, Tensor]:
        assert t5 is not None  # `_check_widths` checks it
        return {"pooled_prompt_embeds": self._cast(clip[:, 0]), "prompt_embeds": self._cast(t5)}


IMAGE_MODELS: dict[str, type[ImageModel]] = {"sd": StableDiffusion, "flux": Flux}


def load_image_model(settings: ImageSettings) -> ImageModel:
    """The image model that the settings name.

    Raises:
        ModelError: see `ImageModel`.
    """
    return IMAGE_MODELS[settings.name](settings)


def warn_of_random_prompts(targets: TargetSettings) -> None:
    """Log a warning for targets=random: no image model understands random vectors."""
    if targets.name == "random":
        logger.warning(
            "The adapters were trained on random prompts (targets=random): the images will show nothing meaningful; "
            "train with targets=clip (adapters=sd) or targets=t5 (adapters=flux)"
        )


def check_available(settings: ImageSettings) -> None:
    """Check, without loading weights, that the model is available and of the right kind.

    Raises:
        ModelError: diffusers is not installed, the model is missing, or is another kind of pipeline.
    """
    try:
        import accelerate  # noqa: F401 - without it, diffusers loads each model twice
        import transformers  # noqa: F401 - without it, diffusers cannot load pipelines
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ModelError(
            f"images={settings.name} needs the packages diffusers, transformers and accelerate: {install_hint('hf')}"
        ) from error
    model = Path(str(settings.model)).expanduser()
    if not model.is_dir() and (model.is_absolute() or str(settings.model).startswith((".", "~"))):
        raise ModelError(f"images.model={settings.model}: no such folder; set a folder or a repository OWNER/NAME")
    try:
        with _quiet():
            index = DiffusionPipeline.load_config(_location(settings), revision=settings.revision)
    except (OSError, ValueError) as error:
        raise ModelError(_explained(settings, error)) from error
    kind, expected = index.get("_class_name"), IMAGE_MODELS[settings.name]
    if kind != expected.pipeline:
        fitting = [other.adapters for other in IMAGE_MODELS.values() if other.pipeline == kind]
        which = f"fits adapters={fitting[0]}" if fitting else "fits no adapters"
        raise ModelError(
            f"images.model={settings.model} is a {kind}, which {which}; images={settings.name} with "
            f"adapters={expected.adapters} needs a {expected.pipeline}"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and deprecation warnings of the libraries; errors are reported all the same."""
    import diffusers
    import transformers

    with quiet(diffusers), quiet(transformers), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _location(settings: ImageSettings) -> str:
    path = Path(str(settings.model)).expanduser()
    return str(path) if path.is_dir() else str(settings.model)


def _explained(settings: ImageSettings, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, ImportError):
        return f"images.model={settings.model} needs a package that is not installed ({reason}): {install_hint('hf')}"
    if Path(str(settings.model)).expanduser().is_dir():
        return f"images.model={settings.model} cannot be read: {reason}"
    revision = f" --revision {settings.revision}" if settings.revision else ""
    return (
        f"images.model={settings.model} is not on this machine and cannot be downloaded: run "
        f"`hf download {settings.model}{revision}` with network access, or set images.model to its folder ({reason})"
    )
