"""Valid replies and their specifications."""

import json
from dataclasses import replace

import numpy as np
import torch

from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics, PooledMoments
from fed_a2v.federation import protocol as wire
from fed_a2v.federation.protocol import ReplySpec, TrainReply

CLASSES = ("dog", "rain", "siren", "Säge", "door knock")
SHAPES = ((4, 3), (3,), ())


def prompts(name, rng, task, prototypes=2, held=False, t5=True, variance=True):
    counts = rng.integers(1, 9, prototypes)
    audio = AudioPrototypes(
        means=torch.tensor(rng.normal(size=(prototypes, 2, 5)), dtype=torch.float32),
        counts=torch.tensor(counts),
        variances=torch.tensor(rng.uniform(0.1, 2, (prototypes, 2, 5)) * variance, dtype=torch.float32),
    )
    trained = task == "train"
    return ClassStatistics(
        name=name,
        count=int(counts.sum()) + int(rng.integers(0, 3)),
        audio=None if held else audio,
        clip=torch.tensor(rng.normal(size=(1, 6)), dtype=torch.float32) if trained else None,
        t5=torch.tensor(rng.normal(size=(3, 7)), dtype=torch.float32) if trained and t5 else None,
    )


def make_reply(seed=0, task="train", names=("dog", "rain"), **options):
    rng = np.random.default_rng(seed)
    said = [prompts(name, rng, task, **options) for name in names]
    return TrainReply(
        site="site-0",
        round_number=3,
        task=task,
        num_examples=sum(p.count for p in said) + 1,
        weights=[torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in SHAPES]
        if task == "train"
        else [],
        statistics=said,
        fingerprint="abc123",
        square_root=True,
        losses={"mse": 0.25, "contrastive": 1.5} if task == "train" else {},
        seconds=1.25,
        test_clips={"dog": 3, "siren": 1},
    )


def make_moments_reply():
    """The registration of a site that shares no class."""
    mean = torch.tensor(np.random.default_rng(0).normal(size=(2, 5)), dtype=torch.float32)
    reply = make_reply(task="register", names=())
    return replace(reply, num_examples=6, moments=PooledMoments(mean, 0.7, 6))


def make_expected(task="train", **changes):
    expected = ReplySpec(
        site="site-0",
        round_number=3,
        task=task,
        weight_shapes=SHAPES,
        classes=CLASSES,
        audio_shape=(2, 5),
        clip_shape=(1, 6),
        t5_shape=(3, 7),
        square_root=True,
        losses=("contrastive", "mse"),
        max_weight_rms=100.0,
    )
    return replace(expected, **changes)


def sent(reply=None, dtype="float32"):
    """A valid reply as (arrays, manifest as a tree, num_examples)."""
    reply = reply or make_reply()
    arrays, metrics = wire.encode_reply(reply, dtype)
    return arrays, json.loads(metrics["manifest"]), reply.num_examples


def decode(arrays, manifest, num_examples, expected=None):
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    return wire.decode_reply(arrays, {"manifest": text}, num_examples, expected or make_expected())


COLUMNS = 6
SPACE = "0123456789abcdef"


def unit_rows(number, seed=0):
    rows = torch.randn(number, COLUMNS, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def make_sums_reply(names=("rain", "siren"), clips=4, seed=0, task="sums"):
    """Sums over `clips` clips of each class; two more clips belong to classes that are too small to be sent."""
    labels = torch.tensor(sorted(CLASSES.index(name) for name in names), dtype=torch.int64).repeat_interleave(clips)
    sums = ClassSums.of(unit_rows(len(labels), seed), labels, len(CLASSES))
    return replace(
        make_reply(task="register", names=()),
        task=task,
        num_examples=len(labels) + 2,
        statistics=[ClassStatistics(CLASSES[label], clips) for label in labels.unique().tolist()],
        sums=sums if names else None,
        space=SPACE,
    )


def make_centre_reply(seed=0):
    rows = unit_rows(5, seed)
    return replace(
        make_sums_reply((), task="centre"),
        num_examples=5,
        moments=PooledMoments(rows.mean(dim=0, keepdim=True), float(rows.var(dim=0, correction=0).mean()), 5),
    )


def make_sums_expected(task="sums", **changes):
    more = {"sums": COLUMNS, "space": SPACE, "prototypes": False, "outputs": False, "losses": (), "weight_shapes": ()}
    return make_expected(task, **{"audio_shape": None if task == "centre" else (1, COLUMNS), **more, **changes})
