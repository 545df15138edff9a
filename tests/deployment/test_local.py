"""`deploy/local.sh`: a whole deployment on one machine, that leaves nothing but its run behind."""

import os
import re
import shutil
import subprocess

import pytest

from tests.flower import BIN, REPOSITORY, end_tree

from .conftest import DEPLOY

pytestmark = [pytest.mark.deployment, pytest.mark.flower, pytest.mark.timeout(1200)]


@pytest.fixture
def local(tmp_path):
    """Starts `deploy/local.sh`, whose temporary files come to `tmp_path / "tmp"`."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    environment = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "COLUMNS": "200",
    }
    started = []

    def start(*words):
        process = subprocess.Popen(
            [DEPLOY / "local.sh", *words],
            env=environment,
            cwd=tmp_path,
            text=True,
            stdout=(tmp_path / "shown").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        end_tree(process.pid)
        process.wait()


@pytest.mark.parametrize("words", [["--nonsense"], ["--rounds"]])
def test_words_that_mean_nothing_start_nothing(local, tmp_path, words):
    process = local(*words)
    assert process.wait(60) in (1, 2)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_run_sh_ends_with_an_error_for_a_wrong_key_before_anything_is_sent(tmp_path):
    done = subprocess.run(
        [DEPLOY / "run.sh", "nowhere", tmp_path / "run", "rouns=3"],
        env={"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert "did you mean rounds?" in done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_the_systemd_units_are_well_formed(unit, tmp_path):
    here = unit.read_text().replace("/opt/fed_a2v/deploy", str(DEPLOY))
    (tmp_path / unit.name).write_text(re.sub("^(User|Group)=.*", "", here, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / unit.name], text=True, capture_output=True)
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    assert about == []
