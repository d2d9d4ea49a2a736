"""Who takes which version, and when."""

import hashlib
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota import campaign
from ota.campaign import Campaign, Choice, Device, Progress, Stop, Wave, Window, decide, place, wave_of
from ota.errors import ManifestError

OPENS = datetime(2026, 11, 21, 8, tzinfo=UTC)  # a Saturday
BOX = Device("box-1", {"site": "berlin", "line": "3"})
IDS = [f"box-{number}" for number in range(2000)]


def made(*waves: Wave, **fields: object) -> Campaign:
    given = Campaign("c-1", "salt", "pump", "1.0.0", "a" * 64, waves or (Wave("all", OPENS),), **fields)
    return campaign.read(campaign.written(given))


def test_the_place_is_what_the_facts_say() -> None:
    expected = int(hashlib.sha256(b"salt\0box-1").hexdigest(), 16) % 10_000
    assert place("salt", "box-1") == expected


def test_shares_are_about_right_and_differ_by_salt() -> None:
    shares = [sum(place(salt, one) < 1000 for one in IDS) for salt in ("a", "b", "c")]
    assert all(140 < share < 260 for share in shares)
    assert [one for one in IDS if place("a", one) < 1000] != [one for one in IDS if place("b", one) < 1000]


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_larger_share_holds_the_smaller_one(one: int, other: int) -> None:
    small, large = sorted((one, other))
    chosen = [{box for box in IDS[:200] if place("s", box) < share} for share in (small, large)]
    assert chosen[0] <= chosen[1]


def test_a_device_belongs_to_the_first_wave_that_is_for_it() -> None:
    given = made(
        Wave("canary", OPENS, basis_points=place("salt", BOX.id)),
        Wave("munich", OPENS, labels={"site": ("munich",)}),
        Wave("berlin", OPENS, labels={"site": ("hamburg", "berlin"), "line": ("3",)}),
        Wave("rest", OPENS),
    )
    assert wave_of(given, BOX).name == "berlin"
    assert wave_of(given, Device("box-1", {})).name == "rest"
    assert wave_of(msgspec.structs.replace(given, waves=given.waves[:2]), BOX) is None
    assert decide(msgspec.structs.replace(given, waves=given.waves[:2]), BOX, OPENS).choice is Choice.LEAVE


def test_a_wave_opens_and_is_spread() -> None:
    given = made(Wave("all", OPENS, spread_s=3600))
    assert decide(given, BOX, OPENS - timedelta(seconds=1)).choice is Choice.WAIT
    at = decide(given, BOX, OPENS - timedelta(days=1)).at
    assert OPENS <= at <= OPENS + timedelta(hours=1)
    assert decide(given, BOX, at).choice is Choice.TAKE
    starts = {decide(given, Device(box, {}), OPENS - timedelta(days=1)).at for box in IDS[:100]}
    assert len(starts) > 80


def test_a_wave_waits_for_those_before_it() -> None:
    waiting = made(Wave("all", OPENS, after_confirmed=20))
    assert decide(waiting, BOX, OPENS).choice is Choice.WAIT
    confirmed = msgspec.structs.replace(waiting, progress=Progress(confirmed=20))
    assert decide(confirmed, BOX, OPENS).choice is Choice.TAKE


@pytest.mark.parametrize(
    ("progress", "stops"),
    [
        (Progress(), False),
        (Progress(0, 4, 0), False),  # too few to tell
        (Progress(4, 1, 0), True),
        (Progress(19, 1, 0), False),
        (Progress(18, 0, 2), False),
        (Progress(17, 0, 3), True),
    ],
)
def test_a_canary_over_its_error_threshold_stops(progress: Progress, stops: bool) -> None:
    given = made(stop=Stop(5, 500, 1000), progress=progress)
    decision = decide(given, BOX, OPENS)
    assert (decision.choice is Choice.LEAVE) == stops
    assert decision.reason


def test_whoever_signs_can_pause_and_stop() -> None:
    assert decide(made(paused=True), BOX, OPENS).choice is Choice.WAIT
    assert decide(made(stopped=True), BOX, OPENS).choice is Choice.LEAVE


@pytest.mark.parametrize(
    ("window", "hour", "day", "within"),
    [
        (Window("08:00", "09:00"), 8, 21, True),
        (Window("08:00", "09:00"), 9, 21, False),
        (Window("22:00", "06:00"), 23, 21, True),
        (Window("22:00", "06:00"), 5, 21, True),
        (Window("22:00", "06:00"), 6, 21, False),
        (Window("22:00", "06:00", ("sat",)), 5, 21, False),  # that night began on Friday
        (Window("22:00", "06:00", ("sat",)), 5, 22, True),
        (Window("00:00", "24:00", ("sat", "sun")), 12, 23, False),
        (Window("00:00", "24:00", ("sat", "sun")), 12, 22, True),
    ],
)
def test_windows(window: Window, hour: int, day: int, within: bool) -> None:
    now = datetime(2026, 11, day, hour, tzinfo=UTC)
    wave = Wave("all", OPENS - timedelta(days=9))
    assert (decide(made(wave, windows=(window,)), BOX, now).choice is Choice.TAKE) == within
    assert (decide(made(wave, never=(window,)), BOX, now).choice is Choice.WAIT) == within


@given(
    st.datetimes(), st.sampled_from(["00:00", "06:30", "24:00", "23:59"]), st.sampled_from(["00:00", "05:30", "24:00"])
)
def test_a_window_and_the_same_one_forbidden_leave_nothing(now: datetime, begin: str, end: str) -> None:
    window = Window(begin, end)
    given = made(Wave("all", datetime(1, 1, 1, tzinfo=UTC)), windows=(window,), never=(window,))
    assert decide(given, BOX, now.replace(tzinfo=UTC)).choice is Choice.WAIT


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        campaign.read(data)


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"waves": []},
        {"waves": [{"name": "x", "opens": "2026-11-21T08:00:00"}]},  # of which zone?
        {"waves": [{"name": "x", "opens": "2026-11-21T08:00:00Z", "basis_points": 10001}]},
        {"windows": [{"from": "25:00", "to": "26:00"}]},
        {"salt": "a\0b"},
        {"bundle": "../x"},
    ],
)
def test_what_it_does_not_know_it_does_not_guess(change: dict[str, object]) -> None:
    plain = msgspec.json.decode(campaign.written(made())) | change
    with pytest.raises(ManifestError):
        campaign.read(msgspec.json.encode(plain))


def test_it_is_bounded() -> None:
    with pytest.raises(ManifestError, match="more than"):
        campaign.read(b" " * (campaign.LIMIT + 1))
