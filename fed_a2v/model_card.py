"""The model card of exported adapters: a `README.md` in the format of the Hugging Face hub."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fed_a2v.core.names import listed
from fed_a2v.core.uncertainty import wilson_interval
from fed_a2v.errors import ConfigError
from fed_a2v.load import LoadedRun
from fed_a2v.report.reproduce import overrides_of
from fed_a2v.runs.exchange import exchange_lines, shares_sums, sites_train
from fed_a2v.runs.rounds import FEW_CLIPS, Row
from fed_a2v.storage.plain_text import one_line
from fed_a2v.storage.untrusted import UntrustedFileError
from fed_a2v.version import __version__

UNKNOWN = "unknown"
# Licences of data sets whose publishers state one for all clips.
LICENCES = {"esc50": "cc-by-nc-3.0"}
SETS = {"synth": "built-in sounds", "embeddings": "a file of embeddings", "esc50": "ESC-50", "folder": "own recordings"}
TAGS = ["audio", "audio-to-image", "federated-learning", "flower", "model_hub_mixin", "pytorch_model_hub_mixin"]

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

Adapters that map the audio embeddings of a frozen encoder to the prompt embeddings of an image model. They were trained
across {{ sites }} sites with [Flower](https://flower.ai), by fed_a2v {{ version }}.

## Use

It needs fed_a2v with torch, safetensors and huggingface_hub, but neither Flower nor Hydra nor W&B.

```python
from fed_a2v import A2VAdapter

adapter = A2VAdapter.from_pretrained({{ quoted }})  # this folder, or OWNER/NAME on the hub
{{ use }}
```

Input: {{ input }}. Output: {{ output }}.

## Data

{{ data }}

Classes ({{ classes | length }}): {{ classes | join(", ") }}.

## Method

{% for line in method -%}
* {{ line }}
{% endfor %}
{% if command -%}
To train it again{% if '=PATH' in command %}, with your own files for PATH{% endif %}:

```console
fed-a2v train {{ command }}
```

{% endif -%}
## Figures

{{ figures }}

## Privacy

{{ privacy }}

This folder contains the weights of the adapters, the mean and the deviation of their input over all sites
{%- if space %}, the public
space and its centre{% endif %}, and the names and prompts of the classes. It contains no recording and no embedding
of a clip.

## Licence

{{ licence }}
"""

SHARED = {
    "prototypes": "means of audio embeddings over groups of at least {least} clips of a class",
    "mean": "one mean audio embedding of each class with at least {least} clips",
    "samples": "the embeddings of single clips",
}
NO_GUARANTEE = (
    "There is no differential privacy (no epsilon): averages and weights can reveal whether a clip was used, and parts "
    "of what it sounds like."
)


def model_card(run: LoadedRun, name: str, licence: str | None = None) -> ModelCard:
    """The model card of a run's adapters.

    Args:
        run: a loaded run.
        name: name of the exported folder.
        licence: identifier of the hub; None: that of the data if it is known, else "unknown".

    Raises:
        ConfigError: the licence is not an identifier.
        UntrustedFileError: a figure of the card is no such figure in the run's folder.
    """
    config, rows = run.config, run.metrics
    last = rows[-1] if rows else {}
    for row in rows:
        _check_figures(row, run.folder.metrics)
    if licence is not None and not (licence.isascii() and licence and set(licence) <= _IDENTIFIER):
        raise ConfigError(f"--licence {licence}: give an identifier of the hub in lower case, such as cc-by-4.0")
    sets = _data_sets(config)
    known = {LICENCES.get(each, UNKNOWN) for each in sets}
    chosen = licence or (known.pop() if len(known) == 1 else UNKNOWN)
    data = ModelCardData(
        license=chosen,
        library_name="fed_a2v",
        tags=TAGS,
        model_name=name,
        eval_results=_eval_results(last, sets),
    )
    words = {
        "title": markdown(name),
        "quoted": json.dumps(name),
        "version": __version__,
        "sites": config["partition"]["sites"],
        "use": _use(run),
        "input": _input(run),
        "output": _output(run),
        "data": _data(run, sets),
        "classes": [markdown(each) for each in run.classes],
        "method": _method(config, run.round),
        "command": _command(config),
        "figures": _figures(last, len(run.classes)),
        "privacy": _privacy(config, rows),
        "space": run.adapters.space is not None,
        "licence": _licence(licence, chosen, sets),
    }
    card: ModelCard = ModelCard.from_template(data, template_str=TEMPLATE, **words)
    return card


_IDENTIFIER = set("abcdefghijklmnopqrstuvwxyz0123456789.-")


def _check_figures(row: Row, path: Path) -> None:
    """Check the figures that the card has; the file may be anyone's.

    Raises:
        UntrustedFileError: names the figure and its value.
    """
    unknown = {"accuracy": 1.0, "accuracy_at_5": 1.0, "test_clips": 1e12, "privacy/epsilon": math.inf}
    known = dict.fromkeys(("sites_total", "bytes_registration", "bytes_up"), 1e18)
    for key, largest in (unknown | known).items():
        value = row.get(key, 0)
        if not (type(value) in (int, float) and 0 <= value <= largest) and not (value is None and key in unknown):
            raise UntrustedFileError(f"{path}: {key}={str(value)[:40]} is no such figure; copy the folder again")


def markdown(text: object) -> str:
    """A name as text in Markdown: in one line, without markup."""
    shown = one_line(text)
    for mark in "\\`*[]<>|":
        shown = shown.replace(mark, f"\\{mark}")
    return shown


def _data_sets(config: Mapping[str, Any]) -> list[str]:
    dataset = config["dataset"]
    return [part["name"] for part in dataset["sets"]] if dataset["name"] == "mixed" else [dataset["name"]]


def _use(run: LoadedRun) -> str:
    argument = '"dog.wav"' if _knows_encoder(run) else "embeddings"
    lines = [f"prompts = adapter({argument})", f"adapter.classify({argument})"]
    if (kind := run.settings.adapters.image_model) == "sd":
        lines += ["# with a StableDiffusionPipeline", "pipe(prompt_embeds=prompts.prompt_embeds)"]
    elif kind == "flux":
        lines += [
            "# with a FluxPipeline",
            "pipe(prompt_embeds=prompts.prompt_embeds, pooled_prompt_embeds=prompts.pooled_prompt_embeds)",
        ]
    return "\n".join(lines)


def _knows_encoder(run: LoadedRun) -> bool:
    return run.has_audio and run.settings.encoder.name != "custom"


def _input(run: LoadedRun) -> str:
    tokens, width = run.clip_shape
    shape = f"embeddings (B, {tokens}, {width})"
    if not run.has_audio:
        return f"{shape} of the encoder of the data's file, which is not part of this folder"
    encoder = run.settings.encoder
    seconds = f"cropped or padded to {run.clip_seconds:g} s"
    if encoder.name == "custom":
        return f"sounds, {seconds}, with an object of the encoder's class, or its {shape}"
    model = f" with the model {markdown(name)}" if (name := public_model(encoder.model)) else ""
    return f"sounds, {seconds}, embedded by `encoder={encoder.name}`{model}; or {shape}"


def public_model(model: str | None) -> str | None:
    """The name of a repository on the hub; None for a folder, whose path means nothing to others."""
    if model is None or Path(model).expanduser().is_dir() or model.startswith(("/", "\\", ".", "~")):
        return None
    return model


def _output(run: LoadedRun) -> str:
    _, tokens, width = run.targets.clip.shape
    t5 = run.targets.t5
    clip = f"CLIP prompt embeddings ({tokens} x {width})"
    return clip if t5 is None else f"{clip} and T5 prompt embeddings ({t5.shape[1]} x {t5.shape[2]})"


def _data(run: LoadedRun, sets: Sequence[str]) -> str:
    partition = run.config["partition"]
    return (
        f"Data set: {', '.join(SETS.get(each, each) for each in sets)}. Division among {partition['sites']} sites: "
        f"{partition['kind']}. Accuracy is measured on clips that no site trained on."
    )


def _method(config: Mapping[str, Any], rounds: int) -> list[str]:
    targets = config["targets"]["name"]
    meaning = " (random vectors without meaning: images will show nothing)" if targets == "random" else ""
    lines = [f"class prompts: `targets={targets}`{meaning}", f"adapters: `{markdown(config['adapters']['name'])}`"]
    if config["adapters"]["closed_form"]:
        lines.append("adapters solved in closed form from what the sites sent")
    else:
        step = f", generator `{config['generator']['name']}`" if config["finetune"]["enabled"] else ""
        lines.append(f"{rounds} rounds, aggregation `{config['aggregation']['mode']}`{step}, seed {config['seed']}")
    return lines


def _command(config: Mapping[str, Any]) -> str:
    """The run's overrides, with PATH for local paths, which are nobody else's business."""
    words = overrides_of(config) or []
    return " ".join(f"{word.partition('=')[0]}=PATH" if _has_path(word) else word for word in words)


def _has_path(word: str) -> bool:
    key, _, value = word.partition("=")
    return key.split(".")[-1] in ("root", "path", "texts", "ties", "captions") or value.lstrip("'\"[{").startswith(
        ("/", "~", ".", "\\")
    )


def _figures(last: Row, classes: int) -> str:
    clips = last.get("test_clips")
    if last.get("accuracy") is None or not clips:
        return "No clip was scored."
    lines = ["| | value | 95 % interval |", "|---|---|---|"]
    for key, title in (("accuracy", "accuracy"), ("accuracy_at_5", "right class among the nearest five")):
        if (value := last.get(key)) is not None and (key == "accuracy" or classes > 5):
            low, high = wilson_interval(value, clips)
            lines.append(f"| {title} | {value:.3f} | {low:.3f} to {high:.3f} |")
    few = " Few clips: the interval is wide." if clips < FEW_CLIPS else ""
    lines += ["", f"On {clips} test clips, over {classes} class prompts (chance {1 / classes:.3f}).{few}"]
    lines[-1] += " The intervals cover other test clips of this kind, not other seeds or other data."
    return "\n".join(lines)


def _eval_results(last: Row, sets: Sequence[str]) -> list[EvalResult] | None:
    value, clips = last.get("accuracy"), last.get("test_clips")
    if value is None or not clips:
        return None
    low, high = wilson_interval(value, clips)
    return [
        EvalResult(
            task_type="audio-classification",
            dataset_type=sets[0],
            dataset_name=", ".join(sets),
            metric_type="accuracy",
            metric_value=round(value, 4),
            metric_name=f"accuracy, 95 % interval {low:.3f} to {high:.3f}, {clips} test clips",
        )
    ]


def _privacy(config: Mapping[str, Any], rows: Sequence[Row]) -> str:
    lines = ["The messages of the sites have no recordings."]
    share = config["share"]
    if shares_sums(config):
        lines += [f"{markdown(line)}." for line in exchange_lines(config, rows)[:1]] if rows else []
    else:
        once = SHARED[share["kind"]].format(least=share["min_clips"])
        trains = sites_train(config)
        outputs = trains and config["finetune"]["enabled"] and config["finetune"]["from_nodes_adapters"]
        each = ["the weights of the adapters that it trained"] * trains
        each += ["the mean outputs of its adapters for each class"] * bool(outputs)
        lines.append(f"Each site sent {once}, once{'; and in every round ' + ' and '.join(each) if each else ''}.")
        lines.append("It also sent the names of its classes, their numbers of clips, and scores on its test clips.")
    epsilon = next((row["privacy/epsilon"] for row in reversed(rows) if "privacy/epsilon" in row), None)
    if epsilon is not None and math.isfinite(epsilon):
        privacy = config["privacy"]
        lines.append(
            f"Differential privacy: epsilon {epsilon:.3g}, delta {privacy['delta']:.0e}, for adding or removing "
            f"{'one clip' if privacy['level'] == 'clip' else 'all clips of one site'}. The adapters are computed from "
            "the noisy sums, so the same bound holds for them."
        )
    else:
        lines.append(NO_GUARANTEE)
    return " ".join(lines)


def _licence(given: str | None, chosen: str, sets: Sequence[str]) -> str:
    known = [f"{each}: {LICENCES[each]}" for each in sets if each in LICENCES]
    data = f"Licence of the data: {listed(known)}." if known else "The licence of the data is not known to fed_a2v."
    if set(sets) == {"synth"}:
        data = "The data are sounds that fed_a2v computes, which nobody has recorded."
    own = " fed_a2v itself is Apache-2.0, which says nothing about weights trained with it."
    if given is not None:
        return f"{chosen}, chosen by the exporter. {data}{own}"
    if chosen == UNKNOWN:
        return f"Not stated: whoever publishes these weights sets `license` at the top of this file. {data}{own}"
    return f"{chosen}, that of the data. {data}{own}"
