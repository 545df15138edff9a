"""Error messages of `fed-a2v train` for thirty-five wrong configurations: each must name the key and the remedy.

python benchmarks/wrong_configs.py [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

from common import write_block

from fed_a2v.cli import main as fed_a2v


class Case(NamedTuple):
    """A wrong configuration: arguments or content of a file, and the expected parts of the message."""

    kind: str
    words: str
    key: str
    remedy: str
    file: str = ""


NO_COMMA = '{"feda2v": {\n  "generator_type": "vae"\n    "use_generator": true\n}}'

CASES = [
    Case("typo", "rouns=3", "rouns", "did you mean rounds?"),
    Case("typo", "generator.trainig_epochs=5", "generator.trainig_epochs", "did you mean generator.training_epochs?"),
    Case("typo", "generator_training_epochs=5", "generator_training_epochs", "did you mean generator.training_epochs?"),
    Case("typo", "generatr=vae", "generatr", "did you mean generator?"),
    Case("typo", "generator=vea", "generator=vea", "did you mean vae?"),
    Case("typo", "experiment=esc50_5x01", "experiment=esc50_5x01", "did you mean esc50_5x10?"),
    Case("typo", "aggregation.mode=weightd", "aggregation.mode = 'weightd'", "did you mean weighted?"),
    Case("typo", "+generator.latentdim=8", "generator.latentdim", "did you mean generator.latent_dim?"),
    Case("typo", "+dataset.rot=/data", "dataset.rot", "did you mean dataset.root?"),
    Case("wrong place", "generator=gaussian generator.latent_dim=8", "generator.latent_dim", "generator=vae"),
    Case("wrong type", "rounds=many", "rounds = 'many'", "valid integer"),
    Case("wrong type", "rounds=2.5", "rounds = 2.5", "valid integer"),
    Case("wrong type", "finetune.enabled=perhaps", "finetune.enabled = 'perhaps'", "valid boolean"),
    Case("wrong type", "dataset.train_folds=3", "dataset.train_folds = 3", "valid list"),
    Case("wrong type", "generator.hidden_dim=wide", "generator.hidden_dim = 'wide'", "valid integer"),
    Case("wrong type", "dataset=null", "dataset=null", "choose from"),
    Case("out of range", "site.learning_rate=0", "site.learning_rate = 0", "greater than 0"),
    Case("out of range", "finetune.synthetic_share=1.5", "finetune.synthetic_share = 1.5", "less than or equal to 1"),
    Case("out of range", "generator.latent_dim=0", "latent_dim=0", "at least 1"),
    Case("out of range", "device=gpu", "device = 'gpu'", "choose cpu, cuda"),
    Case(
        "contradiction",
        "dataset.train_folds=[3] dataset.test_fold=3",
        "dataset.test_fold",
        "a fold belongs to one of them",
    ),
    Case("contradiction", "adapters=flux adapters.closed_form=true", "adapters.closed_form", "adapters.t5_tokens=0"),
    Case("contradiction", "partition.sites=20", "partition.sites=20", "lower it to 10"),
    Case("contradiction", "aggregation.min_replies=9", "aggregation.min_replies=9", "lower it to 5"),
    Case("contradiction", "bank.keep=generator generator=none", "bank.keep=generator", "needs a generator"),
    Case(
        "contradiction",
        "site.epochs=0 finetune.enabled=false",
        "site.epochs=0",
        "set finetune.enabled=true, or site.epochs above 0",
    ),
    Case("contradiction", "site.epochs=0 aggregation=kd", "aggregation.mode=kd", "set another rule, or site.epochs"),
    Case(
        "contradiction",
        "site.epochs=0 finetune.from_nodes_adapters=true",
        "finetune.from_nodes_adapters=true",
        "set it to false, or site.epochs above 0",
    ),
    Case("contradiction", "share=statistics bank.keep=generator", "bank.keep=generator", "share=statistics keeps sums"),
    Case("contradiction", "secure_sums=secagg", "secure_sums=secagg", "needs share=statistics"),
    Case("contradiction", "dataset=esc50", "dataset=esc50", "dataset.root=FOLDER"),
    Case("broken JSON", "--config FILE", "line 3, column 5", "Expecting ',' delimiter", NO_COMMA),
    Case("broken JSON", "--config FILE", "/* in line 1", "close it with */", '{"feda2v": {}} /* and so on'),
    Case(
        "typo in JSON",
        "--config FILE",
        "feda2v.generator_trainig_epochs",
        "did you mean feda2v.generator_training_epochs?",
        '{"feda2v": {"generator_trainig_epochs": 5}}',
    ),
    Case(
        "wrong type in JSON",
        "--config FILE",
        "feda2v.synthetic_samples_per_class",
        "valid integer",
        '{"feda2v": {"synthetic_samples_per_class": "five"}}',
    ),
]


def said_to(case: Case, folder: Path) -> tuple[int, str]:
    """The exit code and the message of `fed-a2v train` on a wrong configuration."""
    words = case.words.split()
    if case.file:
        file = folder / "my_experiment.json"
        file.write_text(case.file)
        words = [str(file) if word == "FILE" else word for word in words]
    output = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output), contextlib.chdir(folder):
        try:
            fed_a2v(["train", *words])
        except SystemExit as ended:
            code = int(ended.code or 0)
    message = output.getvalue().replace(f"{folder}/", "")
    # The overrides of the file are printed before its error.
    return code, message.partition("fed-a2v: ")[2].strip()


def good(case: Case, code: int, message: str) -> bool:
    """Whether the message names key and remedy, in one line, without a traceback."""
    return (
        code == 2
        and case.key in message
        and case.remedy in message
        and len(message.splitlines()) == 1
        and "Traceback" not in message
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/configuration.md")
    given = parser.parse_args()
    lines, passed = ["```text"], 0
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            code, message = said_to(case, Path(folder))
            passed += good(case, code, message)
            written = " ".join(case.file.split()) or case.words
            lines.append(f"{case.kind + ':':<20}{written}\n{'':<20}{message}")
    text = (
        "\n".join(lines)
        + f"\n\n{passed} of {len(CASES)} messages name key and remedy in one line, without a traceback."
    )
    print(text)
    if given.write:
        write_block("wrong configs", text)
    if passed < len(CASES):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
