import errno
import io
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.storage.files import (
    append_jsonl,
    free_folder,
    plain,
    read_jsonl,
    replacing,
    require_space,
    write_bytes,
    write_json,
    write_text,
)
from tests.refusals import refused

ROWS = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=6,
)


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, monkeypatch, step):
    path = write_text(tmp_path / "results.json", "old")

    def killed(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_an_error_while_the_content_is_made_leaves_the_old_file_whole(tmp_path):
    path = write_bytes(tmp_path / "state", b"old")

    def write_half():
        with replacing(path) as file:
            file.write(b"half")
            raise EOFError

    with pytest.raises(EOFError):
        write_half()
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with refused(OSError, tmp_path, "config.yaml") as caught:
        write_text(tmp_path / "config.yaml", "x")
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_under_torch_save_is_still_an_error_that_names_the_folder(tmp_path):
    class FullDisk(io.BytesIO):
        def write(self, data):
            return super().write(data) if self.tell() < 2000 else full_disk()

    with refused(OSError, tmp_path, "state.pt") as caught, replacing(tmp_path / "state.pt"):
        torch.save({"weights": torch.zeros(5000)}, FullDisk())
    assert caught.value.errno == errno.ENOSPC


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with refused(OSError, "a.txt", tmp_path / "file" / "run"):
        write_text(tmp_path / "file" / "run" / "a.txt", "x")


def test_the_folder_entry_reaches_the_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").resolve()), fsync(fd)))
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see which files are synced")
    write_text(tmp_path / "a.txt", "x")
    assert synced[0].parent == tmp_path.resolve()
    assert synced[1] == tmp_path.resolve()


@given(ROWS)
def test_any_row_becomes_one_line_of_valid_json(row):
    line = json.dumps(plain(row), allow_nan=False)
    assert json.loads(line).keys() == row.keys()
    assert "\n" not in line


@given(st.lists(ROWS, max_size=4))
def test_appended_rows_come_back_with_nan_and_infinity_as_null(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    for row in rows:
        append_jsonl(path, row)
    read = read_jsonl(path)
    assert len(read) == len(rows)
    for before, after in zip(rows, read, strict=True):
        for key, value in before.items():
            if isinstance(value, float):
                assert after[key] == (value if math.isfinite(value) else None)


def test_numbers_of_numpy_and_torch_become_plain_numbers():
    row = {"a": np.float32(0.5), "b": torch.tensor(2), "c": np.array([1.0, np.nan]), "d": np.float64("inf")}
    assert plain(row) == {"a": 0.5, "b": 2, "c": [1.0, None], "d": None}


def test_a_value_without_json_form_is_an_error_that_names_its_type(tmp_path):
    with refused(TypeError, "1j", "complex"):
        write_json(tmp_path / "a.json", {"thing": 1j})
    assert list(tmp_path.iterdir()) == []


def test_a_last_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n{"round": 2, "accu')
    assert read_jsonl(path) == [{"round": 1}]


def test_a_broken_line_in_the_middle_is_an_error_that_names_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n{"round"\n{"round": 3}\n')
    with refused(ValueError, path, "line 2"):
        read_jsonl(path)


def test_a_disk_with_too_little_room_is_an_error_that_names_it_and_both_sizes(tmp_path, monkeypatch):
    require_space(tmp_path, 1, "a byte")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=123_400_000))
    with refused(OSError, "a library", "5678.9 MB", tmp_path, "123.4 MB") as caught:
        require_space(tmp_path, 5_678_900_000, "a library")
    assert caught.value.errno == errno.ENOSPC


def test_two_callers_never_get_the_same_free_folder(tmp_path):
    wanted = tmp_path / "runs" / "12-00-00"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(free_folder, [wanted] * 20))
    assert set(made) == {wanted, *(wanted.with_name(f"12-00-00-{number}") for number in range(2, 21))}
    assert all(folder.is_dir() for folder in made)
