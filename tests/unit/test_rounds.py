"""What the rounds over all assets find: readings that stay away, channels that stand still, ranges, slow wear."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.events.schema import ANOMALY, Reading, Score, Severity, Stage, Verdict
from appliance.inference.detector.alarms import AlarmBook
from appliance.inference.detector.detector import Detector
from appliance.inference.detector.feedback import Feedback, Said
from appliance.inference.detector.findings import FLAT, MISSING, RANGE, WEAR, Finding
from appliance.inference.detector.quality import Limit
from appliance.inference.detector.rounds import EARLY, Rounds
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.detector.trend import BLOCK, Batch, Goal, Trends, medians

SECOND = 1_000_000_000
START = 1_790_000_000 * SECOND
PUMP = "line1/pump"
SETTINGS = DetectorSettings(accept_hours=0.0)


class Plant:
    """A machine with a reading each second, and the rounds after each."""

    def __init__(self, *limits: Limit) -> None:
        self.detector = Detector(SETTINGS)
        self.rounds: Rounds = self.detector.rounds(limits)
        self.noise = np.random.default_rng(1)
        self.now = START
        self.found: list[Finding] = []

    def pass_time(self, seconds: int, **fixed: float) -> list[Finding]:
        """With readings, if values are given: `fixed` ones instead of noise."""
        found: list[Finding] = []
        for _ in range(seconds):
            self.now += SECOND
            if fixed:
                noise = {"a": self.noise.normal(), "b": self.noise.normal(), "setpoint": 4.0}
                values = {name: float(value) for name, value in (noise | fixed).items()}
                self.detector.push(PUMP, Reading(self.now, values))
                self.detector.judge()
            found += self.rounds.walk(self.now)
        return found

    def pass_slowly(self, seconds: int, every: int, **values: float) -> list[tuple[int, Score]]:
        """With a reading every so many seconds: what was said early, and after how many seconds."""
        found: list[tuple[int, Score]] = []
        for second in range(1, seconds + 1):
            self.now += SECOND
            if second % every == 0:
                self.detector.push(PUMP, Reading(self.now, values))
            assert not self.detector.judge()
            self.rounds.walk(self.now)
            found += [(second, score) for asset, score in self.rounds.early() if asset == PUMP]
        return found

    def pass_without(self, seconds: int, *absent: str, every: int = 0) -> list[Finding]:
        """With readings that lack channels; `every` so many seconds they come all the same."""
        found: list[Finding] = []
        for second in range(seconds):
            self.now += SECOND
            values = {"a": float(self.noise.normal()), "b": float(self.noise.normal()), "setpoint": 4.0}
            if not every or second % every:
                values = {name: value for name, value in values.items() if name not in absent}
            self.detector.push(PUMP, Reading(self.now, values))
            self.detector.judge()
            found += self.rounds.walk(self.now)
        return found

    def restart(self) -> None:
        """As after a restart of the service."""
        learned, seen = self.detector.snapshot(), self.rounds.snapshot()
        self.detector = Detector(SETTINGS)
        self.rounds = self.detector.rounds()
        self.detector.restore(learned)
        self.rounds.restore(seen)


def test_readings_that_stay_away_are_missed_once_and_welcome() -> None:
    plant = Plant()
    assert plant.pass_time(100, setpoint=4.0) == []
    (missing,) = plant.pass_time(200)
    assert (missing.asset, missing.condition, missing.severity) == (PUMP, MISSING, Severity.WARNING)
    plant.restart()
    assert plant.pass_time(100) == []
    assert plant.pass_time(5, setpoint=4.0) == [Finding(PUMP, MISSING)]


def test_an_asset_that_was_hardly_seen_is_not_missed() -> None:
    plant = Plant()
    plant.pass_time(20, setpoint=4.0)
    assert plant.pass_time(500) == []


def test_what_nobody_could_hear_is_not_missed() -> None:
    plant = Plant()
    plant.pass_time(100, setpoint=4.0)
    assert [plant.rounds.walk(plant.now + second * SECOND, listening=False) for second in range(500)] == [[]] * 500


@pytest.mark.parametrize(("pause", "told"), [("normal", 1), ("nothing", 3)])
def test_a_pause_becomes_a_habit(pause: str, told: int) -> None:
    plant = Plant()
    plant.pass_time(100, setpoint=4.0)
    found = []
    for _ in range(6):
        found += [one for one in plant.pass_time(300) if one.why]
        if pause == "normal":
            plant.rounds.accept(PUMP, MISSING)
        plant.pass_time(100, setpoint=4.0)
    assert len(found) == told


def test_a_channel_that_stays_away_is_missed_by_its_name_until_it_returns() -> None:
    plant = Plant()
    plant.pass_time(100, setpoint=4.0)
    assert plant.pass_without(55, "a") == []
    (missing,) = plant.pass_without(200, "a")
    assert (missing.condition, missing.cause, missing.severity) == (MISSING, "a", Severity.WARNING)
    assert missing.why == "no a for 61 s; usually one every 0.99 s"
    plant.restart()
    assert plant.pass_without(100, "a") == []
    (both,) = plant.pass_without(100, "a", "b")
    assert both.why.startswith("no a and 1 other channels for")
    assert plant.pass_time(5, setpoint=4.0)[-1] == Finding(PUMP, MISSING)


def test_an_asset_and_its_channel_that_stay_away_are_one_alarm() -> None:
    plant = Plant()
    plant.pass_time(100, setpoint=4.0)
    plant.pass_without(100, "a")
    (silent,) = plant.pass_time(200)
    assert silent.why.startswith("no reading for")
    (partly,) = plant.pass_without(5, "a")
    assert partly.why.startswith("no a for")
    assert plant.pass_time(5, setpoint=4.0) == [Finding(PUMP, MISSING)]


def test_a_channel_that_comes_with_every_tenth_row_is_not_missed() -> None:
    plant = Plant()
    assert plant.pass_without(600, "a", every=10) == []
    (missing,) = plant.pass_without(300, "a")
    assert missing.cause == "a"


def test_a_channel_that_was_taken_away_is_not_missed_once_that_is_normal() -> None:
    plant = Plant()
    plant.pass_time(100, setpoint=4.0)
    plant.pass_without(100, "a")
    plant.rounds.accept(PUMP, MISSING)
    assert plant.pass_without(2000, "a") == []
    plant.pass_time(100, setpoint=4.0)
    assert [one.cause for one in plant.pass_without(100, "a")] == ["a"]


def test_a_channel_that_stands_still_is_told_and_a_setpoint_never() -> None:
    plant = Plant()
    assert plant.pass_time(1000, setpoint=4.0) == []
    (flat,) = plant.pass_time(100, a=0.25)
    assert (flat.condition, flat.cause) == (FLAT, "a")
    plant.restart()
    assert plant.pass_time(3, setpoint=4.0) == [Finding(PUMP, FLAT)]


def test_a_declared_range_holds_from_the_first_reading_on() -> None:
    plant = Plant(Limit("line1/#", "a", -math.inf, 50.0))
    plant.pass_time(3, setpoint=4.0)
    (out,) = plant.pass_time(1, a=51.0)
    assert (out.condition, out.severity, out.value, out.limit) == (RANGE, Severity.ALARM, 51.0, 50.0)
    assert plant.pass_time(5, setpoint=4.0) == []  # not yet: it may come back
    assert plant.pass_time(10, setpoint=4.0) == [Finding(PUMP, RANGE)]


@pytest.mark.parametrize(
    ("declared", "holds"),
    [("line1/pump", True), ("line1/#", True), ("#", True), ("line1/pum", False), ("line/#", False)],
)
def test_whom_a_limit_concerns(declared: str, holds: bool) -> None:
    assert Limit(declared, "a", 0.0, 1.0).holds(PUMP) is holds


STEPS = st.lists(st.sampled_from(["readings", "silence", "still", "high", "restart", "normal"]), max_size=12)


@given(STEPS)
@settings(max_examples=25, deadline=None)
def test_whatever_happens_each_condition_begins_and_ends_in_turn(steps: list[str]) -> None:
    plant = Plant(Limit("#", "b", -math.inf, 50.0))
    plant.pass_time(450, setpoint=4.0)
    standing: set[str] = set()
    for step in steps:
        found = []
        if step == "restart":
            plant.restart()
        elif step == "normal":
            for condition in sorted(standing - {RANGE}):
                plant.rounds.accept(PUMP, condition)
                standing.discard(condition)
        else:
            values = {"readings": {"setpoint": 4.0}, "still": {"a": 1.0}, "high": {"b": 60.0}, "silence": {}}[step]
            found = plant.pass_time(70, **values)
        for one in found:
            assert (one.condition in standing) is not bool(one.why)
            standing ^= {one.condition}


# 64 rows a block, 10 s a row: a day is 135 blocks.
BLOCK_S = 640.0
DAY = 135


def test_medians_are_those_of_numpy() -> None:
    block = np.random.default_rng(3).normal(size=(BLOCK, 40)).round(1)  # with equal values
    block[:, :3] *= 1e300
    assert medians(block).tolist() == np.median(block, axis=0).tolist()


def trended(path: "np.ndarray[tuple[int], np.dtype[np.float64]]", limit: float) -> tuple[int, Trends]:
    """The block at which the channel first trends, or -1."""
    trends, first = Trends(), -1
    trends.rearrange(np.array([-1]), np.array([-1]))
    goal = Goal(np.zeros(1), np.array([-limit]), np.array([limit]))
    none = np.zeros(1, np.int64)
    for number, value in enumerate(path.tolist()):
        at_s = np.array([number * BLOCK_S])
        trends.add(Batch(none, at_s, none, none, np.array([value]), goal), np.zeros(1, bool))
        if first < 0 and trends.standing().any():
            first = number
    return first, trends


def noise(blocks: int, seed: int = 0) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Medians of 64 rows of white noise."""
    return np.random.default_rng(seed).normal(size=blocks) * 1.25 / math.sqrt(BLOCK)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", ["noise", "day", "step", "slow noise"])
def test_what_is_no_wear_does_not_trend(shape: str, seed: int) -> None:
    blocks = 7 * DAY
    path = noise(blocks, seed)
    if shape == "day":
        path += 3.0 * np.sin(np.arange(blocks) * math.tau / DAY + seed)
    if shape == "step":
        path[4 * DAY + 7 * seed :] += 5.0
    if shape == "slow noise":
        for place in range(1, blocks):
            path[place] += 0.8 * path[place - 1]
    assert trended(path, 20.0)[0] == -1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_wear_is_told_half_way_with_an_estimate_within_a_factor_of_two(sign: float) -> None:
    healthy, wear = 3 * DAY, 6 * DAY
    path = noise(healthy + wear)
    path[healthy:] += np.arange(wear) * 20.0 / wear
    first, _ = trended(sign * path, 20.0)
    assert healthy < first < healthy + wear // 2
    half = healthy + wear // 2
    _, trends = trended(sign * path[:half], 20.0)
    trend = trends.trend(0, 0, Goal(np.zeros(1), np.array([-20.0]), np.array([20.0])))
    assert trend is not None
    assert trend.per_day * sign == pytest.approx(20.0 * DAY / wear, rel=0.3)
    assert 0.5 < trend.left_s / (wear / 2 * BLOCK_S) < 2.0
    trends.accept(np.array([0]))
    assert not trends.standing().any()


def test_wear_reaches_the_alarms_with_its_estimate() -> None:
    """Through the detector: readings a minute apart, so that days are short."""
    detector = Detector(DetectorSettings())
    rounds = detector.rounds([Limit(PUMP, "a", -math.inf, 60.0)])
    book = AlarmBook()
    feedback = Feedback(book, detector, rounds)
    rng, healthy, wear = np.random.default_rng(3), 6000, 6000
    told_at = -1
    for row in range(healthy + wear * 2 // 3):
        now = START + row * 60 * SECOND
        worn = max(row - healthy, 0) / wear * 60.0
        detector.push(PUMP, Reading(now, {"a": float(rng.normal() + worn)}))
        if row % 32 == 0:
            detector.judge()
            feedback.find(rounds.walk(now), now)
            if told_at < 0 and (PUMP, WEAR) in book.standing:
                told_at = row
    alarm = book.standing[PUMP, WEAR]
    assert healthy < told_at < healthy + wear // 2
    assert (alarm.severity, alarm.cause, alarm.threshold) == (Severity.WARNING, "a", 60.0)
    assert "it reaches its limit 60 in about" in alarm.message
    (worst,) = rounds.describe()["wear"]
    assert 0.5 < worst["days_left"] / (wear / 3 / 1440) < 2.0


class Person:
    """A machine that learned, its detector, and somebody who speaks of it."""

    def __init__(self) -> None:
        self.plant = Plant()
        self.book = AlarmBook()
        self.feedback = Feedback(self.book, self.plant.detector, self.plant.rounds)

    def see(self, rows: int, **values: float) -> None:
        plant = self.plant
        for _ in range(rows):
            plant.now += SECOND
            noise = {"a": plant.noise.normal(), "b": plant.noise.normal()}
            shifted = {name: float(value + values.get(name, 0.0)) for name, value in noise.items()}
            plant.detector.push(PUMP, Reading(plant.now, shifted))
            for asset, score in plant.detector.judge():
                self.book.judge(asset, score)
            self.feedback.find(plant.rounds.walk(plant.now), plant.now)

    def say(self, verdict: Verdict, alarm: str) -> dict[str, str]:
        return self.feedback.take(verdict, Said(alarm), "ann", self.plant.now).result


def test_normal_ends_the_alarm_and_the_same_state_raises_no_other() -> None:
    person = Person()
    person.see(500)
    person.see(60, a=8.0)
    alarm = person.book.standing[PUMP, ANOMALY]
    answer = person.say(Verdict.NORMAL, alarm.id)
    assert answer["state"] == "normal"
    assert person.say(Verdict.NORMAL, alarm.id) == answer
    assert [label.alarm for _, label in person.feedback.labels] == [alarm.id]
    person.see(900, a=8.0)
    assert person.book.standing == {}


@pytest.mark.parametrize("called", [Verdict.FAULT, None])
def test_what_stands_for_long_is_learned_but_never_a_fault(called: Verdict | None) -> None:
    person = Person()
    person.see(500)
    person.see(60, a=8.0)
    if called:
        person.say(called, PUMP)
    person.see(400 * 8, a=8.0)
    assert person.book.standing[PUMP, ANOMALY].active is bool(called)
    assert [label.verdict for _, label in person.feedback.labels] == ([called] if called else [])


def test_a_fault_while_it_learned_is_offered_to_be_learned_anew() -> None:
    person = Person()
    person.see(500)
    assert person.feedback.describe() == {"unconfirmed": {"count": 1, "assets": [PUMP]}}
    since = person.plant.now - 450 * SECOND
    said = Said(PUMP, since, since + 100 * SECOND)
    answer = person.feedback.take(Verdict.FAULT, said, "ann", person.plant.now)
    assert f"alarms relearn {PUMP}" in answer.result["advice"]
    person.feedback.relearn(PUMP, "ann", person.plant.now)
    assert person.plant.detector.assets() == []
    assert person.plant.rounds.walk(person.plant.now) == []  # nobody is left
    person.see(100)
    assert person.plant.detector.assets()[0].rows == 100
    assert person.feedback.describe() == {}


def test_a_healthy_learning_period_is_confirmed_once() -> None:
    person = Person()
    person.see(500)
    person.say(Verdict.NORMAL, PUMP)
    assert person.feedback.describe() == {}
    ((_, label),) = person.feedback.labels
    assert label.condition == "learning-period"
    assert label.until - label.since == pytest.approx(399 * SECOND, abs=SECOND)


class Watched(Plant):
    """With a book of its alarms."""

    def __init__(self) -> None:
        super().__init__()
        self.book = AlarmBook()
        self.feedback = Feedback(self.book, self.detector, self.rounds)
        self.states: list[tuple[str, str]] = []  # state and words of each change of the anomaly

    def run(self, seconds: int, shift: float) -> None:
        for _ in range(seconds):
            self.now += SECOND
            values = {name: float(self.noise.normal() + shift) for name in "ab"}
            self.detector.push(PUMP, Reading(self.now, values))
            changes = [self.book.judge(name, score) for name, score in self.detector.judge()]
            changes += self.feedback.find(self.rounds.walk(self.now), self.now)
            self.states += [
                (one.alarm.state.value, one.alarm.message)
                for one in changes
                if one is not None and one.alarm.condition == ANOMALY
            ]


@pytest.mark.parametrize(("seen", "last"), [(True, "normal"), (False, "returned")])
def test_an_alarm_that_is_taken_for_normal_says_so(seen: bool, last: str) -> None:
    plant = Watched()
    plant.run(450, 0.0)
    plant.run(100, 6.0)
    if seen:
        plant.book.acknowledge(PUMP, "anna", plant.now)
    plant.run(3000, 6.0)
    state, words = plant.states[-1]
    assert state == last
    assert words.startswith("taken for normal: it stood for 0.6")


def test_a_state_that_comes_and_goes_is_called_one_in_the_alarm_that_nobody_saw() -> None:
    plant = Watched()
    plant.run(450, 0.0)
    for _ in range(5):
        plant.run(200, 6.0)
        plant.run(400, 0.0)
    assert [words for _, words in plant.states if words][-1].startswith("taken for another state of the machine")
    assert plant.states[-1][0] == "returned"


class Site:
    """Machines with a reading a second, all by one gateway."""

    def __init__(self, count: int, prefix: str = "hall2/") -> None:
        self.detector = Detector(SETTINGS)
        self.rounds = self.detector.rounds()
        self.book = AlarmBook()
        self.feedback = Feedback(self.book, self.detector, self.rounds)
        self.names = [f"{prefix}m{number}" for number in range(count)]
        self.now, self.noise = START, np.random.default_rng(2)

    def pass_time(self, seconds: int, *silent: str) -> set[str]:
        """Assets with an alarm that readings are missing, when it is over."""
        for _ in range(seconds):
            self.now += SECOND
            for name in self.names:
                if name not in silent:
                    self.detector.push(name, Reading(self.now, {"a": float(self.noise.normal())}))
            self.feedback.find(self.rounds.walk(self.now), self.now)
        return {asset for (asset, condition), alarm in self.book.standing.items() if alarm.active}

    def restart(self) -> None:
        learned, seen, alarms = self.detector.snapshot(), self.rounds.snapshot(), self.book.snapshot()
        self.__dict__.update(Site(len(self.names)).__dict__ | {"now": self.now, "names": self.names})
        self.detector.restore(learned)
        self.rounds.restore(seen)
        self.book.restore(alarms)


def test_assets_that_fall_silent_together_are_one_alarm_with_their_number() -> None:
    site = Site(40)
    assert site.pass_time(80) == set()
    assert site.pass_time(70, *site.names[:30]) == {"hall2"}
    (alarm,) = site.book.of("hall2")
    assert alarm.message == "30 assets under hall2 fell silent together: hall2/m0, hall2/m1, hall2/m10, ..."
    site.restart()
    assert site.pass_time(70, *site.names[:31]) == {"hall2"}  # one more joins
    assert site.book.of("hall2")[0].message.startswith("31 assets")
    assert site.pass_time(5, *site.names[:2]) == set(site.names[:2])  # the rest is told by name
    assert site.pass_time(5) == set()


def test_few_assets_that_fall_silent_are_told_by_name() -> None:
    site = Site(40)
    site.pass_time(80)
    assert site.pass_time(70, *site.names[:5]) == set(site.names[:5])


def test_what_is_common_to_no_names_is_an_alarm_of_the_box_and_may_be_normal() -> None:
    site = Site(12, prefix="")
    site.pass_time(80)
    assert site.pass_time(70, *site.names) == {"millwright/detect"}
    site.feedback.take(Verdict.NORMAL, Said("millwright/detect"), "anna", site.now)
    assert site.pass_time(5, *site.names) == set()
    assert site.pass_time(5) == set()


def test_a_slow_device_is_looked_at_from_its_first_reading_on() -> None:
    told = Plant(Limit("#", "temperature", 0.0, 80.0)).pass_slowly(60, every=10, temperature=21.0)
    assert [(second, score.rows) for second, score in told] == [(10 * n, n) for n in range(1, 7)]
    assert {score.stage for _, score in told} == {Stage.COLLECTING}
    assert {(score.score, score.cause, score.alarm) for _, score in told} == {(0.0, "", False)}


def test_a_limit_that_is_broken_is_seen_in_the_first_look() -> None:
    plant = Plant(Limit("#", "temperature", 0.0, 80.0))
    ((second, score),) = plant.pass_slowly(10, every=10, temperature=95.0, pressure=2.0)
    assert second == 10
    assert score.score > score.threshold
    assert (score.cause, score.branch) == ("temperature", RANGE)


def test_early_looks_end_where_scores_begin() -> None:
    plant = Plant()
    plant.pass_time(SETTINGS.collect_rows - 1, a=1.0)
    assert [score.rows for _, score in plant.rounds.early()] == [SETTINGS.collect_rows - 1]
    plant.pass_time(1, a=1.0)
    assert plant.rounds.early() == []
    plant.pass_time(1, a=1.0)
    assert plant.rounds.early() == []


def test_a_flood_of_new_assets_is_told_of_in_bounds() -> None:
    plant = Plant()
    for number in range(EARLY + 100):
        plant.detector.push(f"a{number}", Reading(START, {"x": 1.0}))
    plant.rounds.walk(START + SECOND)
    assert len(plant.rounds.early()) == EARLY
    plant.rounds.walk(START + 2 * SECOND)
    assert plant.rounds.early() == []
