"""What a box takes by itself."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota import wanted
from ota.campaign import Campaign, Choice, Device, Wave, Window
from ota.manifest import Bundle, order
from ota.wanted import Habits, Hours, Policy, Wish

NOW = datetime(2026, 11, 21, 23, 30, tzinfo=UTC)  # a Saturday
DEVICE = Device("box-1", {"site": "berlin"})
RUNNING = {"pump": "1.2.0"}


def bundle(version: str, name: str = "pump") -> Bundle:
    return Bundle(name, version, f"{sum(order(version)) + len(name):064x}", 1000)


def campaign(of: Bundle, **more: object) -> Campaign:
    waves = (Wave("all", datetime(2026, 1, 1, tzinfo=UTC)),)
    return Campaign("spring", "7f3a", of.name, of.version, of.bundle, waves, **more)  # type: ignore[arg-type]


def wish(*offered: Bundle, said: tuple[Campaign, ...] = (), habits: Habits | None = None) -> Wish | None:
    found = wanted.wishes(offered, RUNNING, said, habits or Habits(DEVICE), NOW)
    assert len(found) <= 1
    return found[0] if found else None


def choice(found: Wish | None) -> Choice:
    assert found is not None
    return found.decision.choice


def test_nothing_that_is_not_newer_and_nothing_that_is_not_in_use() -> None:
    assert wish(bundle("1.2.0"), bundle("1.1.9"), bundle("9.0.0", "fan")) is None


def test_without_a_campaign_it_waits_for_a_person_or_is_the_newest() -> None:
    found = wish(bundle("1.3.0"), bundle("1.10.0"))
    assert found is not None
    assert (found.bundle.version, found.decision.reason) == ("1.10.0", "no campaign speaks of it")
    assert choice(found) is Choice.LEAVE
    assert choice(wish(bundle("1.3.0"), habits=Habits(DEVICE, Policy.NEWEST))) is Choice.TAKE


@pytest.mark.parametrize("policy", [Policy.CAMPAIGNS, Policy.NEWEST])
def test_what_a_campaign_speaks_of_goes_before_what_is_newer(policy: Policy) -> None:
    meant, newest = bundle("1.3.0"), bundle("2.0.0")
    found = wish(meant, newest, said=(campaign(meant),), habits=Habits(DEVICE, policy))
    assert found is not None
    assert (found.bundle, found.campaign, found.decision.choice) == (meant, "spring", Choice.TAKE)


def test_a_campaign_of_something_older_holds_the_newest_back() -> None:
    """Somebody signs what this model's boxes shall have; the rest is not out yet."""
    found = wish(bundle("2.0.0"), said=(campaign(bundle("1.2.0")),), habits=Habits(DEVICE, Policy.NEWEST))
    assert choice(found) is Choice.LEAVE


def test_never_is_never() -> None:
    meant = bundle("1.3.0")
    found = wish(meant, said=(campaign(meant),), habits=Habits(DEVICE, Policy.NEVER))
    assert choice(found) is Choice.LEAVE


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        (Hours(), Choice.TAKE),
        (Hours((Window("22:00", "05:30"),)), Choice.TAKE),
        (Hours((Window("06:00", "14:00"),)), Choice.WAIT),
        (Hours((Window("22:00", "05:30"),), (Window("23:00", "24:00", ("sat",)),)), Choice.WAIT),
        (Hours(never=(Window("23:00", "24:00", ("sun",)),)), Choice.TAKE),
    ],
)
def test_the_box_has_hours_of_its_own(hours: Hours, expected: Choice) -> None:
    meant = bundle("1.3.0")
    assert choice(wish(meant, said=(campaign(meant),), habits=Habits(DEVICE, hours=hours))) is expected
    assert wanted.open_now(hours, NOW).choice is expected


def test_its_hours_open_nothing_that_a_campaign_keeps_shut() -> None:
    meant = bundle("1.3.0")
    shut = campaign(meant, windows=(Window("06:00", "14:00"),))
    found = wish(meant, said=(shut,), habits=Habits(DEVICE, hours=Hours((Window("00:00", "24:00"),))))
    assert choice(found) is Choice.WAIT


versions = st.lists(st.integers(0, 12), min_size=2, max_size=3).map(lambda parts: ".".join(map(str, parts)))


@given(st.lists(versions, max_size=8), versions, st.sampled_from(Policy))
def test_nothing_older_is_ever_wished_for(offered: list[str], running: str, policy: Policy) -> None:
    bundles = [bundle(version) for version in offered]
    said = [campaign(one) for one in bundles[:1]]
    for found in wanted.wishes(bundles, {"pump": running}, said, Habits(DEVICE, policy), NOW):
        assert order(found.bundle.version) > order(running)
