"""Zero-shot accuracy: retrieval of the prompts of unrecorded classes.

    FED_A2V_DATA=FOLDER python benchmarks/unseen.py [--splits 4] [--write]
    FED_A2V_DATA=FOLDER python benchmarks/unseen.py --sums [--splits 8] [--write]

FOLDER has `esc50_yamnet.npz` and `clip_vitb32_text.npz` (real CLIP text vectors of 31 ESC-50 classes). In each
split 10 of the 31 classes are left out of training; folds 1 to 3 train, fold 4 tests; chance among the 10 is 0.10.
`H` is the harmonic mean of the accuracies on clips of unrecorded and recorded classes with all 31 as candidates,
without and with the calibration constant, which is chosen on recorded classes alone.

`--sums`: closed-form adapters of class sums (`share=statistics`), without and with the label prior (`prior=labels`). It
needs `esc50_yamnet_head.npz`, the encoder's label head with CLIP text vectors of 97 labels, and for the strict rows
`esc50_yamnet_akin.json`, the labels that are equal or akin to each class, which are struck from the head (with those
whose text vector has a cosine above 0.95) if the class is unseen.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import PROMPTS, data, machine, spread, write_block
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import cache_dir
from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.class_sums import ClassSums, shared_gaussian
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.label_prior import class_weights, ties_by_text
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.prototypes import summarise_class
from fed_a2v.core.public_space import head_space
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.training import AdamWSettings, train_steps
from fed_a2v.core.unseen_sums import calibrated_discriminant
from fed_a2v.core.zero_shot import BilinearMap, Scorer, choose_calibration, unseen_accuracy, without
from fed_a2v.data.clips import EmbeddedClips
from fed_a2v.data.site import load_clips

UNSEEN = 10
# Columns of the public space, the default of the settings.
COLUMNS = 128
# Cosine above which a label's text vector means the class itself.
SAME_LABEL = 0.95
PRIORS = {
    "none": "class sums, no prior",
    "strict": "class sums and label prior, labels of the unseen classes struck out",
    "lenient": "class sums and label prior, all labels",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--sums", action="store_true", help="class sums and the label prior")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    overrides = data("yamnet")
    names, vectors = text_vectors()
    settings = compose_settings([*overrides, f"dataset.classes=[{','.join(names)}]"])
    clips = load_clips(settings.dataset, settings.encoder, 0, cache_dir(settings.cache_dir))
    assert list(clips.classes) == names
    if given.sums:
        rows = sum_rows(clips, vectors, given.splits)
        text = "\n".join(rows) + f"\n\nMean and deviation over {given.splits} splits. {PROMPTS['CLIP']} {machine()}."
        if given.write:
            write_block("unseen-sums", text)
        return
    methods: dict[str, tuple[str, Callable[[PrototypeBatch, Tensor], Scorer]]] = {
        "MLP adapter, 500 steps": ("prototypes", partial(mlp, steps=500)),
        "MLP adapter, 60 steps": ("prototypes", partial(mlp, steps=60)),
        "bilinear form, every clip": ("samples", BilinearMap.fit),
        "bilinear form, 8 prototypes": ("prototypes", BilinearMap.fit),
        "bilinear form, 1 mean": ("mean", BilinearMap.fit),
    }
    lines = ["| | among unseen | H | H, calibrated | unseen / seen, calibrated |", "|---|---|---|---|---|"]
    for name, (share, fit) in methods.items():
        line = table_row(name, [outcome(clips, vectors, split, share, fit) for split in range(given.splits)])
        lines.append(line)
        print(line, flush=True)
    results = [with_synthetic(clips, vectors, split) for split in range(given.splits)]
    lines.append(table_row("MLP adapter, 500 steps, and VAE samples of the unseen", results))
    print(lines[-1])
    text = "\n".join(lines) + f"\n\nMean and deviation over {given.splits} splits. {PROMPTS['CLIP']} {machine()}."
    if given.write:
        write_block("unseen", text)


def table_row(name: str, results: list[dict[str, float]]) -> str:
    figures = [spread([result[key] for result in results]) for key in ("among", "plain", "calibrated")]
    both = " / ".join(f"{sum(result[key] for result in results) / len(results):.2f}" for key in ("unseen", "seen"))
    return f"| {name} | " + " | ".join(figures) + f" | {both} |"


def text_vectors() -> tuple[list[str], Tensor]:
    """Sorted names of the classes with a CLIP text vector, and the vectors."""
    with np.load(Path(os.environ["FED_A2V_DATA"]) / "clip_vitb32_text.npz", allow_pickle=False) as file:
        names, vectors = [str(name) for name in file["category"]], torch.from_numpy(file["vectors"]).float()
    order = sorted(range(len(names)), key=names.__getitem__)
    return [names[place] for place in order], vectors[order]


def prototypes(clips: EmbeddedClips, share: str) -> PrototypeBatch:
    """The statistics that one site with all training clips would send."""
    rows = torch.from_numpy(clips.rows("train"))
    audio, labels = clips.embeddings[rows], clips.labels[rows]
    shared = [summarise_class(name, audio[labels == label], share) for label, name in enumerate(clips.classes)]
    bank = PrototypeBank()
    bank.update("all", [prompt for prompt in shared if prompt is not None], "", 1)
    found = bank.rows()
    assert found is not None
    return found


def unseen_classes(classes: int, split: int) -> Tensor:
    """(classes,) mask of the classes that a split leaves out."""
    absent = torch.zeros(classes, dtype=torch.bool)
    absent[torch.randperm(classes, generator=torch.Generator().manual_seed(split))[:UNSEEN]] = True
    return absent


def outcome(
    clips: EmbeddedClips,
    vectors: Tensor,
    split: int,
    share: str,
    fit: Callable[[PrototypeBatch, Tensor], Scorer],
) -> dict[str, float]:
    absent = unseen_classes(len(clips.classes), split)
    seen = without(prototypes(clips, share), absent)
    calibration = choose_calibration(fit, seen, vectors[~absent])
    return measured(clips, vectors, absent, fit(seen, vectors[~absent]), calibration)


def measured(
    clips: EmbeddedClips, vectors: Tensor, absent: Tensor, scorer: Scorer, calibration: float
) -> dict[str, float]:
    test = torch.from_numpy(clips.rows("test"))
    scores, labels = scorer(clips.embeddings[test], vectors), clips.labels[test]
    return figures(scores, labels, absent, 0.0, calibration)


def figures(scores: Tensor, labels: Tensor, absent: Tensor, plain: float, calibrated: float) -> dict[str, float]:
    """The accuracies of a table, from scores to which two calibrations are applied."""
    before, after = (unseen_accuracy(scores, labels, absent, value) for value in (plain, calibrated))
    return {
        "among": before.among_unseen,
        "plain": before.harmonic,
        "calibrated": after.harmonic,
        "unseen": after.unseen,
        "seen": after.seen,
    }


def sum_rows(clips: EmbeddedClips, vectors: Tensor, splits: int) -> list[str]:
    """The table of class sums."""
    folder = Path(os.environ["FED_A2V_DATA"])
    with np.load(folder / "esc50_yamnet_head.npz", allow_pickle=False) as file:
        weight = torch.from_numpy(file["weight"]).float()
        names = [str(file["labels"][row]) for row in file["label_index"]]
        known = torch.from_numpy(file["label_index"])
        texts = torch.from_numpy(file["label_vectors"]).float()
    akin = json.loads((folder / "esc50_yamnet_akin.json").read_text(encoding="utf-8"))["akin"]
    space = head_space(weight, COLUMNS)
    roots = clips.embeddings.sqrt()
    train, test = (torch.from_numpy(clips.rows(split)) for split in ("train", "test"))
    prompts = F.normalize(vectors, dim=1)

    def result(split: int, prior: str) -> dict[str, float]:
        absent = unseen_classes(len(clips.classes), split)
        seen = train[~absent[clips.labels[train]]]
        centred = space.centred(space.rows(roots[seen]).mean(dim=0))
        rows, labels = centred.rows(roots[test]).double(), clips.labels[test]
        used = torch.ones(len(names), dtype=torch.bool)
        unseen = absent.nonzero().flatten()
        if prior == "strict":
            beginnings = tuple(word for place in unseen for word in akin[clips.classes[place]])
            struck = torch.tensor([name.startswith(beginnings) for name in names])
            nearest = (prompts[unseen] @ F.normalize(texts, dim=1).T).amax(dim=0)
            used = ~struck & (nearest <= SAME_LABEL)
        weights = None
        if prior != "none":
            ties = torch.zeros(len(clips.classes), len(weight))
            ties[:, known[used]] = ties_by_text(vectors, texts[used])
            weights = class_weights(ties, weight) @ space.matrix
        sums = ClassSums.of(centred.rows(roots[seen]), clips.labels[seen], len(clips.classes))
        model = shared_gaussian(sums, prior=weights)
        found, constant = calibrated_discriminant(model, unseen, vectors, weights, seed=split)
        scores = found(rows)[:, found.labels.argsort()]
        # Recorded classes have the constant off already.
        return figures(scores, labels, absent, -constant, 0.0)

    lines = ["| | among unseen | H | H, calibrated | unseen / seen, calibrated |", "|---|---|---|---|---|"]
    for prior, title in PRIORS.items():
        lines.append(table_row(title, [result(split, prior) for split in range(splits)]))
        print(lines[-1], flush=True)
    return lines


def mlp(rows: PrototypeBatch, vectors: Tensor, steps: int) -> Scorer:
    """The compact adapter, trained on prototypes with the default loss."""
    prompts = ClassPrompts(rows.names, vectors.unsqueeze(1), None)
    torch.manual_seed(0)
    adapters = Adapters(rows.embeddings.shape[-1], prompts)
    adapters.set_standardisation(rows.embeddings.mean(dim=(0, 1)), rows.embeddings.std(dim=(0, 1)))
    loss, random = AdapterLoss(prompts, AdapterLossWeights()), torch.Generator().manual_seed(0)
    train_steps(adapters, rows.embeddings, rows.labels, loss, steps, AdamWSettings(1e-3, 1e-4, 64), random)
    centre = vectors.mean(dim=0)

    @torch.no_grad()
    def scorer(audio: Tensor, candidates: Tensor) -> Tensor:
        return F.normalize(adapters(audio).clip.squeeze(1) - centre, dim=1) @ F.normalize(candidates - centre, dim=1).T

    return scorer


def with_synthetic(clips: EmbeddedClips, vectors: Tensor, split: int) -> dict[str, float]:
    """A VAE learns the recorded classes and samples the others from their text vectors; the MLP trains on both."""
    absent = unseen_classes(len(clips.classes), split)
    known = prototypes(clips, "prototypes")
    seen = without(known, absent)
    torch.manual_seed(0)
    vae = ConditionedVAEGenerator(known.embeddings.shape[-1], vectors.shape[1], 256, 32, learning_rate=2e-3)
    random = torch.Generator().manual_seed(0)
    vae.fit(seen, vectors[~absent], 150, 0.1, random)
    imagined = vae.sample_classes(vectors[absent], 8, random).flatten(0, 1)
    names = tuple(name for name, gone in zip(known.names, absent.tolist(), strict=True) if gone)
    labels = torch.arange(len(names)).repeat_interleave(8)
    rows = PrototypeBatch(imagined, labels, torch.ones(len(labels)), torch.zeros_like(imagined), names)
    scorer = mlp(seen.joined(rows), vectors, steps=500)
    return measured(clips, vectors, absent, scorer, 0.0)


if __name__ == "__main__":
    main()
