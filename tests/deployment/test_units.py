"""The units for systemd: their commands, started as a user who can write to one folder, make a federation."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fed_a2v.data.datasets.synth import write_wavs
from tests.deployment.conftest import DEPLOY, Program
from tests.flower import BIN, SuperLink, copy_of_app, own_port, wait_until

pytestmark = [pytest.mark.deployment, pytest.mark.flower, pytest.mark.timeout(900)]

NOBODY = 65534
# $1: the folder of the Python in use, $2: a folder above it that is closed to others, such as /root. For this process
# alone there is nothing in that folder but Python.
OPENED = (
    'aside=$(mktemp -d) && mount --bind "$1" "$aside" && mount -t tmpfs -o mode=755 none "$2" && mkdir -p "$1" '
    '&& mount --bind "$aside" "$1" && shift 2 && exec "$@"'
)


def as_nobody():
    """What stands before a command that nobody is to execute, with the Python in use."""
    base = Path(sys.base_prefix)
    closed = [folder for folder in base.parents if not folder.stat().st_mode & 0o001]
    opened = ["unshare", "--mount", "--propagation", "private", "sh", "-c", OPENED, "sh", base, closed[-1]]
    return [
        *(opened if closed else []),
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
    ]


def unit(name):
    """The keys of a unit and their values, in order: some come several times."""
    lines = (DEPLOY / "systemd" / f"fed-a2v-{name}.service").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
    return [(key, value) for key, _, value in pairs]


def values(name, key):
    return [value for found, value in unit(name) if found == key]


@pytest.mark.parametrize("name", ["superlink", "supernode"])
def test_systemd_finds_nothing_wrong_in_a_unit(name, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on PATH")
    text = (DEPLOY / "systemd" / f"fed-a2v-{name}.service").read_text()
    file = tmp_path / f"fed-a2v-{name}.service"
    file.write_text(text.replace("/opt/fed_a2v", str(DEPLOY.parent)))
    done = subprocess.run(["systemd-analyze", "verify", file], text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def service():
    """Gives the command of a unit as systemd would start it, as nobody: with copies of what is root's, and a state
    folder; and that folder."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can start a program as another user, with setpriv")
    can = subprocess.run(
        [*as_nobody(), "sh", "-c", f"{BIN}/fed-a2v --version"], cwd="/", text=True, capture_output=True
    )
    if can.returncode:
        pytest.skip(f"nobody cannot read the environment: {can.stderr}")
    # Not pytest's own, which is closed to other users.
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)

    def make(name, files, **changes):
        state, credentials = root / name, root / f"{name}.credentials"
        for folder in (state, credentials):
            folder.mkdir()
        for entry in values(name, "LoadCredential"):
            copy = Path(shutil.copy(files / Path(entry.partition(":")[2]).name, credentials / entry.partition(":")[0]))
            copy.chmod(0o400)
            os.chown(copy, NOBODY, NOBODY)
        credentials.chmod(0o500)
        for folder in (state, credentials):
            os.chown(folder, NOBODY, NOBODY)
        (command,) = values(name, "ExecStart")
        assert all(old in command for old in changes), command
        places = {"/opt/fed_a2v": DEPLOY.parent, "/var/lib/fed-a2v": state, "${CREDENTIALS_DIRECTORY}": credentials}
        for old, new in (changes | places).items():
            command = command.replace(old, str(new))
        return command.split(), state

    yield make
    shutil.rmtree(root)


def test_the_commands_of_the_units_make_a_federation_as_a_user_who_owns_nothing_else(service, tmp_path):
    files = tmp_path / "etc"
    subprocess.run([DEPLOY / "certificates.sh", files, "localhost"], check=True, capture_output=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", files / "key"], check=True)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files.iterdir() if "." not in path.name} == {
        "key": "0o600"
    }
    command, state = service("superlink", files, **{"--port 9443": "--port PORT"})
    superlink = SuperLink(state, [*as_nobody(), *command], files / "ca.crt")
    own(state)
    run_folder = state / "runs" / "first"
    sounds = state.parent / "sounds"
    write_wavs(sounds, 8, 0, ["dog", "rain"])
    sounds.chmod(0o755)
    site = state.parent / "supernode"
    (files / "site.toml").write_text(
        f'site = "north"\ndataset = "esc50"\ndata-dir = "{sounds}"\ncache-dir = "{site / "cache"}"\n'
        f'min-clips = 3\nledger = "{site / "ledger.json"}"\nmax-seconds = 500\nmax-memory = 4\n'
    )
    command, site = service("supernode", files, **{"superlink.example.org:9443": f"localhost:{superlink.port}"})
    node = Program([*as_nobody(), *command, "--port", own_port()], site)
    try:
        superlink.start()
        said = superlink.flwr("supernode", "register", f"{files / 'key'}.pub", "test", "--format", "json")
        number = str(json.loads(said)["node-id"])
        own(state)
        node.start()

        def online():
            listed = superlink.listed("supernode", "list", "test")
            return number in {each["node-id"] for each in listed["nodes"] if each["status"] == "online"}

        wait_until(online, "the site's start", log=node.log, pause=1)
        words = "experiment=quick rounds=1 report=false dataset=esc50 partition=own dataset.classes=[dog,rain]"
        words += " generator=none finetune.first_steps=5 adapters.hidden_width=16 federation.start_timeout=300"
        app = copy_of_app(tmp_path / "app")
        ended = superlink.run(app, f"{words} federation.round_timeout=600", run_folder)
        assert ended.status == "finished:completed", (ended, node.log.read_text())
        assert (site / "ledger.json").is_file()
        site_of_clip = {path.stat().st_uid for path in [*run_folder.iterdir(), *(site / "cache").iterdir()]}
        assert site_of_clip == {NOBODY}
    finally:
        node.end()
        superlink.end()


def own(folder):
    """All that a test, which is root, has put into a state folder belongs to its service."""
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)


# Whoever else is on the machine


def test_no_process_gets_a_task_without_the_secret(deployment):
    """Asked at a site's own port and at the SuperLink's, as Flower's programs ask."""
    code = (
        "import sys, httpx\n"
        "from flwr.proto.runtime_pb2 import AcquireTaskRequest\n"
        "from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor\n"
        "from flwr.supercore.retry import RetryInvoker, exponential\n"
        "from flwr.supercore.runtime import RuntimeHttpClient\n"
        "address, authority = sys.argv[1:]\n"
        # Flower's own invoker ends its process when it is refused.
        "once = RetryInvoker(exponential, httpx.HTTPError, max_tries=1, max_time=None)\n"
        "client = RuntimeHttpClient.from_server_address(server_address=address, insecure=not authority,\n"
        "    root_certificates=open(authority, 'rb').read() if authority else None,\n"
        "    interceptors=[RuntimeVersionHttpInterceptor(component_name='SuperExec')], retry_invoker=once)\n"
        "try:\n"
        "    print('given', client.AcquireTask(AcquireTaskRequest(supported_task_types=['flwr-clientapp'])))\n"
        "except httpx.HTTPStatusError as error:\n"
        "    print('refused', error.response.status_code)\n"
    )
    north = deployment.sites["north"]
    port = north.command[north.command.index("--port") + 1]
    for address, authority in (
        (f"127.0.0.1:{port}", ""),
        (f"127.0.0.1:{deployment.superlink.port}", deployment.authority),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, address, authority], text=True, capture_output=True, timeout=200
        )
        assert done.stdout.split() == ["refused", "401"], done.stdout + done.stderr
