"""Who gets in: registered keys over TLS, and nobody else."""

import subprocess
import urllib.error
import urllib.request

import pytest

from tests.flower import BIN, Program, own_port, wait_until

from .conftest import DEPLOY, SITES, Site

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.flower,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("deployment"),
]

PLAIN, DISTRUSTFUL, UNREGISTERED = "plain HTTP", "without the authority", "a key that nobody registered"


@pytest.fixture(scope="module")
def strangers(_deployment, tmp_path_factory):
    """SuperNodes that must not get in, all started at once."""
    deployment, folder = _deployment.ready(), tmp_path_factory.mktemp("strangers")
    address = f"127.0.0.1:{deployment.superlink.port}"

    def supernode(name, *trust):
        command = [BIN / "flower-supernode", *trust, "--superlink", address, "--port", own_port()]
        return Program([*command, "--max-retries", "1", "--max-wait-time", "5"], folder / name)

    programs = {
        PLAIN: supernode("plain", "--insecure"),
        DISTRUSTFUL: supernode("distrustful", "--auth-supernode-private-key", deployment.sites["north"].key),
        UNREGISTERED: Site(folder / "unregistered", "stranger", address, deployment.authority),
    }
    try:
        for program in programs.values():
            program.start()
        yield programs
    finally:
        for program in programs.values():
            program.end()


@pytest.mark.parametrize("kind", [PLAIN, DISTRUSTFUL, UNREGISTERED])
def test_a_supernode_is_refused(deployment, strangers, kind):
    stranger = strangers[kind]
    assert wait_until(lambda: not stranger.alive and stranger.process.returncode, "the refusal", log=stranger.log)
    assert deployment.online() == set(SITES)


def test_the_port_speaks_no_plain_http(deployment):
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://127.0.0.1:{deployment.superlink.port}/health", timeout=60)


def test_the_control_api_asks_nobody_who_he_is(deployment, tmp_path):
    """What the guide warns of: if Flower ever closes this hole, the warning can go."""
    config = tmp_path / "flwr_home" / "config.toml"
    config.parent.mkdir()
    done = subprocess.run(
        [DEPLOY / "connect.sh", "anybody", f"127.0.0.1:{deployment.superlink.port}", deployment.authority],
        env={"PATH": "/usr/bin:/bin", "FLWR_HOME": str(config.parent)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'default = "anybody"' in config.read_text()
    listed = subprocess.run(
        [BIN / "flwr", "list", "anybody"],
        env={"PATH": f"{BIN}:/usr/bin:/bin", "FLWR_HOME": str(config.parent), "HOME": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert listed.returncode == 0, listed.stdout + listed.stderr
