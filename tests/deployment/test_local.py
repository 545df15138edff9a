"""`deploy/local.sh`: a complete deployment on one machine, of which only the run remains."""

import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.deployment.conftest import DEPLOY, processes_in, rows_of
from tests.docs.blocks import REPOSITORY, Workplace, blocks_of
from tests.flower import BIN, end_tree, wait_until

pytestmark = [pytest.mark.deployment, pytest.mark.flower, pytest.mark.timeout(1200)]


@pytest.fixture
def workplace(tmp_path):
    """A copy of the repository, whose temporary files come to `tmp_path / "tmp"`."""
    workplace = Workplace(tmp_path)
    (tmp_path / "tmp").mkdir()
    workplace.environment |= {"TMPDIR": str(tmp_path / "tmp")}
    return workplace


@pytest.fixture
def local(workplace, tmp_path):
    """Starts `deploy/local.sh`; what it shows comes to `tmp_path / "shown"`."""
    started = []

    def start(*words):
        process = workplace.start(
            ["deploy/local.sh", *words],
            stdout=(tmp_path / "shown").open("w"),
            # As a terminal starts it: a shell cannot trap what it inherits as ignored, as from tests in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        end_tree(process.pid)
        process.wait()


# Stands in for one of Flower's programs: its port is another program's when it is started for the first time.
PORT_TAKEN = """#!{program_folder}/python
import os, socket, subprocess, sys
program = "{program_folder}/" + os.path.basename(__file__)
try:
    os.mkdir(__file__ + ".was-refused")
except FileExistsError:
    os.execv(program, [program, *sys.argv[1:]])
with socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1]))):
    sys.exit(subprocess.call([program, *sys.argv[1:]]))
"""


def test_the_whole_deployment_runs_on_one_machine_and_leaves_its_run_alone_behind(workplace, tmp_path):
    """As in the guide, even if another program takes a port in the meantime."""
    for name in ("flower-superlink", "flower-supernode"):
        program = workplace.root / ".venv" / "bin" / name
        program.unlink()
        program.write_text(PORT_TAKEN.format(program_folder=BIN))
        program.chmod(0o755)
    before = files_in(workplace.root)
    (block,) = blocks_of(REPOSITORY / "docs" / "deployment.md", "bash", "python")
    shown = workplace.run(block, timeout=1000)
    for name in ("flower-superlink", "flower-supernode"):
        assert (workplace.root / ".venv" / "bin" / f"{name}.was-refused").is_dir()

    folder = workplace.root / "outputs" / "local-trial"
    results = json.loads((folder / "results.json").read_text())
    assert (results["rounds"], results["failures"], results["rejected"]) == (2, 0, 0)
    assert results["accuracy"] > 0.3, "three sites know all ten classes together"
    assert yaml.safe_load((folder / "config.yaml").read_text())["federation"]["start_timeout"] == 600
    assert [set(row["sites"]) for row in rows_of(folder)] == [{"site-north", "site-east", "site-south"}] * 2
    assert str(folder) in shown
    assert f"{results['accuracy']:.3f}" in shown, "the result is shown"
    new = files_in(workplace.root) - before
    assert {path.split("/")[0] for path in new} == {"outputs"}
    assert list((tmp_path / "tmp").iterdir()) == []
    assert processes_in(tmp_path) == []


def files_in(folder):
    """The files below a folder but those of `.venv`."""
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {path for path in files if not path.startswith(".venv/") and "__pycache__" not in path}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_it_stops_all_that_it_started(local, tmp_path, number):
    process = local("--folder", "run", "--start-timeout", "1234")
    wait_until(lambda: was_told(tmp_path, "run.sh", "federation.start_timeout=1234"), "the start of the run", 300)
    wait_until(
        lambda: all(at_work(tmp_path, name) for name in ("flower-superlink", "flower-supernode", "flwr-serverapp")),
        "the start of the SuperLink, a SuperNode and the run",
        300,
        log=tmp_path / "shown",
    )
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches them all
    else:
        process.send_signal(number)
    assert process.wait(120) == 128 + number
    assert processes_in(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def at_work(folder, name):
    """Whether a program of this name works in a folder."""
    for process in processes_in(folder):
        with suppress(psutil.Error):
            if any(Path(word).name == name for word in process.cmdline()[:2]):
                return True
    return False


def was_told(folder, name, word):
    """Whether a program of this name was started with this word in a folder."""
    for process in processes_in(folder):
        with suppress(psutil.Error):
            command = process.cmdline()
            if word in command and name in (Path(part).name for part in command[:2]):
                return True
    return False


def test_an_impossible_time_limit_ends_with_an_error_that_names_it_and_leaves_nothing(local, tmp_path):
    process = local("--folder", "run", "--start-timeout", "0")
    assert process.wait(300) == 1
    assert "--start-timeout 0" in (tmp_path / "shown").read_text()
    assert processes_in(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("words", [["--nonsense"], ["--rounds"], ["--start-timeout"], ["--start-timeout", "soon"]])
def test_wrong_arguments_start_nothing(local, tmp_path, words):
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
    assert {"rouns", "rounds"} <= set(re.findall(r"\w+", done.stderr))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('site = "north"\nmin_clips = 8\n', {"min_clips", "min-clips"}),
        ('site = "north"\nmin-clips = "eight"\n', {"min-clips", "eight"}),
        ("[site]\nmin-clips = 8\n", {"site", "min-clips"}),
        ("site = north\n", set()),
    ],
)
def test_supernode_sh_does_not_start_a_site_with_a_misspelt_key(tmp_path, content, named):
    """Nothing listens at that address: a SuperNode would try for ever."""
    (tmp_path / "site.toml").write_text(content)
    words = ["--superlink", "127.0.0.1:9", "--ca", "site.toml", "--key", "site.toml", "--config", "site.toml"]
    done = subprocess.run(
        [DEPLOY / "supernode.sh", *words],
        env={"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert {"site.toml", *named} <= set(re.findall(r"[\w.-]+", done.stderr))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_the_systemd_units_are_well_formed(unit, tmp_path):
    here = unit.read_text().replace("/opt/fed_a2v/deploy", str(DEPLOY))
    (tmp_path / unit.name).write_text(re.sub("^(User|Group)=.*", "", here, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / unit.name], text=True, capture_output=True)
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    assert about == []
