"""The commands and names of the original guide, as it writes them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fed_a2v.config.compose import compose_settings
from fed_a2v.errors import ConfigError
from fed_a2v.federation.server.step_factory import make_generator
from tests.refusals import refused

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "configs" / "example_vae_generator_config.json"


def test_the_guides_command_trains_with_the_guides_file(tmp_path, monkeypatch, capsys):
    fast = ["adapters.hidden_width=32", "finetune.first_steps=5", "dataset.clips_per_class=4", "share.min_clips=1"]
    words = ["experiment=quick", "rounds=1", "report=false", *fast, "hydra.run.dir=mine", "--quiet"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py", "--config", str(EXAMPLE), *words])
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
    assert capsys.readouterr().out.rstrip().endswith(str(tmp_path / "mine"))
    results = json.loads((tmp_path / "mine" / "results.json").read_text())
    assert (results["rounds"], results["generator"]) == (1, "vae")
    checkpoint = torch.load(tmp_path / "mine" / "checkpoints" / "vae_generator_round_1.pt")
    assert (checkpoint["round"], checkpoint["generator_type"]) == (1, "vae")


def test_without_the_packages_it_says_how_they_are_installed():
    done = subprocess.run([sys.executable, "-IS", ROOT / "main.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "make install" in done.stderr
    assert "Traceback" not in done.stderr


class Forgetful(nn.Module):
    """The guide's loss, word by word: it does not initialise its base class."""

    def __init__(self, beta_schedule="constant", beta_max=1.0):
        self.beta_schedule = beta_schedule
        self.beta_max = beta_max


class ForgetfulOfAPart(nn.Module):
    """A loss with a module in it, at which torch stops."""

    def __init__(self, beta_schedule="constant", beta_max=1.0):
        self.scale = nn.Linear(1, 1)


@pytest.mark.parametrize("loss", [Forgetful, ForgetfulOfAPart])
def test_a_loss_that_does_not_initialise_its_base_class_is_explained_in_one_line(loss):
    target = f"{loss.__module__}.{loss.__qualname__}"
    settings = compose_settings([f"generator.loss._target_={target}"])
    with refused(ConfigError, f"generator.loss._target_={target}", loss.__name__, "super().__init__()") as caught:
        make_generator(settings, (1, 6), 16)
    assert "\n" not in str(caught.value)
