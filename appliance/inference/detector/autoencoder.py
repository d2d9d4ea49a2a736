"""The autoencoder branch: how badly a model of ordinary signals reconstructs each channel's last rows.

One model serves all channels of all assets: a channel is a row of its batch, as z-scores of its own learning period.
The residual is computed here, outside the model, so that a model in few bits loses nothing in the difference. A
channel's unit is the residual it reached while it learned; channels are pooled by a 4-norm.
"""

from typing import Protocol

import numpy as np

from appliance.errors import InferenceError
from appliance.inference.detector.arena import Floats
from appliance.inference.detector.level import LIMIT, column_sums, pool
from appliance.inference.port import Tensor

CLIP = 8.0  # z-scores beyond it tell a reconstruction nothing
TAIL = 32  # the newest rows of a window whose residual counts
STRIDE = 32  # rows between two looks: each row is in one tail
LEARN_STRIDE = 8  # rows between two windows to learn from
FEWEST = 20  # windows to learn from
SECOND = 2  # the residual that counts as 1 is the second largest
FLOOR = 0.1  # standard deviations; a residual below it is the model's own error
MARGIN = 2.0  # a residual of so many units weighs as much as a level score at its threshold
BATCH = 4096  # windows given to the model at once


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
    """Residuals by a reconstructor. When its last device has failed it is `silent` for good; `trouble` says why."""

    def __init__(self, reconstructor: Reconstructor | None) -> None:
        self._reconstructor = reconstructor
        self.window = reconstructor.window if reconstructor else 0
        self.name, self.version = (reconstructor.name, reconstructor.version) if reconstructor else ("", "")
        self.trouble = ""

    @property
    def silent(self) -> bool:
        return self._reconstructor is None

    @property
    def identity(self) -> str:
        """What the statistics of a channel belong to; empty without a model."""
        return "" if self.silent else f"{self.name} {self.version}"

    @property
    def device(self) -> str:
        return self._reconstructor.device if self._reconstructor else "CPU"

    def residuals(self, windows: Floats, centre: Floats, scale: Floats) -> Floats:
        """[n] root mean squares over the tails of `windows` [window, n], raw values, which are overwritten.

        Zeros when silent.
        """
        np.subtract(windows, centre, out=windows)
        np.multiply(windows, scale, out=windows)
        np.clip(windows, -CLIP, CLIP, out=windows)
        # A model need not treat up and down alike; which of them a sensor calls positive must not matter.
        np.multiply(windows, np.where(column_sums(windows) < 0.0, -1.0, 1.0), out=windows)
        scores = np.ascontiguousarray(windows.T, np.float32)
        return np.concatenate(
            [self._residuals(scores[start : start + BATCH]) for start in range(0, len(scores), BATCH)]
        )

    def enough(self, rows: int) -> bool:
        """Can anything be learned from so many rows?"""
        return not self.silent and rows >= self.window + (FEWEST - 1) * LEARN_STRIDE

    def learn(self, samples: Floats, centre: Floats, scale: Floats) -> tuple[Floats, float]:
        """From `samples` [rows, channels]: the weight of each channel's residual, and the pooled score that is 1.

        That is 0 when there is too little to learn from.
        """
        if not self.enough(len(samples)):
            return np.zeros(samples.shape[1]), 0.0
        views = np.lib.stride_tricks.sliding_window_view(samples, self.window, axis=0)[::LEARN_STRIDE]
        looks, channels, length = views.shape
        windows = views.transpose(2, 0, 1).copy().reshape(length, -1)
        residuals = self.residuals(windows, np.tile(centre, looks), np.tile(scale, looks)).reshape(looks, channels)
        weight = np.where(scale > 0.0, 1.0 / np.maximum(_second(residuals), FLOOR), 0.0)
        return weight, float(_second(pool(residuals * weight)))

    def _residuals(self, windows: Tensor) -> Floats:
        if self._reconstructor is None:
            return np.zeros(len(windows))
        try:
            answer = self._reconstructor(windows)
        except InferenceError as error:
            self.trouble, self._reconstructor = error.message, None
            return np.zeros(len(windows))
        missed = windows[:, -TAIL:] - answer[:, -TAIL:]
        found: Floats = np.sqrt(np.square(missed).mean(axis=1, dtype=np.float64))
        return np.fmin(found, LIMIT)


def _second(residuals: Floats) -> Floats:
    return np.asarray(np.partition(residuals, -SECOND, axis=0)[-SECOND])
