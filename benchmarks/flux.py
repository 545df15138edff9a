"""Network traffic of a round with FLUX's adapters, and the gain of a head sixty times as large.

    FED_A2V_DATA=FOLDER python benchmarks/flux.py [--steps 60] [--folder RUNS] [--write]
    FED_A2V_DATA=FOLDER python benchmarks/flux.py --generators [--seeds 3] [--rounds 5] [--folder RUNS] [--write]

FOLDER has `esc50_yamnet.npz`. 10 sites with 5 classes each; folds 1 to 3 train, fold 4 tests. The targets have FLUX's
widths, 1 x 768 from a CLIP text model and 17 x 4096 from a T5 encoder; both are tiny models of the same architectures
with random weights. The federation is compared with its adapters trained on all clips in one place, and with a head of
247 M parameters that has T5's width throughout, trained there, too. It takes about 5 GB of memory.

`--generators`: whether a generator helps the T5 side. The same federation with one mean per class and with eight,
without server step, with the means alone, and with the VAE (conditioned on CLIP), the two VAEs (the second on T5, for
the T5 adapter) and the multimodal one (on both). Finished runs in FOLDER are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

import torch
from common import ROOT, machine, spread, write_block
from generators import LEAN
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v import load_run
from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.core.adapters import AdapterOutput, Adapters, ClassPrompts, prompt_centre
from fed_a2v.core.metrics import Retrieval, retrieval
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.training import AdamWSettings, train_steps
from fed_a2v.data.site import load_clips
from fed_a2v.federation.factory import adapter_loss
from fed_a2v.federation.simulation import run_in_process

SITES = 10
SHARES = {"1": "share=mean", "8": "share=prototypes"}
ARMS = {
    "no server step": ("generator=none", "finetune.enabled=false"),
    "`generator=none`": ("generator=none",),
    **{f"`{name}`": (f"generator={name}",) for name in ("vae", "vae_t5", "multimodal")},
}
FIGURES = ("CLIP accuracy", "T5 accuracy", "T5 cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps in one place, of 32 clips each")
    parser.add_argument("--folder", type=Path, help="keeps the federation's run, so that it is not repeated")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--generators", action="store_true", help="compare generators instead")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of the comparison")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds of the comparison")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        text = generators(folder, given.seeds, given.rounds) if given.generators else table(folder, given.steps)
    print(text)
    if given.write:
        write_block("flux generators" if given.generators else "flux", text)


def table(folder: Path, steps: int) -> str:
    """Run all three and compare them in a Markdown table."""
    settings = compose_settings(overrides(folder))
    with (folder / "log.txt").open("w") as log_file:
        run_in_process(settings, folder / "run", Console(file=log_file))
    run = load_run(folder / "run")
    up, down = (max(row[key] for row in run.metrics) / SITES / 1e6 for key in ("bytes_up", "bytes_down"))
    lines = [
        "| | parameters | MB up | MB down | accuracy | cosine to CLIP | cosine to T5 |",
        "|---|---|---|---|---|---|---|",
        line(f"`adapters=flux`, {SITES} sites", run.step.adapters, f"{up:.1f}", f"{down:.1f}", settings, run.targets),
    ]
    heads = {
        "the same in one place": Adapters(1024, run.targets, settings.adapters.hidden_width),
        "wide head in one place": WideHead(1024, run.targets),
    }
    for name, head in heads.items():
        train_in_one_place(head, settings, run.targets, steps)
        # Traffic of the wide head: all weights in float32, as in the original.
        megabytes = f"{4e-6 * size(head):.0f} (float32)" if isinstance(head, WideHead) else "-"
        lines.append(line(name, head, megabytes, megabytes, settings, run.targets))
    return "\n".join(lines) + (
        f"\n\nMB per site and round, including evaluation; {settings.rounds} rounds at the sites, {steps} steps of "
        f"32 clips in one place. Cosines of centred vectors on the test clips. {machine()}."
    )


def overrides(folder: Path) -> list[str]:
    """The experiment, with text models that are created first."""
    root = os.environ.get("FED_A2V_DATA")
    if not root:
        raise SystemExit("set FED_A2V_DATA to the folder that contains esc50_yamnet.npz")
    sys.path.insert(0, str(ROOT))
    from tests.models import tiny_clip_text, tiny_t5

    return [
        "experiment=esc50_5x10",
        "dataset=embeddings",
        f"dataset.path={Path(root) / 'esc50_yamnet.npz'}",
        f"partition.sites={SITES}",
        "partition.classes_per_site=5",
        "adapters=flux",
        "targets=t5",
        f"targets.clip.model={tiny_clip_text(folder / 'clip', width=768)}",
        f"targets.t5.model={tiny_t5(folder / 't5', width=4096)}",
        'targets.t5.subfolder=""',
        "targets.t5.precision=float32",
        f"cache_dir={folder / 'cache'}",
        "wandb.mode=disabled",
    ]


def generators(folder: Path, seeds: int, rounds: int) -> str:
    """Every arm on the same seeds, as Markdown: figures after the last round, and T5's cosine minus that of `none`."""
    words = [*overrides(folder), *LEAN]
    lines = ["| means per class | | " + " | ".join(FIGURES) + " | T5 cosine less `none`'s |", "|---" * 6 + "|"]
    for share, shared in SHARES.items():
        found: dict[str, list[dict[str, float]]] = {}
        for arm, extra in ARMS.items():
            found[arm] = [
                run_figures(folder / "runs", [*words, shared, *extra, f"rounds={rounds}", f"seed={seed}"])
                for seed in range(seeds)
            ]
            less = [
                own["T5 cosine"] - plain["T5 cosine"]
                for own, plain in zip(found[arm], found.get("`generator=none`", found[arm]), strict=True)
            ]
            cells = [spread([run[figure] for run in found[arm]]) for figure in FIGURES]
            last = f"{spread(less)}" if arm in list(ARMS)[2:] else "-"
            lines.append(f"| {share} | {arm} | " + " | ".join(cells) + f" | {last} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + f"\n\n{rounds} rounds, mean and deviation over {seeds} seeds. {machine()}."


def run_figures(folder: Path, words: list[str]) -> dict[str, float]:
    """The figures of one run on the test clips."""
    settings = compose_settings(words)
    own = folder / hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]
    with Path(os.devnull).open("w") as nowhere:
        run_in_process(settings, own, Console(file=nowhere))  # a finished run returns its results without training
    run = load_run(own)
    clip, t5 = retrievals(run.step.adapters, settings, run.targets)
    return dict(zip(FIGURES, (clip.accuracy, t5.accuracy, t5.mean_similarity), strict=True))


class WideHead(nn.Module):
    """A head like the original's: 247 M parameters, nearly all in a T5 side of width 4096.

    It starts at the centre and scale of the class prompts, as our adapters do.
    """

    def __init__(self, audio_width: int, prompts: ClassPrompts) -> None:
        super().__init__()
        assert prompts.t5 is not None
        self.clip = WideSide(audio_width, prompts.clip, width=1536, blocks=2)
        self.t5 = WideSide(audio_width, prompts.t5, width=4096, blocks=13)

    def forward(self, audio: Tensor) -> AdapterOutput:
        """(B, 1, Da) audio embeddings to prompts."""
        return AdapterOutput(self.clip(audio), self.t5(audio))


class WideSide(nn.Module):
    """Residual layers of one width, then a token embedding and the projection to the prompt."""

    def __init__(self, audio_width: int, prompts: Tensor, width: int, blocks: int) -> None:
        super().__init__()
        self.input = nn.Linear(audio_width, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(blocks))
        self.tokens = nn.Parameter(0.5 * torch.randn(prompts.shape[1], width))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, prompts.shape[2])
        self.centre = prompt_centre(prompts)
        self.scale = (prompts - self.centre).std()

    def forward(self, audio: Tensor) -> Tensor:
        """(B, 1, Da) to (B, T, D)."""
        hidden = self.input(audio.mean(dim=1))
        for block in self.blocks:
            hidden = hidden + F.gelu(block(hidden))
        out: Tensor = self.output(self.norm(F.gelu(hidden[:, None] + self.tokens))) * self.scale + self.centre
        return out


def train_in_one_place(head: nn.Module, settings: Settings, prompts: ClassPrompts, steps: int) -> None:
    """Train on the pooled clips of all sites; the wide head with a third of the learning rate."""
    audio, labels = clips(settings, "train")
    if isinstance(head, Adapters):
        columns = audio.flatten(0, 1)
        head.set_standardisation(columns.mean(dim=0), columns.std(dim=0, correction=0))
    rate = settings.site.learning_rate * (0.3 if isinstance(head, WideHead) else 1.0)
    optimiser = AdamWSettings(rate, settings.site.weight_decay, 32)
    random = torch_generator(settings.seed, "one place")
    train_steps(head, audio, labels, adapter_loss(settings.loss, prompts), steps, optimiser, random)  # type: ignore[arg-type]


@torch.no_grad()
def retrievals(head: nn.Module, settings: Settings, prompts: ClassPrompts) -> tuple[Retrieval, Retrieval]:
    """Retrieval by the CLIP and T5 outputs of the test clips."""
    audio, labels = clips(settings, "test")
    parts = [head(rows) for rows in audio.split(100)]
    assert prompts.t5 is not None
    clip = retrieval(torch.cat([part.clip for part in parts]), labels, prompts.clip)
    return clip, retrieval(torch.cat([part.t5 for part in parts]), labels, prompts.t5)


def line(name: str, head: nn.Module, up: str, down: str, settings: Settings, prompts: ClassPrompts) -> str:
    """A row of the table: the head on the test clips."""
    clip, t5 = retrievals(head, settings, prompts)
    return (
        f"| {name} | {size(head) / 1e6:.1f} M | {up} | {down} | {clip.accuracy:.3f} | {clip.mean_similarity:.3f} "
        f"| {t5.mean_similarity:.3f} |"
    )


def clips(settings: Settings, split: str) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of a split, pooled over all sites."""
    loaded = load_clips(settings.dataset, settings.encoder, settings.seed, Path(str(settings.cache_dir)))
    rows = torch.from_numpy(loaded.rows(split))  # type: ignore[arg-type]
    return loaded.embeddings[rows], loaded.labels[rows]


def size(head: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in head.parameters())


if __name__ == "__main__":
    main()
