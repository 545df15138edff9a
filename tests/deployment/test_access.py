"""Who gets in: registered keys over TLS, and nobody else."""

import subprocess
import urllib.error
import urllib.request

import pytest

from tests.flower import BIN, Program, free_port, wait_until

from .conftest import DEPLOY, SITES, Site

pytestmark = [pytest.mark.deployment, pytest.mark.flower, pytest.mark.timeout(900)]


def test_a_key_that_nobody_registered_is_refused(deployment, tmp_path):
    address = f"127.0.0.1:{deployment.superlink.port}"
    stranger = Site(tmp_path / "stranger", "stranger", address, deployment.authority)
    stranger.start()
    try:
        assert wait_until(lambda: not stranger.alive and stranger.process.returncode, "the refusal", log=stranger.log)
        assert deployment.online() == set(SITES)
    finally:
        stranger.end()


@pytest.mark.parametrize("trust", [["--insecure"], []], ids=["plain HTTP", "without the authority"])
def test_a_supernode_without_the_right_tls_gets_nowhere(deployment, tmp_path, trust):
    north = deployment.sites["north"]
    command = [BIN / "flower-supernode", *trust, "--superlink", f"127.0.0.1:{deployment.superlink.port}"]
    command += ["--port", free_port(), "--max-retries", "1", "--max-wait-time", "5"]
    if not trust:
        command += ["--auth-supernode-private-key", north.key]
    stranger = Program(command, tmp_path / "stranger").start()
    try:
        assert wait_until(lambda: not stranger.alive and stranger.process.returncode, "the refusal", log=stranger.log)
        assert deployment.online() == set(SITES)
    finally:
        stranger.end()


def test_the_port_speaks_no_plain_http(deployment):
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://127.0.0.1:{deployment.superlink.port}/health", timeout=20)


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
