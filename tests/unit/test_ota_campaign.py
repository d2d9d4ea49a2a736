"""Who takes which version, and when."""

import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import assume, given
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


SALTS = st.text("0123456789abcdefghijklmnopqrstuvwxyzABC_.-", min_size=1, max_size=64)
SHARES = st.integers(0, 10_000)


def chance(count: int, part: float) -> float:
    """How far from its mean a binomial number is at most, but once in 200 million times (Bernstein's inequality)."""
    sure = 20.0
    return sure / 3 + math.sqrt((sure / 3) ** 2 + 2 * sure * count * part * (1 - part))


def takes(given: Campaign, box: str, now: datetime = OPENS, labels: Mapping[str, str] = BOX.labels) -> bool:
    return decide(given, Device(box, labels), now).choice is Choice.TAKE


@given(SALTS, SHARES)
def test_a_share_of_the_devices_is_that_share_within_chance(salt: str, share: int) -> None:
    chosen = sum(place(salt, one) < share for one in IDS)
    part = share / 10_000
    assert abs(chosen - part * len(IDS)) <= chance(len(IDS), part)


@given(SALTS, SHARES)
def test_so_is_a_share_of_a_cohort(salt: str, share: int) -> None:
    given = msgspec.structs.replace(made(Wave("some", OPENS, share, {"site": ("berlin", "munich")})), salt=salt)
    sites = [("berlin", "munich", "hamburg")[number % 3] for number in range(len(IDS))]
    taking = [site for box, site in zip(IDS, sites, strict=True) if takes(given, box, labels={"site": site})]
    assert "hamburg" not in taking
    cohort, part = len(IDS) - sites.count("hamburg"), share / 10_000
    assert abs(len(taking) - part * cohort) <= chance(cohort, part)


@given(SALTS, SALTS, st.integers(500, 9500), st.integers(500, 9500))
def test_who_is_early_in_one_campaign_says_nothing_about_another(one: str, other: str, first: int, second: int) -> None:
    assume(one != other)
    p, q = first / 10_000, second / 10_000
    both = sum(place(one, box) < first and place(other, box) < second for box in IDS)
    assert abs(both - p * q * len(IDS)) <= chance(len(IDS), p * q)


@given(SALTS, SHARES, SHARES, st.sampled_from(IDS))
def test_a_device_that_takes_part_at_a_share_does_so_at_every_larger_one(
    salt: str, one: int, other: int, box: str
) -> None:
    small, large = (msgspec.structs.replace(made(Wave("w", OPENS, share)), salt=salt) for share in sorted((one, other)))
    assert takes(large, box) or not takes(small, box)


@given(st.lists(SHARES, min_size=1, max_size=5), st.sampled_from(IDS), st.integers(0, 4))
def test_a_later_wave_never_takes_back_what_an_earlier_one_gave(shares: list[int], box: str, more: int) -> None:
    """Waves open one after another; and whoever signs may widen one that is open."""
    waves = [Wave(f"w{at}", OPENS + timedelta(days=at), share) for at, share in enumerate(shares)]
    taking = [takes(made(*waves), box, OPENS + timedelta(days=day)) for day in range(len(shares) + 1)]
    assert taking == sorted(taking)  # once it may, it may from then on
    at = min(more, len(waves) - 1)
    wider = [*waves[:at], msgspec.structs.replace(waves[at], basis_points=10_000), *waves[at + 1 :]]
    for day, took in enumerate(taking):
        assert takes(made(*wider), box, OPENS + timedelta(days=day)) or not took


def test_the_delay_within_a_wave_says_nothing_about_the_place() -> None:
    given = made(Wave("all", OPENS, 10_000, spread_s=86_400))
    early = [box for box in IDS if takes(given, box, OPENS + timedelta(hours=12))]
    first = [box for box in IDS if place("salt", box) < 5000]
    both = len(set(early) & set(first))
    assert abs(both - len(IDS) / 4) <= chance(len(IDS), 0.25)


@given(st.builds(Progress, *[st.integers(0, 500)] * 3), st.builds(Stop, st.integers(1, 50), SHARES, SHARES))
def test_what_stops_a_campaign_still_does_when_worse_comes_back(progress: Progress, stop: Stop) -> None:
    worse = msgspec.structs.replace(progress, rolled_back=progress.rolled_back + 1)
    if "rolled back" in campaign.broken_criterion(stop, progress):
        assert campaign.broken_criterion(stop, worse)
    better = msgspec.structs.replace(progress, confirmed=progress.confirmed + 1)
    if progress.reports >= stop.reports and not campaign.broken_criterion(stop, progress):
        assert not campaign.broken_criterion(stop, better)


@given(st.integers(0, 30 * 24 * 60), st.sampled_from(IDS[:50]))
def test_a_device_decides_alone(minutes: int, box: str) -> None:
    """The same file, the same device and the same time: the same decision, whatever was asked before."""
    given = made(Wave("canary", OPENS, 500), Wave("all", OPENS + timedelta(days=3), spread_s=86_400),
                 windows=(Window("20:00", "06:00"),))  # fmt: skip
    now = OPENS + timedelta(minutes=minutes)
    alone = decide(given, Device(box, {}), now)
    for other in IDS[:5]:
        decide(given, Device(other, {}), now)
    assert decide(campaign.read(campaign.written(given)), Device(box, {}), now) == alone


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
    assert "a fire" in decide(made(stopped=True, reason="a fire"), BOX, OPENS).reason
    assert "a strike" in decide(made(paused=True, reason="a strike"), BOX, OPENS).reason


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
