"""thin-edge.io: `te/device/<id>/<service...>/m/<type>`.

    [dialects.thin_edge]

Entities register by a retained message on their own topic, measurements come below `m/`, their units below
`m/<type>/meta`, `status/health` tells their standing. Events, alarms and commands are not readings and are left alone.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import Facts, Outcome, Refused, Request, Sample, Standing
from appliance.errors import ConnectorError, EventError

_SECOND = 1_000_000_000


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices and services of thin-edge.io."""


def create(settings: Settings) -> "ThinEdge":
    return ThinEdge()


class ThinEdge:
    name = "thin_edge"
    filters = (
        "te/+/+/+/+",
        "te/+/+/+/+/m/+",
        "te/+/+/+/+/m/+/meta",
        "te/+/+/+/+/status/health",
        "te/+/+/+/+/twin/+",
    )

    def greet(self) -> Sequence[Request]:
        return ()

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        parts = topic.split("/")
        key = "/".join(part for part in parts[2:5] if part)
        if not payload or not key or parts[0] != "te":
            return []
        try:
            return self._told(key, parts[5:], payload)
        except EventError as error:
            return [Refused(key, error.reason, error.message)]

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        raise ConnectorError(f"'{point}' of {key} cannot be set", "Measurements of thin-edge.io are read only.")

    def _told(self, key: str, channel: list[str], payload: bytes) -> Sequence[Outcome]:
        match channel:
            case []:
                told = _json.mapping(payload)
                return [Facts(key, _json.text(told.get("name")) or key, model=_json.text(told.get("type")))]
            case ["m", kind]:
                return _measured(key, kind, _json.mapping(payload))
            case ["m", kind, "meta"]:
                return [Facts(key, units=dict(_units(_prefix(kind), _json.mapping(payload))))]
            case ["status", "health"]:
                status = payload.decode("utf-8", "replace").strip().strip('"')
                told = _json.mapping(payload) if payload[:1] == b"{" else {"status": status}
                return [Standing(key, told.get("status") == "up")]
            case ["twin", "hardware" | "c8y_Hardware"]:
                told = _json.mapping(payload)
                return [Facts(key, model=_json.text(told.get("model")), proof=_json.text(told.get("serialNumber")))]
        return []


def _measured(key: str, kind: str, told: dict[str, Any]) -> Sequence[Outcome]:
    at = _time(told.pop("time", None))
    values = {f"{_prefix(kind)}{name}": value for name, value in _json.flat(told).items()}
    return [Sample(key, values, at)] if values else []


def _prefix(kind: str) -> str:
    """Types keep measurements of one name apart; the usual ones say nothing."""
    return "" if kind in ("", "default") else f"{kind}."


def _units(above: str, told: dict[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, one in list(told.items())[: _json.MAX_POINTS]:
        if isinstance(one, dict) and isinstance(one.get("unit"), str):
            found.append((f"{above}{name}", _json.text(one["unit"])))
        elif isinstance(one, dict):
            inner = [(part, each) for part, each in one.items() if isinstance(each, dict)]
            found += [(f"{above}{name}.{part}", _json.text(each.get("unit"))) for part, each in inner]
    return found


def _time(told: Any) -> int | None:
    """ISO 8601, or seconds since 1970."""
    if isinstance(told, bool) or told is None:
        return None
    if isinstance(told, int | float):
        return round(told * _SECOND) if 0 < told < 1e11 else None
    try:
        moment = datetime.fromisoformat(str(told)[:64])
    except ValueError:
        raise EventError("shape", f"{str(told)[:40]!r} is no time") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000) * 1000
