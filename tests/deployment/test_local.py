"""`deploy/local.sh`: a whole deployment on one machine, that leaves nothing but its run behind."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest

from tests.flower import BIN, REPOSITORY, end_tree, wait_until

from .conftest import DEPLOY, processes_in

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
            # As a terminal starts it: a shell cannot trap what it inherits as ignored, as from tests in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        end_tree(process.pid)
        process.wait()


def test_the_whole_deployment_runs_on_one_machine_and_leaves_its_run_alone_behind(local, tmp_path):
    process = local("--rounds", "2", "--folder", "run", "generator=gaussian", "finetune.first_steps=20")
    code = process.wait(1000)
    shown = (tmp_path / "shown").read_text()
    assert code == 0, shown
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["rounds"], results["failures"], results["rejected"]) == (2, 0, 0)
    assert results["accuracy"] > 0.3, "three sites know all ten classes together"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [set(row["sites"]) for row in rows] == [{"site-north", "site-east", "site-south"}] * 2
    assert re.search(r"first round was finished after \d+ s, 2 rounds with three sites after \d+ s", shown)
    assert f"{results['accuracy']:.3f}" in shown, "the result is shown"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run", "shown", "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_it_stops_all_that_it_started(local, tmp_path, number):
    process = local("--folder", "run")
    wait_until(lambda: "Site north is registered" in (tmp_path / "shown").read_text(), "the first site", 300)
    assert len(processes_in(tmp_path)) > 3
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches them all
    else:
        process.send_signal(number)
    assert process.wait(120) == 128 + number
    assert processes_in(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []


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
