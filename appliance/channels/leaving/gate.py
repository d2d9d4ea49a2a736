"""The gate that everything passes on its way out: chosen by kind and asset, masked by the policy, written as JSON.

Names are masked like any text: an asset that is called by somebody's phone number leaves under another name. Numbers
are measurements and stay.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.bus.port import Message
from appliance.errors import EventError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Event, Kind, Reading
from appliance.masking.masker import Masker
from appliance.store.parcels import Entry, Lane, mark

MAX_PARCEL = 768 << 10  # bytes: with its head it is no larger than what a broker takes
MAX_ROUTES = 20_000
LANES = {
    Kind.ALARM: Lane.ALARM,
    Kind.STATE: Lane.STATE,
    Kind.DEVICE: Lane.STATE,
    Kind.SCORE: Lane.SCORE,
    Kind.LABEL: Lane.SCORE,
    Kind.AUDIT: Lane.SCORE,
    Kind.READING: Lane.READING,
    Kind.BLOCK: Lane.READING,
}
URGENT = (Kind.ALARM, Kind.STATE, Kind.DEVICE, Kind.LABEL, Kind.AUDIT)
_KEYED = (Kind.ALARM, Kind.STATE, Kind.DEVICE)
_MAP = ord("{")
_encode = msgspec.json.Encoder().encode


class Route:
    """Of one topic of the bus."""

    __slots__ = ("key", "kind", "lane", "outward")

    def __init__(self, kind: Kind, outward: str, conflates: bool) -> None:
        self.kind, self.lane, self.outward = kind, LANES[kind], outward
        self.key = outward if conflates or kind in _KEYED else ""


class Gate:
    """`ledger` counts what it could not read; `masker.count` what was masked. `real` is the way back: from an asset's
    masked path to its own, where there is only one."""

    def __init__(self, kinds: Sequence[str], assets: Sequence[str], masker: Masker, conflates: bool = False) -> None:
        self.ledger = Ledger()
        self.masker = masker
        self._kinds = {Kind(kind) for kind in kinds}
        self._assets, self._conflates = list(assets), conflates
        self._routes: dict[str, Route | None] = {}
        self._layouts: dict[tuple[str, ...], dict[str, str] | None] = {}
        self._real: dict[str, set[str]] = {}

    def entries(self, batch: Sequence[Message], arrival: int) -> list[Entry]:
        """Those of a batch that leave. What cannot be read is counted."""
        found = []
        for message in batch:
            try:
                route = self._routes[message.topic]
            except KeyError:
                route = self._route(message.topic)
            if route is None or not message.payload:
                continue
            try:
                found.append(self._entry(route, message, arrival))
            except EventError as error:
                self.ledger.received += 1
                self.ledger.refuse(error, message.topic)
        return found

    def mask_by(self, masker: Masker) -> None:
        """From now on by this one; names are masked anew."""
        masker.count += self.masker.count
        self.masker = masker
        self._routes.clear()
        self._layouts.clear()
        self._real.clear()

    def real(self, path: str) -> str:
        """EventError where two assets look the same once they are masked, or none looks so."""
        found = self._real.get(path, set())
        if len(found) != 1:
            raise EventError("topic", f"'{path[:80]}' is the name of {len(found)} assets here")
        return next(iter(found))

    def _entry(self, route: Route, message: Message, arrival: int) -> Entry:
        if route.kind is Kind.READING:
            payload = self._reading(message.payload, codec.decode_reading(message.payload, arrival))
            sense = b""
        else:
            payload, sense = self._event(route.kind, codec.decode(route.kind, message.payload, arrival))
        if len(payload) > MAX_PARCEL:
            raise EventError("too-large", f"{len(payload)} bytes, of {MAX_PARCEL} that leave at once")
        # Of QoS 0 nothing comes twice by itself, and of what is conflated only the last state leaves.
        # What says no time of its own is another event whenever it comes.
        once = message.qos and (not route.key or route.lane is Lane.ALARM) and b"at" in message.payload
        seen = mark(message.topic, payload) if once else b""
        return Entry(route.lane, route.outward, payload, route.key, sense, seen)

    def _reading(self, came: bytes, reading: Reading) -> bytes:
        layout = tuple(reading.values)
        try:
            names = self._layouts[layout]
        except KeyError:
            names = self._learn(layout)
        if names is None and came[0] == _MAP and came.count(b":") == len(layout):
            # A bare map in JSON, no key twice: it leaves as it was written.
            return b'{"at":%d,"values":%s}' % (reading.at, came)
        if names is not None:
            reading = Reading(reading.at, {names[name]: value for name, value in reading.values.items()})
        return _encode(reading)

    def _learn(self, layout: tuple[str, ...]) -> dict[str, str] | None:
        """Names of points as they leave; None where they leave as they are."""
        if len(self._layouts) >= MAX_ROUTES:
            self._layouts.clear()
        names = {name: self.masker.text(name) for name in layout}
        changed = any(name != outward for name, outward in names.items())
        found = self._layouts[layout] = names if changed else None
        return found

    def _event(self, kind: Kind, event: Event) -> tuple[bytes, bytes]:
        fields: dict[str, Any] = msgspec.json.decode(codec.encode_json(event))
        masked = self.masker.value(fields)
        assert isinstance(masked, dict)
        payload = _encode(masked)
        if kind is Kind.ALARM:
            return payload, b""
        masked.pop("at", None)
        return payload, _encode(masked)

    def _route(self, topic: str) -> Route | None:
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        try:
            kind, path = topics.parse(topic)
        except EventError:
            route = None
        else:
            wanted = kind in self._kinds and (kind is Kind.STATE or self._is_wanted(path))
            route = Route(kind, self._outward(kind, topic, path), self._conflates) if wanted else None
        self._routes[topic] = route
        return route

    def _is_wanted(self, path: str) -> bool:
        return any(
            pattern in ("#", path) or (pattern.endswith("/#") and (path + "/").startswith(pattern[:-1]))
            for pattern in self._assets
        )

    def _outward(self, kind: Kind, topic: str, path: str) -> str:
        condition = topics.condition(topic)
        masked = self.masker.text(path)
        if len(self._real) >= MAX_ROUTES:
            self._real.clear()
        self._real.setdefault(masked, set()).add(path)
        return f"{kind.value}/{masked}" + (f"/~{condition}" if kind is Kind.ALARM and condition != "anomaly" else "")
