"""What a look at a channel's newest rows gives, against what looks gave while the asset learned.

A look is a few numbers a channel, its features: logarithms of energy. What counts is how far they are from where they
were, in this look and in the fading mean of the last ones, which sees small changes that stay. Features and channels
are pooled by a 4-norm.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.level import pool

STRIDE = 32  # rows between two looks
FADE = 0.15  # weight of the newest look in the fading mean
MEMORY = FADE / (2.0 - FADE)  # share of the variance of looks that the fading mean of independent ones has
SMALLEST = 0.125  # how much a logarithm wanders at least: 1 / sqrt(2 * STRIDE)
SECOND = 2  # the pooled deviation that counts as 1 is the second largest of the learning period
FEWEST_UNITS = 2.4  # and at least so many units: a short learning period has seen few looks
KURTOSIS = 3.0  # and what many independent channels give when pooled
DENSE = 8  # rows between two looks to learn from, as long as they are not too many
MOST = 4096  # rows for which that is so
PIECE = 1 << 20  # samples that are learned from at once


class Lesson(NamedTuple):
    """What a learning period taught. Arrays are [features, channels]."""

    centre: Floats
    fast: Floats  # weight of one look's deviation; 0 where the channel never moved
    slow: Floats  # weight of the fading mean of deviations
    fading: Floats  # that mean at the end of the learning period
    reach: Floats  # [channels] the channel's own deviation that counts as 1
    level: float  # the pooled deviation that counts as 1; 0: nothing could be learned


class Ends(NamedTuple):
    """Rows of a learning period after which to look."""

    dense: Integers
    lag: int  # so many dense looks are a stride
    true: Integers  # as they are in operation: multiples of the stride since the asset's first row


def nothing(features: int, channels: int) -> Lesson:
    none = np.zeros((features, channels))
    return Lesson(none, none, none, none, np.zeros(channels), 0.0)


def ends(count: int, rows: int, window: int) -> Ends:
    """Of the last `count` of `rows` rows; a look needs `window` of them."""
    step = min(DENSE * -(-count // MOST), STRIDE)
    first = -(-(rows - count + window) // STRIDE) * STRIDE
    return Ends(
        np.arange(count, window - 1, -step)[::-1],
        max(STRIDE // step, 1),
        np.arange(first, rows + 1, STRIDE) - (rows - count),
    )


def windows(samples: Floats, after: Integers, window: int) -> Iterator[tuple[int, Floats]]:
    """Pieces of a size that memory holds: how many looks, and their rows [window, looks * channels]."""
    piece = max(1, PIECE // (window * samples.shape[1]))
    for start in range(0, len(after), piece):
        chosen = after[start : start + piece]
        yield len(chosen), samples[np.arange(-window, 0)[:, None] + chosen].reshape(window, -1)


def fade(fading: Floats, deviation: Floats) -> Floats:
    """The fading mean after one more look."""
    return fading + FADE * (deviation - fading)


def weigh(deviation: Floats, fading: Floats, fast: Floats, slow: Floats) -> Floats:
    """[..., n]: of each channel, from arrays [..., features, n]."""
    both = np.concatenate([np.abs(deviation) * fast, np.abs(fading) * slow], axis=-2)
    pooled: Floats = np.sqrt(np.sqrt(np.square(np.square(both)).sum(axis=-2)))
    return pooled


def learn(dense: Floats, lag: int, true: Floats, moved: NDArray[np.bool_], fades: bool = True) -> Lesson:
    """From features [looks, features, channels] after `Ends.dense` and `Ends.true` of the rows. `fades`: the fading
    mean counts, too."""
    centre = dense.mean(axis=0)
    wander = np.maximum(dense.std(axis=0), SMALLEST)
    faded = _faded(dense - centre, lag)
    steady = np.sqrt(np.square(faded[len(faded) // 3 :]).mean(axis=0))
    fast = np.where(moved, 1.0 / wander, 0.0)
    slow = np.where(moved & fades, 1.0 / np.maximum(np.sqrt(MEMORY) * wander, steady), 0.0)
    deviations = true - centre
    fading = _faded(deviations, 1)
    weighed = weigh(deviations, fading, fast, slow)
    reach = np.maximum(_second(weighed), FEWEST_UNITS)
    fewest = max(FEWEST_UNITS, (KURTOSIS * (1 + fades) * len(centre) * np.count_nonzero(moved)) ** 0.25)
    return Lesson(centre, fast, slow, fading[-1], reach, max(float(_second(pool(weighed))), fewest))


def _faded(deviations: Floats, lag: int) -> Floats:
    """The fading means of looks of which each `lag`-th is a stride after another."""
    faded = np.zeros_like(deviations)
    for place, deviation in enumerate(deviations):
        before = faded[place - lag] if place >= lag else np.zeros_like(deviation)
        faded[place] = fade(before, deviation)
    return faded


def _second(weighed: Floats) -> Floats:
    place = min(SECOND, len(weighed))
    return np.asarray(np.partition(weighed, -place, axis=0)[-place])
