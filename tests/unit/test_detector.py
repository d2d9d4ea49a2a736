"""What a detector says of an asset, from its first reading to an alarm and back."""

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.errors import DeviceError
from appliance.events.schema import Reading, Score, Stage
from appliance.inference.detector.detector import Detector, DetectorSettings
from appliance.inference.detector.latch import THRESHOLD, Latch
from appliance.inference.port import Tensor

Rows = NDArray[np.float64]
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class Cosines:
    """Reconstructs what is slow: a truncated cosine transform."""

    window, name, version, device = 64, "cosines", "1.0.0", "CPU"

    def __init__(self) -> None:
        row = np.arange(64)
        self._basis = np.array([np.cos(np.pi * (row + 0.5) * wave / 64) for wave in range(8)], np.float32) / 32**0.5
        self._basis[0] /= 2**0.5

    def __call__(self, windows: Tensor) -> Tensor:
        return (windows @ self._basis.T) @ self._basis


def machine(rows: int, channels: int = 4, seed: int = 1) -> Rows:
    """[rows, channels] of noise around levels of very different size."""
    noise = np.random.default_rng(seed).normal(size=(rows, channels))
    return 10.0 ** np.arange(channels) * (5.0 + noise)


def names(channels: int) -> list[str]:
    return [f"point {column}" for column in range(channels)]


def feed(detector: Detector, samples: Rows, asset: str = "line1/pump", begin: int = 0) -> list[Score]:
    """Push all rows, one a second; the judgements."""
    points = names(samples.shape[1])
    for row, values in enumerate(samples.tolist(), begin):
        detector.push(asset, Reading(START + row * SECOND, dict(zip(points, values, strict=True))))
    return [judged.score for judged in detector.judge() if judged.asset == asset]


def row_of(score: Score) -> int:
    """The index of the reading that was judged."""
    return (score.at - START) // SECOND


def test_the_stages_follow_the_rows() -> None:
    scores = feed(Detector(DetectorSettings()), machine(450))
    first = {
        stage: next(row_of(score) for score in scores if score.stage is stage)
        for stage in Stage
        if stage != "collecting"
    }
    assert first == {Stage.LEARNING: 60, Stage.WARNING: 240, Stage.ALARMING: 400}
    assert [row_of(score) for score in scores] == list(range(60, 450))
    assert scores[0].rows == 61
    assert scores[-1].rows == 400


def test_a_healthy_machine_raises_nothing() -> None:
    scores = feed(Detector(DetectorSettings()), machine(2000))
    assert not any(score.alarm for score in scores)
    assert 0.5 < max(score.score for score in scores if score.stage is Stage.ALARMING) < 2.0


@pytest.mark.parametrize("column", range(4))
def test_a_level_that_moves_is_an_alarm_with_its_channel(column: int) -> None:
    samples = machine(900)
    samples[600:700, column] += 2.0 * 10.0**column
    scores = feed(Detector(DetectorSettings()), samples)
    alarmed = [row_of(score) for score in scores if score.alarm]
    assert 600 <= alarmed[0] < 620
    assert 700 < alarmed[-1] < 720
    assert alarmed == list(range(alarmed[0], alarmed[-1] + 1))
    assert {score.cause for score in scores if score.alarm} == {f"point {column}"}
    assert {score.branch for score in scores if score.alarm} == {"level"}


def test_in_the_learning_stage_there_is_no_alarm() -> None:
    samples = machine(240)
    samples[150:] *= 3.0
    scores = feed(Detector(DetectorSettings()), samples)
    assert max(score.score for score in scores) > 2 * THRESHOLD
    assert not any(score.alarm for score in scores)


def test_a_crossing_in_the_warning_stage_is_told() -> None:
    samples = machine(310)
    samples[290:] *= 3.0
    scores = feed(Detector(DetectorSettings()), samples)
    assert {score.stage for score in scores if score.alarm} == {Stage.WARNING}


def test_an_alarm_is_not_unlearned_while_it_stands() -> None:
    """In the middle of the learning period a lesson is due; the fault must not become the normal state by it."""
    samples = machine(399)
    samples[300:] *= 1.6
    scores = feed(Detector(DetectorSettings()), samples)
    assert all(score.alarm for score in scores if row_of(score) >= 320)


@pytest.mark.parametrize("hop", [1, 7, 16, 1024])
def test_every_hop_is_judged_once(hop: int) -> None:
    scores = feed(Detector(DetectorSettings(hop=hop)), machine(2100))
    assert [row_of(score) + 1 for score in scores] == [row for row in range(hop, 2101, hop) if row > 60]


def test_a_shape_that_changes_at_the_same_level_is_first_seen_by_the_autoencoder() -> None:
    samples = machine(800)
    row = np.arange(800)
    samples[:, 2] = np.sin(2.0 * np.pi * row / np.where(row < 600, 40, 14)) + 0.05 * samples[:, 0]
    scores = feed(Detector(DetectorSettings(), Cosines()), samples)
    over = [score for score in scores if score.stage is Stage.ALARMING and score.score > THRESHOLD]
    assert 600 <= row_of(over[0]) < 650
    assert (over[0].branch, over[0].cause) == ("autoencoder", "point 2")
    alarmed = [score for score in scores if score.alarm]
    assert 600 <= row_of(alarmed[0]) < 680
    assert {(score.model, score.version, score.device) for score in alarmed} == {("cosines", "1.0.0", "CPU")}


def test_the_autoencoder_raises_nothing_of_a_healthy_machine() -> None:
    assert not any(score.alarm for score in feed(Detector(DetectorSettings(), Cosines()), machine(2000)))


def test_without_any_device_the_level_judges_alone_and_says_so() -> None:
    class Broken(Cosines):
        def __call__(self, windows: Tensor) -> Tensor:
            raise DeviceError("the accelerator is gone")

    detector = Detector(DetectorSettings(), Broken())
    samples = machine(700)
    samples[600:] *= 2.0
    assert feed(detector, samples)[-1].alarm
    assert detector.describe()["model_trouble"] == "the accelerator is gone"


@pytest.mark.parametrize("lost", [range(1, 600), range(800, 900)], ids=["while it learns", "later"])
def test_a_model_that_failed_for_a_while_judges_again(lost: range) -> None:
    """What it was to learn meanwhile it learns later; until then the others judge alone."""

    class Faltering(Cosines):
        row = 0

        def __call__(self, windows: Tensor) -> Tensor:
            if self.row in lost:
                raise DeviceError("the accelerator does not answer")
            return super().__call__(windows)

    model, samples = Faltering(), machine(3000)
    row = np.arange(3000)
    samples[:, 2] = np.sin(2.0 * np.pi * row / np.where(row < 2500, 40, 14)) + 0.05 * samples[:, 0]
    detector, scores = Detector(DetectorSettings(), model), []
    for model.row in range(3000):
        scores += feed(detector, samples[model.row : model.row + 1], begin=model.row)
    assert detector.describe()["model_failures"] >= 1
    assert detector.describe()["model_trouble"] == ""
    assert not any(score.alarm for score in scores if row_of(score) < 2500)
    assert "autoencoder" in {score.branch for score in scores if score.alarm}


def test_one_channel_is_enough() -> None:
    samples = machine(900, 1)
    samples[700:] += 3.0
    alarmed = [score for score in feed(Detector(DetectorSettings(), Cosines()), samples) if score.alarm]
    assert 700 < row_of(alarmed[0]) < 720


@pytest.mark.parametrize("value", [0.0, 21.5, -1e9, 1e300])
def test_a_channel_that_never_moved_alarms_when_it_stays_away(value: float) -> None:
    samples = np.column_stack([machine(900, 1), np.full(900, value)])
    samples[500, 1] += abs(value) + 1.0  # once is nothing
    samples[700:800, 1] += abs(value) + 1.0
    alarmed = [score for score in feed(Detector(DetectorSettings()), samples) if score.alarm]
    assert 700 < row_of(alarmed[0]) < 720
    assert 800 < row_of(alarmed[-1]) < 820
    assert {score.cause for score in alarmed} == {"point 1"}


def test_an_asset_of_which_nothing_ever_moves() -> None:
    samples = np.ones((900, 3))
    samples[600:] = 2.0
    scores = feed(Detector(DetectorSettings(), Cosines()), samples)
    assert [score.alarm for score in scores if row_of(score) in (599, 650)] == [False, True]


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e300, 1.7e308])
def test_values_of_any_size_are_judged_alike(size: float) -> None:
    """No overflow, no division by zero: a numpy warning would fail this test."""
    shape = np.sin(np.arange(900))[:, None] * np.array([0.5, -0.3])
    shape[600:] += 0.4
    scores = feed(Detector(DetectorSettings(), Cosines()), shape * size)
    assert all(np.isfinite(score.score) for score in scores)
    assert [score.alarm for score in scores if row_of(score) in (599, 650)] == [False, True]


def test_extremes_while_it_learns_harm_nothing() -> None:
    samples = machine(900)
    samples[100, 0], samples[101, 0] = 1.7e308, -1.7e308
    samples[700:, 1] *= 2.0
    scores = feed(Detector(DetectorSettings(), Cosines()), samples)
    assert all(np.isfinite(score.score) for score in scores)
    assert scores[-1].alarm


def test_what_is_just_over_the_threshold_must_stay_over() -> None:
    latch = Latch()
    assert not any(latch.step(1.01 * THRESHOLD, row) for row in range(1, 11))
    assert not latch.step(0.99 * THRESHOLD, 11)
    assert not any(latch.step(1.01 * THRESHOLD, row) for row in range(12, 22))
    assert latch.step(1.01 * THRESHOLD, 22)


def test_what_is_well_over_the_threshold_is_an_alarm_at_once() -> None:
    assert Latch().step(1.51 * THRESHOLD, 1)


def test_a_latch_releases_by_the_threshold_or_by_its_own_peak() -> None:
    latch = Latch()
    assert latch.step(2.0 * THRESHOLD, 2)
    assert latch.step(0.61 * THRESHOLD, 3)
    assert not latch.step(0.59 * THRESHOLD, 4)
    assert latch.step(10.0 * THRESHOLD, 5)
    assert not latch.step(2.4 * THRESHOLD, 6)
    assert latch.level(7) == 4.0 * THRESHOLD  # half its peak would be five
    assert not latch.step(3.9 * THRESHOLD, 7)
    assert latch.level(305) == 4.0 * THRESHOLD
    assert latch.level(306) == THRESHOLD
    assert latch.step(2.0 * THRESHOLD, 306)


def test_what_is_far_beyond_the_threshold_is_never_released() -> None:
    latch = Latch()
    assert latch.step(1e6, 1)
    assert latch.step(3.01 * THRESHOLD, 2)


def test_a_latch_that_is_not_busy_changes_only_by_a_crossing() -> None:
    latch = Latch()
    assert not latch.busy
    latch.step(1.01 * THRESHOLD, 1)
    assert latch.busy
    latch.step(0.5 * THRESHOLD, 2)
    assert not latch.busy


def test_describe_counts_stages() -> None:
    detector = Detector(DetectorSettings())
    feed(detector, machine(10), "a")
    feed(detector, machine(250, 2), "b")
    described = detector.describe()
    assert (described["assets"], described["channels"]) == (2, 6)
    assert described["stages"] == {"collecting": 1, "learning": 0, "warning": 1, "alarming": 0}
    assert [(known.asset, known.stage, known.rows, len(known.channels)) for known in detector.assets()] == [
        ("a", Stage.COLLECTING, 10, 4),
        ("b", Stage.WARNING, 250, 2),
    ]
