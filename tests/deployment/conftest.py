"""One deployment for all tests: a SuperLink and three SuperNodes, started by the scripts in deploy/."""

import json
import os
import random
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fed_a2v.data.datasets.synth import write_wavs
from fed_a2v.storage.files import read_jsonl
from tests.flower import REPOSITORY, Program, SuperLink, copy_of_app, own_port, wait_until

DEPLOY = REPOSITORY / "deploy"
# Each site's own classes; no two have one in common.
SITES = {"north": "dog,rain", "east": "sneezing,chainsaw", "south": "rooster"}
CLASSES = ",".join(SITES.values())
# The tests of failures follow a run round by round, so each round has its own evaluation.
OVERRIDES = (
    "federation.evaluate_with_training=false experiment=quick report=false dataset=esc50 partition=own "
    "federation.min_nodes=3 generator=gaussian "
    f"adapters.hidden_width=64 finetune.first_steps=20 finetune.steps=5 dataset.classes=[{CLASSES}]"
)


def supernode(home, address, authority):
    """The command that starts the SuperNode of a site whose folder is `home`."""
    command = [DEPLOY / "supernode.sh", "--superlink", address, "--ca", authority, "--key", home / "key"]
    return [*command, "--config", home / "site.toml", "--port", own_port()]


class Site(Program):
    """A site's machine: a folder with a key, sounds and a configuration, and the SuperNode that uses them."""

    def __init__(self, home, name, address, authority):
        home.mkdir()
        self.name = name
        self.sounds = home / "sounds"
        self.key = home / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", self.key], check=True)
        config = home / "site.toml"
        config.write_text(
            f'site = "{name}"\ndataset = "esc50"\ndata-dir = "{self.sounds}"\ncache-dir = "{home / "cache"}"\n'
        )
        super().__init__(supernode(home, address, authority), home)

    def goes_wrong(self, kind, round_number, task="train"):
        """Make the site fail in one task of one round, with this kind of fault."""
        fault = self._fault(round_number, task)
        fault.parent.mkdir(exist_ok=True)
        fault.write_text(kind)

    def is_wrong(self, round_number, task="train"):
        """Whether the site has reached the fault."""
        return self._fault(round_number, task).with_suffix(".reached").exists()

    def goes_on(self, round_number, task="train"):
        """End the site's wait there."""
        self._fault(round_number, task).unlink()

    def is_well(self):
        """Remove all faults."""
        shutil.rmtree(self.home / "faults", ignore_errors=True)

    def _fault(self, round_number, task):
        return self.home / "faults" / f"{task}-{round_number}"


class Deployment:
    """A SuperLink with TLS and authentication, three sites, and an app with faults on demand."""

    def __init__(self, folder):
        self.folder = folder
        certificates = folder / "certificates"
        # Address of the SuperLink for a site in a separate network; random, so that parallel tests differ.
        self.far_address = f"10.213.{random.SystemRandom().randrange(1, 255)}.1"
        subprocess.run([DEPLOY / "certificates.sh", certificates, self.far_address], check=True, capture_output=True)
        self.authority = certificates / "ca.crt"
        command = [DEPLOY / "superlink.sh", "--port", "PORT", "--certificates", certificates]
        self.superlink = SuperLink(
            folder / "server", [*command, "--database", folder / "server" / "state.db"], self.authority
        )
        address = f"127.0.0.1:{self.superlink.port}"
        self.sites = {name: Site(folder / name, name, address, self.authority) for name in SITES}
        self.app = faulty_copy(folder / "app")
        # The names of the registered sites by the numbers that the SuperLink gave their nodes.
        self.numbers = {}

    def start(self):
        for site in self.sites.values():
            write_wavs(site.sounds, 8, 0, SITES[site.name].split(","))
        self.superlink.start()
        for site in self.sites.values():
            self.register(site)
            site.start()
        return self

    def register(self, site):
        said = self.superlink.flwr(
            "supernode", "register", f"{site.key}.pub", "test", "--name", site.name, "--format", "json"
        )
        self.numbers[str(json.loads(said)["node-id"])] = site.name

    def online(self):
        """The names of the sites that are online."""
        nodes = self.superlink.listed("supernode", "list", "test")["nodes"]
        return {self.numbers[node["node-id"]] for node in nodes if node["status"] == "online"}

    def ready(self):
        """Remove all faults of earlier tests."""
        if not self.superlink.alive:
            self.superlink.start()
        for site in self.sites.values():
            site.is_well()
            if not site.alive:
                site.start()
        self.wait_for_all()
        return self

    def wait_for_all(self):
        wait_until(lambda: self.online() == set(SITES), "all sites online", log=self.superlink.log, pause=1)

    def end(self):
        for program in (*self.sites.values(), self.superlink):
            program.end()
        wait_until(lambda: not processes_in(self.folder), f"the end of all processes in {self.folder}")


def processes_in(folder):
    """The processes that work in a folder or were started with a file of it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder) in " ".join([process.cwd(), *process.cmdline()]) and process.pid != os.getpid():
                found.append(process)
    return found


def faulty_copy(folder):
    """The program with faults of sites and waiting rounds on demand."""
    copy_of_app(folder)
    project = folder / "pyproject.toml"
    text = project.read_text()
    for honest, faulty in (
        ("federation.client.client_app", "faulty_app"),
        ("federation.server.server_app", "faulty_server"),
    ):
        shutil.copy(Path(__file__).with_name(f"{faulty}.py"), folder / "fed_a2v")
        assert f'"fed_a2v.{honest}:app"' in text
        text = text.replace(f'"fed_a2v.{honest}:app"', f'"fed_a2v.{faulty}:app"')
    project.write_text(text)
    return folder


def rows_of(folder):
    """The rows of metrics that a run has written so far."""
    return read_jsonl(folder / "metrics.jsonl")


@pytest.fixture(scope="session")
def _deployment(tmp_path_factory):
    deployment = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        yield deployment.start()
    finally:
        deployment.end()


@pytest.fixture
def deployment(_deployment):
    """The deployment with all sites online and without faults."""
    return _deployment.ready()
