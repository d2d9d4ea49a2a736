"""Installations on the bus: each at a topic of its own, retained, over restarts.

command/update/install/<id>   {name, version, bundle, step, trail, reason, figures, ..., receipt}
"""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from appliance.bus.port import Bus
from appliance.errors import BusError
from appliance.events import codec, topics
from appliance.events.schema import Command, CommandState
from ota.courier import Receipt
from ota.install import ENDS, Book, Installation, Step
from ota.origins import REPOSITORY

log = logging.getLogger(__name__)

TOLD = 4  # ended installations that stay on the bus
INSTALL = "install"
MAX_BY = 200  # characters
_OUTCOMES = {Step.CONFIRMED: "confirmed", Step.ROLLED_BACK: "rolled-back", Step.REFUSED: "refused"}

ReceiptOf = Callable[[Installation], Receipt | None]


class Board:
    """What stands on the bus of a book."""

    def __init__(self, bus: Bus, receipt: ReceiptOf) -> None:
        self._bus, self._receipt = bus, receipt
        self._told: dict[str, bytes] = {}  # topic -> what stands there

    def forget(self) -> None:
        """The broker may not have it any more."""
        self._told.clear()

    def tell(self, book: Book) -> bool:
        """Whether anything changed. The oldest ended ones go."""
        told = {topic(one): b"" for one in book.history[-2 * TOLD : -TOLD]}
        told |= {topic(one): codec.encode(self._command(one)) for one in (*book.history[-TOLD:], *book.waiting)}
        changed = {place: payload for place, payload in told.items() if self._told.get(place) != payload}
        for place, payload in changed.items():
            self._publish(place, payload)
        self._told = {place: payload for place, payload in self._told.items() if place in told}
        return bool(changed)

    def _publish(self, place: str, payload: bytes) -> None:
        try:
            self._bus.publish(place, payload, qos=1, retain=True)
        except BusError as error:
            log.warning("%s is not told: %s", place, error.message)
            return
        self._told[place] = payload

    def _command(self, one: Installation) -> Command:
        state = CommandState.EXECUTING
        if one.step in ENDS:
            state = CommandState.SUCCESSFUL if one.step is Step.CONFIRMED else CommandState.FAILED
        order = {"name": one.order.name, "version": one.order.version, "bundle": one.order.bundle}
        result, receipt = plain(one), self._receipt(one)
        if receipt is not None:
            result["receipt"] = msgspec.to_builtins(receipt)
        return Command(one.since, state, order, one.order.by[:MAX_BY], result, one.reason)


def topic(one: Installation) -> str:
    return topics.command("update", INSTALL, one.order.id)


def plain(one: Installation) -> dict[str, Any]:
    """Plain values."""
    return {
        "id": one.order.id,
        "name": one.order.name,
        "version": one.order.version,
        "bundle": one.order.bundle,
        "source": one.order.source,
        "by": one.order.by,
        "campaign": one.order.campaign,
        "step": one.step.value,
        "reason": one.reason,
        "returning": one.returning,
        "attempts": one.attempts,
        "before": one.before,
        "trail": [[stage.step.value, stage.at] for stage in one.trail],
        "figures": one.figures,
    }


def receipt(one: Installation, device: str, seen: int, runs: str) -> Receipt | None:
    """Of one that has ended, and came from a repository. `seen`: the version of the newest state that the box knows;
    `runs`: the bundle that is in use under its name."""
    outcome = _OUTCOMES.get(one.step)
    if outcome is None or one.order.source.partition(":")[0] != REPOSITORY or not device:
        return None
    found = {
        "device": device,
        "at_s": one.since / 1e9,
        "model": one.order.name,
        "version": one.order.version,
        "bundle": one.order.bundle,
        "outcome": outcome,
        "reason": one.reason[:1000],
        "campaign": one.order.campaign[:64],
        "seen": seen,
        "runs": runs,
    }
    try:
        return msgspec.convert(found, Receipt)
    except msgspec.ValidationError as error:  # of a bundle whose name a receipt cannot carry
        log.warning("no receipt for %s: %s", one.title, error)
        return None
