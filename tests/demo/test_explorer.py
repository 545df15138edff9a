"""What a run makes of a sound."""

import numpy as np
import pytest
import soundfile

from fed_a2v import load_run
from fed_a2v.data.errors import BadClipError
from fed_a2v.demo.explorer import Explorer
from fed_a2v.load import RunError
from fed_a2v.runs.embedding_map import load_map
from tests.demo.conftest import SYNTH
from tests.refusals import refused


def test_an_answer_has_the_classes_and_the_nearest_points(explorer, rain):
    answer = explorer.answer(rain)
    assert answer.classes == explorer.run.classify(rain)
    assert (answer.name, answer.rate, answer.seconds) == (rain.name, 16_000, 5.0)
    assert answer.waveform.shape == (explorer.seconds * answer.rate,)
    point = answer.embedding.double().numpy().reshape(-1)
    np.testing.assert_array_equal(answer.place, explorer._space.coordinates(point[None])[0])
    for neighbour, synthetic in ((answer.real, False), (answer.synthetic, True)):
        of_kind = np.flatnonzero(explorer.map.synthetic == synthetic)
        similarities = explorer._space.similarities(point)[of_kind]
        assert neighbour.row == of_kind[similarities.argmax()]
        assert neighbour.similarity == similarities.max() <= 1
        assert neighbour.name == explorer.map.classes[explorer.map.labels[neighbour.row]]
    assert answer.real.site.startswith("site-")
    assert answer.synthetic.site == ""


def test_the_map_is_that_of_the_run(explorer):
    for name, array in vars(load_map(explorer.run.folder.map)).items():
        np.testing.assert_array_equal(getattr(explorer.map, name), array)


def test_the_same_sound_has_the_same_answer(explorer, rain, trained):
    again = Explorer(load_run(trained(*SYNTH))).answer(rain)
    answer = explorer.answer(rain)
    assert (again.classes, again.real, again.synthetic) == (answer.classes, answer.real, answer.synthetic)
    np.testing.assert_array_equal(again.place, answer.place)


def test_of_a_long_sound_the_beginning_is_used(explorer, rain, tmp_path):
    samples, rate = soundfile.read(rain)
    soundfile.write(tmp_path / "long.wav", np.concatenate([samples, np.random.default_rng(0).normal(size=rate)]), rate)
    long, short = explorer.answer(tmp_path / "long.wav"), explorer.answer(rain)
    assert (long.seconds, len(long.waveform)) == (6.0, 5 * rate)
    assert long.classes[0].name == short.classes[0].name


def test_a_run_without_a_generator_has_no_synthetic_neighbour(trained, rain):
    answer = Explorer(load_run(trained(*SYNTH, "generator=none"))).answer(rain)
    assert answer.synthetic is None
    assert answer.real is not None


@pytest.mark.parametrize("words", [(), ("adapters=closed_form",)])
def test_sums_are_explored_in_their_public_space(trained, rain, words):
    explorer = Explorer(load_run(trained(*SYNTH, "share=statistics", *words)))
    answer = explorer.answer(rain)
    assert answer.embedding.shape == (1, 1, len(explorer._space.mean))
    assert np.isfinite(answer.place).all()
    assert answer.real.site == "all sites"
    assert answer.synthetic is not None
    assert {name for name, _ in answer.classes} == set(explorer.run.classes)


def test_a_run_on_embeddings_cannot_be_asked(trained, tmp_path):
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "embeddings.npz",
        embeddings=random.normal(size=(24, 8)).astype(np.float32),
        filename=np.array([f"{number}.wav" for number in range(24)]),
        category=np.repeat(["dog", "rain"], 12),
        fold=np.tile(np.arange(12) % 4 + 1, 2),
    )
    run = load_run(trained("dataset=embeddings", f"dataset.path={tmp_path / 'embeddings.npz'}"))
    with refused(RunError, run.folder.path.name, "embeddings", "dataset=folder"):
        Explorer(run)


def test_a_file_that_is_no_sound_is_refused(explorer, tmp_path):
    (tmp_path / "notes.wav").write_text("no sound")
    with refused(BadClipError, "notes.wav"):
        explorer.answer(tmp_path / "notes.wav")
