"""The folders and files that belong to a data set, without those of systems and other programs."""

import os
import sys

import pytest

from fed_a2v.data.datasets.sound_files import advice, sound_files, subfolders, tree
from fed_a2v.data.errors import DataError
from tests.refusals import refused


@pytest.fixture
def put(tmp_path):
    """Make empty files below the test's folder, and give that folder."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


@pytest.mark.parametrize(
    "of_others",
    [
        ".Trash-1000/files/b.wav",
        ".ipynb_checkpoints/b-checkpoint.wav",
        ".AppleDouble/a.wav",
        "._a.wav",
        ".nfs0000000000c0ffee.wav",
        "__MACOSX/dog/b.wav",
        "@eaDir/a.wav/b.wav",
        "$RECYCLE.BIN/b.wav",
        "System Volume Information/b.wav",
        "lost+found/b.wav",
        "#recycle/b.wav",
        "b.lock/b.wav",
        "~$b.wav",
        "sub/.hidden/b.wav",
    ],
)
def test_what_is_hidden_or_of_a_system_is_no_data_at_any_depth(put, of_others):
    root = put("dog/a.wav", of_others, f"dog/{of_others}")
    assert list(sound_files(root)) == ["dog/a.wav"]
    assert {folder.name for folder in subfolders(root)} <= {"dog", "sub"}
    assert {place.name for place, _ in tree(root)} <= {root.name, "dog", "sub"}


def test_a_data_set_may_lie_in_a_hidden_folder(put):
    assert list(sound_files(put(".data/dog/a.wav") / ".data")) == ["dog/a.wav"]


def test_sounds_of_every_container_are_listed_in_the_order_of_their_names(put):
    names = [f"{suffix}/x.{suffix}" for suffix in ("AIFF", "Opus", "au", "caf", "flac", "mp3", "ogg", "w64", "wav")]
    assert list(sound_files(put(*names, "a.txt", "b.json", "b.npy"))) == names


def test_what_sounds_elsewhere_is_told_unless_its_sound_lies_beside_it(put):
    silent = []
    root = put("a.wav", "a.mp4", "b.mp4", "c/d.M4A", "e.jpg")
    assert list(sound_files(root, silent)) == ["a.wav"]
    assert silent == ["b.mp4", "c/d.M4A"]
    told = advice(silent)
    assert all(word in told for word in ("2 files", ".m4a", ".mp4", "b.mp4", "ffmpeg", "b.wav"))
    assert advice([]) == ""


def test_links_are_followed_and_a_circle_ends(put):
    root = put("dog/a.wav", "elsewhere/b.wav")
    (root / "dog" / "linked").symlink_to(root / "elsewhere")
    (root / "dog" / "circle").symlink_to(root / "dog")
    assert sorted(sound_files(root / "dog")) == ["a.wav", "linked/b.wav"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("name", [b"caf\xe9/a.wav", b"dog/caf\xe9.wav", b"dog/caf\xe9/a.wav"])
def test_a_name_that_is_not_utf8_is_an_error_that_can_be_shown(put, name):
    root = put("dog/a.wav", os.fsdecode(name))
    with refused(DataError, "UTF-8", "caf\\udce9") as caught:
        list(sound_files(root))
    assert str(caught.value).isascii()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_of_what_is_no_data_do_not_matter(put):
    root = put("dog/a.wav", os.fsdecode(b"licen\xe7a.txt"))
    assert list(sound_files(root)) == ["dog/a.wav"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_not_passed_over(put):
    root = put("dog/a.wav", "dog/more/b.wav")
    (root / "dog" / "more").chmod(0)
    try:
        with refused(DataError, root / "dog" / "more"):
            list(sound_files(root))
    finally:
        (root / "dog" / "more").chmod(0o700)
