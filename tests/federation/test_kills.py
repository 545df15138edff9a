"""Runs whose process is killed, or whose disk is full or read-only, with real processes and disks."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fed_a2v import cli
from fed_a2v.federation.server.trainer import Trainer
from fed_a2v.storage.files import read_jsonl
from tests.federation.helpers import FAST, Finished, assert_same_run

ROOT = Path(__file__).resolve().parent.parent.parent
MB = 2**20


@pytest.mark.deployment
@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_runs_killed_at_random_moments_and_while_writing_a_state_end_like_an_undisturbed_one():
    """Three kills; `make test-long` kills twenty."""
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", "--kills=3", "--rounds=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr


# A separate disk


class Disk:
    """A small file system in memory."""

    def __init__(self, folder):
        self.folder = folder

    def mount(self, size):
        folder, option = str(self.folder), f"size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system of its own: {done.stderr.strip()}")

    def make_read_only(self):
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)

    def fill(self):
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (MB, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def make_room(self):
        (self.folder / "filler").unlink()


@pytest.fixture
def disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], capture_output=True)


def train(folder, *overrides):
    """The command itself; its exit code."""
    try:
        cli.main(["train", *FAST, *overrides, f"hydra.run.dir={folder}"])
    except SystemExit as end:
        return end.code
    return 0


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_disk_without_room_for_the_states_is_refused_before_training(disk, capsys):
    disk.mount(8 * MB)
    assert train(disk.folder / "run") == 2
    line = last_line(capsys)
    assert line.startswith("fed-a2v: [Errno 28] saving 4 states may need ")
    assert "MB free; free space, or choose another folder" in line
    assert not read_jsonl(disk.folder / "run" / "metrics.jsonl")


@pytest.mark.parametrize("moment", ["server_step_done", "round_done"])
def test_a_full_disk_ends_the_run_without_damage_and_with_free_space_it_resumes(
    disk, finished_run, monkeypatch, capsys, moment
):
    disk.mount(64 * MB)
    with monkeypatch.context() as patch:
        honest = getattr(Trainer, moment)

        def fill_first(run, *given):
            number = given[0] if moment == "server_step_done" else given[0]["round"]
            if number == 2:
                disk.fill()
            honest(run, *given)

        patch.setattr(Trainer, moment, fill_first)
        assert train(disk.folder / "run", "rounds=3", "generator.checkpoint_frequency=1") == 2
    output = capsys.readouterr().err
    assert "No space left on device; free space or choose another folder" in output.strip().splitlines()[-1]
    assert "Traceback" not in output
    assert not list((disk.folder / "run").rglob("*.tmp"))
    assert not (disk.folder / "run" / "results.json").exists()
    disk.make_room()
    assert train(disk.folder / "run", "rounds=3", "generator.checkpoint_frequency=1") == 0
    resumed = Finished(disk.folder / "run", {})
    assert "Resuming after round 1 of 3" in resumed.log
    assert_same_run(resumed, finished_run("rounds=3"))


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(disk, capsys):
    disk.mount(64 * MB)
    (disk.folder / "run").mkdir()
    disk.make_read_only()
    assert train(disk.folder / "run") == 2
    line = last_line(capsys)
    assert line.startswith("fed-a2v: ")
    assert "Read-only file system" in line
    assert str(disk.folder / "run") in line
