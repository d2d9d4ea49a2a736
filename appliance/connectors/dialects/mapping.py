"""A declared mapping, for JSON that no dialect knows.

    [[dialects.mapping.rules]]
    topic = "plant/+/+/telemetry"          # {1}, {2} stand for what + stood for
    device = "{1}/{2}"
    maker = "Acme"
    time = "meta.ts"                       # s, ms, us or ns since 1970, or ISO 8601; left out: the arrival
    points = { temperature = "data.t", pressure = "data.p" }
    units = { temperature = "°C", pressure = "bar" }
    write = "plant/{1}/{2}/set"            # {"pressure": 3.5} is sent here to set a point of `settable`
    settable = ["pressure"]

Without `points` every number of the payload is one, by its path. A payload that is a bare number is the point `value`.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta, Struct, field, json

from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import Facts, Outcome, Refused, Request, Sample, Value
from appliance.errors import ConfigError, ConnectorError, EventError

MAX_DEVICES = 5000
_SECOND = 1_000_000_000
_EPOCHS = ((1e17, 1), (1e14, 1000), (1e11, 1_000_000), (0, _SECOND))  # a plain number as a time, by its size


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """Which messages, whose they are, and where their values stand."""

    topic: Annotated[str, Meta(min_length=1, max_length=500, description="A topic filter.")]
    device: Annotated[str, Meta(min_length=1, max_length=200, description="Whose they are: text with {1}, {2}, ...")]
    name: Annotated[str, Meta(description="Its name; empty: as `device`.")] = ""
    maker: Annotated[str, Meta(description="Who made it.")] = ""
    model: Annotated[str, Meta(description="What it is.")] = ""
    time: Annotated[str, Meta(description="Path of the time in the payload; empty: none.")] = ""
    points: Annotated[dict[str, str], Meta(description="Point -> path in the payload; empty: all numbers.")] = field(
        default_factory=dict
    )
    units: Annotated[dict[str, str], Meta(description="Point -> its unit.")] = field(default_factory=dict)
    write: Annotated[str, Meta(description="The topic that sets a point, with {1}, {2}; empty: none.")] = ""
    settable: Annotated[list[str], Meta(description="Points that may be set.")] = field(default_factory=list)


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Declared mappings."""

    rules: Annotated[list[Rule], Meta(max_length=64, description="One `[[dialects.mapping.rules]]` each.")] = field(
        default_factory=list
    )


def create(settings: Settings) -> "JsonMapping":
    return JsonMapping(settings.rules)


class JsonMapping:
    name = "mapping"

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.filters = tuple(rule.topic for rule in rules)
        self._rules = [(_pattern(rule.topic), rule) for rule in rules]
        for rule in rules:
            _check(rule)
        self._known: dict[str, tuple[Rule, tuple[str, ...]]] = {}  # key -> what it came by

    def greet(self) -> Sequence[Request]:
        return ()

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        for pattern, rule in self._rules:
            found = pattern.fullmatch(topic)
            if found:
                return self._told(rule, tuple(part or "" for part in found.groups()), payload) if payload else []
        return []

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        rule, levels = self._known.get(key, (None, ()))
        if rule is None or not rule.write or point not in rule.settable:
            raise ConnectorError(f"'{point}' of {key} cannot be set", "Declare `write` and `settable` in its rule.")
        return [Request(_filled(rule.write, levels), json.encode({point: value}))]

    def _told(self, rule: Rule, levels: tuple[str, ...], payload: bytes) -> Sequence[Outcome]:
        key = _filled(rule.device, levels)
        try:
            sample = _sample(key, rule, payload)
        except EventError as error:
            return [Refused(key, error.reason, error.message)]
        if key in self._known:
            return [sample]
        if len(self._known) >= MAX_DEVICES:
            raise EventError("too-many-devices", f"more than {MAX_DEVICES} mapped devices")
        self._known[key] = (rule, levels)
        name = _filled(rule.name, levels) or key
        units = dict.fromkeys(rule.points, "") | rule.units
        return [Facts(key, name, rule.maker, rule.model, units=units, settable=tuple(rule.settable)), sample]


def _sample(key: str, rule: Rule, payload: bytes) -> Sample:
    told = _json.parse(payload) if payload[:1] in (b"{", b"[") else _json.number(payload)
    values = _json.flat(told) if isinstance(told, dict) else {"value": told if not isinstance(told, list) else None}
    at = _time(values.pop(rule.time, None), rule.time) if rule.time else None
    if rule.points:
        values = {point: values[path] for point, path in rule.points.items() if path in values}
        if not values:
            raise EventError("empty", f"none of {', '.join(rule.points.values())} is in the payload"[:200])
    return Sample(key, values, at)


def _time(told: Value, path: str) -> int:
    if isinstance(told, int | float) and not isinstance(told, bool):
        unit = next(unit for least, unit in _EPOCHS if told >= least or not least)
        return round(told * unit)
    try:
        moment = datetime.fromisoformat(str(told)[:64])
    except ValueError:
        raise EventError("shape", f"'{path}' is no time: {str(told)[:40]!r}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000) * 1000


def _pattern(topic: str) -> re.Pattern[str]:
    levels = topic.split("/")
    tail = "(?:/(.*))?" if levels[-1] == "#" else ""
    levels = levels[:-1] if tail else levels
    return re.compile("/".join("([^/]*)" if level == "+" else re.escape(level) for level in levels) + tail)


def _check(rule: Rule) -> None:
    groups = _pattern(rule.topic).groups
    for text in (rule.device, rule.name, rule.write):
        for number in re.findall(r"\{(\d+)\}", text):
            if not 1 <= int(number) <= groups:
                raise ConfigError(
                    f"'{text}': the filter '{rule.topic}' has no wildcard {number}", f"It has {groups}, from {{1}} on."
                )


def _filled(text: str, levels: tuple[str, ...]) -> str:
    return re.sub(r"\{(\d+)\}", lambda found: levels[int(found[1]) - 1], text)
