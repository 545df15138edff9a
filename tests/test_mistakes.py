"""Typical mistakes on the command line end in one line with the remedy, before torch is imported."""

import json
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from fed_a2v.commands import COMMANDS
from tests.command import fed_a2v
from tests.flower import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
mistakes = import_module("mistakes")
sys.path.remove(str(REPOSITORY / "benchmarks"))

# Runs each command of standard input, and says at the end which of the slow libraries they have imported.
ALL_IN_ONE = """
import json, shlex, sys
from tests.command import fed_a2v
done = []
for words, without in json.load(sys.stdin):
    if without:
        sys.modules[without] = None
    ended = fed_a2v(*shlex.split(words), cwd=".")
    done.append([ended.returncode, (ended.stdout + ended.stderr).strip()])
print(json.dumps([done, sorted({"torch", "flwr", "wandb", "sklearn", "hydra"} & sys.modules.keys())]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("mistakes")
    mistakes.prepare(made)
    return made


def in_one_process(commands, folder):
    """Exit codes and outputs of commands, and the slow libraries that they have imported."""
    words = [sys.executable, "-c", ALL_IN_ONE]
    done = subprocess.run(words, cwd=folder, input=json.dumps(commands), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_mistake_ends_in_one_line_with_the_remedy_before_torch_is_imported(folder):
    quick = [mistake for mistake in mistakes.MISTAKES if not mistake.reads]
    assert len(quick) >= 40
    done, imported = in_one_process([(mistake.words, mistake.without) for mistake in quick], folder)
    assert [
        (mistake.words, ended) for mistake, ended in zip(quick, done, strict=True) if not mistakes.good(mistake, *ended)
    ] == []
    assert imported == ["hydra"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("broken.json", "empty", "mine.json", "runs", "sounds"),
    ], "nothing was begun"


@pytest.mark.parametrize("mistake", [case for case in mistakes.MISTAKES if case.reads], ids=lambda case: case.words)
def test_a_mistake_in_the_data_ends_in_one_line(mistake, folder):
    done = fed_a2v(*shlex.split(mistake.words), cwd=folder)
    assert mistakes.good(mistake, done.returncode, (done.stdout + done.stderr).strip()), done.stderr


def test_help_fits_a_terminal_and_imports_neither_torch_nor_hydra(folder):
    commands = [["--help", ""], *([f"{command} --help", ""] for command in COMMANDS)]
    done, imported = in_one_process(commands, folder)
    assert imported == []
    for (words, _), (code, said) in zip(commands, done, strict=True):
        assert code == 0
        assert max(map(len, said.splitlines())) <= 80, words


def test_a_wrong_line_is_not_good():
    mistake = mistakes.Mistake("train rouns=3", "rouns | rounds")
    assert mistakes.good(mistake, 2, "fed-a2v: unknown key rouns; did you mean rounds?")
    assert not mistakes.good(mistake, 1, "fed-a2v: unknown key rouns; did you mean rounds?")
    assert not mistakes.good(mistake, 2, "fed-a2v: unknown key rouns")
    assert not mistakes.good(mistake, 2, "fed-a2v: rouns\nrounds")
    assert not mistakes.good(mistake, 2, "rouns rounds" + 300 * ".")
