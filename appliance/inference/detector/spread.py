"""The spread branch: does a channel shake, ring or flicker more than it used to, or less?

A look takes the newest rows of a channel, in deviations of its learning period, and the logarithms of their energy in a
few octaves (differences of neighbours, of pairs, of fours), so that rows of any rate are looked at alike.
"""

import numpy as np

from appliance.inference.detector import looks
from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.level import LIMIT, column_sums

WINDOW = 32  # rows of a look: each row is in one
OCTAVES = 3  # features
MARGIN = 3.0  # a look of so many units weighs as much as a level score at its threshold
FEWEST = 120  # rows to learn from
FLOOR = 0.01  # energy, in variances of the learning period: what is below it is silence


def octaves(samples: Floats, scale: Floats) -> Floats:
    """[OCTAVES, n] half logarithms of energy, of `samples` [WINDOW, n], raw values, which are overwritten."""
    part = np.multiply(samples, scale, out=samples)
    found = np.empty((OCTAVES, part.shape[1]))
    for octave in range(1, OCTAVES + 1):
        even, odd = part[0::2], part[1::2]
        change = np.subtract(even, odd)
        part = even + odd if octave < OCTAVES else part
        np.multiply(change, change, out=change)
        found[octave - 1] = column_sums(change) / (len(change) * 2.0**octave)
    np.fmin(found, LIMIT, out=found)  # NaN (a difference of infinities) becomes LIMIT, too
    half: Floats = 0.5 * np.log(found + FLOOR)
    return half


def learn(samples: Floats, rows: int, scale: Floats) -> looks.Lesson:
    """From `samples` [n, channels], the newest of the asset's first `rows` rows."""
    count, channels = samples.shape
    if count < FEWEST:
        return looks.nothing(OCTAVES, channels)
    ends = looks.ends(count, rows, WINDOW)
    dense, true = (_features(samples, after, scale) for after in (ends.dense, ends.true))
    return looks.learn(dense, ends.lag, true, scale > 0.0)


def _features(samples: Floats, after: Integers, scale: Floats) -> Floats:
    """[looks, OCTAVES, channels]"""
    found = [
        octaves(rows, np.tile(scale, count)).reshape(OCTAVES, count, -1).transpose(1, 0, 2)
        for count, rows in looks.windows(samples, after, WINDOW)
    ]
    return np.concatenate(found)
