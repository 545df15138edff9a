"""Export of a run's adapters: weights, configuration and model card in a folder that `A2VAdapter` loads."""

from __future__ import annotations

import copy
from pathlib import Path

from fed_a2v.adapter import CONFIG, WEIGHTS, A2VAdapter, AdapterConfig, EncoderChoice
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.load import LoadedRun
from fed_a2v.model_card import model_card, public_model
from fed_a2v.storage.files import new_folder


def export_run(run: LoadedRun, folder: str | Path, licence: str | None = None) -> A2VAdapter:
    """Write a run's adapters as `model.safetensors`, `config.json` and `README.md`.

    Args:
        run: a loaded run.
        folder: a new or empty folder; it is complete or, after an error, not there.
        licence: licence of the weights for the model card, as an identifier of the hub (`apache-2.0`, `cc-by-nc-4.0`,
            ...); None: that of the data if it is known, else unknown.

    Returns:
        The adapter, on the CPU.

    Raises:
        FileExistsError: the folder has files.
        OSError: the folder cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    adapter = as_adapter(run)
    adapter.card = str(model_card(run, folder.name, licence))
    with new_folder(folder) as unfinished:
        adapter.save_pretrained(unfinished)
        (unfinished / WEIGHTS).chmod((unfinished / CONFIG).stat().st_mode)  # safetensors makes it the owner's only
    return adapter


def as_adapter(run: LoadedRun) -> A2VAdapter:
    """A copy of a run's adapters, on the CPU, as a module of their own."""
    shape, space = run.settings.adapters, run.adapters.space
    prompts = run.targets.to("cpu")
    config = AdapterConfig(
        classes=run.classes,
        audio_shape=run.clip_shape,
        clip_shape=(prompts.clip.shape[1], prompts.clip.shape[2]),
        t5_shape=None if prompts.t5 is None else (prompts.t5.shape[1], prompts.t5.shape[2]),
        hidden_width=shape.hidden_width,
        closed_form=shape.closed_form,
        space_columns=None if space is None else space.columns,
        square_root=run.takes_square_roots,
        clip_seconds=run.clip_seconds,
        targets=run.settings.targets.name,
        encoder=_encoder_choice(run),
    )
    adapter = A2VAdapter(config, prompts)
    adapter.adapters.load_state_dict(copy.deepcopy(run.adapters).cpu().state_dict())
    return adapter


def _encoder_choice(run: LoadedRun) -> EncoderChoice:
    """The run's encoder, as far as others can know it: a local folder is known by its content only."""
    if not run.has_audio:
        return EncoderChoice("unknown")
    settings = run.settings.encoder
    try:
        fingerprint = run.encoder.fingerprint
    except ModelError:  # the sites have the model, this machine does not
        fingerprint = None
    model = public_model(settings.model)
    return EncoderChoice(
        settings.name,
        model,
        settings.revision if model else None,
        settings.tokens,
        settings.precision,
        fingerprint,
    )
