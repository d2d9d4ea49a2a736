"""A row that is pushed as it stands is the reading that it was made of."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from appliance.events.schema import Reading, Score
from appliance.inference.detector.detector import Detector, DetectorSettings
from appliance.inference.detector.lots import Lot, block_rows, pack

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
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


def test_rows_that_come_together_are_judged_as_readings_are() -> None:
    subject, rows = Detector(DetectorSettings()), [tuple(values) for values in stream()]
    subject.push("pump", reading(0, rows[0]))
    place, sizes = 1, itertools.cycle([1, 2, 15, 16, 17, 100])
    while place < len(rows):
        some = rows[place : place + next(sizes)]
        assert list(subject.push_lots([lot(subject, some)], START + place)) == [len(some)]
        place += len(some)
    assert [judged.score for judged in subject.judge()] == by_readings()


def test_lots_of_several_assets_keep_apart() -> None:
    subject = Detector(DetectorSettings())
    for asset in ("pump", "fan"):
        subject.push(asset, reading(0, (1.0, 2.0, 3.0)))
    wide = [tuple(float(row + column) for column in range(3)) for row in range(70)]
    flat = [(1.0, 2.0, 3.0)] * 70
    lots = [lot(subject, wide), lot(subject, flat)._replace(asset="fan", points=subject.points("fan") or [])]
    assert list(subject.push_lots(lots, START + 1)) == [70, 70]
    scores = {judged.asset: judged.score for judged in subject.judge()}
    assert scores["pump"].at == START + 70
    assert scores["fan"].at == START + 140
    assert scores["pump"].rows == scores["fan"].rows == 71


def test_of_lots_that_push_must_look_at_nothing_is_taken(known: Detector) -> None:
    rows = [(1.0, 2.0, 3.0)] * 3
    mine = lot(known, rows)
    lots = [mine._replace(asset="fan"), mine._replace(points=list(NAMES)), mine]
    assert list(known.push_lots(lots, START + 1)) == [0, 0, 3]
    assert list(known.push_lots([mine], START + 9)) == [0]  # as new as what was taken


def test_a_lot_is_taken_up_to_the_row_after_which_push_must_look() -> None:
    """Readings that come faster than they were learned are thinned: from there on not every row counts."""
    subject = Detector(DetectorSettings())
    for row, values in enumerate(stream(500)):
        subject.push("pump", Reading(START + row * SECOND, dict(zip(NAMES, values, strict=True))))
    (taken,) = subject.push_lots([lot(subject, [tuple(values) for values in stream(64)])], START + 500 * SECOND)
    assert 0 < taken < 64
    assert subject.points("pump") is None


@pytest.mark.parametrize("width", [1, 15, 16, 300])
def test_packed_rows_are_what_they_were(width: int) -> None:
    points = [f"p{number}" for number in range(width)]
    rows = [tuple(row + number / 7 for number in range(width)) for row in range(40)]
    halves = [Lot("pump", points, len(half), pack(half)) for half in (rows[:13], rows[13:])]
    words = np.frombuffer(block_rows(halves, START), np.float64).reshape(40, width + 1)
    assert words[:, :-1].tolist() == [list(row) for row in rows]
    assert np.ascontiguousarray(words[:, -1]).view(np.int64).tolist() == list(range(START, START + 40))


def lot(subject: Detector, rows: Sequence[tuple[float, ...]]) -> Lot:
    return Lot("pump", points(subject), len(rows), pack(rows))
