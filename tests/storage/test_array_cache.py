import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from fed_a2v.storage.array_cache import cache_key, cached
from tests.refusals import refused


def forbidden():
    raise AssertionError("computed again")


def slow(folder):
    """Compute, leaving a trace of having done so."""

    def compute():
        (folder / f"computed-by-{os.getpid()}").touch()
        time.sleep(0.5)
        return {"x": np.arange(5)}

    return compute


def want(folder, barrier, results):
    barrier.wait(timeout=240)
    results.put(cached(folder, "key", slow(folder))["x"].tolist())


def hold(folder):
    def compute():
        (folder / "holding").touch()
        time.sleep(1000)
        return {}

    cached(folder, "key", compute)


def test_arrays_are_computed_once_and_come_back_as_they_were(tmp_path):
    given = {"x": np.arange(6, dtype=np.float32).reshape(2, 3).T, "good": np.array([True, False])}
    first = cached(tmp_path / "cache", "key", lambda: given)
    again = cached(tmp_path / "cache", "key", forbidden)
    for name, array in given.items():
        for arrays in (first, again):
            assert np.array_equal(arrays[name], array)
            assert arrays[name].dtype == array.dtype
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) in (
        [".safetensors"],
        [".lock", ".safetensors"],
    )


def test_keys_follow_all_their_parts():
    assert len({cache_key("a", 1), cache_key("a", 2), cache_key("a1"), cache_key(("a", 1)), cache_key("a", "1")}) == 5
    assert cache_key("a", [1]) == cache_key("a", [1])


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, flip, lambda content: b"", lambda content: b"no such format"])
def test_a_damaged_file_is_computed_anew_with_a_warning(tmp_path, caplog, damage):
    cached(tmp_path, "key", lambda: {"x": np.arange(5)})
    path = tmp_path / "key.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert cached(tmp_path, "key", lambda: {"x": np.arange(5)})["x"].tolist() == [0, 1, 2, 3, 4]
    assert str(path) in caplog.text
    assert cached(tmp_path, "key", forbidden)["x"].tolist() == [0, 1, 2, 3, 4]


def test_a_failed_computation_leaves_nothing_and_holds_nothing(tmp_path):
    with pytest.raises(AssertionError):
        cached(tmp_path, "key", forbidden)
    assert not list(tmp_path.glob("*.safetensors"))
    assert cached(tmp_path, "key", lambda: {"x": np.arange(2)})["x"].tolist() == [0, 1]


def test_a_folder_that_cannot_be_used_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    with refused(OSError, tmp_path / "file", "cache_dir"):
        cached(tmp_path / "file", "key", forbidden)


def test_of_several_processes_one_computes_and_the_others_wait(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=want, args=(tmp_path, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=240) for _ in processes] == [[0, 1, 2, 3, 4]] * 3
    for process in processes:
        process.join(timeout=240)
    assert len(list(tmp_path.glob("computed-by-*"))) == 1


def test_a_lock_of_a_killed_process_is_released(tmp_path):
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path,))
    holder.start()
    deadline = time.monotonic() + 240
    while not (tmp_path / "holding").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(timeout=240)
    assert cached(tmp_path, "key", lambda: {"x": np.arange(2)})["x"].tolist() == [0, 1]
