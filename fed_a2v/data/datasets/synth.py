"""dataset=synth: synthesised clips of ten classes, which need no download.

The classes are those of ESC-10. Each clip is sampled independently: pitch, rhythm, timbre and position of the events,
then the faint sound of another class, a room, a background of coloured noise, a microphone and a level. A clip depends
only on the seed, its class and its number. The file is long because it is one synthesiser: ten sounds, a function each,
and the components that they share.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import scipy
import soundfile
from numpy.typing import NDArray
from scipy import fft

from fed_a2v.config.sections.data import DatasetSettings
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.data.audio import fit_clip
from fed_a2v.data.clips import FloatArray, Record
from fed_a2v.data.datasets.base import DataSet
from fed_a2v.data.errors import DataError
from fed_a2v.storage.files import write_text

# scipy.signal is used by its full name, so that scipy imports it on first use: most messages to a client need none.
Rng = np.random.Generator
Wave = NDArray[np.float64]

RATE = 16_000
SECONDS = 5
SAMPLES = RATE * SECONDS
FOLDS = 4
# Increase it when the synthesis changes, so that cached embeddings of the old clips are not used for the new ones.
VERSION = 1

# The class numbers of ESC-50.
TARGETS = {
    "dog": 0,
    "rooster": 1,
    "rain": 10,
    "sea_waves": 11,
    "crackling_fire": 12,
    "crying_baby": 20,
    "sneezing": 21,
    "clock_tick": 38,
    "helicopter": 40,
    "chainsaw": 41,
}


class SynthClips(DataSet):
    """The built-in data set: `clips_per_class` clips of each class, assigned evenly to the folds 1 to 4.

    A clip's key is the name of the file to which `write_wavs` writes it.
    """

    def __init__(self, seed: int, clips_per_class: int) -> None:
        self.seed = seed
        self.clips = {file_name(name, number): (name, number) for name in TARGETS for number in range(clips_per_class)}

    @classmethod
    def open(cls, settings: DatasetSettings, seed: int) -> Self:
        """See `DataSet`."""
        return cls(seed, settings.clips_per_class)

    @classmethod
    def located(cls, settings: DatasetSettings, place: Path) -> DatasetSettings:
        """See `DataSet`."""
        del settings
        raise DataError(f"dataset=synth reads no files, but data-dir is {place}; choose dataset=esc50 for a folder")

    def records(self) -> list[Record]:
        """All clips, class by class."""
        return [Record(key, name, fold_of(number)) for key, (name, number) in self.clips.items()]

    def watched(self) -> list[Path]:
        """[], because the list never changes."""
        return []

    def mtime_key(self, key: str) -> str | None:
        """None, because `content` itself is quick to compute."""
        del key
        return None

    def content(self, key: str) -> str:
        """Everything that the clip is computed from."""
        name, number = self.clips[key]
        return f"synth-{VERSION}:{self.seed}:{name}:{number}"

    def waveform(self, key: str, sample_rate: int, seconds: float) -> FloatArray:
        """The clip, resampled, and cropped or padded."""
        name, number = self.clips[key]
        return fit_clip(synthesise(name, number, self.seed), RATE, sample_rate, seconds)


Source = SynthClips


def fold_of(number: int) -> int:
    """The fold of a class's clip number `number`, from 1 to 4."""
    return number % FOLDS + 1


def file_name(name: str, number: int) -> str:
    """The name of a clip's file in ESC-50's form: fold-id-take-target.wav."""
    return f"{fold_of(number)}-{number:05d}-A-{TARGETS[name]}.wav"


def write_wavs(folder: str | Path, clips_per_class: int, seed: int, classes: Sequence[str] = tuple(TARGETS)) -> Path:
    """Write the data set in ESC-50's layout (16-bit mono WAV at 16 kHz), for listening and for dataset=esc50.

    Args:
        folder: the folder; created if missing.
        clips_per_class: number of clips of each class.
        seed: seed of the clips.
        classes: the classes to write.

    Returns:
        The folder, with audio/ and meta/esc50.csv.

    Raises:
        DataError: a class does not exist.
    """
    for name in classes:
        if name not in TARGETS:
            raise DataError(f"there is no built-in class {name!r}; choose from {', '.join(TARGETS)}")
    folder = Path(folder).expanduser()
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    (folder / "meta").mkdir(exist_ok=True)
    rows: list[dict[str, object]] = []
    for key, (name, number) in SynthClips(seed, clips_per_class).clips.items():
        if name not in classes:
            continue
        soundfile.write(folder / "audio" / key, synthesise(name, number, seed), RATE, subtype="PCM_16")
        rows.append(
            {
                "filename": key,
                "fold": fold_of(number),
                "target": TARGETS[name],
                "category": name,
                "esc10": True,
                "src_file": "",  # unknown source: every clip is its own recording
                "take": "A",
            }
        )
    # The table is written last, atomically: a folder with a table has all its clips.
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, fieldnames=list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    write_text(folder / "meta" / "esc50.csv", text.getvalue())
    return folder


def synthesise(name: str, number: int, seed: int) -> FloatArray:
    """Synthesise clip `number` of class `name` as (80000,) float32 at 16 kHz, within (-1, 1)."""
    rng = numpy_generator(seed, "synth", name, number)
    clip = _unit(SOUNDS[name](rng))
    if rng.random() < 0.7:
        other = str(rng.choice([other for other in SOUNDS if other != name]))
        clip += _decibels(rng.uniform(-28, -9)) * _unit(SOUNDS[other](rng))
    clip = _room(rng, clip)
    clip += _decibels(rng.uniform(-32, -6)) * _unit(_noise(rng, SAMPLES, 30, 7800, rng.uniform(0, 2)))
    clip = _microphone(rng, clip)
    levelled: FloatArray = (clip * (_decibels(rng.uniform(-30, -1)) / np.abs(clip).max())).astype(np.float32)
    return levelled


# --- The classes: each function synthesises one clip of SAMPLES samples ------------------------------------------


def _dog(rng: Rng) -> Wave:
    """Barks in bursts: a short falling voice with two formants and breath noise."""
    pitch, length = rng.uniform(250, 850), rng.uniform(0.08, 0.22)
    formants = [(pitch * rng.uniform(1.3, 2.2), 250.0, 1.0), (rng.uniform(1300, 2400), 400.0, 0.6)]
    breath = rng.uniform(0.2, 0.8)
    events, time = [], rng.uniform(0, 1.0)
    while time < SECONDS - 0.3:
        for _ in range(rng.integers(1, 4)):
            n = int(RATE * length * rng.uniform(0.8, 1.25))
            arc = np.sin(np.pi * np.linspace(0.15, 1, n) ** 0.7)
            bark = _voice(rng, pitch * rng.uniform(0.9, 1.1) * (0.75 + 0.5 * arc), formants, breath)
            events.append((time, rng.uniform(0.6, 1) * bark * _decay(n, 0.008, length / 2.5)))
            time += n / RATE + rng.uniform(0.05, 0.25)
        time += rng.uniform(0.3, 1.8)
    return _placed(events)


def _rooster(rng: Rng) -> Wave:
    """Crows: three or four syllables, the last long, rising and falling, rich in harmonics."""
    pitch, rough = rng.uniform(420, 880), rng.uniform(0.1, 0.6)
    formants = [(rng.uniform(900, 1500), 400.0, 1.0), (rng.uniform(2000, 3200), 600.0, 0.8)]
    events, time = [], rng.uniform(0, 1.2)
    while time < SECONDS - 1.0:
        lengths = [*rng.uniform(0.1, 0.3, rng.integers(2, 4)), rng.uniform(0.5, 1.3)]
        for step, length in enumerate(lengths):
            n = int(RATE * length)
            u = np.linspace(0, 1, n)
            contour = pitch * (0.75 + 0.12 * step) * (1 + 0.25 * np.sin(np.pi * u**0.6) - 0.15 * u)
            events.append((time, _voice(rng, contour, formants, rough) * _swell(n, 0.03, 0.08)))
            time += length + rng.uniform(0.02, 0.12)
        time += rng.uniform(0.8, 3.0)
    return _placed(events)


def _crying_baby(rng: Rng) -> Wave:
    """Wails: long arcs of pitch with vibrato, rasp, and an audible breath between them."""
    pitch, rough, vibrato = rng.uniform(330, 580), rng.uniform(0.05, 0.5), rng.uniform(4, 9)
    formants = [(rng.uniform(900, 1300), 300.0, 1.0), (rng.uniform(2400, 3600), 700.0, rng.uniform(0.4, 0.9))]
    events, time = [], rng.uniform(0, 0.6)
    while time < SECONDS - 0.2:
        n = int(RATE * rng.uniform(0.3, 1.4))
        u = np.linspace(0, 1, n)
        shake = 1 + rng.uniform(0.01, 0.04) * np.sin(2 * np.pi * vibrato * n / RATE * u)
        contour = pitch * rng.uniform(0.9, 1.15) * (0.85 + 0.3 * np.sin(np.pi * u**0.7)) * shake
        events.append((time, _voice(rng, contour, formants, rough) * _swell(n, 0.08, 0.15)))
        time += n / RATE
        breath = int(RATE * rng.uniform(0.12, 0.5))
        events.append((time, 0.1 * _noise(rng, breath, 900, 4000, 0.5) * _swell(breath, 0.05, 0.05)))
        time += breath / RATE
    return _placed(events)


def _sneezing(rng: Rng) -> Wave:
    """Sneezes: an inhalation, a short voice, and a burst of air."""
    events, time = [], rng.uniform(0, 1.5)
    pitch, bright = rng.uniform(140, 420), rng.uniform(1000, 3000)
    formants = [(rng.uniform(500, 1000), 250.0, 1.0), (rng.uniform(1200, 2200), 400.0, 0.6)]
    for _ in range(rng.integers(1, 4)):
        for _ in range(rng.integers(1, 3)):
            n = int(RATE * rng.uniform(0.15, 0.6))
            rise = np.linspace(0, 1, n) ** 2
            events.append((time, rng.uniform(0.1, 0.4) * _noise(rng, n, 600, 3500, 0.7) * rise))
            time += n / RATE + rng.uniform(0.0, 0.1)
        n = int(RATE * rng.uniform(0.06, 0.2))
        contour = pitch * np.linspace(1.3, 0.8, n)
        events.append((time, rng.uniform(0.3, 1) * _voice(rng, contour, formants, 0.4) * _swell(n, 0.01, 0.04)))
        time += 0.7 * n / RATE
        n = int(RATE * rng.uniform(0.3, 0.7))
        burst = _noise(rng, n, bright, 7500, rng.uniform(0, 0.8))
        events.append((time, 1.2 * burst * _decay(n, 0.01, rng.uniform(0.05, 0.2))))
        time += n / RATE + rng.uniform(0.2, 1.5)
        if time > SECONDS - 1:
            break
    return _placed(events)


def _clock_tick(rng: Rng) -> Wave:
    """Ticks and tocks: damped resonances in an even rhythm, over a faint hum."""
    period, decay = 1 / rng.uniform(0.9, 5.5), rng.uniform(0.002, 0.02)
    n = int(RATE * 0.12)
    strikes = []
    for tone in rng.uniform(900, 5500) * np.array([1.0, rng.uniform(0.8, 1.15)]):
        modes = sum(
            rng.uniform(0.2, 1) * np.sin(2 * np.pi * tone * ratio * np.arange(n) / RATE)
            for ratio in (1.0, *rng.uniform(0.4, 1.4, 2))
        )
        strikes.append((modes + 0.5 * _noise(rng, n, 1500, 7500, 0)) * _decay(n, 0.0005, decay))
    times = np.arange(rng.uniform(0, period), SECONDS, period)
    clock = _placed(
        (time + rng.normal(0, 0.002), rng.uniform(0.7, 1) * strikes[beat % 2]) for beat, time in enumerate(times)
    )
    return clock + 0.002 * rng.uniform(0, 3) * _noise(rng, SAMPLES, 40, 400, 1)


def _rain(rng: Rng) -> Wave:
    """A hiss of many drops, with some audible single drops."""
    hiss = _noise(rng, SAMPLES, rng.uniform(150, 1200), 7800, rng.uniform(0, 1.1))
    hiss *= 1 + rng.uniform(0, 0.4) * _slow(rng, 0.7)
    drops = _impacts(rng, rng.uniform(10, 300), rng.uniform(1200, 4500), rng.uniform(0.001, 0.006), 1.0)
    return _unit(hiss) + rng.uniform(0.1, 0.9) * _unit(drops)


def _sea_waves(rng: Rng) -> Wave:
    """Noise that swells and falls, and grows brighter as it swells."""
    time = np.arange(SAMPLES) / RATE
    swell = np.full(SAMPLES, rng.uniform(0.05, 0.5))
    peak = rng.uniform(-1, 2)
    while peak < SECONDS + 2:
        rise, fall = rng.uniform(0.4, 1.6), rng.uniform(0.6, 2.0)
        swell += (
            rng.uniform(0.5, 1)
            * np.exp(-np.where(time < peak, peak - time, 0) / rise)
            * np.exp(-np.where(time > peak, time - peak, 0) / fall)
        )
        peak += rng.uniform(1.8, 5)
    low = _noise(rng, SAMPLES, 60, rng.uniform(500, 1500), 1)
    high = _noise(rng, SAMPLES, rng.uniform(400, 1200), 7800, rng.uniform(0.2, 1.2))
    waves: Wave = _unit(low) * swell * rng.uniform(0.3, 1.2) + _unit(high) * swell**1.7
    return waves


def _crackling_fire(rng: Rng) -> Wave:
    """A low roar, a hiss, and pops of very uneven strength."""
    roar = _noise(rng, SAMPLES, 40, rng.uniform(300, 900), 1.5) * (1 + 0.4 * _slow(rng, 3))
    hiss = _noise(rng, SAMPLES, rng.uniform(1000, 3000), 7800, 0.5)
    pops = _impacts(rng, rng.uniform(4, 60), rng.uniform(900, 3500), rng.uniform(0.001, 0.008), 2.0)
    return _unit(pops) + rng.uniform(0.1, 1) * _unit(roar) + rng.uniform(0.05, 0.5) * _unit(hiss)


def _helicopter(rng: Rng) -> Wave:
    """Rotor blades: noise in thumps, ten to twenty a second, over a turbine's whine, near or far."""
    rate = rng.uniform(9, 24) * (1 + 0.02 * _slow(rng, 0.5))
    beat = 0.5 + 0.5 * np.cos(2 * np.pi * np.cumsum(rate) / RATE)
    thump = _noise(rng, SAMPLES, 30, rng.uniform(250, 900), 1.0) * beat ** rng.uniform(1, 6)
    air = _noise(rng, SAMPLES, 300, 7000, rng.uniform(0.8, 1.6)) * (0.4 + beat)
    whine = _tone(rng, np.full(SAMPLES, rng.uniform(150, 1200)) * (1 + 0.01 * _slow(rng, 1)), 1.5)
    flight = np.exp(rng.uniform(-1.5, 1.5) * np.linspace(-0.5, 0.5, SAMPLES))
    mix = _unit(thump) + rng.uniform(0.2, 0.9) * _unit(air) + rng.uniform(0.02, 0.3) * _unit(whine)
    return mix * flight


def _chainsaw(rng: Rng) -> Wave:
    """A two-stroke engine that idles and revs: a harmonic buzz, uneven from stroke to stroke, and saw noise."""
    idle, full = rng.uniform(35, 70), rng.uniform(90, 210)
    throttle = np.clip(0.5 + 0.8 * _slow(rng, rng.uniform(0.2, 0.8)) + rng.uniform(-0.4, 0.6), 0, 1)
    pitch = idle + (full - idle) * throttle
    engine = _tone(rng, pitch * (1 + 0.01 * _slow(rng, 20)), rng.uniform(0.3, 1.0))
    strokes = 0.5 + 0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
    saw = _noise(rng, SAMPLES, rng.uniform(500, 1500), 7500, rng.uniform(0.2, 1.2)) * (0.3 + strokes)
    return (_unit(engine) + rng.uniform(0.2, 1.2) * _unit(saw) * throttle) * (0.35 + throttle)


SOUNDS: dict[str, Callable[[Rng], Wave]] = {
    "dog": _dog,
    "rooster": _rooster,
    "rain": _rain,
    "sea_waves": _sea_waves,
    "crackling_fire": _crackling_fire,
    "crying_baby": _crying_baby,
    "sneezing": _sneezing,
    "clock_tick": _clock_tick,
    "helicopter": _helicopter,
    "chainsaw": _chainsaw,
}


# --- Components of the sounds ------------------------------------------------------------------------------------


def _decibels(level: float) -> float:
    return float(10 ** (level / 20))


def _unit(wave: Wave) -> Wave:
    """Scaled to a mean power of 1 over the loudest fifth, so that a single bark counts as loud as steady rain."""
    frames = np.sort((wave[: len(wave) // 500 * 500].reshape(-1, 500) ** 2).mean(axis=1))
    power = float(frames[-max(1, len(frames) // 5) :].mean())
    scaled: Wave = wave / np.sqrt(power + 1e-12)
    return scaled


def _noise(rng: Rng, n: int, low: float, high: float, tilt: float) -> Wave:
    """Gaussian noise between `low` and `high` Hz, with power falling as frequency to the -`tilt`."""
    size = fft.next_fast_len(n, real=True)
    hertz = fft.rfftfreq(size, 1 / RATE)
    gain = np.maximum(hertz, 20) ** (-tilt / 2) / (1 + (low / np.maximum(hertz, 1)) ** 4) / (1 + (hertz / high) ** 8)
    spectrum = gain * (rng.standard_normal(len(hertz)) + 1j * rng.standard_normal(len(hertz)))
    wave: Wave = fft.irfft(spectrum, size)[:n]
    scaled: Wave = wave / (np.sqrt(np.mean(wave**2)) + 1e-12)
    return scaled


def _slow(rng: Rng, hertz: float) -> Wave:
    """A smooth random curve between about -1 and 1, with about `hertz` oscillations per second."""
    knots = max(4, int(SECONDS * hertz * 2) + 2)
    return np.interp(np.linspace(0, knots - 1, SAMPLES), np.arange(knots), rng.uniform(-1, 1, knots))


def _tone(rng: Rng, pitch: Wave, tilt: float) -> Wave:
    """A harmonic tone along the contour `pitch` in Hz: one period, band-limited, read at the running phase."""
    harmonics = int(np.clip(7500 / pitch.max(), 1, 80))
    spectrum = np.zeros(1025, dtype=complex)
    strength = np.arange(1, harmonics + 1) ** -tilt * rng.uniform(0.4, 1, harmonics)
    spectrum[1 : harmonics + 1] = strength * np.exp(2j * np.pi * rng.random(harmonics))
    period: Wave = fft.irfft(spectrum)
    phase = np.cumsum(pitch) / RATE % 1
    return np.interp(phase * len(period), np.arange(len(period)), period, period=len(period))


def _voice(rng: Rng, pitch: Wave, formants: Sequence[tuple[float, float, float]], breath: float) -> Wave:
    """A voice: a tone and breath noise, filtered by formants given as (Hz, width in Hz, gain)."""
    n = len(pitch)
    source = _tone(rng, pitch, 1.0)
    source = source / (np.sqrt(np.mean(source**2)) + 1e-12) + breath * _noise(rng, n, 200, 7500, 0.3)
    size = fft.next_fast_len(n, real=True)
    hertz = fft.rfftfreq(size, 1 / RATE)
    gain = 0.08 + sum(level / (1 + ((hertz - centre) / width) ** 2) for centre, width, level in formants)
    wave: Wave = fft.irfft(fft.rfft(source, size) * gain, size)[:n]
    return wave


def _impacts(rng: Rng, rate: float, hertz: float, decay: float, spread: float) -> Wave:
    """Random clicks, `rate` per second, that ring at about `hertz` and decay with the time constant `decay` in seconds.

    `spread` is the standard deviation of their log amplitude.
    """
    n = int(RATE * 8 * decay) + 16
    time = np.arange(n) / RATE
    wave = np.zeros(SAMPLES)
    for _ in range(3):
        count = rng.poisson(rate * SECONDS / 3) + 1
        train = np.zeros(SAMPLES)
        np.add.at(train, rng.integers(0, SAMPLES, count), np.exp(spread * rng.standard_normal(count)))
        ring = np.sin(2 * np.pi * hertz * rng.uniform(0.5, 2) * time) + 0.7 * rng.standard_normal(n)
        wave += scipy.signal.oaconvolve(train, ring * np.exp(-time / decay))[:SAMPLES]
    return wave


def _decay(n: int, attack: float, decay: float) -> Wave:
    """An envelope that rises within `attack` seconds and then decays with the time constant `decay`."""
    time = np.arange(n) / RATE
    return np.minimum(1, time / attack) * np.exp(-np.maximum(0, time - attack) / decay)


def _swell(n: int, attack: float, release: float) -> Wave:
    """An envelope with ramps of `attack` and `release` seconds at its ends."""
    time = np.arange(n) / RATE
    return np.minimum(1, np.minimum(time / attack, (n / RATE - time) / release))


def _placed(events: Iterable[tuple[float, Wave]]) -> Wave:
    """Mix events, each given with its start in seconds, into one clip."""
    clip = np.zeros(SAMPLES)
    for time, event in events:
        start = max(0, int(time * RATE))
        part = event[: max(0, SAMPLES - start)]
        clip[start : start + len(part)] += part
    return clip


def _room(rng: Rng, clip: Wave) -> Wave:
    """Add reverberation: from a dry room to a large hall."""
    time = np.arange(int(0.6 * RATE)) / RATE
    echoes = rng.standard_normal(len(time)) * np.exp(-time / rng.uniform(0.02, 0.18))
    tail = scipy.signal.oaconvolve(clip, echoes / np.sqrt((echoes**2).sum()))[: len(clip)]
    wet: Wave = clip + rng.uniform(0, 0.6) * tail
    return wet


def _microphone(rng: Rng, clip: Wave) -> Wave:
    """Apply a microphone's frequency response: a band-pass with a random colouring."""
    hertz = fft.rfftfreq(len(clip), 1 / RATE)
    octaves = np.log2(np.maximum(hertz, 20) / 1000)
    bumps = np.interp(octaves, np.linspace(-6, 3, 7), rng.normal(0, 3, 7))
    low, high = rng.uniform(20, 250), rng.uniform(2500, 8000)
    gain = 10 ** ((bumps + rng.normal(0, 1.5) * octaves) / 20)
    gain /= (1 + (low / np.maximum(hertz, 1)) ** 4) * (1 + (hertz / high) ** 6)
    wave: Wave = fft.irfft(fft.rfft(clip) * gain, len(clip))
    return wave
