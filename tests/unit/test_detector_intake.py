"""What a detector makes of readings that do not simply follow each other: times, channels, floods."""

from collections import Counter

import numpy as np

from appliance.errors import EventError
from appliance.events.schema import Reading, Score, Stage
from appliance.inference.detector.detector import Detector, DetectorSettings

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class Source:
    """Pushes readings, one a second, and keeps what was judged."""

    def __init__(self, detector: Detector, asset: str = "line1/pump", seed: int = 1) -> None:
        self.detector, self.asset = detector, asset
        self.random = np.random.default_rng(seed)
        self.row = 0
        self.scores: list[Score] = []

    def send(self, rows: int, names: str, shift: float = 0.0, apart: bool = False) -> list[Score]:
        """Readings of one-letter channels; `apart`: each channel in a message of its own. The new judgements."""
        before = len(self.scores)
        for _ in range(rows):
            self.row += 1
            values = dict(zip(names, (self.random.normal(size=len(names)) + shift).tolist(), strict=True))
            for part in [{name: value} for name, value in values.items()] if apart else [values]:
                self.detector.push(self.asset, Reading(START + self.row * SECOND, part))
        self.scores += [judged.score for judged in self.detector.judge() if judged.asset == self.asset]
        return self.scores[before:]


def outcome(detector: Detector, asset: str, at: int, values: dict[str, float]) -> str:
    """The reason of a refusal, or nothing."""
    try:
        detector.push(asset, Reading(at, values))
    except EventError as error:
        return error.reason
    return ""


def refusal(detector: Detector, asset: str, at: int, **values: float) -> str:
    return outcome(detector, asset, at, values)


def flood(detector: Detector, first: int, count: int) -> Counter[str]:
    """Readings of assets that were never heard of and never will be again; what became of them."""
    numbers = range(first, first + count)
    return Counter(outcome(detector, f"flood/{number}", START + number, {"a": 1.0}) for number in numbers)


def test_the_same_reading_twice_is_a_duplicate() -> None:
    detector = Detector(DetectorSettings())
    detector.push("a", Reading(START, {"x": 1.0, "y": 2.0}))
    assert refusal(detector, "a", START, x=1.0, y=2.0) == "duplicate"
    assert refusal(detector, "a", START, y=2.0) == "duplicate"
    assert detector.assets()[0].rows == 1


def test_two_readings_of_one_time_are_two_readings() -> None:
    detector = Detector(DetectorSettings())
    detector.push("a", Reading(START, {"x": 1.0}))
    detector.push("a", Reading(START, {"x": 2.0}))
    assert detector.assets()[0].rows == 2


def test_older_readings_are_refused_until_the_clock_was_set_back_for_sure() -> None:
    detector = Detector(DetectorSettings())
    detector.push("a", Reading(START, {"x": 1.0}))
    past = START - 3600 * SECOND
    assert {refusal(detector, "a", past + row, x=2.0) for row in range(30)} == {"time-backwards"}
    detector.push("a", Reading(past + 30, {"x": 2.0}))
    detector.push("a", Reading(past + 31, {"x": 2.5}))
    assert refusal(detector, "a", past, x=3.0) == "time-backwards"
    assert detector.assets()[0].rows == 3


def test_late_readings_among_good_ones_never_move_the_time() -> None:
    detector = Detector(DetectorSettings())
    for row in range(40):
        detector.push("a", Reading(START + row, {"x": float(row)}))
        assert refusal(detector, "a", START - 1, x=1.0) == "time-backwards"
    assert detector.assets()[0].rows == 40


def test_a_name_that_cannot_be_a_channel_is_refused_once_it_is_met() -> None:
    detector = Detector(DetectorSettings())
    assert refusal(detector, "a", START, **{"": 1.0}) == "point-name"
    detector.push("a", Reading(START, {"x": 1.0}))
    assert refusal(detector, "a", START + 1, **{"x": 1.0, "line\nbreak": 2.0}) == "point-name"
    assert [known.channels for known in detector.assets()] == [["x"]]


def test_the_order_of_the_points_does_not_matter() -> None:
    detector = Detector(DetectorSettings())
    samples = np.random.default_rng(1).normal(size=(500, 2)).tolist()
    for row, (x, y) in enumerate(samples):
        detector.push("tidy", Reading(START + row, {"x": x, "y": y}))
        detector.push("untidy", Reading(START + row, {"x": x, "y": y} if row % 3 else {"y": y, "x": x}))
    judged = detector.judge()
    tidy = [score for asset, score in judged if asset == "tidy"]
    assert len(tidy) == 440
    assert tidy == [score for asset, score in judged if asset == "untidy"]


def test_points_that_come_in_messages_of_their_own_make_one_row() -> None:
    whole, apart = Source(Detector(DetectorSettings())), Source(Detector(DetectorSettings()))
    for source in (whole, apart):
        source.send(3, "abc", apart=source is apart)
        source.send(597, "abc", apart=source is apart)
        source.send(100, "abc", shift=3.0, apart=source is apart)
    assert apart.detector.assets()[0].rows in (699, 700, 701, 702)
    assert whole.scores[-1].alarm
    assert apart.scores[-1].alarm


def test_a_channel_that_appears_later_learns_by_itself_and_joins() -> None:
    source = Source(Detector(DetectorSettings()))
    source.send(500, "ab")
    assert not any(score.alarm for score in source.send(390, "abc"))
    assert not any(score.alarm for score in source.send(5, "abc", shift=0.0))
    source.send(30, "abc")
    source.send(25, "abc")
    before = source.detector.assets()[0]
    assert (before.rows, before.channels, before.stage) == (950, ["a", "b", "c"], Stage.ALARMING)
    for _ in range(30):
        source.row += 1
        values = source.random.normal(size=3) + np.array([0.0, 0.0, 4.0])
        source.detector.push(
            "line1/pump", Reading(START + source.row * SECOND, dict(zip("abc", values.tolist(), strict=True)))
        )
    last = source.detector.judge()[-1].score
    assert last.alarm
    assert last.cause == "c"


def test_a_channel_that_still_learns_raises_nothing() -> None:
    source = Source(Detector(DetectorSettings()))
    source.send(500, "ab")
    source.send(100, "abc")
    for _ in range(50):
        source.row += 1
        a, b, c = source.random.normal(size=3).tolist()
        source.detector.push("line1/pump", Reading(START + source.row * SECOND, {"a": a, "b": b, "c": c + 50.0}))
    assert not any(judged.score.alarm for judged in source.detector.judge())


def test_a_channel_that_vanishes_is_left_out_and_may_come_back() -> None:
    source = Source(Detector(DetectorSettings()))
    source.send(600, "abc")
    gone = source.send(300, "ab")
    assert not any(score.alarm for score in gone)
    assert len(gone) >= 298
    back = source.send(300, "abc")
    assert not any(score.alarm for score in back)
    assert {score.cause for score in back[100:]} == {"a", "b", "c"}


def test_another_channels_fault_is_seen_while_one_is_gone() -> None:
    source = Source(Detector(DetectorSettings()))
    source.send(600, "abc")
    source.send(200, "ab")
    assert source.send(40, "ab", shift=4.0)[-1].alarm


def test_an_asset_whose_names_all_change_goes_on() -> None:
    source = Source(Detector(DetectorSettings()))
    source.send(600, "ab")
    source.send(600, "cd")
    assert source.send(40, "cd", shift=4.0)[-1].alarm


def test_channels_that_appear_in_the_first_rows_learn_with_the_others() -> None:
    source = Source(Detector(DetectorSettings()))
    source.send(1, "a")
    source.send(1, "b")
    source.send(600, "abc")
    assert source.send(40, "abc", shift=4.0)[-1].alarm


def test_a_flood_of_names_is_bounded_and_pushes_nobody_out() -> None:
    detector = Detector(DetectorSettings(max_assets=50))
    plant = [Source(detector, f"line/{number}", number) for number in range(10)]
    for source in plant:
        source.send(100, "abc")
    fate = flood(detector, 0, 100_000)
    assert fate.keys() == {"", "too-many-assets"}
    assert fate["too-many-assets"] > fate[""]
    names = {known.asset for known in detector.assets()}
    assert len(names) == 50
    assert {source.asset for source in plant} <= names
    for source in plant:
        assert len(source.send(10, "abc")) == 10


def test_a_newcomer_gets_in_while_a_flood_goes_on() -> None:
    detector = Detector(DetectorSettings(max_assets=50))
    fate: Counter[str] = Counter()
    for second in range(200):
        flood(detector, 100 * second, 100)
        fate[outcome(detector, "newcomer", START + second * SECOND, {"x": float(second % 7), "y": 1.0})] += 1
    rows = {known.asset: known.rows for known in detector.assets()}
    assert rows["newcomer"] == fate[""] > 100
    assert fate.keys() <= {"", "too-many-assets"}


def test_a_flood_of_channels_is_bounded() -> None:
    detector = Detector(DetectorSettings(max_channels=100))
    for number in range(99):
        detector.push("a", Reading(START + number, {f"point {number}": 1.0}))
    detector.push("b", Reading(START, {"x": 1.0}))
    assert refusal(detector, "a", START + 1000, one=1.0, two=2.0) == "too-many-channels"
    assert refusal(detector, "c", START, x=1.0) == "too-many-channels"
    assert detector.describe()["channels"] == 100
    detector.push("a", Reading(START + 1001, {"point 5": 1.0}))


def test_an_asset_has_a_thousand_channels_at_most() -> None:
    detector = Detector(DetectorSettings())
    assert refusal(detector, "a", START, **{f"p{number}": 1.0 for number in range(1025)}) == "too-many-channels"
    assert refusal(detector, "a", START) == "empty"
    assert detector.assets() == []


def test_memory_is_used_again() -> None:
    """Assets of many sizes come and go: blocks are given back, joined and taken again."""
    detector = Detector(DetectorSettings(max_assets=8, max_channels=100))
    reserved = len(detector._memory.arena.words)
    random = np.random.default_rng(5)
    fate: Counter[str] = Counter()
    for number in range(3000):
        values = {f"p{column}": float(column) for column in range(int(random.integers(1, 40)))}
        fate[outcome(detector, f"a{number}", START, values)] += 1
    assert fate[""] > 80
    assert fate.keys() <= {"", "too-many-assets", "too-many-channels"}
    assert len(detector._memory.arena.words) == reserved


def test_memory_grows_when_more_is_needed() -> None:
    """One channel an asset: each row has a time of its own, for which nothing was reserved."""
    detector = Detector(DetectorSettings(max_assets=60, max_channels=60))
    reserved = len(detector._memory.arena.words)
    plant = [Source(detector, f"line/{number}", number) for number in range(60)]
    for source in plant:
        source.send(100, "a")
    assert len(detector._memory.arena.words) > reserved
    for source in plant:
        source.send(400, "a")
        assert not any(score.alarm for score in source.scores)
        assert source.send(30, "a", shift=4.0)[-1].alarm
