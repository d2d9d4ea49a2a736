"""Machines that are well, generated: noise of different memory, cycles, a machine that is switched on and off."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from appliance.events.schema import Reading
from appliance.inference.detector.detector import Detector
from tools.evaluation.judge import START, Bench

Rows = NDArray[np.float64]
Make = Callable[[np.random.Generator, int, int], Rows]

LEARN_ROWS = 400
CHANNELS = 4
SECOND = 1_000_000_000


def noise(memory: float) -> Make:
    """First-order noise."""

    def make(random: np.random.Generator, rows: int, channels: int) -> Rows:
        shocks = random.standard_normal((rows, channels))
        shocks[0] /= np.sqrt(1.0 - memory**2)
        for row in range(1, rows):
            shocks[row] += memory * shocks[row - 1]
        return shocks

    return make


def cycles(random: np.random.Generator, rows: int, channels: int) -> Rows:
    turn = 2.0 * np.pi * (np.arange(rows)[:, None] / random.uniform(10.0, 150.0, channels) + random.random(channels))
    waves: Rows = np.sin(turn) + 0.1 * random.standard_normal((rows, channels))
    return waves


def switched(random: np.random.Generator, rows: int, channels: int) -> Rows:
    """On and off, a minute each on average."""
    state = np.cumsum(random.random((rows, channels)) < 1.0 / 60.0, axis=0) % 2
    on_off: Rows = state + 0.05 * random.standard_normal((rows, channels))
    return on_off


KINDS: dict[str, Make] = {
    "white noise": noise(0.0),
    "noise, memory 0.9": noise(0.9),
    "noise, memory 0.99": noise(0.99),
    "cycles": cycles,
    "on and off": switched,
}


def alarms(bench: Bench, make: Make, assets: int, rows: int) -> list[list[bool]]:
    """Of each asset the rows after the learning period. All assets go through one detector, as on a box."""
    random = np.random.default_rng(11)
    streams = [make(random, LEARN_ROWS + rows, CHANNELS).tolist() for _ in range(assets)]
    detector = Detector(bench.settings(LEARN_ROWS), bench.model)
    found: list[list[bool]] = [[] for _ in range(assets)]
    for row in range(LEARN_ROWS + rows):
        for asset, stream in enumerate(streams):
            detector.push(str(asset), Reading(START + row * SECOND, dict(zip("abcd", stream[row], strict=True))))
        if row % 16 == 15:
            for name, score in detector.judge():
                if score.at >= START + LEARN_ROWS * SECOND:
                    found[int(name)].append(score.alarm)
    return found
