"""A bug in a user's own class is told from a bug of this program, by its file and line."""

import sys
from pathlib import Path

import pytest

from fed_a2v.cli import main
from fed_a2v.config import own_class
from fed_a2v.config.compose import ConfigError
from fed_a2v.config.own_class import add_origin, explained, place_of
from fed_a2v.config.plugins import load_class, make_object
from fed_a2v.storage.files import write_text
from tests.command import fed_a2v
from tests.refusals import refused
from tests.test_commands import TINY

ENCODER = """
class Encoder:
    name, sample_rate, tokens, width, fingerprint = "mine", 16_000, 1, 4, "mine-1"

    def encode(self, waveforms):
        return waveforms.undefined
"""
GENERATOR = """
from fed_a2v.core.generators.gaussian import GaussianGenerator

class Generator(GaussianGenerator):
    kind = "mine"

    def fit(self, *given, **more):
        raise KeyError("half")
"""
DATA_SET = """
class Sounds:
    def __init__(self, size):
        self.size = 10 / size
"""
RULE = """
from fed_a2v.federation.server.aggregation.base import AggregationRule

class Rule(AggregationRule):
    def combine(self, sites, clips, sent):
        return list(sites)[99]
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a module of the user; returns its path."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(own_class, "_loaded", {})

    def write(text):
        path = tmp_path / "my_own_part.py"
        path.write_text(text)
        sys.modules.pop("my_own_part", None)
        return path

    yield write
    sys.modules.pop("my_own_part", None)


def line_of(path, text):
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("source", "words", "wrong", "error"),
    [
        (
            ENCODER,
            ("encoder=custom", "encoder._target_=my_own_part.Encoder"),
            "waveforms.undefined",
            "AttributeError",
        ),
        (GENERATOR, ("generator=custom", "generator._target_=my_own_part.Generator"), "raise KeyError", "KeyError"),
        (RULE, ("aggregation=custom", "aggregation._target_=my_own_part.Rule"), "[99]", "IndexError"),
    ],
    ids=["encoder", "generator", "aggregation"],
)
def test_a_run_ends_with_the_file_and_line_and_its_log_has_the_traceback(mine, tmp_path, source, words, wrong, error):
    path = mine(source)
    given = [word for word in TINY if word.partition("=")[0] not in [new.partition("=")[0] for new in words]]
    done = fed_a2v("train", *given, *words, f"cache_dir={tmp_path / 'cache'}", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fed-a2v: ")
    assert all(part in last for part in (f"{path}:{line_of(path, wrong)}", error, "run.log"))
    assert "Traceback" not in done.stderr
    log = (tmp_path / "run" / "run.log").read_text()
    assert all(part in log for part in ("Traceback", f'File "{path}"', error))


def test_a_class_that_cannot_be_made_is_named_with_the_line(mine):
    path = mine(DATA_SET)
    place = f"{path}:{line_of(path, ' / ')}"
    with refused(ConfigError, "dataset._target_=my_own_part.Sounds", "ZeroDivisionError", place):
        make_object("dataset", "my_own_part.Sounds", {"size": 0}, [])
    path = mine("def (")
    with refused(ConfigError, "dataset._target_=my_own_part.Sounds", "SyntaxError", f"{path}:1"):
        load_class("dataset", "my_own_part.Sounds")


def test_a_bug_of_this_program_keeps_its_traceback_and_says_so(monkeypatch):
    monkeypatch.setattr(own_class, "_loaded", {})

    def broken(*given):
        raise ZeroDivisionError("here")

    monkeypatch.setattr("fed_a2v.commands.config.Parser", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        main(["config"])
    assert explained(caught.value) is None
    assert place_of(caught.value) == ""
    (note,) = caught.value.__notes__
    assert "bug of fed_a2v" in note


def test_what_a_users_class_returned_may_be_the_reason(monkeypatch):
    monkeypatch.setattr(own_class, "_loaded", {"my_own_part.Loss": None})
    error = AttributeError("'NoneType' object has no attribute 'backward'")
    add_origin(error)
    assert "my_own_part.Loss" in error.__notes__[0]


CALLS = """
class Calls:
    def call(self, function):
        return function()

    def read_missing(self):
        open("nowhere")
"""


def test_an_unwritable_file_below_a_users_class_is_no_bug_of_it_and_a_file_that_it_misses_is(mine, tmp_path):
    mine(CALLS)
    calls = load_class("dataset", "my_own_part.Calls")()
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as unwritable:
        calls.call(lambda: write_text(tmp_path / "file" / "below", "x"))
    assert explained(unwritable.value) == str(unwritable.value)
    with pytest.raises(OSError) as missing:
        calls.read_missing()
    assert explained(missing.value).startswith("your own class: FileNotFoundError")


def test_errors_that_a_user_can_mend_are_their_message():
    assert explained(ConfigError("rounds=0")) == "rounds=0"
    assert explained(FileNotFoundError(2, "No such file", "x")) == str(FileNotFoundError(2, "No such file", "x"))
    assert Path(place_of(SyntaxError("x", ("y.py", 1, 1, ""))) or ".") == Path()
