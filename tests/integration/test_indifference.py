"""What must never matter, with the model that is shipped, on OpenVINO: order, names, units and signs of channels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.events.schema import Reading, Score
from appliance.inference.detector.autoencoder import Reconstructor
from appliance.inference.detector.detector import Detector, DetectorSettings
from tools.evaluation.judge import START, model_of

Rows = NDArray[np.float64]
SECOND = 1_000_000_000
CHANNELS = 6
SHIPPED: list[Reconstructor] = []


def shipped() -> Reconstructor:
    if not SHIPPED:
        SHIPPED.append(model_of(None))
    return SHIPPED[0]


def plant(seed: int, rows: int = 800) -> Rows:
    """Waves of several shapes, noise of several kinds and a switch; a level fault, a spread fault and another wave."""
    random, row = np.random.default_rng(seed), np.arange(rows)
    samples = 0.1 * random.normal(size=(rows, CHANNELS))
    samples[:, 0] += np.sin(row / random.uniform(2.0, 12.0))
    samples[:, 1] += np.sin(row / random.uniform(2.0, 12.0)) ** 3
    samples[:, 2] += np.cumsum(random.normal(size=rows)) * 0.05
    samples[:, 3] += np.convolve(random.normal(size=rows + 19), np.ones(20) / 5.0, "valid")
    samples[:, 4] = (row // 37) % 2
    begin, column = int(random.integers(450, 600)), int(random.integers(CHANNELS))
    samples[begin : begin + 80, column] += random.choice([-3.0, 2.0, 8.0])
    samples[650:, 5] *= random.choice([0.2, 4.0])
    samples[700:, 0] = np.sin(row[700:] / random.uniform(0.6, 1.2))
    return samples


def scores(samples: Rows, names: list[str]) -> list[Score]:
    detector = Detector(DetectorSettings(), shipped())
    for row, values in enumerate(samples.tolist()):
        detector.push("asset", Reading(START + row * SECOND, dict(zip(names, values, strict=True))))
    return [judged.score for judged in detector.judge()]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    order=st.permutations(range(CHANNELS)),
    factors=st.lists(
        st.sampled_from([-1e6, -3.7, -1.0, -1e-4, 1e-3, 1.0, 2.5, 1e7]), min_size=CHANNELS, max_size=CHANNELS
    ),
    offsets=st.lists(st.sampled_from([-1e5, 0.0, 0.25, 40.0]), min_size=CHANNELS, max_size=CHANNELS),
)
def test_names_order_units_and_signs_change_no_decision_of_the_shipped_model(
    seed: int, order: list[int], factors: list[float], offsets: list[float]
) -> None:
    samples = plant(seed)
    one = scores(samples, [f"point {column}" for column in range(CHANNELS)])
    changed = (samples * factors + np.array(offsets) * np.abs(factors))[:, order]
    other = scores(changed, [f"{column} of another name" for column in order])
    assert any(score.alarm for score in one)
    assert [score.alarm for score in other] == [score.alarm for score in one]
    # A value that lies between two steps of eight bits may fall to either of them by the last digit of a unit.
    assert [score.score for score in other] == pytest.approx([score.score for score in one], rel=0.02, abs=0.02)
    causes = [(a.cause.split()[1], b.cause.split()[0]) for a, b in zip(one, other, strict=True) if a.alarm]
    assert [a for a, _ in causes] == [b for _, b in causes]


def test_the_model_is_one_of_those_that_decide() -> None:
    """Or the test above would say little of it."""
    branches = {score.branch for seed in range(12) for score in scores(plant(seed), list("abcdef")) if score.alarm}
    assert branches == {"level", "spread", "autoencoder"}
