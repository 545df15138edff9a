"""`fed-a2v generate`, from sounds to a page of pictures."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from fed_a2v.cli import main
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.data.datasets.synth import RATE, synthesise, write_wavs
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.images.gallery import read_gallery
from tests import refusals
from tests.images.conftest import FAST


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """dog/1.wav, rain.wav, and storm.wav, whose class is unknown."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "dog").mkdir()
    for path, name in (("dog/1.wav", "dog"), ("rain.wav", "rain"), ("storm.wav", "sea_waves")):
        soundfile.write(folder / path, synthesise(name, 7, seed=1), RATE)
    return folder


@pytest.fixture
def generate(image_words, tmp_path):
    """Draw with a tiny model; returns the gallery and its folder."""
    count = 0

    def run(kind, *words):
        nonlocal count
        count += 1
        out = tmp_path / f"pictures-{count}"
        main(["generate", *map(str, words), "--out", str(out), *image_words(kind)])
        return read_gallery(out), out

    return run


@pytest.fixture
def refused(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as caught:
            main(["generate", *map(str, words)])
        assert caught.value.code == 2
        return capsys.readouterr().err.strip()

    return run


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_sounds_become_pictures_beside_those_of_the_text(generate, trained, sounds, kind, capsys, caplog):
    words = (sounds / "dog/1.wav", f"rain={sounds / 'rain.wav'}", sounds / "storm.wav")
    gallery, out = generate(kind, trained(kind), *words)
    assert capsys.readouterr().out.strip() == f"Images: {out / 'index.html'}"
    assert "targets=random" in caplog.text
    assert [subject["class"] for subject in gallery["subjects"]] == ["dog", "rain", None]
    assert [set(subject["pictures"]) for subject in gallery["subjects"]] == [
        {"sound", "text"},
        {"sound", "text"},
        {"sound"},
    ]
    assert all((out / subject["audio"]).is_file() for subject in gallery["subjects"])
    assert (gallery["run"], gallery["round"]) == (kind, 1)


def test_the_same_words_give_the_same_pictures(generate, trained, sounds):
    words = ("sd", trained("sd"), sounds / "rain.wav", "--classes", "dog", "--synthetic", "2")
    (_, one), (_, two) = generate(*words), generate(*words)
    pictures = sorted(path.relative_to(one) for path in one.rglob("*.png"))
    assert len(pictures) == 5, "the rain's class is not known: no picture of its text"
    assert all((one / path).read_bytes() == (two / path).read_bytes() for path in pictures)
    _, other = generate(*words, "images.seed=1")
    assert all((one / path).read_bytes() != (other / path).read_bytes() for path in pictures)


def test_samples_test_clips_and_classes_are_drawn(generate, trained):
    folder = trained("sd")
    gallery, _ = generate("sd", folder, "--synthetic", "2")
    assert [subject["name"] for subject in gallery["subjects"]] == [
        *("dog, synthetic 1", "dog, synthetic 2", "rain, synthetic 1", "rain, synthetic 2"),
        *("sea_waves, synthetic 1", "sea_waves, synthetic 2"),
    ]
    gallery, out = generate("sd", folder, "--classes", "Rain,sea waves", "--test", "2")
    assert [subject["class"] for subject in gallery["subjects"]] == ["rain", "rain", "sea_waves", "sea_waves"]
    heard, rate = soundfile.read(out / gallery["subjects"][0]["audio"])
    assert rate == RATE
    np.testing.assert_allclose(heard, synthesise("rain", 3, seed=0), atol=1e-4)
    gallery, _ = generate("sd", folder, "--classes", "rain,Rain")
    assert [(subject["name"], subject["class"]) for subject in gallery["subjects"]] == [("rain", "rain")]


def test_samples_of_the_two_vaes_of_flux_are_drawn(generate, trained):
    gallery, _ = generate("flux", trained("flux", "generator=vae_t5"), "--classes", "dog", "--synthetic", "2")
    assert [subject["name"] for subject in gallery["subjects"]] == ["dog, synthetic 1", "dog, synthetic 2"]


def test_test_clips_of_a_mix_are_heard_where_there_are_sounds(tmp_path, generate):
    """One part of the mix has sounds, the other embeddings alone."""
    write_wavs(tmp_path / "wavs", clips_per_class=8, seed=0)
    rows = np.arange(24)
    names = np.array(["dog", "rain", "sea_waves"])[rows % 3]
    embeddings = np.random.default_rng(0).normal(size=(24, 512))
    np.savez(tmp_path / "some.npz", embeddings=embeddings, category=names, fold=rows // 3 % 4 + 1)
    sets = f"[{{name: esc50, root: {tmp_path / 'wavs'}}}, {{name: embeddings, path: {tmp_path / 'some.npz'}}}]"
    words = [word for word in FAST if not word.startswith("dataset.clips")]
    mix = ["adapters=sd", "dataset=mixed", f"dataset.sets={sets}"]
    run_in_process(compose_settings([*words, *mix]), tmp_path / "run")
    gallery, out = generate("sd", tmp_path / "run", "--test", "4", "--classes", "dog")
    heard = {subject["name"]: subject["audio"] for subject in gallery["subjects"]}
    assert {name.split("/")[0] for name, audio in heard.items() if audio} == {"0-esc50"}
    assert {name.split("/")[0] for name, audio in heard.items() if not audio} == {"1-embeddings"}
    assert all((out / audio).is_file() for audio in heard.values() if audio)


def test_a_checkpoint_is_drawn_and_the_run_gets_the_pictures(trained, image_words, tmp_path):
    copy = shutil.copytree(trained("sd"), tmp_path / "run")
    state = copy / "checkpoints/state_round_000001.pt"
    main(["generate", str(state), "--classes", "dog", *image_words("sd")])
    (gallery,) = (copy / "pictures").iterdir()
    assert read_gallery(gallery)["run"] == "run"


def test_clip_judges_the_pictures_at_once_or_later(generate, trained, refused, capsys):
    gallery, out = generate("sd", trained("sd"), "--test", "2", "--evaluate")
    said = capsys.readouterr().out
    judged = json.loads((out / "evaluation.json").read_text())
    assert judged["columns"].keys() == {"sound", "text"}
    assert judged["columns"]["sound"]["pictures"] == 6
    assert f"{judged['columns']['text']['clip_score']['value']:.3f} (" in said
    assert "chooses among 3 class names" in (out / "index.html").read_text()

    (out / "evaluation.json").unlink()
    main(["generate", str(out), "--evaluate"])
    assert json.loads((out / "evaluation.json").read_text()) == judged
    assert said.splitlines()[-2] in capsys.readouterr().out
    assert "images.stepz" in refused(out, "--evaluate", "images.stepz=1")


def test_pictures_that_cannot_be_judged_leave_nothing(trained, sounds, image_words, tmp_path, refused):
    out = tmp_path / "pictures"
    words = (trained("sd"), sounds / "storm.wav", "--evaluate", "--out", out, *image_words("sd"))
    assert "CLASS=FILE" in refused(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_pictures_that_were_not_drawn_is_removed(monkeypatch, trained, image_words, refused):
    def fail(*given):
        raise ModelError("no memory")

    folder = trained("sd", "rounds=1", "seed=3")
    monkeypatch.setattr("fed_a2v.images.gallery.draw_gallery", fail)
    assert "no memory" in refused(folder, "--classes", "dog", *image_words("sd"))
    assert not (folder / "pictures").exists()


def test_wrong_words_end_in_one_line(refused, trained, sounds, image_words, tmp_path):
    folder, tiny = trained("sd"), image_words("sd")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), 16_000)
    for words, named in [
        ((folder,), ["--classes", "--synthetic", "--test"]),
        ((tmp_path, "x.wav"), [tmp_path, "fed-a2v train"]),
        ((folder, sounds / "absent.wav", *tiny), [sounds / "absent.wav"]),
        ((folder, tmp_path / "empty.wav", *tiny), [tmp_path / "empty.wav"]),
        ((folder, "--classes", "dgo", *tiny), ["'dgo'", "'dog'"]),
        ((folder, f"cat={sounds / 'rain.wav'}", *tiny), ["'cat'"]),
        ((folder, sounds / "dog/1.wav", f"rain={sounds / 'dog/1.wav'}", *tiny), ["1.wav"]),
        ((folder, "--synthetic", "1", *tiny, "images.stepz=3"), ["images.stepz"]),
        ((folder, "--synthetic", "1", *tiny, "images.steps=0"), ["images.steps = 0"]),
        ((folder, "--synthetic", "1", "images.model=/nowhere"), ["images.model=/nowhere"]),
        ((folder, "--synthetic", "1", *image_words("flux")), ["adapters=flux", "images=sd"]),
        ((folder, "--synthetic", "1"), ["hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --revision"]),
    ]:
        said = refused(*words)
        assert [name for name in named if str(name) not in said] == [], said
        assert "Traceback" not in said
    assert not (folder / "pictures").exists()


def test_adapters_that_no_image_model_takes_are_refused(refused, trained):
    said = refused(trained("compact"), "--synthetic", "1")
    assert [name for name in ("adapters=compact", "adapters=sd", "adapters=flux") if name not in said] == [], said


def test_a_run_without_a_generator_has_nothing_to_sample(refused, trained, image_words):
    folder = trained("sd", "generator=none")
    assert "generator=none" in refused(folder, "--synthetic", "1", *image_words("sd"))


def test_a_missing_picture_is_an_error_that_names_it(generate, trained, refused):
    _, out = generate("sd", trained("sd"), "--classes", "dog,rain")
    (out / "text/0001-rain.png").unlink()
    said = refused(out, "--evaluate")
    assert str(out / "text/0001-rain.png") in said
    assert "'rain'" in said
    said = refused(out, "--classes", "dog")
    assert str(out) in said
    assert "--evaluate" in said


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_real_clips_are_embedded_federated_and_drawn(kind, generate, real_data, tmp_path, capsys):
    """ESC-50 as upstream has it: embed, train across sites, draw test clips, judge."""
    words = ["dataset=esc50", f"dataset.root={real_data / 'esc50'}", "dataset.classes=[dog,rain,crying_baby]"]
    fast = [word for word in FAST if not word.startswith("dataset.cl")]
    run_in_process(compose_settings([*fast, f"adapters={kind}", *words]), tmp_path / "run")
    gallery, out = generate(kind, tmp_path / "run", "--test", "2", "--evaluate")
    assert len(gallery["subjects"]) == 6
    assert len(list(out.rglob("*.png"))) == 12
    assert json.loads((out / "evaluation.json").read_text())["columns"]["sound"]["pictures"] == 6


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_the_demo_page_draws_the_same_image(kind, trained, generate, image_words, sounds):
    from fed_a2v import load_run
    from fed_a2v.commands.demo import _image_model
    from fed_a2v.demo.explorer import Explorer

    folder = trained(kind)
    _, out = generate(kind, folder, sounds / "storm.wav")
    (drawn,) = (out / "sound").glob("*.png")
    run = load_run(folder)
    explorer = Explorer(run, _image_model(run, kind, image_words(kind)))
    picture = explorer.picture(explorer.answer(sounds / "storm.wav"))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(Image.open(drawn)))
    other = {"sd": "flux", "flux": "sd"}[kind]
    with refusals.refused(ConfigError, f"--images {other}", f"adapters={kind}"):
        _image_model(run, other, [])
