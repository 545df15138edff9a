import csv
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fed_a2v.config.compose import compose_settings
from fed_a2v.data.clips import EmbeddedClips


@pytest.fixture
def real_data():
    """The folder of real clips and embeddings; its tests are skipped where there is none."""
    folder = os.environ.get("FED_A2V_DATA")
    if not folder:
        pytest.skip("FED_A2V_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture
def make_settings(tmp_path):
    """Settings of the project's defaults with the given overrides and a cache of the test's own."""

    def make(*overrides):
        return compose_settings([f"cache_dir={tmp_path / 'cache'}", *overrides])

    return make


@pytest.fixture
def esc50_folder(tmp_path):
    """Write a small folder in ESC-50's layout; `rows` are (filename, fold, category)."""

    def write(rows, name="esc50", columns=("filename", "fold", "category"), seconds=0.3):
        root = tmp_path / name
        (root / "audio").mkdir(parents=True, exist_ok=True)
        (root / "meta").mkdir(exist_ok=True)
        with (root / "meta" / "esc50.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(columns)
            table.writerows(rows)
        for number, row in enumerate(rows):
            noise = np.random.default_rng(number).normal(0, 0.1, int(16_000 * seconds))
            soundfile.write(root / "audio" / str(row[0]), noise, 16_000)
        return root

    return write


@pytest.fixture(scope="session")
def make_clips():
    """Embedded clips with the given labels and splits; their embeddings say nothing."""

    def make(labels, splits, classes=None):
        count = max(labels, default=-1) + 1 if classes is None else classes
        return EmbeddedClips(
            embeddings=torch.zeros(len(labels), 1, 2),
            labels=torch.tensor(labels, dtype=torch.int64),
            splits=tuple(splits),
            classes=tuple(f"class {label}" for label in range(count)),
            keys=tuple(f"clip-{row}" for row in range(len(labels))),
        )

    return make


@pytest.fixture
def write_sound():
    """Write a short sound file of noise, with the folders above it; what is there already stays."""

    def write(path, seconds=0.1, rate=16_000, channels=1):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = zlib.crc32("/".join(path.parts[-3:]).encode())  # no two alike in one data set
            noise = np.random.default_rng(seed).normal(0, 0.1, (int(rate * seconds), channels))
            soundfile.write(path, noise, rate)
        return path

    return write
