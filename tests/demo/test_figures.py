"""The figures of the page."""

import json

import numpy as np

from fed_a2v.demo.explorer import Answer
from fed_a2v.demo.figures import BANDS, COLUMNS, MOST_NAMED, RANGE, map_figure, sound_figure
from tests.report.conftest import drawn_map

RATE = 16_000


def tone(hertz, seconds=2.0, rate=RATE):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def test_a_tone_is_the_loudest_band_of_its_spectrogram():
    for rate in (16_000, 48_000):
        outline, heat = sound_figure(0.5 * tone(1000, rate=rate), rate).data
        decibels, centres = np.asarray(heat.z), np.asarray(heat.customdata)[:, 0]
        assert decibels.shape == (BANDS, COLUMNS)
        assert (decibels.min(), decibels.max()) == (-RANGE, 0)
        assert abs(int(centres[decibels.mean(axis=1).argmax()]) - 1000) < 100
        assert max(outline.y) == 0.5
        assert min(outline.y) == -0.5


def test_silence_and_a_few_samples_have_a_figure():
    for waveform in (np.zeros(RATE, np.float32), np.ones(3, np.float32)):
        drawn = json.loads(sound_figure(waveform, RATE).to_json())
        assert "NaN" not in json.dumps(drawn)
        assert len(drawn["data"]) == 2


def answer_on(classes, place=(1.0, 2.0)):
    return Answer("a.wav", tone(100), RATE, 2.0, None, classes, np.array(place, np.float32), None, None)


def test_the_sound_is_on_the_map_and_distant_classes_are_faint():
    embedding_map = drawn_map(("dog", "rain", "sea"), np.random.default_rng(0))
    drawn = map_figure(embedding_map, answer_on([("rain", 0.9)]))
    assert [(trace.name, trace.x, trace.y) for trace in drawn.data][-1] == ("this sound", (1.0,), (2.0,))
    opacity = {trace.name: trace.opacity for trace in drawn.data}
    assert opacity["rain"] == 1
    assert max(opacity["dog"], opacity["sea"]) < 0.5
    assert [trace.name for trace in drawn.data if trace.showlegend] == ["rain"]


def test_without_a_sound_all_classes_are_shown_and_many_have_no_legend():
    for number in (3, MOST_NAMED + 1):
        names = tuple(f"class {index}" for index in range(number))
        drawn = map_figure(drawn_map(names, np.random.default_rng(0)))
        assert {trace.opacity for trace in drawn.data} == {1}
        assert sum(len(trace.x) for trace in drawn.data) == 28 * number
        named = [trace.name for trace in drawn.data if trace.showlegend]
        assert named == (list(names) if number <= MOST_NAMED else [])
