"""Ordinary sensor signals, generated: what a pump, a tank, a room or a machine sends while nothing is wrong.

Every family returns `[count, length]` float64 and draws all its chances from the generator it is given, so that one
seed always makes the same signals. Windows of them are float32, as a detector sends them. Nothing here comes from a
recording.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from appliance.inference.detector.autoencoder import CLIP, balance

Signals = NDArray[np.float64]
Windows = NDArray[np.float32]
Family = Callable[[np.random.Generator, int, int], Signals]

LENGTH = 640  # samples of one signal; its mean and deviation are what a detector would learn as normal
TINY = 1e-9


def windows(seed: int, per_family: int, per_signal: int, width: int) -> dict[str, Windows]:
    """`per_family * per_signal` windows `[n, width]` of each family, cut at random from standardised signals."""
    rng = np.random.default_rng(seed)
    return {name: _cut(rng, standardise(make(rng, per_family, LENGTH)), per_signal, width) for name, make in FAMILIES}


def standardise(signals: Signals) -> Signals:
    """Each signal with mean 0 and deviation 1."""
    centred = signals - signals.mean(axis=1, keepdims=True)
    scaled: Signals = centred / np.maximum(centred.std(axis=1, keepdims=True), TINY)
    return scaled


def _cut(rng: np.random.Generator, signals: Signals, per_signal: int, width: int) -> Windows:
    count, length = signals.shape
    starts = rng.integers(0, length - width + 1, size=(count, per_signal))
    columns = starts[:, :, None] + np.arange(width)
    return as_sent(signals[np.arange(count)[:, None, None], columns].reshape(-1, width))


def as_sent(cut: Signals) -> Windows:
    """As a detector sends them: without their mean, bounded, upright."""
    bounded = np.clip(cut - cut.mean(axis=1, keepdims=True), -CLIP, CLIP)
    sign = np.where(bounded @ balance(cut.shape[1]) < 0.0, -1.0, 1.0)
    sent: Windows = (bounded * sign).astype(np.float32)
    return sent


def _span(rng: np.random.Generator, low: float, high: float, count: int) -> Signals:
    """A column of values spread evenly over the magnitudes from `low` to `high`."""
    return low * (high / low) ** rng.random((count, 1))


def coloured_noise(rng: np.random.Generator, count: int, length: int) -> Signals:
    """First-order noise, from white to slow."""
    memory = 1.0 - _span(rng, 0.01, 1.0, count)[:, 0]
    shocks = rng.standard_normal((count, length))
    signal = np.empty_like(shocks)
    level = shocks[:, 0] / np.sqrt(1.0 - memory**2)
    for step in range(length):
        level = memory * level + shocks[:, step]
        signal[:, step] = level
    return signal


def resonant_noise(rng: np.random.Generator, count: int, length: int) -> Signals:
    """Second-order noise: a structure that rings at its own frequency."""
    turn = 2.0 * np.pi / _span(rng, 5.0, 120.0, count)[:, 0]
    radius = 1.0 - _span(rng, 0.005, 0.2, count)[:, 0]
    shocks = rng.standard_normal((count, length + 64))
    signal = np.zeros_like(shocks)
    for step in range(2, length + 64):
        signal[:, step] = (
            2.0 * radius * np.cos(turn) * signal[:, step - 1] - radius**2 * signal[:, step - 2] + shocks[:, step]
        )
    return signal[:, 64:]


def drifting_sines(rng: np.random.Generator, count: int, length: int) -> Signals:
    """One to three sines whose frequency and strength wander, on a slope."""
    time = np.arange(length)
    signal = rng.normal(0.0, 0.5, (count, 1)) * (time / length) + _noise(rng, count, length, 0.02, 0.5)
    for rank in range(3):
        wander = np.cumsum(rng.standard_normal((count, length)), axis=1) * _span(rng, 1e-4, 1e-2, count)
        phase = 2.0 * np.pi * (time / _span(rng, 8.0, 400.0, count) + rng.random((count, 1))) + wander
        strength = rng.random((count, 1)) * (rng.random((count, 1)) < 1.0 / (1 + rank))
        signal += strength * (1.0 + rng.normal(0.0, 0.1, (count, 1)) * time / length) * np.sin(phase)
    return signal


def machine_cycles(rng: np.random.Generator, count: int, length: int) -> Signals:
    """Square, saw-like and trapezoid cycles with a jitter of their own."""
    jitter = np.cumsum(rng.standard_normal((count, length)), axis=1) * _span(rng, 1e-4, 3e-3, count)
    phase = (np.arange(length) / _span(rng, 16.0, 300.0, count) + rng.random((count, 1)) + jitter) % 1.0
    duty = 0.15 + 0.7 * rng.random((count, 1))
    edge = _span(rng, 0.01, 0.3, count)
    trapezoid = np.clip(phase / edge, 0.0, 1.0) - np.clip((phase - duty) / edge, 0.0, 1.0)
    saw = np.where(phase < duty, phase / duty, (1.0 - phase) / (1.0 - duty))
    shape = np.where(rng.random((count, 1)) < 0.5, trapezoid, saw)
    return shape + _noise(rng, count, length, 0.01, 0.3)


def random_walks(rng: np.random.Generator, count: int, length: int) -> Signals:
    """Levels that wander and are drawn back gently: temperatures, tanks, loads."""
    pull = 1.0 - _span(rng, 1e-3, 5e-2, count)[:, 0]
    shocks = rng.standard_normal((count, length))
    signal = np.empty_like(shocks)
    level = np.zeros(count)
    for step in range(length):
        level = pull * level + shocks[:, step]
        signal[:, step] = level
    return signal + _noise(rng, count, length, 0.01, 2.0)


def settling_loops(rng: np.random.Generator, count: int, length: int) -> Signals:
    """A controlled value that follows steps of its setpoint, overshoots and settles."""
    stiffness = (2.0 * np.pi / _span(rng, 12.0, 150.0, count)[:, 0]) ** 2
    damping = 2.0 * np.sqrt(stiffness) * _span(rng, 0.15, 1.5, count)[:, 0]
    steps = (rng.random((count, length)) < 1.0 / _span(rng, 40.0, 400.0, count)) * rng.standard_normal((count, length))
    target = np.cumsum(steps, axis=1)
    signal = np.empty((count, length))
    value, speed = target[:, 0].copy(), np.zeros(count)
    for step in range(length):
        speed += stiffness * (target[:, step] - value) - damping * speed
        value = value + speed
        signal[:, step] = value
    return signal + _noise(rng, count, length, 0.005, 0.2)


def coarse_readings(rng: np.random.Generator, count: int, length: int) -> Signals:
    """What a cheap sensor makes of a slow value: few steps, held for a while."""
    slow = standardise(random_walks(rng, count, length))
    step = _span(rng, 0.05, 0.8, count)
    return np.round(slow / step) * step + _noise(rng, count, length, 1e-3, 0.05)


def mixtures(rng: np.random.Generator, count: int, length: int) -> Signals:
    """Two families at once, in any proportion."""
    parts = [coloured_noise, drifting_sines, machine_cycles, random_walks, settling_loops]
    made = np.stack([standardise(make(rng, count, length)) for make in parts])
    first, second = rng.integers(0, len(parts), count), rng.integers(0, len(parts), count)
    share = rng.random((count, 1))
    rows = np.arange(count)
    return share * made[first, rows] + (1.0 - share) * made[second, rows]


def _noise(rng: np.random.Generator, count: int, length: int, low: float, high: float) -> Signals:
    return _span(rng, low, high, count) * rng.standard_normal((count, length))


FAMILIES: tuple[tuple[str, Family], ...] = (
    ("coloured_noise", coloured_noise),
    ("resonant_noise", resonant_noise),
    ("drifting_sines", drifting_sines),
    ("machine_cycles", machine_cycles),
    ("random_walks", random_walks),
    ("settling_loops", settling_loops),
    ("coarse_readings", coarse_readings),
    ("mixtures", mixtures),
)
