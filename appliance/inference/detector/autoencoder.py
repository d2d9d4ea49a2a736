"""The autoencoder branch: how badly a model of ordinary signals reconstructs each channel's last rows.

One model serves all channels of all assets: a channel is a row of its batch, as z-scores of its own learning period.
The residual is computed here, outside the model, so that a model in few bits loses nothing in the difference. Its half
logarithm is the feature of a look: what a model never could reconstruct (noise) is as ordinary as what it could. There
is no fading mean of it: what stays and is small is for the other branches to see.
"""

from typing import Protocol

import numpy as np

from appliance.errors import InferenceError
from appliance.inference.detector import looks
from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.level import LIMIT, column_sums
from appliance.inference.port import Tensor

CLIP = 8.0  # z-scores beyond it tell a reconstruction nothing
TAIL = 32  # the newest rows of a window whose residual counts: each row is in one
MARGIN = 5.0  # a look of so many units weighs as much as a level score at its threshold
FEWEST = 150  # rows beyond the first window to learn from
FLOOR = 0.01  # variances; a residual below it is the model's own error
BATCH = 4096  # windows given to the model at once
FIRST_REST, LONGEST_REST = 8, 1024  # calls for which a model that failed is left alone


def balance(rows: int) -> Floats:
    """[rows, 1] weights of a sum whose sign says which way is up: with equal ones, whole numbers often make it zero."""
    weights: Floats = np.sqrt(np.arange(1.0, rows + 1.0))[:, None]
    return weights


class Reconstructor(Protocol):
    """A model of ordinary signals on a device."""

    @property
    def window(self) -> int: ...  # rows

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def device(self) -> str: ...  # that computes now

    def __call__(self, windows: Tensor) -> Tensor:
        """[n, window] z-scores -> their reconstruction, of the same shape. InferenceError when no device can."""


class Shapes:
    """Residuals by a reconstructor. When its last device has failed, `trouble` says why, and it is tried again after
    some calls: twice as many after each failure in a row."""

    def __init__(self, reconstructor: Reconstructor | None) -> None:
        self.become(reconstructor)

    def become(self, reconstructor: Reconstructor | None) -> None:
        """Another model computes from the next call on."""
        self.reconstructor = reconstructor
        self.window = reconstructor.window if reconstructor else 0
        self.name, self.version = (reconstructor.name, reconstructor.version) if reconstructor else ("", "")
        self.trouble = ""
        self.failures = 0
        self._rest, self._resting = FIRST_REST, 0  # calls

    @property
    def silent(self) -> bool:
        return self.reconstructor is None

    @property
    def identity(self) -> str:
        """What the statistics of a channel belong to; empty without a model."""
        return "" if self.silent else f"{self.name} {self.version}"

    @property
    def device(self) -> str:
        return self.reconstructor.device if self.reconstructor else "CPU"

    def features(self, windows: Floats, centre: Floats, scale: Floats) -> Floats | None:
        """[1, n] half logarithms of the residual's energy over the tails of `windows` [window, n], raw values, which
        are overwritten. None without a model, or while it fails."""
        if self.silent or self._rests():
            return None
        np.subtract(windows, centre, out=windows)
        np.multiply(windows, scale, out=windows)
        np.clip(windows, -LIMIT, LIMIT, out=windows)
        # Where the channel is, the level branch knows.
        np.subtract(windows, column_sums(windows) / self.window, out=windows)
        np.clip(windows, -CLIP, CLIP, out=windows)
        # A model need not treat up and down alike; which of them a sensor calls positive must not matter.
        np.multiply(windows, np.where(column_sums(windows * balance(self.window)) < 0.0, -1.0, 1.0), out=windows)
        scores = np.ascontiguousarray(windows.T, np.float32)
        energy = [self._residuals(scores[start : start + BATCH]) for start in range(0, len(scores), BATCH)]
        if self.trouble:
            return None
        half: Floats = 0.5 * np.log(np.concatenate(energy) + FLOOR)
        return half[None]

    def enough(self, rows: int) -> bool:
        """Can anything be learned from so many rows?"""
        return not self.silent and rows >= self.window + FEWEST

    def learn(self, samples: Floats, rows: int, centre: Floats, scale: Floats) -> looks.Lesson:
        """From `samples` [n, channels], the newest of the asset's first `rows` rows."""
        count, channels = samples.shape
        if not self.enough(count):
            return looks.nothing(1, channels)
        ends = looks.ends(count, rows, self.window)
        dense, true = (self._looks(samples, after, centre, scale) for after in (ends.dense, ends.true))
        if dense is None or true is None:
            return looks.nothing(1, channels)
        return looks.learn(dense, ends.lag, true, scale > 0.0, fades=False)

    def _looks(self, samples: Floats, after: Integers, centre: Floats, scale: Floats) -> Floats | None:
        """[looks, 1, channels]"""
        found = []
        for count, windows in looks.windows(samples, after, self.window):
            features = self.features(windows, np.tile(centre, count), np.tile(scale, count))
            if features is None:
                return None
            found.append(features.reshape(count, 1, -1))
        return np.concatenate(found)

    def _rests(self) -> bool:
        resting = self._resting > 0
        self._resting -= resting
        return resting

    def _residuals(self, windows: Tensor) -> Floats:
        if self.reconstructor is None or self._resting:
            return np.zeros(len(windows))
        try:
            answer = self.reconstructor(windows)
        except InferenceError as error:
            self.trouble, self.failures = error.message, self.failures + 1
            self._rest, self._resting = min(2 * self._rest, LONGEST_REST), self._rest
            return np.zeros(len(windows))
        self.trouble, self._rest = "", FIRST_REST
        missed = windows[:, -TAIL:] - answer[:, -TAIL:]
        found: Floats = np.square(missed).mean(axis=1, dtype=np.float64)
        return np.fmin(found, LIMIT)
