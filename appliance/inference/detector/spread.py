"""The spread branch: does a channel shake, ring or flicker more than it used to, or less?

A look takes the newest rows of a channel, as z-scores of its learning period, and the logarithms of their energy in a
few octaves (differences of neighbours, of pairs, of fours), so that rows of any rate are looked at alike. What counts
is how far they are from where they were, in this look and in the fading mean of the last ones, which sees small changes
that stay. Octaves and channels are pooled by a 4-norm.
"""

from typing import NamedTuple

import numpy as np

from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.level import LIMIT, column_sums, pool

WINDOW = 32  # rows of a look
STRIDE = 32  # rows between two looks: each row is in one
OCTAVES = 3
FEWEST = 120  # rows to learn from
FADE = 0.15  # weight of the newest look in the fading mean
MEMORY = FADE / (2.0 - FADE)  # share of the variance of looks that the fading mean of independent ones has
FLOOR = 0.01  # energy, in variances of the learning period: what is below it is silence
SMALLEST = 0.125  # how much a logarithm wanders at least: 1 / sqrt(2 * WINDOW)
SECOND = 2  # the pooled deviation that counts as 1 is the second largest of the learning period
FEWEST_UNITS = 2.4  # and at least so many units: a short learning period has seen few looks
MARGIN = 3.0  # so many times that weighs as much as a level score at its threshold
PIECE = 1 << 20  # samples that are learned from at once


class Lesson(NamedTuple):
    """What a learning period taught. Arrays are [OCTAVES, channels]."""

    centre: Floats
    fast: Floats  # weight of one look's deviation; 0 where the channel never moved
    slow: Floats  # weight of the fading mean of deviations
    fading: Floats  # that mean at the end of the learning period
    reach: Floats  # [channels] the channel's own deviation that counts as 1
    level: float  # the pooled deviation that counts as 1; 0: nothing could be learned


def octaves(samples: Floats, centre: Floats, scale: Floats) -> Floats:
    """[OCTAVES, n] half logarithms of energy, of `samples` [WINDOW, n], raw values."""
    part = np.clip((samples - centre) * scale, -LIMIT, LIMIT)
    found = np.empty((OCTAVES, part.shape[1]))
    for octave in range(OCTAVES):
        change = (part[0::2] - part[1::2]) * np.sqrt(0.5)
        part = (part[0::2] + part[1::2]) * np.sqrt(0.5)
        found[octave] = column_sums(np.square(change)) / len(change)
    half: Floats = 0.5 * np.log(found + FLOOR)
    return half


def fade(fading: Floats, deviation: Floats) -> Floats:
    """The fading mean after one more look."""
    return fading + FADE * (deviation - fading)


def weigh(deviation: Floats, fading: Floats, fast: Floats, slow: Floats) -> Floats:
    """[..., n]: of each channel, from arrays [..., OCTAVES, n]."""
    both = np.concatenate([np.abs(deviation) * fast, np.abs(fading) * slow], axis=-2)
    pooled: Floats = np.sqrt(np.sqrt(np.square(np.square(both)).sum(axis=-2)))
    return pooled


def learn(samples: Floats, rows: int, centre: Floats, scale: Floats) -> Lesson:
    """From `samples` [n, channels], the newest of the asset's first `rows` rows."""
    count, channels = samples.shape
    if count < FEWEST:
        nothing = np.zeros((OCTAVES, channels))
        return Lesson(nothing, nothing, nothing, nothing, np.zeros(channels), 0.0)
    step = min(8 * -(-count // 4096), STRIDE)
    looks = _looks(samples, np.arange(count, WINDOW - 1, -step)[::-1], centre, scale)
    middle = looks.mean(axis=0)
    wander = np.maximum(looks.std(axis=0), SMALLEST)
    faded = _faded(looks - middle, STRIDE // step)
    steady = np.sqrt(np.square(faded[len(faded) // 3 :]).mean(axis=0))
    moved = scale > 0.0
    fast = np.where(moved, 1.0 / wander, 0.0)
    slow = np.where(moved, 1.0 / np.maximum(np.sqrt(MEMORY) * wander, steady), 0.0)
    ends = np.arange(-(-(rows - count + WINDOW) // STRIDE) * STRIDE, rows + 1, STRIDE) - (rows - count)
    deviations = _looks(samples, ends, centre, scale) - middle
    fading = _faded(deviations, 1)
    weighed = weigh(deviations, fading, fast, slow)
    reach = np.maximum(_second(weighed), FEWEST_UNITS)
    return Lesson(middle, fast, slow, fading[-1], reach, max(float(_second(pool(weighed))), FEWEST_UNITS))


def _looks(samples: Floats, ends: Integers, centre: Floats, scale: Floats) -> Floats:
    """[looks, OCTAVES, channels], of the rows before `ends`."""
    channels = samples.shape[1]
    piece = max(1, PIECE // (WINDOW * channels))
    found = []
    for start in range(0, len(ends), piece):
        chosen = ends[start : start + piece]
        rows = np.arange(-WINDOW, 0)[:, None] + chosen
        windows = samples[rows].reshape(WINDOW, -1)
        bands = octaves(windows, np.tile(centre, len(chosen)), np.tile(scale, len(chosen)))
        found.append(bands.reshape(OCTAVES, len(chosen), channels).transpose(1, 0, 2))
    return np.concatenate(found)


def _faded(deviations: Floats, lag: int) -> Floats:
    """The fading means of looks of which each `lag`-th is `STRIDE` rows after another."""
    faded = np.zeros_like(deviations)
    for place, deviation in enumerate(deviations):
        before = faded[place - lag] if place >= lag else np.zeros_like(deviation)
        faded[place] = fade(before, deviation)
    return faded


def _second(weighed: Floats) -> Floats:
    place = min(SECOND, len(weighed))
    return np.asarray(np.partition(weighed, -place, axis=0)[-place])
