"""What a box does by itself about its system: every case of the decision."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from appliance.cli import unattended as asking
from appliance.config import seed as seeds
from appliance.config import seeding
from appliance.config.schema import Config
from appliance.config.updating import Update as Settings
from ota.campaign import Choice, Decision
from ota.system import book as books
from ota.system import unattended
from ota.system.book import Book, Step, Update
from ota.system.plan import Finding, Plan
from ota.system.unattended import Act, Present, Ruling
from ota.wanted import Hours, Policy, unspoken

HASH, OTHER = "0" * 64, "1" * 64
BOOTED, LATER = 1000, 2000
TAKE = Decision(Choice.TAKE, "it is the newest")
NIGHT = int(datetime(2026, 11, 21, 23, 30).astimezone().timestamp() * 1e9)  # of this machine's own day
MINUTE = 60_000_000_000


def begun(step: Step, at: int = LATER) -> Update:
    book = books.begin(Book(), "1.2", HASH, "1.1", at)
    while book.active is not None and book.active.step is not (Step.WAITING if step is Step.TRYING else step):
        book = books.proceed(book, at)
    if step is Step.TRYING:
        book = books.settle(book, books.Slot("1.2", blessed=False, whole=True, given_up=False), at)
    assert book.active is not None
    return book.active


def ruled(
    active: Update | None = None, decision: Decision = TAKE, *, blessed: bool = True, held: str = ""
) -> tuple[Act, str]:
    return unattended.rule(decision, active, Present("1.1", blessed, BOOTED, held))


@pytest.mark.parametrize(
    ("active", "decision", "held", "expected"),
    [
        (None, TAKE, "", (Act.INSTALL, "it is the newest")),
        (begun(Step.FETCHING), TAKE, "", (Act.INSTALL, "it is the newest")),
        (begun(Step.WRITING, BOOTED - 1), TAKE, "", (Act.INSTALL, "it is the newest")),
        (begun(Step.WAITING), TAKE, "", (Act.RESTART, "1.2 is tried by a restart")),
        (None, TAKE, "updates are paused", (Act.REST, "updates are paused")),
        (begun(Step.WAITING), TAKE, "updates are paused", (Act.REST, "updates are paused")),
        (None, Decision(Choice.LEAVE, "never"), "", (Act.REST, "never")),
        (begun(Step.WAITING), Decision(Choice.WAIT, "closed"), "", (Act.REST, "closed")),
    ],
)
def test_what_is_done_by_what_the_box_knows(
    active: Update | None, decision: Decision, held: str, expected: tuple[Act, str]
) -> None:
    assert ruled(active, decision, held=held) == expected


@pytest.mark.parametrize("active", [None, begun(Step.TRYING)])
def test_a_system_that_is_tried_is_let_prove_itself(active: Update | None) -> None:
    assert ruled(active, blessed=False) == (Act.REST, "1.1 is not blessed yet")


def test_a_restart_that_led_elsewhere_is_not_made_again_and_again() -> None:
    act, reason = ruled(begun(Step.WAITING, at=BOOTED - 1))
    assert act is Act.REST
    assert "a restart did not lead to it" in reason


@pytest.mark.parametrize(
    ("version", "release", "why"),
    [
        ("1.3", OTHER, "1.3 is newer"),
        ("1.2", OTHER, "it was published anew"),
        ("1.2", HASH, ""),
        ("1.1", OTHER, ""),
    ],
)
def test_what_was_begun_gives_way_to_what_is_newer_alone(version: str, release: str, why: str) -> None:
    assert unattended.overtaken(begun(Step.FETCHING), version, release) == why
    assert unattended.overtaken(None, version, release) == ""


def plan(*findings: Finding) -> Plan:
    release: Any = type("Release", (), {"version": "1.2"})
    return Plan(release, None, None, 0, 0, 0, findings)


def test_a_plan_is_followed_left_alone_or_told() -> None:
    space, version = Finding("space", False, "too little", "Make room."), Finding("version", False, "1.2 was given up")
    assert unattended.judged(plan(Finding("space", True, ""))) == Ruling(Act.INSTALL, "1.2 is the newest")
    assert unattended.judged(plan(space, version)) == Ruling(Act.REST, "1.2 was given up")
    assert unattended.judged(plan(space)) == Ruling(
        Act.FORBIDDEN, "1.2 cannot be installed: space: too little\n  -> Make room."
    )


@pytest.mark.parametrize(
    ("settings", "choice", "reason"),
    [
        (Settings(), Choice.LEAVE, "this box takes nothing by itself"),
        (Settings(automatic="newest"), Choice.LEAVE, "this box takes nothing by itself"),
        (Settings(system="newest", automatic="never"), Choice.TAKE, "it is the newest"),
        (Settings(system="newest", windows=["22:00-05:30"]), Choice.TAKE, "it is the newest"),
        (Settings(system="newest", windows=["06:00-14:00"]), Choice.WAIT, "by this box's own hours: outside"),
        (Settings(system="newest", never=["22:00-05:30"]), Choice.WAIT, "by this box's own hours: not at this"),
    ],
)
def test_it_is_switched_on_and_has_the_hours_of_models(settings: Settings, choice: Choice, reason: str) -> None:
    found = asking.decided(settings, NIGHT)
    assert found.choice is choice
    assert found.reason.startswith(reason)


def test_without_campaigns_the_policy_of_campaigns_takes_nothing() -> None:
    now = datetime.now(UTC).astimezone(timezone(timedelta(hours=1)))
    assert unspoken(Policy.CAMPAIGNS, Hours(), now) == Decision(Choice.LEAVE, "no campaign speaks of it")


def installation(step: str, minutes_ago: float) -> dict[str, Any]:
    return {"name": "pump", "version": "1.3.0", "trail": [["queued", 0], [step, NIGHT - int(minutes_ago * MINUTE)]]}


@pytest.mark.parametrize(
    ("detail", "why"),
    [
        ({}, ""),
        ({"paused": False, "installations": []}, ""),
        ({"paused": True}, "updates are paused on this box"),
        ({"installations": [installation("downloading", 1)]}, ""),
        ({"installations": [installation("shadow", 59)]}, "pump@1.3.0 is shadow: one change at a time"),
        ({"installations": [installation("shadow", 61)]}, ""),
        ({"installations": [installation("promoted", 1439)]}, "pump@1.3.0 is promoted: one change at a time"),
        ({"installations": [installation("promoted", 1441)]}, ""),
    ],
)
def test_it_waits_for_a_person_and_for_a_model_as_long_as_that_was_meant_to_take(
    detail: dict[str, Any], why: str
) -> None:
    assert asking.held(detail, Settings(), NIGHT) == why


def test_a_seed_can_switch_it_on() -> None:
    text = b'[config.update]\nsources = ["https://updates.example"]\nfleet = "plant-a"\nsystem = "newest"\n'
    tables = seeding.outcome(seeds.parse("seed.toml", text)[0]).tables
    assert msgspec.convert(tables, Config).update == Settings(["https://updates.example"], "plant-a", system="newest")
