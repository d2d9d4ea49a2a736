"""Sets points of devices at a person's word: decided by `points`, written down first, then carried out by a connector.

What was asked, by whom, and what came of it stands in `points.log` (one JSON line each, on the disk before the device
hears of it) and on the bus under `audit/points`.
"""

import asyncio
import json
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from appliance.bus.port import Bus
from appliance.errors import BusError, MillwrightError, StoreError
from appliance.events import codec, topics
from appliance.events.schema import Audit, Command, Kind
from appliance.runtime.files import PRIVATE
from appliance.runtime.service import Clock
from appliance.services import commands
from appliance.services.points import Order, Points, Waiting

log = logging.getLogger(__name__)

FILE = "points.log"
MAX_BYTES = 8 << 20  # of the file; then it becomes the old one, of which there is one

Carry = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any] | None]]


class _Set(msgspec.Struct, forbid_unknown_fields=True):
    asset: str
    point: str
    value: bool | float


class _Confirm(msgspec.Struct, forbid_unknown_fields=True):
    word: str


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Setting:
    """`carry` gives an order to the connector that it is for: None where there is none."""

    def __init__(self, points: Points, path: Path | None, bus: Bus, carry: Carry, clock: Clock) -> None:
        self._points, self._path, self._bus, self._carry, self._clock = points, path, bus, carry, clock

    def handlers(self) -> dict[str, commands.Handler]:
        return {"points": self._list, "set": self._set, "confirm": self._confirm}

    def _list(self, command: Command) -> dict[str, Any]:
        commands.arguments(command, _Nothing)
        return {"points": [{**msgspec.to_builtins(one), "last": last} for one, last in self._points.declared()]}

    async def _set(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, _Set)
        wish = {"point": asked.point, "value": asked.value}
        try:
            found = self._points.ask(
                asked.asset, asked.point, asked.value, command.by, self._clock(), secrets.token_hex(4)
            )
        except MillwrightError as error:
            await self._note(command.by, asked.asset, "refused", {**wish, "reason": error.message})
            raise
        if isinstance(found, Waiting):
            await self._note(command.by, asked.asset, "waits to be confirmed", wish)
            return {"done": False, "word": found.word, "until": found.until}
        return await self._perform(found)

    async def _confirm(self, command: Command) -> dict[str, Any]:
        word = commands.arguments(command, _Confirm).word
        try:
            order = self._points.confirm(word, command.by, self._clock())
        except MillwrightError as error:
            await self._note(command.by, "", "not confirmed", {"reason": error.message})
            raise
        return await self._perform(order)

    async def _perform(self, order: Order) -> dict[str, Any]:
        wish: dict[str, Any] = {"point": order.point, "value": order.value, "confirmed_by": order.confirmed_by}
        await self._note(order.by, order.asset, "ordered", wish)
        try:
            result = await self._carry("write", {"asset": order.asset, "point": order.point, "value": order.value})
            if result is None:
                raise MillwrightError(
                    f"no connector sets '{order.point}' of '{order.asset}'",
                    "See 'settable' in 'millwright devices show'.",
                )
        except MillwrightError as error:
            await self._note(order.by, order.asset, "failed", {**wish, "reason": error.message})
            raise
        self._points.done(order, self._clock())
        await self._note(order.by, order.asset, "done", wish)
        return {"done": True, "asset": order.asset, "point": order.point, "value": order.value}

    async def _note(self, by: str, asset: str, outcome: str, detail: dict[str, Any]) -> None:
        """StoreError where it cannot be written down: then nothing is set."""
        event = Audit(self._clock(), by, "set", asset, outcome, detail)
        log.info("set by %s: %s %s: %s", by, asset, detail, outcome)
        if self._path is not None:
            await asyncio.to_thread(_append, self._path, json.dumps(msgspec.to_builtins(event), ensure_ascii=True))
        try:
            self._bus.publish(topics.topic(Kind.AUDIT, "points"), codec.encode(event), qos=1)
        except BusError as error:
            log.warning("what was set is not told on the bus: %s", error.message)


def _append(path: Path, line: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_BYTES:
            path.replace(path.with_name(f"{path.name}.old"))
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE), "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", "Nothing is set that is not noted.") from error
