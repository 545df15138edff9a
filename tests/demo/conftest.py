"""Runs to ask about sounds, one with class names that a page must not take for anything else, and its server."""

import socket
import threading

import pytest
import soundfile

from fed_a2v import load_run
from fed_a2v.config.compose import compose_settings
from fed_a2v.data.datasets.synth import RATE, synthesise
from fed_a2v.federation.simulation import run_in_process

FAST = (
    *("experiment=quick", "rounds=1", "generator=gaussian", "adapters.hidden_width=32", "partition.sites=2"),
    *("share.min_clips=1", "finetune.first_steps=30", "site.epochs=1", "report=false"),
)
SYNTH = ("dataset.classes=[dog,rain,sea_waves]", "dataset.clips_per_class=8")
STRANGE = {"<img src=x onerror=alert(1)>": "dog", "犬 & co [a](https:example.org)": "rain", "b" * 200: "sea_waves"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a finished run; the same words give the same run to every test."""
    runs = {}

    def run(*words):
        if words not in runs:
            runs[words] = tmp_path_factory.mktemp("runs") / "mine"
            run_in_process(compose_settings([*FAST, *words]), runs[words])
        return runs[words]

    return run


@pytest.fixture(scope="session")
def explorer(trained):
    from fed_a2v.demo.explorer import Explorer

    return Explorer(load_run(trained(*SYNTH)))


@pytest.fixture(scope="session")
def rain(tmp_path_factory):
    """A sound file of 5 s that no run has seen."""
    path = tmp_path_factory.mktemp("sounds") / "storm.wav"
    soundfile.write(path, synthesise("rain", 77, seed=1), RATE)
    return path


@pytest.fixture(scope="session")
def strange_run(trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("recordings")
    for name, sound in STRANGE.items():
        (root / name).mkdir()
        for number in range(8):
            soundfile.write(root / name / f"{number}.wav", synthesise(sound, number, seed=0), RATE)
    return trained("dataset=folder", f"dataset.root={root}")


@pytest.fixture(scope="session")
def served(strange_run):
    """The address of the page, its folder of files, and the hosts that the server has connected to."""
    from fed_a2v.demo.explorer import Explorer
    from fed_a2v.demo.server import make_app, make_server, opened, temporary_files

    hosts, connect = [], socket.socket.connect

    def watched(self, address):
        hosts.append(address[0])
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch, temporary_files() as files, opened("127.0.0.1", 0) as listening:
        patch.setattr(socket.socket, "connect", watched)
        server = make_server(make_app(Explorer(load_run(strange_run)), "127.0.0.1"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", files, hosts
        server.should_exit = True
        thread.join()
