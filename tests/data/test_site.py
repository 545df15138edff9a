import shutil

import numpy as np
import pytest
import torch

from fed_a2v.config.schema import cache_dir
from fed_a2v.data.datasets.synth import TARGETS
from fed_a2v.data.errors import DataError, PartitionError
from fed_a2v.data.site import _load, class_names, load_clips, site_clips
from fed_a2v.encoders.logmel import LogMelEncoder
from tests.refusals import refused

ROWS = [
    (f"{name}{fold}{i}.wav", fold, name) for name in ("cat", "dog", "rain") for fold in (1, 2, 3, 4) for i in (0, 1)
]


def load(settings):
    return load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))


def site(settings, number, data_dir=None, classes=None):
    return site_clips(settings, number, data_dir, cache_dir(settings.cache_dir), classes)


@pytest.fixture
def esc50(esc50_folder, make_settings):
    root = esc50_folder(ROWS)

    def make(*overrides):
        return make_settings("dataset=esc50", f"dataset.root={root}", "dataset.clip_seconds=0.3", *overrides)

    return make


@pytest.fixture
def npz(tmp_path, make_settings):
    def make(embeddings, *overrides):
        count = len(embeddings)
        folds = np.arange(count) % 4 + 1
        np.savez(tmp_path / "e.npz", embeddings=embeddings, fold=folds, target=np.arange(count) // 4)
        return make_settings("dataset=embeddings", f"dataset.path={tmp_path / 'e.npz'}", *overrides)

    return make


def test_the_built_in_data_become_embeddings(make_settings):
    settings = make_settings("dataset.clips_per_class=4", "dataset.classes=[rain,dog]")
    clips = load(settings)
    assert clips.embeddings.shape == (8, 1, 512)
    assert clips.embeddings.dtype == torch.float32
    assert clips.labels.dtype == torch.int64
    assert clips.classes == ("rain", "dog")
    assert clips.splits == ("train", "train", "train", "test") * 2
    assert clips.skipped == 0
    assert not clips.square_root  # log-mel statistics have negative values
    assert torch.unique(clips.embeddings, dim=0).shape[0] == 8


def test_the_class_names_need_no_sound(make_settings, esc50, npz, monkeypatch):
    monkeypatch.setattr("fed_a2v.data.audio.soundfile.SoundFile", None)
    assert class_names(make_settings().dataset) == tuple(sorted(TARGETS))
    assert class_names(esc50().dataset) == ("cat", "dog", "rain")
    assert class_names(npz(np.ones((8, 2))).dataset) == ("class_00", "class_01")


def test_chosen_class_names_need_no_data(make_settings):
    settings = make_settings("dataset=esc50", "dataset.root=/nowhere", "dataset.classes=[b,a]")
    assert class_names(settings.dataset) == ("b", "a")


def test_a_second_load_embeds_nothing(esc50, monkeypatch):
    first = load(esc50())
    assert load(esc50()) is first
    monkeypatch.setattr(LogMelEncoder, "encode", None)
    again = load(esc50("dataset.train_folds=[1,2]", "dataset.validation_folds=[3]"))
    assert torch.equal(again.embeddings, first.embeddings)


def test_a_changed_data_set_is_noticed_within_a_process(esc50, esc50_folder):
    before = load(esc50())
    esc50_folder([*ROWS, ("new.wav", 1, "dog")])
    assert len(load(esc50())) == len(before) + 1


def test_skipped_clips_are_counted(esc50):
    settings = esc50("dataset.skip_bad=true")
    (cache_dir(settings.cache_dir).parent / "esc50" / "audio" / ROWS[0][0]).write_text("no sound")
    clips = load(settings)
    assert clips.skipped == 1
    assert len(clips) == len(clips.labels) == len(clips.splits) == len(clips.embeddings) == len(ROWS) - 1
    assert ROWS[0][0] not in clips.keys
    names = [clips.classes[label] for label in clips.labels.tolist()]
    assert list(zip(clips.keys, names, strict=True)) == [(row[0], row[2]) for row in ROWS[1:]]


def test_the_square_root_is_taken_where_nothing_is_negative(npz):
    values = np.arange(16, dtype=np.float32).reshape(8, 2)
    clips = load(npz(values))
    assert clips.square_root
    assert torch.allclose(clips.embeddings[:, 0], torch.tensor(values).sqrt())
    assert not load(npz(values, "dataset.square_root=never")).square_root
    values[6, 1] = -1  # of fold 3, which trains
    assert torch.equal(load(npz(values)).embeddings[:, 0], torch.tensor(values))
    with refused(DataError, "dataset.square_root=always", "row-00006", "-1", "auto", "never"):
        load(npz(values, "dataset.square_root=always"))


@pytest.mark.parametrize("wanted", ["auto", "always"])
def test_whether_to_take_the_square_root_is_decided_by_training_clips_alone(npz, caplog, wanted):
    values = np.arange(16, dtype=np.float32).reshape(8, 2)
    values[7, 1] = -9  # of fold 4, the test
    clips = load(npz(values, f"dataset.square_root={wanted}"))
    assert clips.square_root
    assert torch.equal(clips.embeddings[:7, 0], torch.tensor(values[:7]).sqrt())
    assert clips.embeddings[7, 0].tolist() == pytest.approx([14**0.5, -3.0])
    assert "row-00007 (-9)" in caplog.text
    assert "dataset.square_root=never" in caplog.text


def used(clips):
    """Each clip's split, by its key."""
    return dict(zip(clips.keys, clips.splits, strict=True))


def test_copies_of_a_recording_are_kept_for_the_test_of_an_esc50(esc50, caplog):
    before = used(load(esc50()))
    audio = cache_dir(esc50().cache_dir).parent / "esc50" / "audio"
    shutil.copy(audio / "dog40.wav", audio / "dog10.wav")  # of fold 1, and another class
    shutil.copy(audio / "dog40.wav", audio / "cat30.wav")
    shutil.copy(audio / "rain10.wav", audio / "rain20.wav")  # both for training
    shutil.copy(audio / "rain40.wav", audio / "rain41.wav")  # both for the test
    _load.cache_clear()  # a process notices new files, and not what is in them
    after = used(load(esc50()))
    assert after == {key: split for key, split in before.items() if key not in ("dog10.wav", "cat30.wav")}
    assert after["dog40.wav"] == "test"
    assert "cat30.wav (dog40.wav), dog10.wav (dog40.wav)" in caplog.text


def test_a_copy_in_the_validation_gives_way_to_the_test_and_training_to_both(npz, caplog):
    values = np.arange(16, dtype=np.float32).reshape(8, 2)
    values[4] = values[1] = values[3]  # of folds 1, 2 and 4
    values[0] = values[5]  # of folds 1 and 2
    clips = load(npz(values, "dataset.validation_folds=[2]"))
    assert used(clips) == {
        **{"row-00002": "train", "row-00006": "train"},
        **{"row-00003": "test", "row-00005": "validation", "row-00007": "test"},
    }
    assert clips.embeddings[:, 0].square().tolist() == pytest.approx(values[[2, 3, 5, 6, 7]])
    assert clips.labels.tolist() == [0, 0, 1, 1, 1]
    assert "row-00000 (row-00005), row-00001 (row-00003), row-00004 (row-00003)" in caplog.text


def test_copies_are_found_before_the_clips_are_divided_among_sites(npz):
    values = np.arange(32, dtype=np.float32).reshape(16, 2)
    values[0] = values[15]  # of the first class and of the last
    sites = [site(npz(values, "partition.sites=4"), number) for number in range(4)]
    train, test = (torch.cat([getattr(each, split).embeddings for each in sites]) for split in ("train", "test"))
    assert (len(train), len(test)) == (11, 4)
    assert torch.cdist(train[:, 0], test[:, 0]).min() > 0.01


def test_a_data_set_that_trains_on_its_test_alone_is_refused(npz):
    with refused(DataError, "row-00000", "row-00003"):
        load(npz(np.ones((8, 2))))


def test_five_folds_of_a_file_train_on_four_and_test_on_the_last(tmp_path, make_settings):
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.savez(tmp_path / "e.npz", embeddings=values, fold=np.arange(10) % 5 + 1, target=np.arange(10) // 5)
    clips = load(make_settings("dataset=embeddings", f"dataset.path={tmp_path / 'e.npz'}"))
    assert clips.splits == ("train", "train", "train", "train", "test") * 2
    clips = load(make_settings("dataset=embeddings", f"dataset.path={tmp_path / 'e.npz'}", "dataset.test_fold=1"))
    assert clips.splits == ("test", "train", "train", "train", "train") * 2


def test_the_sites_share_the_data_without_overlap(esc50):
    settings = esc50("partition.sites=3", "partition.classes_per_site=1")
    sites = [site(settings, number, classes=("cat", "dog", "rain")) for number in range(3)]
    assert [data.name for data in sites] == ["site-000", "site-001", "site-002"]
    for data in sites:
        assert data.classes == ("cat", "dog", "rain")
        assert data.train.embeddings.shape == (6, 1, 512)
        assert (len(data.train), len(data.validation), len(data.test)) == (6, 0, 2)
        assert set(data.train.labels.tolist()) == set(data.test.labels.tolist())
    assert not set(sites[0].train.keys) & {*sites[1].train.keys, *sites[2].train.keys}
    assert site(settings, 0).train.keys == sites[0].train.keys
    assert len({int(data.train.labels[0]) for data in sites}) == 3


def test_a_site_that_is_not_there_is_an_error(esc50):
    for number in (3, 4711):
        with refused(PartitionError, "partition.sites", number):
            site(esc50("partition.sites=3"), number)


def test_a_copy_of_the_data_may_lie_elsewhere(esc50, esc50_folder):
    elsewhere = esc50_folder(ROWS, name="elsewhere")
    settings = esc50("partition.sites=3")
    there = site(
        settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"root": "/nowhere"})}),
        1,
        str(elsewhere),
    )
    assert torch.equal(there.train.embeddings, site(settings, 1).train.embeddings)


def test_a_copy_with_other_classes_is_an_error(esc50):
    with refused(DataError, "cat", "dog", "rain", "dataset.classes", "partition=own"):
        site(esc50(), 0, classes=("cat", "dog"))


def test_a_site_of_its_own_folder_has_all_of_it_by_the_federations_class_names(esc50, esc50_folder, caplog):
    own = esc50_folder([("x.wav", 1, "Rain"), ("y.wav", 4, "rain"), ("z.wav", 1, "owl")], name="own")
    data = site(esc50("partition=own"), 2, str(own), classes=("cat", "dog", "rain"))
    assert data.name == "site-002"
    assert data.train.labels.tolist() == data.test.labels.tolist() == [2]
    assert "owl" in caplog.text


def test_every_site_needs_a_folder_of_its_own_in_a_deployment(esc50):
    with refused(PartitionError, "partition=own", "site-001", "data-dir"):
        site(esc50("partition=own"), 1)
    assert len(site(esc50("partition=own"), 0).train) == 18


def test_embeddings_may_lie_in_a_folder_and_synthesised_data_nowhere(npz, make_settings, tmp_path):
    settings = npz(np.arange(16.0).reshape(8, 2), "partition.sites=1")
    assert len(site(settings, 0, str(tmp_path)).train) == 6
    assert len(site(settings, 0, str(tmp_path / "e.npz")).train) == 6
    with refused(DataError, "dataset=synth", "data-dir", "/data", "dataset=esc50"):
        site(make_settings(), 0, "/data")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "clips"), [("esc50_original_wav", 20), ("esc10_original_ogg", 10), ("esc10_tiny", 40)]
)
def test_real_clips_are_embedded(real_data, make_settings, name, clips):
    settings = make_settings(
        "dataset=esc50",
        f"dataset.root={real_data / name}",
        "dataset.train_folds=[1,2,3]",
        "dataset.test_folds=[4,5]",
    )
    found = load(settings)
    assert found.embeddings.shape == (clips, 1, 512)
    assert torch.isfinite(found.embeddings).all()


@pytest.mark.real_data
def test_real_embeddings_are_square_rooted_and_dealt_to_fifty_sites(real_data, make_settings):
    path = real_data / "esc50_yamnet.npz"
    settings = make_settings(
        "dataset=embeddings", f"dataset.path={path}", "partition.sites=50", "partition.classes_per_site=1"
    )
    assert load(settings).square_root
    sites = [site(settings, number) for number in range(50)]
    assert all((len(data.train), len(data.test)) == (24, 8) for data in sites)
    assert sites[0].train.embeddings.shape == (24, 1, 1024)
    assert len({int(data.train.labels[0]) for data in sites}) == 50
