"""Machines with a week: alarms in each of the first four, and whether a fault at the fifth weekend is found."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.events.schema import Reading, Score
from appliance.inference.detector.detector import Detector
from tools.evaluation import figures
from tools.evaluation.judge import Bench

Floats = NDArray[np.float64]
Running = Callable[[Floats, Floats], NDArray[np.bool_]]

SECOND = 1_000_000_000
HOUR, DAY, WEEK = 3600.0, 86_400.0, 604_800.0
START = 1_699_833_600 * SECOND  # a Monday
BEGIN_S = 1.3 * DAY  # a Tuesday morning
WEEKS = 4
FAULT_S = (WEEKS * WEEK + 5.0 * DAY + 10.0 * HOUR, 12.0 * HOUR)  # a Saturday, and for how long
FAULTS = {"between its states": (0, 25.0), "beyond them": (2, 1.0)}  # channel, and how far it is away

KINDS: dict[str, Running] = {
    "day and night, 5 days": lambda day, hour: day < 5,
    "two shifts, 5 days": lambda day, hour: (day < 5) & (hour >= 6) & (hour < 22),
    "one shift, 5 days": lambda day, hour: (day < 5) & (hour >= 7) & (hour < 16),
    "day and night, 6 days": lambda day, hour: day < 6,
}


def judge(bench: Bench, running: Running, step_s: float) -> dict[str, Any]:
    detector = Detector(bench.settings(400), bench.model)
    times = np.arange(BEGIN_S, WEEKS * WEEK, step_s)
    scores = _feed(detector, times, _samples(running, times, 1))
    begins = figures.begins(score.alarm for score in scores)
    week = [int((score.at - START) / SECOND // WEEK) for score in scores]
    counts = [sum(begun for begun, number in zip(begins, week, strict=True) if number == each) for each in range(WEEKS)]
    learned = detector.snapshot()
    found = {name: _found(bench, learned, running, step_s, *fault) for name, fault in FAULTS.items()}
    return {"alarms, weeks 1 to 4": " ".join(map(str, counts))} | {
        f"fault {name}, found after h": hours for name, hours in found.items()
    }


def _found(bench: Bench, learned: bytes, running: Running, step_s: float, channel: int, away: float) -> str:
    detector = Detector(bench.settings(400), bench.model)
    detector.restore(learned)
    times = np.arange(WEEKS * WEEK, (WEEKS + 1) * WEEK, step_s)
    samples = _samples(running, times, 2)
    begin, length = FAULT_S
    samples[(times >= begin) & (times < begin + length), channel] += away
    scores = _feed(detector, times, samples)
    alarmed = [
        hours for score in scores if score.alarm and 0.0 <= (hours := _hours_since(score, begin)) < length / HOUR
    ]
    return f"{alarmed[0]:.1f}" if alarmed else "not"


def _hours_since(score: Score, moment_s: float) -> float:
    return ((score.at - START) / SECOND - moment_s) / HOUR


def _samples(running: Running, times: Floats, seed: int) -> Floats:
    """Power, a temperature that follows it within hours and the hour of the day, pressure and a vibration; shifts begin
    and end some minutes early or late."""
    random = np.random.default_rng(seed)
    early = random.normal(0.0, 0.15, 7 * (WEEKS + 1))[(times // DAY).astype(np.int64)]
    load = np.where(running(times // DAY % 7, times % DAY / HOUR - early), 1.0, 0.05)
    warm, follow = np.empty(len(times)), np.exp(-(times[1] - times[0]) / HOUR)
    warmth = load[0]
    for place, now in enumerate(load):
        warm[place] = warmth = follow * warmth + (1.0 - follow) * now
    noise = random.normal(size=(len(times), 4))
    outside = 3.0 * np.sin(2.0 * np.pi * (times % DAY / HOUR - 9.0) / 24.0)
    means = np.stack([40.0 * load, 20.0 + 35.0 * warm + outside, 6.0 - 1.5 * load, 4.5 * load], axis=1)
    spreads = np.stack([0.3 + 1.2 * load, 0.3 + 0.0 * load, 0.05 + 0.0 * load, 0.05 + 0.3 * load], axis=1)
    samples: Floats = means + spreads * noise
    return samples


def _feed(detector: Detector, times: Floats, samples: Floats) -> list[Score]:
    judged = []
    for row, (at, values) in enumerate(zip(times.tolist(), samples.tolist(), strict=True)):
        detector.push("plant", Reading(START + round(at * SECOND), dict(zip("abcd", values, strict=True))))
        if row % 256 == 0:
            judged += detector.judge()
    return [one.score for one in judged + detector.judge()]
