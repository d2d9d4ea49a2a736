"""Whether a box changes its system by itself now. Pure; times: ns.

Whether it takes anything, and at which hours, is decided for models and for systems by the same code (`ota.wanted`).
This is about what a system has besides: a trial, and a restart.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ota.campaign import Choice, Decision
from ota.system.book import Step, Update
from ota.system.plan import Plan
from ota.system.release import order


class Act(StrEnum):
    REST = "rest"  # there is nothing to do, or it is not the time for it
    INSTALL = "install"
    RESTART = "restart"
    FORBIDDEN = "forbidden"  # a person must know


class Ruling(NamedTuple):
    act: Act
    reason: str


@dataclass(frozen=True)
class Present:
    """`held`: why nothing shall change at the moment, though its hours are open; empty: it may."""

    running: str
    blessed: bool
    booted: int
    held: str = ""


def rule(decision: Decision, active: Update | None, present: Present) -> Ruling:
    """By what the box knows without asking a repository."""
    if decision.choice is not Choice.TAKE:
        return Ruling(Act.REST, decision.reason)
    if not present.blessed:
        return Ruling(Act.REST, f"{present.running or 'what runs'} is not blessed yet")
    if present.held:
        return Ruling(Act.REST, present.held)
    if active is None or active.step is not Step.WAITING:
        return Ruling(Act.INSTALL, decision.reason)
    if active.trail[-1].at < present.booted:  # else it would restart for ever
        return Ruling(Act.REST, f"{active.version} waits, and a restart did not lead to it: see bootctl list")
    return Ruling(Act.RESTART, f"{active.version} is tried by a restart")


def overtaken(active: Update | None, version: str, release: str) -> str:
    """Why what was begun is not gone on with where this one is offered; empty where it is. `release`: the SHA-256 of
    its file."""
    if active is None:
        return ""
    if order(version) > order(active.version):
        return f"{version} is newer"
    return "it was published anew" if active.version == version and active.release != release else ""


def judged(plan: Plan) -> Ruling:
    """A version that is not for this box is left in peace; all else that speaks against it is told."""
    wrong = [one for one in plan.findings if not one.ok]
    if not wrong:
        return Ruling(Act.INSTALL, f"{plan.release.version} is the newest")
    for one in wrong:
        if one.name == "version":
            return Ruling(Act.REST, one.detail)
    told = "; ".join(f"{one.name}: {one.detail}\n  -> {one.remedy}" for one in wrong)
    return Ruling(Act.FORBIDDEN, f"{plan.release.version} cannot be installed: {told}")
