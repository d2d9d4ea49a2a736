"""What this box takes by itself of what a repository has: by signed campaigns, its own hours, and what it uses. Pure.

A person may ask for any version at any time; this is about the nights in which nobody does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from ota import campaign as campaigns
from ota.campaign import Campaign, Choice, Decision, Device, Wave, Window
from ota.manifest import Bundle, order

_ALWAYS = Wave("always", datetime(1970, 1, 1, tzinfo=UTC))


class Policy(StrEnum):
    CAMPAIGNS = "campaigns"  # what a campaign says is for this box
    NEWEST = "newest"  # that, and the newest version of what no campaign speaks of
    NEVER = "never"


@dataclass(frozen=True)
class Hours:
    """Of this box, besides those of a campaign. Where there are no windows: at any time that is not in `never`."""

    windows: tuple[Window, ...] = ()
    never: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Habits:
    """How this box takes updates."""

    device: Device
    policy: Policy = Policy.CAMPAIGNS
    hours: Hours = field(default_factory=Hours)


@dataclass(frozen=True)
class Wish:
    """A version that is newer than the one in use, and whether it is taken now."""

    bundle: Bundle
    decision: Decision
    campaign: str = ""  # its id


def wishes(
    offered: Iterable[Bundle], running: Mapping[str, str], speaking: Iterable[Campaign], habits: Habits, now: datetime
) -> list[Wish]:
    """One at most of each model in use. `running`: version by name; `now` is aware, in the zone of the box's day."""
    by_name: dict[str, list[Bundle]] = {}
    for bundle in offered:
        by_name.setdefault(bundle.name, []).append(bundle)
    said = {campaign.model: campaign for campaign in speaking}
    found = [_wish(by_name.get(name, []), version, said.get(name), habits, now) for name, version in running.items()]
    return [wish for wish in found if wish is not None]


def about(bundle: Bundle, campaign: Campaign | None, habits: Habits, now: datetime) -> Decision:
    """Whether this box takes it by itself now, and why."""
    if campaign is None or habits.policy is Policy.NEVER:
        return unspoken(habits.policy, habits.hours, now)
    if campaign.bundle != bundle.bundle:
        return Decision(Choice.LEAVE, "no campaign speaks of it")
    decision = campaigns.decide(campaign, habits.device, now)
    return decision if decision.choice is not Choice.TAKE else _at_its_hours(decision, habits.hours, now)


def unspoken(policy: Policy, hours: Hours, now: datetime) -> Decision:
    """The same of what no campaign speaks of, as of the newest system."""
    if policy is Policy.NEVER:
        return Decision(Choice.LEAVE, "this box takes nothing by itself")
    if policy is not Policy.NEWEST:
        return Decision(Choice.LEAVE, "no campaign speaks of it")
    return _at_its_hours(Decision(Choice.TAKE, "it is the newest"), hours, now)


def _at_its_hours(decision: Decision, hours: Hours, now: datetime) -> Decision:
    own = open_now(hours, now)
    return decision if own.choice is Choice.TAKE else own


def open_now(hours: Hours, now: datetime) -> Decision:
    """Whether it is a time at which this box may change by itself."""
    if not (hours.windows or hours.never):
        return Decision(Choice.TAKE, "at any time")
    # The same rules as a campaign's, by the same code.
    own = Campaign("own", "0", "own", "0.0", "0" * 64, (_ALWAYS,), hours.windows, hours.never)
    found = campaigns.decide(own, Device("", {}), now)
    return Decision(found.choice, f"by this box's own hours: {found.reason}")


def _wish(offered: list[Bundle], running: str, campaign: Campaign | None, habits: Habits, now: datetime) -> Wish | None:
    newer = sorted((one for one in offered if order(one.version) > order(running)), key=lambda one: order(one.version))
    if not newer:
        return None
    meant = next((one for one in newer if campaign is not None and one.bundle == campaign.bundle), newer[-1])
    decision = about(meant, campaign, habits, now)
    return Wish(meant, decision, campaign.id if campaign is not None and campaign.bundle == meant.bundle else "")
