"""Readings that come faster or slower than those that were learned from, in bursts, late or unpunctually."""

import contextlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.errors import EventError
from appliance.events.schema import Reading, Score
from appliance.inference.detector.detector import Detector, DetectorSettings

Floats = NDArray[np.float64]
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
LEARNED_S = 600.0


class Machine:
    """Signals of continuous time: a swing, slow noise, and white noise of the sensor's."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.period_s, self.phase = float(random.uniform(8.0, 40.0)), random.random()
        # A sum of many swings is as good as noise, and has a value at any time.
        self.rates = 1.0 / np.exp(random.uniform(np.log(15.0), np.log(150.0), 60))
        self.phases = random.random(60)
        self.random = random

    def at(self, times_s: Floats) -> Floats:
        swing = np.sin(2.0 * np.pi * (times_s / self.period_s + self.phase))
        slow = np.sin(2.0 * np.pi * (times_s[:, None] * self.rates + self.phases)).sum(axis=1) / np.sqrt(30.0)
        noise = self.random.normal(size=(len(times_s), 3))
        return np.stack([swing + 0.05 * noise[:, 0], slow + 0.05 * noise[:, 1], noise[:, 2]], axis=1)


def push(detector: Detector, times_s: Floats, samples: Floats) -> list[Score]:
    for at, values in zip(times_s.tolist(), samples.tolist(), strict=True):
        detector.push("a", Reading(START + round(at * SECOND), dict(zip("xyz", values, strict=True))))
    return [judged.score for judged in detector.judge()]


def learned(machine: Machine) -> Detector:
    detector = Detector(DetectorSettings())
    times_s = np.arange(0.0, LEARNED_S)
    push(detector, times_s, machine.at(times_s))
    return detector


def begins(scores: list[Score]) -> int:
    return sum(now.alarm and not before.alarm for before, now in pairwise(scores))


def usual(seed: int, rows: int) -> int:
    """Alarms of the same machine at the pace that was learned: a short learning period has some, whatever the pace."""
    machine = Machine(seed)
    times_s = every(1.0, rows)
    return begins(push(learned(machine), times_s, machine.at(times_s)))


def every(step_s: float, rows: int) -> Floats:
    return LEARNED_S + step_s * np.arange(1, rows + 1)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), step_s=st.sampled_from([0.02, 0.1, 0.25, 0.5]))
def test_a_sensor_that_became_faster_is_thinned(seed: int, step_s: float) -> None:
    """As many judgements as before, no more alarms than before, and a fault is found no later."""
    machine = Machine(seed)
    detector = learned(machine)
    times_s = every(step_s, round(600 / step_s))
    scores = push(detector, times_s, machine.at(times_s))
    assert 500 <= len(scores) <= 640
    assert begins(scores) <= usual(seed, 600) + 1
    assert detector.describe()["pace"] == {"thinned": {"count": 1, "assets": [{"asset": "a", "learned_s": 1.0}]}}
    after_s = times_s[-1] + step_s * np.arange(1, round(60 / step_s))
    assert push(detector, after_s, machine.at(after_s) + 8.0)[-1].alarm


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), step_s=st.sampled_from([0.6, 1.5, 3.0, 10.0, 60.0, 600.0]))
def test_another_pace_that_cannot_be_thinned_is_learned(seed: int, step_s: float) -> None:
    machine = Machine(seed)
    detector = learned(machine)
    begin = every(step_s, 100)
    scores = push(detector, begin, machine.at(begin))
    assert "learning" in detector.describe()["pace"]
    shifted = begin[-1] + step_s * np.arange(1, 40)
    fault = push(detector, shifted, machine.at(shifted) + np.array([0.0, 0.0, 8.0]))
    assert fault[-1].alarm
    rest = shifted[-1] + step_s * np.arange(1, 1500)
    scores += push(detector, rest, machine.at(rest))[330:]
    assert begins(scores) <= usual(seed, 1300) + 1
    assert "pace" not in detector.describe()
    late = rest[-1] + step_s * np.arange(1, 40)
    assert push(detector, late, machine.at(late) + np.array([8.0, 0.0, 0.0]))[-1].alarm


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_change_of_noise_is_seen_at_another_pace(factor: float) -> None:
    """Noise has no pace: while the others learn, what it does still counts."""
    machine = Machine(1)
    detector = learned(machine)
    begin = every(10.0, 60)
    assert not any(score.alarm for score in push(detector, begin, machine.at(begin)))
    loud = begin[-1] + 10.0 * np.arange(1, 130)
    samples = machine.at(loud)
    samples[:, 2] *= factor
    scores = push(detector, loud, samples)
    assert scores[-1].alarm
    assert {score.cause for score in scores if score.alarm} == {"z"}


def test_back_at_the_learned_pace_nothing_is_thinned() -> None:
    machine = Machine(2)
    detector = learned(machine)
    fast = every(0.1, 1000)
    push(detector, fast, machine.at(fast))
    slow = fast[-1] + np.arange(1.0, 101.0)
    scores = push(detector, slow, machine.at(slow))
    assert len(scores) >= 80
    assert "pace" not in detector.describe()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), jitter_s=st.sampled_from([0.05, 0.2, 0.45]))
def test_jitter_is_no_other_pace(seed: int, jitter_s: float) -> None:
    machine = Machine(seed)
    detector = learned(machine)
    times_s = every(1.0, 1200)
    times_s += np.random.default_rng(seed).uniform(-jitter_s, jitter_s, len(times_s))
    scores = push(detector, times_s, machine.at(times_s))
    assert begins(scores) <= usual(seed, 1200) + 1
    assert len(scores) >= 1100
    assert "pace" not in detector.describe()


def arrivals(arrive: Callable[[int], float], rows: int) -> tuple[Floats, Floats]:
    """When each reading was taken, and when it came."""
    taken = every(1.0, rows)
    return taken, np.array([arrive(row) for row in range(rows)]) + LEARNED_S + 1.0


@pytest.mark.parametrize("each", [60, 300])
def test_bursts_by_their_arrival_are_judged_row_by_row(each: int) -> None:
    """A gateway that keeps readings and sends them together, without times."""
    machine = Machine(3)
    detector = learned(machine)
    taken, came = arrivals(lambda row: (row // each + 1) * each + row % each * 1e-6, 20 * each)
    scores = push(detector, came, machine.at(taken))
    assert begins(scores) <= 1
    assert len(push(detector, came[-each:] + each, machine.at(taken[-each:] + each))) == each
    assert push(detector, came[-each:] + 2 * each, machine.at(taken[-each:] + 2 * each) + 8.0)[-1].alarm


def test_what_an_outage_held_back_raises_no_alarm() -> None:
    """It comes in one go; what is live goes on as ever."""
    machine = Machine(4)
    detector = learned(machine)
    taken, came = arrivals(lambda row: max(row, 700 + row * 1e-6), 1200)
    scores = push(detector, came, machine.at(taken))
    assert not any(score.alarm for score in scores)
    assert scores[-1].at == START + round(came[-1] * SECOND)
    assert "pace" not in detector.describe()


@pytest.mark.parametrize("together", [20, 50])
def test_old_readings_among_live_ones_raise_no_alarm(together: int) -> None:
    """A gateway tells its backlog while it goes on: what is older than the last reading is refused, or taken for a
    clock that was set; afterwards all is as before."""
    machine = Machine(5)
    detector = learned(machine)
    backlog, scores = every(1.0, 600), []
    for minute in range(12):
        live = LEARNED_S + 600.0 + np.array([float(minute + 1)])
        old = backlog[minute * together : (minute + 1) * together]
        for at, values in zip([*live, *old], machine.at(np.concatenate([live, old])).tolist(), strict=True):
            with contextlib.suppress(EventError):
                detector.push("a", Reading(START + round(at * SECOND), dict(zip("xyz", values, strict=True))))
    after = LEARNED_S + 613.0 + np.arange(300.0)
    scores = push(detector, after, machine.at(after))
    assert not any(score.alarm for score in scores)
    assert len(scores) >= 250
    assert "pace" not in detector.describe()


def test_a_machine_that_never_had_a_pace_is_taken_row_by_row() -> None:
    """Learned from readings that came as fast as they could, told once in 2 s since."""
    random, detector = np.random.default_rng(6), Detector(DetectorSettings())
    came = np.cumsum(np.where(np.arange(400) % 50 == 0, 0.02, 1e-6))
    push(detector, came, random.normal(size=(400, 3)))
    times_s = came[-1] + 2.0 * np.arange(1, 301)
    scores = push(detector, times_s, random.normal(size=(300, 3)))
    assert len(scores) >= 200
    assert not any(score.alarm for score in scores)
    loud = times_s[-1] + 2.0 * np.arange(1, 100)
    assert push(detector, loud, random.normal(size=(99, 3)) * 4.0)[-1].alarm
