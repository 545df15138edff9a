"""Data sets are found by name: by those in `conf/dataset/` only, also if the name comes in a message."""

import json
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
from pydantic import ValidationError

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.config.sections.data import DatasetSettings, place_key
from fed_a2v.config.tree import conf_dir, option_values, options
from fed_a2v.data.clips import Record
from fed_a2v.data.datasets.base import DataSet, data_set
from fed_a2v.data.datasets.sound_files import SoundFiles
from fed_a2v.data.index import layout, list_clips, located
from tests.refusals import refused

NAMES = [name for name in options("dataset") if name != "mixed"]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_a_data_set(name):
    assert issubclass(data_set(name), DataSet)


def test_only_the_built_in_sounds_and_a_mix_have_no_place():
    assert {name for name in options("dataset") if place_key(name) is None} == {"synth", "mixed"}
    assert {name for name in options("dataset") if place_key(name) == "path"} == {"embeddings"}


@pytest.mark.parametrize("name", ["sound_files", "base", "_base", "os", "synth.os", "../synth", "esc50 ", ""])
def test_settings_from_a_message_name_no_other_module(name):
    sent = json.loads(compose_settings().model_dump_json(by_alias=True))
    wrong = sent["dataset"] | {"name": name}
    sent["dataset"] = wrong
    with refused(ValidationError, "dataset.name", repr(name)):
        Settings.model_validate_json(json.dumps(sent))
    sent["dataset"] = wrong | {"name": "mixed", "sets": [wrong]}
    with refused(ValidationError, "dataset.sets.0.name", repr(name)):
        Settings.model_validate_json(json.dumps(sent))


def test_a_file_and_an_option_make_a_data_set(tmp_path, monkeypatch):
    class Numbered(SoundFiles):
        layout = "numbers.txt"

        def watched(self):
            return [self.root / self.layout]

        def records(self):
            names = (self.root / self.layout).read_text().split()
            return [Record(name, name[0], number % 2 + 1) for number, name in enumerate(names)]

    shutil.copytree(conf_dir(), tmp_path / "conf")
    (tmp_path / "conf" / "dataset" / "numbered.yaml").write_text("defaults: [_base]\nname: numbered\nroot: ???\n")
    monkeypatch.setattr("fed_a2v.config.tree.conf_dir", lambda: tmp_path / "conf")
    module = ModuleType("numbered")
    module.Source = Numbered
    monkeypatch.setitem(sys.modules, "fed_a2v.data.datasets.numbered", module)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "numbers.txt").write_text("a1.wav b1.wav a2.wav")
    dataset = DatasetSettings.model_validate(option_values("dataset", "numbered"))
    with refused(ValueError, "dataset=numbered", "dataset.root=FOLDER"):
        dataset.check_place()
    assert [record.key for record in list_clips(located(dataset, str(tmp_path / "data")))] == [
        "a1.wav",
        "b1.wav",
        "a2.wav",
    ]
    assert layout(tmp_path / "data") == "numbered"


def test_a_data_set_is_imported_when_it_is_used():
    code = (
        "import sys, fed_a2v.data.index, fed_a2v.encoders.audio as audio\n"
        "from fed_a2v.data.index import layout\n"
        "layout(__import__('pathlib').Path('.'))\n"
        "audio._built_in('logmel')\n"
        "unused = {'scipy', 'transformers', 'fed_a2v.data.datasets.synth', 'fed_a2v.encoders.ast'}\n"
        "sys.exit(str(unused & set(sys.modules)) if unused & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
