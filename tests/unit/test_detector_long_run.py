"""What a detector makes of weeks: few false alarms, states that come and go, states that stay, changes of spread."""

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.events.schema import Reading, Score
from appliance.inference.detector.detector import Detector, DetectorSettings

Rows = NDArray[np.float64]
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
LEARNED = 400


def feed(detector: Detector, samples: Rows, asset: str = "line1/pump", begin: int = 0) -> list[Score]:
    """Push all rows, one a second; the judgements."""
    points = [f"point {column}" for column in range(samples.shape[1])]
    scores = []
    for row, values in enumerate(samples.tolist(), begin):
        detector.push(asset, Reading(START + row * SECOND, dict(zip(points, values, strict=True))))
        if row % 256 == 0:
            scores += detector.judge()
    return [judged.score for judged in scores + detector.judge()]


def row_of(score: Score) -> int:
    return (score.at - START) // SECOND


def alarms(scores: list[Score]) -> list[int]:
    """The rows at which an alarm began."""
    state = [False, *(score.alarm for score in scores)]
    return [row_of(scores[place]) for place in range(len(scores)) if state[place + 1] and not state[place]]


def noise(random: np.random.Generator, rows: int, memory: float = 0.0, channels: int = 4) -> Rows:
    samples = random.normal(size=(rows, channels))
    samples[0] /= np.sqrt(1.0 - memory**2)
    for row in range(1, rows):
        samples[row] += memory * samples[row - 1]
    return samples


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_what_is_steady_raises_hardly_an_alarm(memory: float) -> None:
    random = np.random.default_rng(1)
    found = [len(alarms(feed(Detector(DetectorSettings(hop=4)), noise(random, 10_400, memory)))) for _ in range(6)]
    assert sum(found) <= 3  # one an asset in 20,000 rows


def test_what_wanders_calms_down() -> None:
    random = np.random.default_rng(2)
    found = [alarms(feed(Detector(DetectorSettings(hop=8)), noise(random, 20_400, 0.99))) for _ in range(6)]
    early = sum(row < 10_400 for rows in found for row in rows)
    late = sum(row >= 10_400 for rows in found for row in rows)
    assert late < early
    assert late <= 2 * len(found)


@pytest.mark.parametrize("factor", [0.3, 2.5])
@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_a_channel_that_shakes_more_or_less_is_an_alarm_with_its_name(memory: float, factor: float) -> None:
    samples = noise(np.random.default_rng(3), 1400, memory)
    samples[1000:, 2] *= factor
    scores = feed(Detector(DetectorSettings()), samples)
    found = alarms(scores)
    assert len(found) == 1
    assert 1000 <= found[0] < 1250
    assert {score.cause for score in scores if score.alarm and score.branch == "spread"} == {"point 2"}


@pytest.mark.parametrize("before", [LEARNED, 8000])
def test_a_shift_is_an_alarm_within_thirty_rows_however_long_all_was_well(before: int) -> None:
    samples = noise(np.random.default_rng(4), before + 60)
    samples[before:, 1] += 3.0
    found = alarms(feed(Detector(DetectorSettings()), samples))
    assert len(found) == 1
    assert before <= found[0] < before + 30


def week(random: np.random.Generator, weeks: int, days: int = 5, day: int = 96) -> Rows:
    """A plant that runs some days a week, and is off at night and on the other days."""
    hour = np.arange(7 * day * weeks) % day / day * 24.0
    running = (np.arange(len(hour)) // day % 7 < days) & (hour > 6.0) & (hour < 20.0)
    power = np.where(running, 50.0 + 5.0 * np.sin(hour), 4.0)
    return np.stack([power + random.normal(size=len(power)), power * 0.3 + random.normal(size=len(power))], axis=1)


def test_a_plant_that_is_off_at_weekends_does_not_alarm_for_ever() -> None:
    """Learned from four days and a bit, a Monday to a Thursday."""
    samples = week(np.random.default_rng(5), 12)
    scores = feed(Detector(DetectorSettings()), samples)
    late = [score for score in scores if row_of(score) >= 6 * 7 * 96]
    assert len(late) > 3000
    assert sum(score.alarm for score in late) <= 0.02 * len(late)


def pump(random: np.random.Generator, rows: int) -> Rows:
    """Stands for the first 500 rows, then runs half of the time, for 200 rows each."""
    state = (np.arange(rows) >= 500) & (np.arange(rows) // 200 % 2 == 0)
    return np.stack([state * 10.0 + 0.1 * random.normal(size=rows), state * 1.0], axis=1)


def test_states_that_come_and_go_are_known_in_the_end() -> None:
    samples = pump(np.random.default_rng(6), 12_000)
    scores = feed(Detector(DetectorSettings()), samples)
    found = alarms(scores)
    assert 500 <= found[0] < 540  # the first time it is news
    assert [row for row in found if row > 6000] == []
    samples[11_000:, 0] += 15.0
    assert alarms(feed(Detector(DetectorSettings()), samples))[-1] >= 11_000  # what neither state explains still is


@pytest.mark.parametrize(
    ("periods", "hours", "stands"),
    [(6, 0.0, False), (6, 0.6, False), (6, 1.4, True), (0, 0.0, True)],
    ids=["after its periods", "its hours are over, too", "its hours are not over", "never"],
)
def test_a_state_that_stays_is_accepted_after_some_periods_and_hours(periods: int, hours: float, stands: bool) -> None:
    samples = noise(np.random.default_rng(7), 6000)
    samples[1000:] += 4.0
    scores = feed(Detector(DetectorSettings(accept_periods=periods, accept_hours=hours)), samples)
    state = {row_of(score): score.alarm for score in scores}
    assert [state[row] for row in (1050, 2000, 3390)] == [True] * 3
    assert state[3500] is stands
    assert state[5999] is stands


def test_after_a_state_was_accepted_both_are_normal_and_others_are_not() -> None:
    samples = noise(np.random.default_rng(8), 6000)
    samples[1000:4500] += 4.0
    samples[5500:] -= 6.0
    found = alarms(feed(Detector(DetectorSettings(accept_hours=0.0)), samples))
    assert len(found) == 2
    assert 1000 <= found[0] < 1030
    assert 5500 <= found[1] < 5530


def test_a_gap_in_time_mixes_nothing() -> None:
    """A night without rows: the machine is elsewhere, by its own way there."""
    random = np.random.default_rng(9)
    samples = np.stack([np.sin(np.arange(1200) / 40.0) + 0.02 * random.normal(size=1200)] * 2, axis=1)
    detector = Detector(DetectorSettings())
    before = feed(detector, samples[:700])
    after = feed(detector, samples[830:], begin=50_000)
    assert [row_of(score) for score in after[:2]] == [50_019, 50_020]
    assert not any(score.alarm for score in before + after)


def test_a_fault_after_a_gap_is_an_alarm_once_the_windows_are_full() -> None:
    samples = noise(np.random.default_rng(10), 700)
    detector = Detector(DetectorSettings(hop=16))
    feed(detector, samples)
    found = alarms(feed(detector, samples[:60] + 5.0, begin=10_000))
    assert len(found) == 1
    assert 10_019 <= found[0] < 10_036


def slow(random: np.random.Generator, rows: int, *excursions: int) -> Rows:
    """Noise with memory; at each of `excursions` it is elsewhere for 90 rows."""
    samples = noise(random, rows, 0.97, channels=2) * 0.25
    for begin in excursions:
        samples[begin : begin + 90] += 8.0
    return samples


def test_a_fault_in_a_long_learning_period_does_not_hide_its_like() -> None:
    samples = slow(np.random.default_rng(11), 4000, 700, 3000)
    found = alarms(feed(Detector(DetectorSettings(learn_rows=1500)), samples))
    assert [3000 <= row < 3090 for row in found] == [True]


def test_what_happened_often_while_it_learned_is_normal() -> None:
    samples = slow(np.random.default_rng(12), 4000, *range(200, 4000, 400))
    found = alarms(feed(Detector(DetectorSettings(learn_rows=1500)), samples))
    assert [row for row in found if row >= 1500] == []


def test_a_fault_that_comes_and_goes_stays_visible() -> None:
    """A loose contact: every now and then a channel is gone for some rows. Nobody says a word; it is told each time."""
    samples = noise(np.random.default_rng(13), 13_000)
    begins = range(1000, 13_000, 600)
    for begin in begins:
        samples[begin : begin + 40, 1] = -30.0
    found = alarms(feed(Detector(DetectorSettings()), samples))
    assert [any(begin <= row < begin + 40 for row in found) for begin in begins] == [True] * len(begins)


def five_days(random: np.random.Generator, weeks: int) -> tuple[Rows, Rows]:
    """Times in s from a Tuesday morning on, a row a minute: power, a temperature that follows it, pressure."""
    times = np.arange(1.3 * 86_400.0, weeks * 604_800.0, 60.0)
    load = np.where(times // 86_400.0 % 7 < 5, 1.0, 0.05)
    warm, warmth = np.empty(len(load)), 1.0
    for place, now in enumerate(load):
        warm[place] = warmth = warmth + (now - warmth) / 60.0
    noise = random.normal(size=(len(load), 3))
    return times, np.stack([40.0 * load, 20.0 + 35.0 * warm, 6.0 - 1.5 * load], axis=1) + noise * [1.0, 0.3, 0.05]


def test_weekends_are_known_after_two_and_what_runs_on_alone_is_a_fault() -> None:
    """By the readings' own times. The power at the fourth weekend is one that the machine has every day."""
    times, samples = five_days(np.random.default_rng(14), 4)
    weekend = (times >= 3 * 604_800.0 + 5.5 * 86_400.0) & (times < 3 * 604_800.0 + 6.0 * 86_400.0)
    samples[weekend, 0] += 30.0
    detector, judged = Detector(DetectorSettings(hop=4)), []
    for row, (at, values) in enumerate(zip(times.tolist(), samples.tolist(), strict=True)):
        detector.push("a", Reading(START + round(at) * SECOND, dict(zip("xyz", values, strict=True))))
        if row % 256 == 0:
            judged += detector.judge()
    scores = [one.score for one in judged + detector.judge()]
    state = [False, *(score.alarm for score in scores)]
    begins = [scores[place].at - START for place in range(len(scores)) if state[place + 1] and not state[place]]
    weeks = [begin / SECOND / 604_800.0 for begin in begins]
    assert [week for week in weeks if 2.1 <= week < 3.0 + 5.5 / 7.0] == []
    assert weeks[0] < 1.0
    assert 3.0 + 5.5 / 7.0 < weeks[-1] < 3.0 + 6.0 / 7.0


def test_two_states_survive_a_restart() -> None:
    samples = pump(np.random.default_rng(6), 9000)
    straight = feed(Detector(DetectorSettings()), samples)
    subject, found = Detector(DetectorSettings()), []
    for begin in range(0, 9000, 750):
        found += feed(subject, samples[begin : begin + 750], begin=begin)
        data = subject.snapshot()
        subject = Detector(DetectorSettings())
        subject.restore(data)
    assert found == straight
