"""`fed-a2v config` and `fed-a2v completion`, as they are typed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fed_a2v.cli import main
from fed_a2v.commands import COMMANDS
from fed_a2v.config import compose_settings
from fed_a2v.settings import Settings

FOLDER = str(Path(sys.executable).parent)


def test_config_shows_yaml_that_is_the_settings_with_the_source_of_each_value(capsys):
    main(["config", "experiment=quick", "generator.latent_dim=3", "wandb.project='a: b'"])
    said = capsys.readouterr().out
    made = compose_settings("experiment=quick generator.latent_dim=3 \"wandb.project='a: b'\"")
    assert Settings.model_validate(yaml.safe_load(said)) == made
    origin = {line.split(":")[0].strip(): line.split("  # ")[-1] for line in said.splitlines() if "  # " in line}
    assert origin["rounds"] == "conf/experiment/quick.yaml"
    assert origin["latent_dim"] == "generator.latent_dim=3"
    assert origin["granularity"] == "conf/generator/vae.yaml"
    assert origin["temperature"] == "conf/config.yaml"
    assert "# ?" not in said


@pytest.mark.parametrize("option", ["generator=gmm", "scenario=class_incremental", "experiment=guide"])
def test_no_value_is_without_a_source(option, capsys):
    main(["config", option])
    assert "# ?" not in capsys.readouterr().out


def test_config_names_the_guides_file_and_key(capsys, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"feda2v": {"generator_training_epochs": 9, "generator_type": "gan"}}))
    main(["config", "--config", str(file), "seed=4"])
    said = capsys.readouterr()
    (line,) = (line for line in said.out.splitlines() if line.startswith("  training_epochs"))
    assert line.split() == ["training_epochs:", "9", "#", f"{file}:", "feda2v.generator_training_epochs"]
    assert "  critic_steps: null" in said.out
    assert "feda2v.generator_type" in said.err


def test_config_refuses_what_train_refuses(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["config", "rouns=1"])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert "rouns=1" in said.err
    assert "rounds" in said.err


# Completion


@pytest.fixture(scope="module")
def completed():
    """What bash offers for a line, with the script of `fed-a2v completion bash` loaded."""
    bash = shutil.which("bash")
    if not bash:
        pytest.skip("no bash here")

    def complete(line):
        script = f"""
eval "$(fed-a2v completion bash)"
COMP_LINE={line!r}
COMP_WORDS=($COMP_LINE)
[ "${{COMP_LINE: -1}}" == " " ] && COMP_WORDS+=("")
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
COMP_POINT=${{#COMP_LINE}}
$(complete -p fed-a2v | sed 's/.*-F \\([a-z0-9_]*\\) .*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
        env = os.environ | {"PATH": f"{FOLDER}:{os.environ['PATH']}"}
        done = subprocess.run([bash, "-c", script], capture_output=True, text=True, env=env, timeout=120)
        assert done.stderr == ""
        return done.stdout.splitlines()

    return complete


def test_bash_completes_the_commands(completed):
    assert completed("fed-a2v ") == list(COMMANDS)
    assert completed("fed-a2v tr") == ["train "]


def test_bash_completes_groups_options_and_keys(completed):
    assert completed("fed-a2v train generator=ga") == ["generator=gan", "generator=gaussian"]
    assert completed("fed-a2v train generator=gaussian generator.shr") == ["generator.shrinkage="]
    assert "experiment=quick" in completed("fed-a2v train experiment=")
    assert completed("fed-a2v config aggregation.mo") == ["aggregation.mode="]
