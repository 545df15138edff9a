"""`deploy/superexec.py`: the processes of messages are forks that start as Flower's own, but need not import."""

import json
import os
import subprocess
import sys

import pytest

from tests.deployment.conftest import DEPLOY
from tests.flower import BIN

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

# `superexec.py` with stand-ins for Flower's two programs: a SuperExec that launches tasks by Flower's own executor, and
# the process of a message.
STAND_INS = """
import json, os, signal, sys, time
from pathlib import Path

import superexec

folder = Path(sys.argv[1])


def launching():
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import ExecutionSpec, SubprocessExecutor

    def launch(kind, token):
        SubprocessExecutor().launch(ExecutionSpec(kind, "127.0.0.1:9", token, True, None, False, os.getpid(), False, 1))
        while not (folder / token).exists():
            time.sleep(0.01)

    launch(TaskType.CLIENT_APP, "first")
    launch(TaskType.CLIENT_APP, "second")
    launch(TaskType.SERVER_APP, "server")
    parent = json.loads((folder / "first").read_text())["parent"]
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    launch(TaskType.CLIENT_APP, "late")


def message():
    before = set(sys.modules)
    import fed_a2v.federation.client.client_app
    import fed_a2v.federation.client.message_handler
    import numpy

    new = {name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
    new = {name for name in new if not name.startswith("_")}
    token = sys.argv[sys.argv.index("--token") + 1]
    report = {
        "arguments": sys.argv,
        "shown": Path("/proc/self/cmdline").read_text(),
        "name": Path("/proc/self/comm").read_text().strip(),
        "process": os.getpid(),
        "parent": os.getppid(),
        "imported": sorted(new),
        "before": sorted({name.split(".")[0] for name in before}),
        "random": numpy.random.rand(),
        "product": float((numpy.ones((600, 600)) @ numpy.ones((600, 600))).sum()),
    }
    (folder / "new").write_text(json.dumps(report))
    (folder / "new").rename(folder / token)
    sys.exit(3)


installed = superexec.program
stand_ins = {"flower-superexec": launching, "flwr-clientapp": message}
superexec.program = lambda name: stand_ins[name] if callable(installed(name)) else None
superexec.main()
"""
# Stands in for a program that is started by its name.
STARTED = """#!/bin/sh
while [ "$1" != --token ]; do shift; done
echo '"started"' >"{folder}/$2.new" && mv "{folder}/$2.new" "{folder}/$2"
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the processes of the tasks report, by token."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("flwr-clientapp", "flwr-serverapp"):
        (folder / name).write_text(STARTED.format(folder=folder))
        (folder / name).chmod(0o755)
    script = folder / "stand_ins.py"
    script.write_text(STAND_INS)
    environment = os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{DEPLOY}{os.pathsep}{DEPLOY.parent}",
    }
    # Its output is complete when all of its processes have ended.
    done = subprocess.run(
        [sys.executable, script, folder], env=environment, text=True, capture_output=True, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return {token: json.loads((folder / token).read_text()) for token in ("first", "second", "server", "late")}


def test_each_message_has_its_own_process_of_one_parent_and_its_own_random_numbers(reports):
    first, second = reports["first"], reports["second"]
    assert first["process"] != second["process"]
    assert first["parent"] == second["parent"]
    assert first["random"] != second["random"]
    assert first["product"] == 600**3


def test_its_arguments_are_flowers_but_other_users_do_not_see_the_token(reports):
    for token in ("first", "second"):
        report = reports[token]
        assert report["arguments"][0] == report["name"] == "flwr-clientapp"
        assert report["arguments"][report["arguments"].index("--token") + 1] == token
        assert token not in report["shown"]


def test_all_packages_of_the_app_are_imported_before_but_not_the_app(reports):
    assert reports["first"]["imported"] == ["fed_a2v"]
    assert "fed_a2v" not in reports["first"]["before"]


def test_other_programs_and_messages_without_the_forked_process_are_started_by_name(reports):
    assert reports["server"] == reports["late"] == "started"


@pytest.mark.parametrize("script", ["supernode.sh", "local.sh"])
def test_another_kind_of_process_is_refused(script, tmp_path):
    (tmp_path / "site.toml").touch()
    words = {"supernode.sh": [w for key in ("superlink", "ca", "key", "config") for w in (f"--{key}", "site.toml")]}
    done = subprocess.run(
        [DEPLOY / script, *words.get(script, []), "--processes", "spoon"],
        env={"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert {"spoon", "forked", "new"} <= set(done.stderr.replace(":", " ").split())
    assert [path.name for path in tmp_path.iterdir()] == ["site.toml"]
