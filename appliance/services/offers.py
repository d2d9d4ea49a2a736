"""What repositories offer this box, and what of it the box takes: looked at now and then, decided from what was seen.

A look asks the network and may take long: it is made in a thread. What was seen then is decided on again and again, as
waves open and windows close, without asking anybody.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from appliance.errors import ModelError
from appliance.inference.library import Library
from appliance.runtime.service import Clock
from ota import campaign as campaigns
from ota import manifest
from ota.campaign import Campaign, Choice
from ota.errors import ManifestError, OtaError
from ota.manifest import Bundle
from ota.origins import Origins
from ota.supply import Supply, Survey
from ota.trust import Offer
from ota.wanted import Habits, Wish, about, open_now, wishes

log = logging.getLogger(__name__)

LISTED = 20  # of what is offered, and of what is wrong, that is told


@dataclass(frozen=True)
class Seen:
    """One look at a repository."""

    survey: Survey
    campaigns: tuple[Campaign, ...]
    at: int  # ns

    @property
    def bundles(self) -> list[Bundle]:
        return [offer.content for offer in self.survey.offers if isinstance(offer.content, Bundle)]

    def campaign(self, name: str) -> Campaign | None:
        return next((one for one in self.campaigns if one.model == name), None)


class Offers:
    """`habits` are known once somebody has asked this box for its id, which may fail: OSError, OtaError."""

    def __init__(
        self, origins: Origins, library: Library, fleet: str, habits: Callable[[], Habits], budget: int, clock: Clock
    ) -> None:
        self.origins, self._library, self._fleet = origins, library, fleet
        self._make_habits, self._budget, self._clock = habits, budget, clock
        self._habits: Habits | None = None
        self._read: dict[str, Campaign] = {}  # by the hash of their file
        self.seen: Seen | None = None
        self.trouble = ""  # why the newest look was in vain

    @property
    def known(self) -> bool:
        """Whether this box belongs to a fleet, and may look at repositories."""
        return bool(self._fleet)

    @property
    def habits(self) -> Habits:
        if self._habits is None:
            try:
                self._habits = self._make_habits()
            except OSError as error:
                raise OtaError(
                    f"this box has no id: {error.filename}: {error.strerror}", "Name it: device in [update]."
                ) from error
        return self._habits

    def introduce(self) -> None:
        """Ask this box for its id. Where it has none that is told, and asked again with each look."""
        try:
            _ = self.habits
        except OtaError as error:
            self.trouble = error.line

    @property
    def device(self) -> str:
        """This box's id, once it is known."""
        return self._habits.device.id if self._habits is not None else ""

    # ---- looking: slow, and in a thread -----------------------------------------------------------------------------

    def look(self) -> Seen:
        """At the configured places. OtaError, which is remembered, too."""
        try:
            self.seen = self._look(self.origins.supply())
        except OtaError as error:
            self.trouble = error.line
            raise
        self.trouble = "; ".join(problem.line for problem in self.seen.survey.problems[:LISTED])
        return self.seen

    def find(self, reference: str, place: str) -> tuple[Seen, Bundle]:
        """`NAME`, for its newest version, or `NAME@VERSION`, of a place or of the configured ones. ModelError."""
        with in_words():
            seen = self._look(self.origins.supply(place)) if place else self.look()
        name, _, version = reference.partition("@")
        named = sorted((one for one in seen.bundles if one.name == name), key=lambda one: manifest.order(one.version))
        found = [one for one in named if not version or one.version == version]
        if not found:
            raise self._unknown(reference, seen, named)
        return seen, found[-1]

    def plan(self, seen: Seen, bundle: Bundle, place: str) -> dict[str, Any]:
        """The way to it in bytes, and what its campaign says. ModelError where no way leads there."""
        supply = self.origins.supply(place)
        lacking = [lack for offer in seen.survey.offers if offer.content == bundle for lack in supply.lacking(offer)]
        if lacking:
            raise ModelError(f"{bundle.name}@{bundle.version} needs {', '.join(lacking)}", "This box does not have it.")
        with in_words():
            route = supply.route(bundle.bundle, seen.survey.offers)
            decision = about(bundle, seen.campaign(bundle.name), self.habits, self._now())
        return {
            "route": route.kind,
            "place": seen.survey.place,
            "bytes": route.fetch_bytes,
            "whole_bytes": supply.whole_bytes(bundle.bundle, seen.survey.offers),
            "disk_bytes": route.disk_bytes,
            "applying_bytes": route.memory_bytes,
            "budget_bytes": self._budget,
            "by_itself": {"choice": decision.choice.value, "reason": decision.reason, "wave": decision.wave},
        }

    def _look(self, supply: Supply) -> Seen:
        survey = supply.survey()
        speaking = (self._campaign(supply, offer, survey) for offer in survey.offers)
        return Seen(survey, tuple(one for one in speaking if one is not None), self._clock())

    def _campaign(self, supply: Supply, offer: Offer, survey: Survey) -> Campaign | None:
        """One that cannot be read speaks for nobody, and stops nobody's box."""
        if not isinstance(offer.content, manifest.Campaign):
            return None
        digest = offer.target.wanted.digest
        try:
            if digest not in self._read:
                self._read[digest] = campaigns.read(supply.read(offer, campaigns.LIMIT))
        except ManifestError as error:
            survey.problems.append(ManifestError(f"{offer.target.path}: {error.message}", error.remedy))
            return None
        found = self._read[digest]
        return found if found.model == offer.content.name else None

    def _unknown(self, reference: str, seen: Seen, named: list[Bundle]) -> ModelError:
        if named:
            return ModelError(
                f"{seen.survey.place} has no {reference}", f"There are: {', '.join(one.version for one in named)}."
            )
        names = sorted({one.name for one in seen.bundles})
        if not names:
            return ModelError(
                f"{seen.survey.place} has nothing for the fleet '{self._fleet}'",
                "Check `fleet` in [update]; millwright-publish add --fleet publishes for it.",
            )
        return ModelError(f"{seen.survey.place} has no '{reference}'", f"There are: {', '.join(names)}.")

    # ---- deciding: quick --------------------------------------------------------------------------------------------

    def wishes(self) -> list[Wish]:
        """From what was seen last. OtaError where this box has no id."""
        if self.seen is None:
            return []
        running = {entry.card.name: entry.card.version for entry in self._library.entries() if entry.current}
        return wishes(self.seen.bundles, running, self.seen.campaigns, self.habits, self._now())

    def over(self, campaign_id: str, name: str) -> str:
        """Why nobody shall take what this campaign brought any more; empty where that was not said."""
        campaign = self.seen.campaign(name) if self.seen is not None else None
        if campaign is None or campaign.id != campaign_id:
            return ""
        if campaign.stopped:
            return f"the campaign {campaign.id} was stopped: {campaign.reason or 'whoever signs wants it so'}"
        broken = campaigns.broken_criterion(campaign.stop, campaign.progress)
        return f"the campaign {campaign.id} is stopped: {broken}" if broken else ""

    def closed(self) -> str:
        """Why this box does not change its models by itself now; empty where it does."""
        if self._habits is None:
            return ""
        decision = open_now(self._habits.hours, self._now())
        return "" if decision.choice is Choice.TAKE else decision.reason

    def snapshot(self) -> int:
        """The version of the newest state seen."""
        return self.seen.survey.standing.snapshot if self.seen is not None else 0

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        told: dict[str, Any] = {"fleet": self._fleet}
        if self._habits is not None:
            told["device"] = self._habits.device.id
        if self.seen is not None:
            survey = self.seen.survey
            told |= {"place": survey.place, "looked_at": self.seen.at, "snapshot": survey.standing.snapshot}
            told |= {"expires_s": int(survey.standing.expires_s), "offers": self._offered()}
        if self.trouble:
            told["trouble"] = self.trouble
        return told

    def _offered(self) -> list[dict[str, Any]]:
        try:
            found = self.wishes()
        except (OtaError, ModelError) as error:
            log.debug("%s", error)
            return []
        return [
            {
                "name": wish.bundle.name,
                "version": wish.bundle.version,
                "choice": wish.decision.choice.value,
                "reason": wish.decision.reason,
                "wave": wish.decision.wave,
                "campaign": wish.campaign,
            }
            for wish in found[:LISTED]
        ]

    def _now(self) -> datetime:
        """In the zone of this box's day."""
        return datetime.fromtimestamp(self._clock() / 1e9).astimezone()


@contextmanager
def in_words() -> Iterator[None]:
    """Errors of updates in the appliance's own."""
    try:
        yield
    except OtaError as error:
        raise ModelError(error.message, error.remedy) from error
