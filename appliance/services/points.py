"""Which points of devices may be set, to what, by whom, and how often. Pure: times come in.

Nothing may be set that is not declared. A point that wants to be confirmed is set when somebody says so, within a
minute, with the word that the one who asked was given.
"""

import hmac
import math
from collections.abc import Sequence
from typing import NamedTuple

from appliance.config.schema import Settable
from appliance.errors import ConfigError, MillwrightError

SECOND = 1_000_000_000  # ns
CONFIRM_NS = 60 * SECOND
MAX_WAITING = 100

Value = bool | float | int


class Order(NamedTuple):
    """What a device is to be told."""

    asset: str
    point: str
    value: Value
    by: str  # who asked
    confirmed_by: str = ""


class Waiting(NamedTuple):
    """Asked for, and to be confirmed."""

    order: Order
    until: int  # UTC ns
    word: str  # that confirms it


class Points:
    """`ask`, perhaps `confirm`; then carry the order out and say `done`. MillwrightError refuses, with the remedy."""

    def __init__(self, declared: Sequence[Settable]) -> None:
        """ConfigError where a number has no room between its limits, or a point stands twice."""
        for one in declared:
            if one.type == "number" and not one.min < one.max:
                raise ConfigError(f"points: '{one.point}' of '{one.asset}' has no limits", "Set min below max.")
        if len({(one.asset, one.point) for one in declared}) < len(declared):
            raise ConfigError("points: a point is declared twice", "Leave one of them out.")
        self._declared = {(one.asset, one.point): one for one in declared}
        self._set_at: dict[tuple[str, str], int] = {}  # when a point was last set
        self._values: dict[tuple[str, str], Value] = {}
        self._waiting: dict[str, Waiting] = {}  # by its word

    def __len__(self) -> int:
        return len(self._declared)

    def declared(self) -> list[tuple[Settable, Value | None]]:
        """Each point, and what it was last set to."""
        return [(one, self._values.get(key)) for key, one in self._declared.items()]

    def ask(self, asset: str, point: str, value: object, by: str, now: int, word: str) -> Order | Waiting:
        """`word` is a fresh one, for the case that it waits."""
        declared = self._find(asset, point)
        order = Order(asset, point, _checked(declared, value), by)
        self._check_pace(declared, order, now)
        if declared.confirmation == "none":
            return order
        self._waiting = {key: one for key, one in self._waiting.items() if now < one.until}
        if len(self._waiting) >= MAX_WAITING:
            raise MillwrightError(f"{MAX_WAITING} orders wait to be confirmed", "Confirm some, or wait a minute.")
        waiting = self._waiting[word] = Waiting(order, now + CONFIRM_NS, word)
        return waiting

    def confirm(self, word: str, by: str, now: int) -> Order:
        """The clock that jumps ends the wait, it does not lengthen it."""
        known = next((key for key in self._waiting if hmac.compare_digest(key.encode(), word.encode())), "")
        waiting = self._waiting.get(known)
        if waiting is None or not waiting.until - CONFIRM_NS <= now < waiting.until:
            self._waiting.pop(known, None)
            raise MillwrightError("there is no such order any more", "Ask anew, and confirm within a minute.")
        order = waiting.order
        declared = self._find(order.asset, order.point)
        if declared.confirmation == "another" and by == order.by:
            raise MillwrightError(f"'{by}' asked for it", "Somebody else has to confirm it.")
        del self._waiting[known]
        self._check_pace(declared, order, now)
        return order._replace(confirmed_by=by)

    def done(self, order: Order, now: int) -> None:
        self._set_at[(order.asset, order.point)] = now
        self._values[(order.asset, order.point)] = order.value

    def _find(self, asset: str, point: str) -> Settable:
        declared = self._declared.get((asset, point))
        if declared is None:
            known = ", ".join(f"{one} {name}" for one, name in self._declared) or "none"
            raise MillwrightError(
                f"'{point}' of '{asset}' may not be set", f"Declare it under [[points]]. Declared are: {known[:500]}."
            )
        return declared

    def _check_pace(self, declared: Settable, order: Order, now: int) -> None:
        key = (order.asset, order.point)
        since = now - self._set_at.get(key, -(1 << 62))
        if 0 <= since < declared.min_interval_s * SECOND:
            left = declared.min_interval_s - since / SECOND
            raise MillwrightError(
                f"'{order.point}' of '{order.asset}' was set just now", f"Try again in {max(left, 0.1):.1f} s."
            )
        before = self._values.get(key)
        if declared.max_step is not None and before is not None and abs(order.value - before) > declared.max_step:
            raise MillwrightError(
                f"from {before:g} to {order.value:g} is more than {declared.max_step:g} at once", "Go in smaller steps."
            )


def _checked(declared: Settable, value: object) -> Value:
    name = f"'{declared.point}' of '{declared.asset}'"
    if declared.type == "switch":
        if not isinstance(value, bool):
            raise MillwrightError(f"{name} is a switch", "Set it to true or false.")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MillwrightError(f"{name} is set to a number", f"From {declared.min:g} to {declared.max:g}.")
    if not declared.min <= value <= declared.max:
        raise MillwrightError(
            f"{value:g} is beyond the limits of {name}", f"From {declared.min:g} to {declared.max:g} is allowed."
        )
    return value
