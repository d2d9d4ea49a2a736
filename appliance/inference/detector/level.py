"""The level branch: how far the short mean of each channel has gone from where it used to be.

A channel's unit is how much that mean wandered while it learned: its own spread (at least what the channel's noise
explains) and its change over many rows, so that what is slow by nature is allowed to go on. Slow channels count less.
Channels are pooled by a 4-norm, so any number of them, in any unit, gives one score.

A channel that never moved has no unit. When it moves it counts by the share of the window for which it is away.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.inference.detector.arena import Floats

WINDOW = 20  # rows of the short mean
LAG = 150  # rows
SLOW = 3.0  # discount: 1 / (1 + SLOW * share of a channel's variance that is in its short mean)
RANK = 100  # the score that counts as 1 is exceeded by one in so many of the learning period
FEWEST_UNITS = 2.4  # standard deviations of one channel's mean: less than that is luck in a short learning period
FIXED = 4.0  # a channel that never moved, away for a whole window, scores so much
LONG = 800  # rows of a learning period in which an excursion may be left out
FAR = 2.5  # standard deviations of a channel's short mean
MOST_FAR = 0.1  # of the rows
EXCURSIONS = 2  # at most; what happened more often is a habit
ROUNDS = 3
LIMIT = 1e6  # a channel's deviation is at most this, in its units
# Below this share of its offset a channel's movement is the rounding of floating point numbers.
ROUNDING = 1e-13
JITTER = 1e-9
TINY = 1e-290  # the smallest movement whose inverse can be computed with
HUGE = 0.5 * np.finfo(np.float64).max


class Lesson(NamedTuple):
    """What a learning period taught. Arrays are [channels]."""

    centre: Floats
    weight: Floats  # 0 where the channel never moved
    reach: Floats  # the channel's own deviation that counts as 1
    level: float  # the pooled deviation that counts as 1
    scale: Floats  # 1 / standard deviation, 0 where the channel never moved


def learn(samples: Floats) -> Lesson:
    """From `samples` [rows, channels], at least WINDOW + 2 rows, any finite values."""
    offset, peak, unit = _units(samples)
    unit = unit[_ordinary(unit)]
    means = rolling_mean(unit)
    centre = means.mean(axis=0)
    deviation, wander = unit.std(axis=0), means.std(axis=0)
    lag = min(LAG, len(means) // 2)
    change = np.sqrt(np.square(means[lag:] - means[:-lag]).mean(axis=0))
    moved = peak > 0.0
    spread = np.where(moved, np.hypot(np.maximum(wander, deviation / np.sqrt(WINDOW)), change), 1.0)
    slow = np.minimum(np.square(wander / np.where(moved, deviation, 1.0)), 1.0)
    weight = np.where(moved, 1.0 / spread / (1.0 + SLOW * slow), 0.0)
    scores = np.abs(means - centre) * weight
    fewest = FEWEST_UNITS * np.maximum(wander, deviation / np.sqrt(WINDOW)) * weight
    return Lesson(
        centre=np.where(moved, 2.0 * np.clip(offset * 0.5 + centre * peak, -HUGE, HUGE), offset),
        weight=_per_raw_unit(weight, peak),
        reach=np.maximum(ranked(scores), fewest),
        level=max(float(ranked(pool(scores))), float(fewest.max())) or 1.0,
        scale=_per_raw_unit(np.where(moved, 1.0 / np.where(moved, deviation, 1.0), 0.0), peak),
    )


def _ordinary(unit: Floats) -> NDArray[np.bool_]:
    """The rows of a long learning period without what hardly ever happened in it: an excursion far beyond the rest,
    which would be the measure of all that comes."""
    kept = np.ones(len(unit), bool)
    if len(unit) < LONG:
        return kept
    means = rolling_mean(unit)
    for _ in range(ROUNDS):
        inside = kept[WINDOW - 1 :]
        centre, wander = means[inside].mean(axis=0), means[inside].std(axis=0)
        far = (np.abs(means - centre) > FAR * wander) & (wander > 0.0)
        again = _without(np.flatnonzero(far.any(axis=1)), len(unit))
        if again is None or (unit[again].max(axis=0) == unit[again].min(axis=0))[wander > 0.0].any():
            break
        if (again == kept).all():
            break
        kept = again
    return kept


def _without(far: NDArray[np.int64], rows: int) -> NDArray[np.bool_] | None:
    """The rows outside of the windows that begin at `far`; None where these are too many, or too often."""
    kept = np.ones(rows, bool)
    apart = np.flatnonzero(np.diff(far) > LAG)
    if len(apart) >= EXCURSIONS and far.size:
        return None
    for first in far.tolist():
        kept[first : first + WINDOW] = False
    return kept if np.count_nonzero(~kept) <= MOST_FAR * rows else None


def deviations(window: Floats, low: Floats, high: Floats, weight: Floats, switch: Floats, active: Floats) -> Floats:
    """Of each channel from where it belongs: [channels], from `window` [WINDOW, channels], which is overwritten."""
    np.multiply(window, 1.0 / WINDOW, out=window)
    means = column_sums(window)
    away = np.subtract(means, high)
    np.maximum(away, np.subtract(low, means, out=means), out=away)
    np.maximum(away, 0.0, out=away)
    np.multiply(away, weight, out=away)
    np.fmin(away, LIMIT, out=away)  # NaN (an overflow times 0) becomes LIMIT, too
    fixed = np.flatnonzero(switch)
    if fixed.size:
        away[fixed] = switch[fixed] * _share_away(window.take(fixed, axis=1), low[fixed], high[fixed])
    np.multiply(away, active, out=away)
    return away


def column_sums(values: Floats) -> Floats:
    """Row after row, however many columns there are: numpy would add a lone column in another order."""
    sums: Floats = np.add.reduce(values, axis=0) if values.shape[1] > 1 else np.add.accumulate(values, axis=0)[-1]
    return sums


def pool(scores: Floats) -> Floats:
    """The 4-norm over the last axis."""
    pooled: Floats = np.sqrt(np.sqrt(np.square(np.square(scores)).sum(axis=-1)))
    return pooled


def ranked(scores: NDArray[np.floating]) -> Floats:
    """The score that one in RANK of the first axis exceeds, or equals."""
    count = len(scores)
    place = count - max(1, -(-count // RANK))
    return np.asarray(np.partition(scores, place, axis=0)[place], np.float64)


def rolling_mean(samples: Floats) -> Floats:
    """[rows - WINDOW + 1, channels]: of each WINDOW rows."""
    total = np.cumsum(samples, axis=0)
    total[WINDOW:] = total[WINDOW:] - total[:-WINDOW]
    means: Floats = total[WINDOW - 1 :] / WINDOW
    return means


def _units(samples: Floats) -> tuple[Floats, Floats, Floats]:
    """Offset and peak of each channel, and the samples as shares of half the peak's range: nothing overflows.

    `samples == 2 * (offset / 2 + peak * share)`; the peak of a channel that never moved is 0.
    """
    offset = samples[0]
    half = samples * 0.5 - offset * 0.5
    peak = np.abs(half).max(axis=0)
    peak = np.where((peak > ROUNDING * np.abs(offset)) & (peak > TINY), peak, 0.0)
    return offset, peak, half / np.where(peak > 0.0, peak, np.inf)


def _per_raw_unit(weight: Floats, peak: Floats) -> Floats:
    """A weight of shares as a weight of raw values."""
    return np.where(peak > 0.0, weight * (0.5 / np.where(peak > 0.0, peak, 1.0)), 0.0)


def _share_away(parts: Floats, low: Floats, high: Floats) -> Floats:
    """0 to 1: how much of the window a channel that never moved is away. `parts` are samples / WINDOW."""
    home = np.clip(parts, low / WINDOW, high / WINDOW)
    moved = parts - home
    moved[np.abs(moved) <= JITTER * np.abs(home)] = 0.0
    furthest = np.abs(moved).max(axis=0)
    mean = np.abs(column_sums(moved / WINDOW))
    return np.where(furthest > 0.0, mean / np.where(furthest > 0.0, furthest, 1.0), 0.0)
