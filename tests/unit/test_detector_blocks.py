"""Waveforms before the detector: a bearing that begins to ring, whatever its unit, rate or name."""

from array import array

import numpy as np
import pytest

from appliance.errors import EventError
from appliance.events.schema import Block, Score
from appliance.inference.detector.detector import Detector, DetectorSettings

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
RATE, SAMPLES = 10_000.0, 1000


def judged(ring: float, factor: float = 1.0, name: str = "x", blocks: int = 480, begin: int = 440) -> list[Score]:
    """One block a second; from `begin` on a tone of 3 kHz rings along."""
    random, detector = np.random.default_rng(1), Detector(DetectorSettings())
    time = np.arange(SAMPLES) / RATE
    for number in range(blocks):
        wave = random.normal(size=SAMPLES) + np.sin(2 * np.pi * 120 * time)
        if number >= begin:
            wave += ring * np.sin(2 * np.pi * 3000 * time)
        values = {name: array("f", (wave * factor).astype(np.float32).tolist())}
        detector.push_block("line1/fan", Block(START + number * SECOND, RATE, values))
    return [found.score for found in detector.judge()]


def test_a_tone_in_the_noise_is_an_alarm_that_names_its_octave() -> None:
    alarmed = [score for score in judged(ring=1.0) if score.alarm]
    assert START + 440 * SECOND <= alarmed[0].at <= START + 466 * SECOND
    assert {score.cause for score in alarmed} == {"x.octave1"}


def test_without_it_there_is_none() -> None:
    assert not any(score.alarm for score in judged(ring=0.0))


def test_units_and_names_change_nothing() -> None:
    one, other = judged(ring=0.4), judged(ring=0.4, factor=-(2.0**-20), name="acceleration of another")
    assert [score.alarm for score in one] == [score.alarm for score in other]
    assert [score.score for score in other] == pytest.approx([score.score for score in one], rel=1e-4, abs=1e-4)


def test_a_block_that_is_too_short_is_refused_and_a_silent_one_is_not() -> None:
    detector = Detector(DetectorSettings())
    with pytest.raises(EventError, match="31 samples") as refused:
        detector.push_block("a", Block(START, RATE, {"x": array("f", [0.0] * 31)}))
    assert refused.value.reason == "short-block"
    detector.push_block("a", Block(START, RATE, {"x": array("f", [0.0] * 32)}))
    assert detector.assets()[0].rows == 1
    assert len(detector.assets()[0].channels) == 6
