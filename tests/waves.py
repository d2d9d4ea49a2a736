"""A model of slow waves, and a plant whose signals it can learn, row by row through a detector."""

import numpy as np

from appliance.events.schema import Reading, Score
from appliance.inference.detector.detector import Detector, DetectorSettings
from appliance.inference.port import Tensor

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class Waves:
    """Reconstructs what is slow: a cosine transform cut off after so many waves."""

    device = "CPU"

    def __init__(self, version: str, waves: int = 8, window: int = 64) -> None:
        self.name, self.version, self.window, self.calls = "waves", version, window, 0
        row = np.arange(window)
        basis = [np.cos(np.pi * (row + 0.5) * wave / window) for wave in range(waves)]
        self._basis = np.array(basis, np.float32) / (window / 2) ** 0.5
        self._basis[0] /= 2**0.5

    def __call__(self, windows: Tensor) -> Tensor:
        self.calls += 1
        return (windows @ self._basis.T) @ self._basis


class Plant:
    """Assets with signals that a model can learn something of, a row a second."""

    def __init__(self, detector: Detector, assets: int = 3, channels: int = 3) -> None:
        self.detector, self.row = detector, 0
        self.assets, self.channels = assets, channels
        self.dice = np.random.default_rng(7)
        self.fault = 0.0  # what is shaken, too

    def run(self, rows: int) -> list[tuple[str, Score]]:
        judged = []
        for _ in range(rows):
            for asset in range(self.assets):
                reading = Reading(START + self.row * SECOND, self._values(asset))
                self.detector.push(f"line/{asset}", reading)
            judged += self.detector.judge()
            self.row += 1
        return [(one.asset, one.score) for one in judged]

    def _values(self, asset: int) -> dict[str, float]:
        waves = [np.sin(self.row / (7 + 3 * channel + asset)) for channel in range(self.channels)]
        noise = self.dice.normal(size=self.channels) * 0.3
        ripple = self.fault * np.sin(self.row * 1.1)
        return {f"c{n}": float(50 * n + waves[n] + noise[n] + ripple) for n in range(self.channels)}


def plant(model: Waves, rows: int = 900) -> Plant:
    made = Plant(Detector(DetectorSettings(), model))
    made.run(rows)
    return made
