"""Untrusted files are only data: links out are refused, only regular files are opened, and memory is limited."""

import json
import os
import zipfile

import pytest

from fed_a2v.storage.files import read_jsonl
from fed_a2v.storage.untrusted import (
    UntrustedFileError,
    check_archive,
    inside,
    parse_json,
    read_bytes,
    read_json,
    read_yaml,
)
from tests.refusals import refused


@pytest.mark.parametrize("text", [r'{"a": ["\ud800"]}', r'{"\udfff": 1}', r'{"a": {"b": "x\ud83dy"}}'])
def test_half_a_character_is_damage_and_a_whole_one_is_text(tmp_path, text):
    for read, path in ((read_json, tmp_path / "a.json"), (read_yaml, tmp_path / "a.yaml")):
        path.write_text(text)
        with refused(UntrustedFileError, path):
            read(path)
        path.write_text(r'{"a": "caf\u00e9"}')
        assert read(path) == {"a": "café"}
    with refused(UntrustedFileError, "half"):
        parse_json(b'"\xed\xa0\x80"', "half")
    assert parse_json(rb'"\ud83d\ude00"', "a face") == "\U0001f600"


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with refused(UntrustedFileError, "loop"):
        inside(tmp_path / "loop", tmp_path)


def test_links_within_a_folder_are_followed_and_those_out_of_it_are_not(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    for each in (folder, other):
        each.mkdir()
        (each / "a.json").write_text("{}")
    (folder / "within").symlink_to(folder / "a.json")
    (folder / "out").symlink_to(other / "a.json")
    (folder / "folder").symlink_to(other)
    (tmp_path / "alias").symlink_to(folder)
    assert inside(folder / "within", folder) == folder / "within"
    assert inside(tmp_path / "alias" / "a.json", tmp_path / "alias").read_text() == "{}"
    for name in ("out", "folder/a.json", "../other/a.json"):
        with refused(UntrustedFileError, folder / name, other):
            inside(folder / name, folder)


def test_only_regular_files_of_a_reasonable_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with refused(UntrustedFileError, tmp_path / "pipe"):
        read_bytes(tmp_path / "pipe", 10)
    with refused(UntrustedFileError, tmp_path):
        read_bytes(tmp_path, 10)
    (tmp_path / "large").write_bytes(bytes(11))
    with refused(UntrustedFileError, tmp_path / "large"):
        read_bytes(tmp_path / "large", 10)
    assert read_bytes(tmp_path / "large", 11) == bytes(11)


@pytest.mark.parametrize("text", [b"[" * 10**6, b"[1" + b",1" * 5_000_000 + b"]", b'{"a":', b"\xff\xfe", b"9" * 5000])
def test_json_that_is_no_data_of_a_run_is_refused_by_name(text, tmp_path):
    with refused(UntrustedFileError, "figures.json"):
        parse_json(text, "figures.json")
    (tmp_path / "figures.json").write_bytes(text)
    with refused(UntrustedFileError, tmp_path / "figures.json"):
        read_json(tmp_path / "figures.json")
    (tmp_path / "rows.jsonl").write_bytes(b'{"round": 1}\n' + text + b"\n")
    with refused(UntrustedFileError, tmp_path / "rows.jsonl"):
        read_jsonl(tmp_path / "rows.jsonl")


def test_json_is_an_object_or_absent(tmp_path):
    assert read_json(tmp_path / "absent.json") == {}
    (tmp_path / "a.json").write_text("[1]")
    with refused(UntrustedFileError, tmp_path / "a.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, None]}))
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}


def test_yaml_is_plain_values_and_refers_to_nothing(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1.0e-05\nb: ${oc.env:HOME}\nc: [true, null, 'on']\n")
    assert read_yaml(path) == {"a": 1e-5, "b": "${oc.env:HOME}", "c": [True, None, "on"]}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x]\nb: [*a, *a]\n",
        "a: !!python/object/apply:os.getcwd []\n",
        "a: !!python/name:os.system\n",
        "- a\n",
        "a: [1\n",
        "[" * 3000,
        "a: " + "9" * 10_000,
        "\x00",
        "x" * 1_100_000,
    ],
)
def test_yaml_that_is_more_is_refused_by_name(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with refused(UntrustedFileError, path):
        read_yaml(path)


def test_an_archive_may_not_unpack_into_more_than_it_should(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(100_000))
    check_archive(path, 100_000)
    for most in (None, 99_999):
        with refused(UntrustedFileError, path):
            check_archive(path, most)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zeros", bytes(100_000))
    check_archive(path)
