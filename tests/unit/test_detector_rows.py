"""A row that is pushed as it stands is the reading that it was made of."""

from collections.abc import Sequence

import numpy as np
import pytest

from appliance.events.schema import Reading, Score
from appliance.inference.detector.detector import Detector, DetectorSettings

START = 1_700_000_000_000_000_000
NAMES = ["flow", "heat", "noise"]


def stream(rows: int = 600) -> list[list[float]]:
    """Noise whose second channel jumps at the end."""
    samples = np.random.default_rng(7).normal(size=(rows, len(NAMES)))
    samples[-60:, 1] += 9.0
    rows_of_floats: list[list[float]] = samples.tolist()
    return rows_of_floats


def reading(row: int, values: Sequence[float]) -> Reading:
    return Reading(START + row, dict(zip(NAMES, values, strict=True)))


def by_readings() -> list[Score]:
    subject = Detector(DetectorSettings())
    for row, values in enumerate(stream()):
        subject.push("pump", reading(row, values))
    return [judged.score for judged in subject.judge()]


def by_rows() -> tuple[list[Score], int]:
    """The scores, and how many rows were taken as rows."""
    subject, swift = Detector(DetectorSettings()), 0
    for row, values in enumerate(stream()):
        points = subject.points("pump")
        if points is not None and subject.push_row("pump", START + row, points, tuple(values)):
            swift += 1
        else:
            subject.push("pump", reading(row, values))
    return [judged.score for judged in subject.judge()], swift


def test_rows_are_judged_as_readings_are() -> None:
    scores, swift = by_rows()
    assert swift == 599
    assert scores == by_readings()
    assert scores[-1].alarm


@pytest.fixture
def known() -> Detector:
    subject = Detector(DetectorSettings())
    subject.push("pump", reading(0, (1.0, 2.0, 3.0)))
    return subject


def points(subject: Detector) -> list[str]:
    found = subject.points("pump")
    assert found is not None
    return found


def test_an_unknown_asset_takes_no_row(known: Detector) -> None:
    assert known.points("fan") is None
    assert not known.push_row("fan", START + 1, points(known), (1.0, 2.0, 3.0))


def test_a_time_that_is_not_newer_is_for_push(known: Detector) -> None:
    assert not known.push_row("pump", START, points(known), (1.0, 2.0, 3.0))
    assert known.push_row("pump", START + 1, points(known), (1.0, 2.0, 3.0))


def test_rows_of_other_points_are_for_push(known: Detector) -> None:
    before = points(known)
    known.push("pump", Reading(START + 1, {"flow": 1.0, "heat": 2.0, "noise": 3.0, "speed": 4.0}))
    assert points(known) == [*NAMES, "speed"]
    assert not known.push_row("pump", START + 2, before, (1.0, 2.0, 3.0))
    assert known.push_row("pump", START + 2, points(known), (1.0, 2.0, 3.0, 4.0))


def test_while_a_row_waits_for_more_points_only_push_will_do(known: Detector) -> None:
    known.push("pump", Reading(START + 1, {"flow": 1.0}))
    assert known.points("pump") is None
