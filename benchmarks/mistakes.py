"""What `fed-a2v` says to typical mistakes: one line each, with the remedy, and its processor time.

python benchmarks/mistakes.py [--write]

Each is typed at the console command, in a folder with a run, sounds, and broken files. `benchmarks/wrong_configs.py`
has further mistakes in settings.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from common import machine, write_block

from fed_a2v.config.compose import compose_settings, to_yaml

COMMAND = Path(sys.executable).parent / "fed-a2v"
# Most characters of a line, and most processor seconds where no data is read.
LONGEST, SECONDS = 300, 1.5


class Mistake(NamedTuple):
    """What is typed after `fed-a2v`, and parts of the line that is expected: the wrong word and the remedy.

    Attributes:
        words: what is typed.
        parts: parts of the line, separated by " | ".
        without: package that is not installed.
        reads: whether data must be read to notice the mistake; then its time is not limited.
    """

    words: str
    parts: str
    without: str = ""
    reads: bool = False


MISTAKES = [
    # No command, or a wrong one
    Mistake("trian", "'trian' | train"),
    Mistake("Train experiment=quick", "'Train' | train"),
    Mistake("rounds=3", "'rounds=3' | fed-a2v train rounds=3"),
    Mistake("--config mine.json", "--config | fed-a2v train --config mine.json"),
    # Settings that are not written KEY=VALUE
    Mistake("train --rounds 3", "--rounds | rounds=3"),
    Mistake("train --rounds=3", "--rounds | rounds=3"),
    Mistake("train rounds = 3", "'rounds' | rounds=3"),
    Mistake("train rounds 3", "'rounds' | rounds=3"),
    Mistake("train rounds= 3", "'rounds=' | rounds=3"),
    Mistake("train quick", "'quick' | experiment=quick"),
    Mistake("train --learning-rate 0.1", "--learning-rate | site.learning_rate=0.1"),
    Mistake("train mine.json", "'mine.json' | --config mine.json"),
    Mistake("train sounds", "'sounds' | dataset.root=sounds"),
    # Case and names
    Mistake("train Rounds=3", "Rounds | rounds"),
    Mistake("train experiment=Quick", "experiment=Quick | did you mean quick"),
    Mistake("train generator=VAE", "generator=VAE | did you mean vae"),
    Mistake("train epochs=3", "epochs | site.epochs"),
    Mistake("config rouns=1", "rouns | rounds"),
    # Sweeps, folders, output
    Mistake("train --seed 0,1,2", "--seed | -m seed=0,1,2"),
    Mistake("train seed=0,1,2", "'seed=0,1,2' | -m"),
    Mistake("train -m seed=0,1 hydra.run.dir=runs/new", "hydra.run.dir | --out"),
    Mistake("train -m --cfg job seed=0,1", "--cfg | keep one"),
    Mistake("train --out a hydra.run.dir=b", "--out=a | keep one"),
    Mistake("train --quiet --json", "--quiet | --json | keep one"),
    Mistake("train --config gone.json", "gone.json | --config=FILE"),
    Mistake("train --config broken.json", "broken.json, line 2 | Expecting"),
    Mistake("train --config-dir gone experiment=mine", "--config-dir=gone | choose one"),
    # Data
    Mistake("train dataset=esc50", "dataset=esc50 | dataset.root=FOLDER"),
    Mistake("train dataset=esc50 dataset.root=gone", "dataset.root | gone | correct the path"),
    Mistake("train dataset.root=sounds", "dataset.root | dataset=synth | dataset=folder"),
    Mistake("train dataset=folder dataset.path=sounds", "dataset=folder | dataset.root=FOLDER"),
    Mistake("train dataset=embeddings dataset.path=gone.npz", "dataset.path | gone.npz | correct the path"),
    Mistake("train dataset=folder dataset.root=sounds dataset.classes=[cat]", "cat | dog, rain", reads=True),
    Mistake("train dataset=folder dataset.root=empty", "empty | folder", reads=True),
    Mistake("train partition.sites=1000 partition=iid", "partition.sites=1000 | lower", reads=True),
    # Options that do not fit each other, or this machine
    Mistake("train generator=gaussian generator.latent_dim=8", "generator.latent_dim | generator=vae"),
    Mistake("train privacy=dp", "privacy=dp | share=statistics"),
    Mistake("train privacy.epsilon=1e300", "privacy.epsilon | less than or equal to 1000000"),
    Mistake("train images=sd", "images=sd | adapters=sd"),
    Mistake("train experiment=one_shot prior=labels prior.path=gone.npz", "prior.path=gone.npz | correct the path"),
    Mistake("train device=gpu", "device = 'gpu' | cuda"),
    Mistake("train experiment=vegas_10x1 dataset.root=sounds", "transformers | pip install", without="transformers"),
    Mistake("train partition=shards", "flwr_datasets | pip install", without="flwr_datasets"),
    # Runs
    Mistake("train resume=runs/gone", "resume=runs/gone | correct the path"),
    Mistake("train experiment=quick site.epochs=9 --out runs/mine", "site.epochs | -> 9 | resume=never"),
    Mistake("compare runs/mine runs/mine", "'runs/mine' | fed-a2v report runs/mine runs/mine"),
    Mistake("compare --with FedAvg,magic", "--with=magic | pooled"),
    Mistake("compare --seed 0,1", "--seed | --seeds"),
    Mistake("compare --folds one", "--folds=one | --folds=1,2,3"),
    Mistake("report runs/mien", "runs/mien | did you mean runs/mine"),
    Mistake("report empty", "empty | fed-a2v train"),
    Mistake("report", "RUN | fed-a2v report --help"),
    # The other commands
    Mistake("generate runs/mine", "nothing to generate | --classes"),
    Mistake("generate runs/mine dgo.wav", "dgo.wav | FILE"),
    Mistake("generate runs/mine sounds/dog/1.wav rounds=3", "'rounds=3' | images.KEY=VALUE"),
    Mistake("generate runs/mine --classes dog images.stepz=9", "images.stepz | images.steps"),
    Mistake("generate runs --test 1", "runs has | choose one: runs/mine"),
    Mistake("embed dataset=esc50 dataset.root=gone", "dataset.root | gone | correct the path"),
    Mistake("embed --workers 0", "--workers=0 | at least 1"),
    Mistake("targets dataset=esc50", "FILE | fed-a2v targets"),
    Mistake("export runs/mine", "--to | fed-a2v export --help"),
    Mistake("export runs/mien --to new", "runs/mien | did you mean runs/mine"),
    Mistake("demo runs/mine --port 99999", "--port 99999 | 65535"),
    Mistake("demo runs/mine --port auto", "--port | 'auto' | fed-a2v demo --help"),
    Mistake("demo runs/mine", "gradio | pip install", without="gradio"),
    Mistake("synth", "FOLDER | fed-a2v synth"),
    Mistake("synth new --clips 3", "--clips | --clips-per-class"),
    Mistake("synth new --classes dgo", "dgo | dog"),
    Mistake("doctor --rounds 3", "--rounds | rounds=3"),
    Mistake("completion csh", "csh | zsh"),
]


def prepare(folder: Path) -> None:
    """Write a run that was stopped after its first round, sounds, an empty folder, and files of `--config`."""
    run = folder / "runs" / "mine"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "state_round_1.pt").touch()
    (run / "config.yaml").write_text(to_yaml(compose_settings("experiment=quick").as_dict()), encoding="utf-8")
    for name in ("dog", "rain"):
        (folder / "sounds" / name).mkdir(parents=True)
        (folder / "sounds" / name / "1.wav").touch()
    (folder / "empty").mkdir()
    (folder / "mine.json").write_text('{"federation": {"global_rounds": 2}}')
    (folder / "broken.json").write_text('{"federation": {\n  global_rounds: 2}}')


def good(mistake: Mistake, code: int, said: str) -> bool:
    """Whether the command has ended with one line that names the wrong word and the remedy."""
    return (
        code == 2
        and len(said.splitlines()) == 1
        and len(said) <= LONGEST
        and all(part in said for part in mistake.parts.split(" | "))
    )


def typed(mistake: Mistake, folder: Path) -> tuple[int, str, float]:
    """Exit code, output and processor seconds of the console command."""
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "sitecustomize.py").write_text(f"import sys\nsys.modules[{mistake.without!r}] = None\n")
    path = os.pathsep.join(filter(None, (str(hidden) if mistake.without else "", os.environ.get("PYTHONPATH"))))
    env = os.environ | {"PYTHONPATH": path, "COLUMNS": "1000"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = shlex.split(mistake.words)
    done = subprocess.run([COMMAND, *words], cwd=folder, capture_output=True, text=True, env=env, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, (done.stdout + done.stderr).strip(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the summary into docs/troubleshooting.md")
    given = parser.parse_args()
    passed, most = 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for mistake in MISTAKES:
            code, said, seconds = typed(mistake, folder)
            fine = good(mistake, code, said) and (mistake.reads or seconds <= SECONDS)
            passed += fine
            most = max(most, 0.0 if mistake.reads else seconds)
            without = f" (without {mistake.without})" if mistake.without else ""
            print(f"{'' if fine else 'NOT '}ok  {seconds:.2f} s  {mistake.words}{without}\n    {said}", flush=True)
    text = (
        f"{passed} of {len(MISTAKES)} end in one line of at most {LONGEST} characters with the remedy; where no data "
        f"need be read, after {most:.2f} s of processor time at most. {machine()}."
    )
    print(f"\n{text}")
    if given.write:
        write_block("mistakes", text)
    if passed < len(MISTAKES):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
