import csv
import json
import re
import shutil
import unicodedata

import numpy as np
import pytest
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.data.clips import Record
from fed_a2v.data.errors import DataError, PartitionError
from fed_a2v.data.index import class_names, index_clips, layout, located
from fed_a2v.data.site import load_clips, site_clips
from tests.refusals import refused


@pytest.fixture
def places(tmp_path, write_sound):
    """An ESC-50, a VEGAS and a VGGSound that share the classes dog and fireworks, and one YouTube video."""
    esc50, vegas, vggsound = tmp_path / "esc50", tmp_path / "vegas", tmp_path / "vggsound"
    rows = [
        (f"{name}{fold}{i}.wav", fold, name) for name in ("dog", "fireworks") for fold in (1, 2, 3, 4) for i in "ab"
    ]
    for name, *_ in rows:
        write_sound(esc50 / "audio" / name)
    (esc50 / "meta").mkdir()
    write_table(esc50 / "meta" / "esc50.csv", [("filename", "fold", "category"), *rows])
    for name in ("dog", "drum"):
        (vegas / name).mkdir(parents=True)
        write_table(vegas / name / "video_info.csv", [("YTID", "s", "e"), *((f"{name}{i}", 0, 10) for i in range(10))])
        for i in range(10):
            write_sound(vegas / name / "audios" / f"video_{i + 1:05d}.wav")
    table = [
        (f"{name[:3]}{i}", 0, name, "test" if i == 0 else "train")
        for name in ("dog barking", "hail, storm")
        for i in range(6)
    ]
    for video, start, *_ in table:
        write_sound(vggsound / f"{video}_{start:06d}.wav")
    write_table(vggsound / "vggsound.csv", table)
    return {"esc50": esc50, "vegas": vegas, "vggsound": vggsound}


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def mixed(places, make_settings):
    """Settings of a mix of the named data sets, each with further keys."""

    def make(*overrides, **sets):
        sets = sets or {name: {} for name in places}
        entries = [{"name": name, "root": str(places[name]), "clip_seconds": 0.1} | more for name, more in sets.items()]
        return make_settings(
            "dataset=mixed", "dataset.sets=" + re.sub(r'"(\w+)":', r"\1:", json.dumps(entries)), *overrides
        )

    return make


def load(settings, classes=None):
    return load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir), classes)


def categories_at(data, split="train"):
    return {data.classes[label] for label in getattr(data, split).labels.tolist()}


def test_classes_of_several_data_sets_are_matched_by_name(mixed):
    settings = mixed()
    assert class_names(settings.dataset) == ("dog", "drum", "fireworks", "hail, storm")
    index = index_clips(settings.dataset)
    assert len(index) == 16 + 19 + 12  # a video is in two of them
    dogs = {int(number) for number in index.sets[index.labels == 0]}
    assert dogs == {0, 1, 2}
    assert set(index.sets[index.labels == 3]) == {2}


def test_each_data_set_has_the_defaults_of_its_own(mixed):
    esc50, vegas, _ = compose_settings(
        ["dataset=mixed", "dataset.sets=[{name: esc50, root: /x}, {name: vegas, root: /x}, {name: synth}]"]
    ).dataset.sets
    assert (esc50.clip_seconds, vegas.clip_seconds) == (5.0, 10.0)
    assert all(part.skip_bad for part in mixed("dataset.skip_bad=true").dataset.sets)


def test_each_data_set_has_its_own_folds_unless_one_is_named_for_all(mixed):
    def tested(*overrides):
        index = index_clips(mixed(*overrides).dataset)
        folds = {0: set(), 1: set(), 2: set()}
        for number, record, split in zip(index.sets.tolist(), index.records, index.splits, strict=True):
            if split == "test":
                folds[number].add(record.fold)
        return folds

    assert tested() == {0: {4}, 1: {5}, 2: {5}}  # this ESC-50 has four
    assert tested("dataset.test_fold=2") == {0: {2}, 1: {2}, 2: {2}}


def test_the_settings_of_a_mix_travel_as_they_are(mixed):
    settings = mixed("dataset.aliases={hail: dog}")
    assert Settings.model_validate_json(settings.model_dump_json(by_alias=True)) == settings


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_class_with_accents_is_one_class_in_every_kind_of_data_set(tmp_path, write_sound, make_settings, form):
    accent, named = unicodedata.normalize(form, "café"), "caf\u00e9"
    esc50, vggsound, folder, file = (tmp_path / name for name in ("esc50", "vggsound", "folder", "x.npz"))
    rows = [(f"{name}{fold}.wav", fold, name) for name in (accent, "dog") for fold in (1, 5)]
    (esc50 / "meta").mkdir(parents=True)
    write_table(esc50 / "meta" / "esc50.csv", [("filename", "fold", "category"), *rows])
    vggsound.mkdir()
    table = [(f"{name[0]}{number}", 0, name, "train") for name in (accent, "dog") for number in range(4)]
    write_table(vggsound / "vggsound.csv", table)
    for video, *_ in table:
        write_sound(vggsound / f"{video}_000000.wav")
    for name in (accent, "dog"):
        for number in range(5):
            write_sound(folder / name / f"{number}.wav")
    np.savez(file, embeddings=np.ones((4, 2)), category=np.array([accent, "dog"] * 2), fold=np.array([1, 1, 2, 2]))
    for words in (
        ("dataset=esc50", f"dataset.root={esc50}"),
        ("dataset=vggsound", f"dataset.root={vggsound}", "dataset.test_fold=4"),
        ("dataset=folder", f"dataset.root={folder}"),
        ("dataset=embeddings", f"dataset.path={file}"),
    ):
        for other in ("NFC", "NFD"):
            chosen = make_settings(*words, f"dataset.classes=[dog,'{unicodedata.normalize(other, 'café')}']").dataset
            index = index_clips(chosen)
            assert index.classes == ("dog", named)
            assert set(index.labels.tolist()) == {0, 1}
        assert class_names(make_settings(*words).dataset) == (named, "dog")


def test_two_spellings_of_one_class_in_a_folder_are_one_class(tmp_path, write_sound, make_settings):
    for form in ("NFC", "NFD"):
        for number in range(5):
            write_sound(tmp_path / unicodedata.normalize(form, "café") / f"{form}{number}.wav")
    index = index_clips(make_settings("dataset=folder", f"dataset.root={tmp_path}").dataset)
    assert index.classes == ("caf\u00e9",)
    assert len(index) == 10


class Wrong:
    """A data set of one's own that lists what it is given."""

    def __init__(self, listed):
        self.listed = listed

    def watched(self):
        return []

    def records(self):
        return [Record("a", "dog", 1), self.listed if isinstance(self.listed, str) else tuple(self.listed)]

    def mtime_key(self, key): ...

    def content(self, key): ...

    def waveform(self, key, sample_rate, seconds): ...


@pytest.mark.parametrize("listed", ["'b'", "[b, dog]", "[b, dog, '2', '']", "[b, dog, 0, '']", "[b, '_', 2, '']"])
def test_what_a_class_of_ones_own_lists_is_checked(make_settings, listed):
    target = f"{__name__}.Wrong"
    words = ("dataset=custom", f"dataset._target_={target}", f"+dataset.arguments.listed={listed}")
    with refused(DataError, target, "fold"):
        index_clips(make_settings(*words).dataset)


def test_a_node_whose_data_dir_is_empty_does_not_read_the_working_directory(make_settings):
    for words in (("dataset=folder", "dataset.root=/x"), ("dataset=mixed", "dataset.sets=[{name: folder, root: /x}]")):
        for empty in ("", " "):
            with refused(DataError, "data-dir"):
                located(make_settings(*words).dataset, empty)


def test_the_mix_is_embedded_set_by_set_with_keys_of_their_own(mixed, make_settings, places):
    clips = load(mixed(esc50={}, vegas={}))
    assert clips.embeddings.shape == (36, 1, 512)
    assert len(set(clips.keys)) == 36
    assert clips.keys[0] == "0-esc50/dog1a.wav"
    alone = load(make_settings("dataset=vegas", f"dataset.root={places['vegas']}", "dataset.clip_seconds=0.1"))
    assert torch.equal(clips.embeddings[torch.from_numpy(clips.sets == 1)], alone.embeddings)


def test_a_video_of_two_data_sets_is_never_in_training_and_test(mixed, caplog):
    # dog0 is the official test clip of VGGSound; VEGAS has a clip of the same video.
    index = index_clips(mixed(vegas={}, vggsound={}).dataset)
    splits = {
        split for record, split in zip(index.records, index.splits, strict=True) if record.source == "youtube:dog0"
    }
    assert splits == {"test"}
    by_source = {}
    for record, split in zip(index.records, index.splits, strict=True):
        by_source.setdefault(record.source, set()).add(split)
    assert all(len(splits) == 1 for splits in by_source.values())


def test_a_copy_in_another_data_set_is_found_though_it_is_cropped_to_another_length(mixed, places, caplog):
    copy, other = places["vggsound"] / "dog3_000000.wav", places["esc50"] / "audio" / "dog4a.wav"
    shutil.copy(other, copy)
    clips = load(mixed(esc50={}, vggsound={"clip_seconds": 0.05}))
    assert "1-vggsound/dog3_000000.wav" not in clips.keys
    assert clips.splits[clips.keys.index("0-esc50/dog4a.wav")] == "test"
    assert "1-vggsound/dog3_000000.wav (0-esc50/dog4a.wav)" in caplog.text


def test_a_recording_in_two_folds_of_one_data_set_is_kept_for_the_test(esc50_folder, make_settings, caplog):
    rows = [("a.wav", 1, "dog", "7"), ("b.wav", 4, "dog", "7"), ("c.wav", 2, "dog", "8"), ("d.wav", 3, "dog", "")]
    root = esc50_folder(rows, columns=("filename", "fold", "category", "src_file"))
    index = index_clips(make_settings("dataset=esc50", f"dataset.root={root}").dataset)
    assert [record.key for record in index.records] == ["b.wav", "c.wav", "d.wav"]
    assert "a.wav" in caplog.text
    assert not [name for name in ("b.wav", "c.wav", "d.wav") if name in caplog.text]


def test_a_limit_is_drawn_evenly_of_all_folds(mixed, make_settings, places):
    settings = make_settings("dataset=esc50", f"dataset.root={places['esc50']}", "dataset.max_clips_per_class=4")
    index = index_clips(settings.dataset)
    assert np.bincount(index.labels).tolist() == [4, 4]
    assert sorted(record.fold for record in index.records) == [1, 1, 2, 2, 3, 3, 4, 4]
    other = index_clips(settings.dataset.model_copy(update={"split_seed": 1}))
    assert {record.key for record in other.records} != {record.key for record in index.records}
    parts = mixed("dataset.max_clips_per_class=3", esc50={}, vegas={"max_clips_per_class": 5})
    sizes = np.bincount(index_clips(parts.dataset).sets)
    assert sizes.tolist() == [6, 10]


def test_a_data_set_of_a_mix_may_give_some_of_its_classes_only(mixed):
    dataset = mixed(esc50={}, vggsound={"classes": ["dog"]}).dataset
    assert class_names(dataset) == ("dog", "fireworks")
    assert set(index_clips(dataset).labels[index_clips(dataset).sets == 1]) == {0}
    with refused(DataError, "dataset.classes", "'cat'"):
        index_clips(mixed(esc50={}, vggsound={"classes": ["cat"]}).dataset)


def test_classes_of_the_mix_are_chosen_by_any_of_their_names(mixed):
    dataset = mixed("dataset.classes=[dog barking,drum]").dataset
    index = index_clips(dataset)
    assert index.classes == ("dog barking", "drum")
    assert set(index.sets[index.labels == 0]) == {0, 1, 2}
    with refused(DataError, "dataset.classes", "'cat'"):
        index_clips(mixed("dataset.classes=[cat]").dataset)


def test_unseen_classes_of_a_mix_are_trained_on_by_no_data_set(mixed):
    clips = load(mixed("dataset.unseen=[dog]"))
    dog = clips.classes.index("dog")
    assert {split for split, label in zip(clips.splits, clips.labels.tolist(), strict=True) if label == dog} == {"test"}


def test_sites_have_a_data_set_each_or_a_part_of_the_mix(mixed):
    settings = mixed("partition=iid", "partition.sites=4", "partition.by_set=true", esc50={}, vggsound={})
    sites = [site_clips(settings, number, None, cache_dir(settings.cache_dir)) for number in range(4)]
    assert [categories_at(data) for data in sites] == [{"dog", "fireworks"}] * 2 + [{"dog", "hail, storm"}] * 2
    settings = mixed("partition=iid", "partition.sites=2", esc50={}, vggsound={})
    assert categories_at(site_clips(settings, 1, None, cache_dir(settings.cache_dir))) == {
        "dog",
        "fireworks",
        "hail, storm",
    }
    alone = mixed("partition=iid", "partition.sites=1", "partition.by_set=true", esc50={}, vggsound={})
    with refused(PartitionError, "partition.by_set=true", "2", "partition.sites=1"):
        site_clips(alone, 0, None, cache_dir(alone.cache_dir))


def test_a_node_with_a_folder_of_its_own_is_known_by_its_layout(mixed, places, tmp_path):
    settings = mixed("partition=own", esc50={}, vggsound={})
    classes = ("dog", "fireworks", "hail, storm")
    data = site_clips(settings, 3, str(places["vggsound"]), cache_dir(settings.cache_dir), classes)
    assert categories_at(data) == {"dog", "hail, storm"}
    assert data.classes == classes
    with refused(DataError, places["vegas"], "dataset=vegas", "dataset.sets", "esc50", "vggsound"):
        site_clips(settings, 0, str(places["vegas"]), cache_dir(settings.cache_dir), classes)


def test_layouts_are_told_apart(places, tmp_path):
    assert [layout(places[name]) for name in ("esc50", "vegas", "vggsound")] == ["esc50", "vegas", "vggsound"]
    (tmp_path / "bell").mkdir()
    (tmp_path / "e.npz").touch()
    assert layout(tmp_path / "e.npz") == "embeddings"
    assert layout(tmp_path / "bell") == "folder"


KINDS = ("custom", "embeddings", "esc50", "folder", "synth", "vegas", "vggsound")


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        ("[]", ["dataset=mixed", "dataset.sets="]),
        ("[{root: /x}]", ["dataset.sets", "/x", *KINDS]),
        ("[{name: esc10, root: /x}]", ["dataset.sets", "esc10", *KINDS]),
        ("[{name: esc50}]", ["dataset.sets.0=esc50", "dataset.sets.0.root"]),
        ("[{name: folder, root: /x}, {name: folder, root: /x}]", ["dataset.sets", "folder", "/x"]),
        ("[{name: synth, unseen: 2}]", ["dataset.sets.0.unseen", "dataset.unseen"]),
        ("[{name: folder, rot: /x}]", ["dataset.sets.0.rot"]),
        ("[{name: folder, root: /x, train_folds: []}]", ["dataset.train_folds"]),
        ("[{name: synth, test_fold: 1, test_folds: [2]}]", ["dataset.test_fold=1", "dataset.test_folds=[2]"]),
    ],
)
def test_a_mix_that_cannot_be_is_refused_with_the_reason(sets, named):
    with refused(ConfigError, *named):
        compose_settings(["dataset=mixed", f"dataset.sets={sets}"])


def test_lists_of_folds_belong_to_a_data_set_of_the_mix():
    with refused(ConfigError, "dataset.test_folds=[2]", "dataset.sets"):
        compose_settings(["dataset=mixed", "dataset.sets=[{name: synth}]", "dataset.test_folds=[2]"])


def test_embeddings_of_other_widths_cannot_be_mixed(tmp_path, make_settings):
    for width in (2, 3):
        np.savez(tmp_path / f"{width}.npz", embeddings=np.ones((4, width)), fold=[1, 2, 3, 4], target=[0, 0, 0, 0])
    entries = ", ".join(f"{{name: embeddings, path: {tmp_path / f'{width}.npz'}}}" for width in (2, 3))
    with refused(DataError, "(1, 2)", "(1, 3)"):
        load(make_settings("dataset=mixed", f"dataset.sets=[{entries}]"))
