"""Events to bytes and back. Canonical payloads are CBOR (RFC 8949); JSON (RFC 8259) is accepted on the same topics.

A payload whose first byte is `{` or white space is JSON; a CBOR map starts at 0xA0. Readings have a short form, the
bare map of points: `{"temperature": 61.2}`; `at` defaults to the arrival. Blocks carry packed float32 (RFC 8746 tag 85)
in CBOR and lists of numbers in JSON. In JSON `at` may also be an RFC 3339 time.

Every refusal is an EventError whose reason is one of REASONS.
"""

import math
import struct
import sys
from array import array
from collections.abc import Collection
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import cbor2
import msgspec

from appliance.errors import EventError
from appliance.events.schema import EVENTS, Block, Event, Kind, Reading, Samples, Score

REASONS = {
    "topic": "the topic breaks the grammar mw/v1/<kind>/<asset>",
    "malformed": "neither JSON nor CBOR",
    "shape": "fields are missing or of the wrong type",
    "not-a-number": "a value that is text, a truth value, empty or nested",
    "not-finite": "NaN or an infinity",
    "empty": "no values at all",
    "too-many-points": "more points than a message may carry",
    "point-name": "a point's name is empty, too long or has control characters",
    "time-past": "a time before 2000",
    "time-future": "a time more than a day ahead of the box's clock",
}

MAX_POINTS = 1024  # a message
MAX_SAMPLES = 1 << 18  # all points of a block together
MAX_NAME = 128  # characters
MAX_VALUES, MAX_DEPTH = 100_000, 32  # of an event that is no reading
EARLIEST = 946_684_800_000_000_000  # 2000-01-01, ns
MAX_AHEAD = 86_400_000_000_000  # ns
_LATEST = 1 << 64  # what 64 bits hold

_FLOAT32_LE = 85
_JSON_FIRST = frozenset(b"{ \t\r\n")
_NUMBER = (float, int)
_PLAIN = frozenset({str, int, float, bool})
_OPEN = frozenset({Kind.STATE, Kind.COMMAND, Kind.AUDIT})  # events with room for anything
_E = TypeVar("_E")

# The head of an encoded score: a map and its first three pairs.
_AT = bytes((0xA0 + len(Score.__struct_fields__),)) + cbor2.dumps("at") + b"\x1b"  # a 64-bit integer follows
_SCORE, _THRESHOLD = cbor2.dumps("score") + b"\xfb", cbor2.dumps("threshold") + b"\xfb"  # a 64-bit float follows
_pack_score = struct.Struct(f">{len(_AT)}sQ{len(_SCORE)}sd{len(_THRESHOLD)}sd").pack


class _JsonReading(msgspec.Struct):
    values: dict[str, float]
    at: int | str | None = None


class _JsonBlock(msgspec.Struct):
    rate: float
    values: dict[str, list[float]]
    at: int | str | None = None


_flat_json = msgspec.json.Decoder(dict[str, float])
_reading_json = msgspec.json.Decoder(_JsonReading)
_block_json = msgspec.json.Decoder(_JsonBlock)
_event_json = {kind: msgspec.json.Decoder(event) for kind, event in EVENTS.items() if event not in (Reading, Block)}


def decode(kind: Kind, payload: bytes, arrival: int) -> Event:
    """The event of a payload. `arrival` in UTC ns stands in for a missing time and bounds a given one."""
    if kind is Kind.READING:
        return decode_reading(payload, arrival)
    if kind is Kind.BLOCK:
        return decode_block(payload, arrival)
    if _is_json(payload):
        return _from_json(_event_json[kind], payload, "shape")
    fields = _from_cbor(payload)
    if kind in _OPEN:
        _check_plain(fields)
    try:
        return msgspec.convert(fields, EVENTS[kind], str_keys=True)
    except msgspec.ValidationError as error:
        raise EventError("shape", str(error)) from error


def decode_reading(payload: bytes, arrival: int) -> Reading:
    """The hot path: a reading in any of its forms, its values finite, its time plausible."""
    if payload[:1] == b"{":
        # What most publishers send is tried first: a bare map of numbers. JSON cannot spell one that is not finite.
        try:
            values = _flat_json.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            values = {}
        if 0 < len(values) <= MAX_POINTS and "at" not in values and "values" not in values:
            return Reading(arrival, values)
    return _reading_of_any_form(payload, arrival)


def decode_block(payload: bytes, arrival: int) -> Block:
    if _is_json(payload):
        wire = _from_json(_block_json, payload, "not-a-number")
        at, rate = _time(wire.at, arrival), wire.rate
        values = {name: array("f", samples) for name, samples in wire.values.items()}
    else:
        fields = _map(_from_cbor(payload))
        at, rate = _time(fields.get("at"), arrival), _number(fields.get("rate"), "rate")
        values = {_name(name): _samples(packed, name) for name, packed in _map(fields.get("values")).items()}
    _check_block(rate, values)
    return Block(at, rate, values)


def encode(event: Event) -> bytes:
    """Canonical CBOR."""
    if isinstance(event, Block):
        packed = {name: cbor2.CBORTag(_FLOAT32_LE, _little_endian(samples)) for name, samples in event.values.items()}
        return cbor2.dumps({"at": event.at, "rate": event.rate, "values": packed})
    if isinstance(event, Score) and EARLIEST <= event.at < _LATEST:
        return _encode_score(event)
    return cbor2.dumps(msgspec.to_builtins(event))


def _encode_score(score: Score) -> bytes:
    """The event there are most of: its numbers, then what a thousand others say, too."""
    head = _pack_score(_AT, score.at, _SCORE, score.score, _THRESHOLD, score.threshold)
    return head + _rest_of_score(
        score.stage.value,
        score.cause,
        score.branch,
        score.alarm,
        score.rows,
        score.model,
        score.version,
        score.device,
    )


@lru_cache(4096)
def _rest_of_score(*values: str | int) -> bytes:
    """The fields from the fourth on, without the head of their map."""
    return cbor2.dumps(dict(zip(Score.__struct_fields__[3:], values, strict=True)))[1:]


def encode_json(event: Event) -> bytes:
    if isinstance(event, Block):
        samples = {name: list(values) for name, values in event.values.items()}
        return msgspec.json.encode({"at": event.at, "rate": event.rate, "values": samples})
    return msgspec.json.encode(event)


def check_points(names: list[str]) -> None:
    """For whoever meets a new layout of points: EventError("point-name") where one cannot be a channel."""
    for name in names:
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise EventError("point-name", f"{name[:40]!r} cannot name a point (1 to {MAX_NAME} printable characters)")


def _reading_of_any_form(payload: bytes, arrival: int) -> Reading:
    if _is_json(payload):
        if b'"values"' in payload:
            wire = _from_json(_reading_json, payload, "not-a-number")
            reading = Reading(_time(wire.at, arrival), wire.values)
        else:
            reading = _flat(payload, arrival)
    else:
        reading = _reading_of(_from_cbor(payload), arrival)
    values = reading.values
    if not math.isfinite(sum(values.values())):
        _refuse_infinite(values)
    if not 0 < len(values) <= MAX_POINTS:
        raise EventError("too-many-points" if values else "empty", f"{len(values)} points (1 to {MAX_POINTS} allowed)")
    return reading


def _is_json(payload: bytes) -> bool:
    if not payload:
        raise EventError("malformed", "an empty payload")
    return payload[0] in _JSON_FIRST


def _from_json(decoder: "msgspec.json.Decoder[_E]", payload: bytes, reason: str) -> _E:
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        text = str(error)
        raise EventError("not-finite" if "out of range" in text else reason, text) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EventError("malformed", str(error)) from error


def _from_cbor(payload: bytes) -> Any:
    try:
        return cbor2.loads(payload)
    except (cbor2.CBORDecodeError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise EventError("malformed", f"CBOR: {error}") from error


def _check_plain(fields: Any) -> None:
    """CBOR says things that JSON cannot (tags, sets, a list in itself): whoever passes them on would stumble."""
    level, room = [fields], MAX_VALUES
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            parts = _parts_of(value)
            room -= len(parts)
            if room < 0:
                raise EventError("shape", f"more than {MAX_VALUES} values")
            inner += parts
        if not inner:
            return
        level = inner
    raise EventError("shape", f"values in more than {MAX_DEPTH} levels")


def _parts_of(value: Any) -> Collection[Any]:
    if type(value) is dict:
        if not all(type(key) is str for key in value):
            raise EventError("shape", "the keys of a map are text")
        return value.values()
    if type(value) is list:
        return value
    if value is not None and type(value) not in _PLAIN:
        raise EventError("shape", f"{type(value).__name__} is not a plain value")
    return ()


def _flat(payload: bytes, arrival: int) -> Reading:
    if b'"at"' in payload:
        fields = _from_json(_any_json, payload, "shape")
        return _reading_of(fields, arrival)
    return Reading(arrival, _from_json(_flat_json, payload, "not-a-number"))


_any_json = msgspec.json.Decoder(dict[str, Any])


def _reading_of(fields: Any, arrival: int) -> Reading:
    """A reading from decoded CBOR (or JSON with a time): the full form has a map under `values`, the short form not."""
    fields = _map(fields)
    at = fields.pop("at", None)
    return Reading(_time(at, arrival), _values(_map(fields.get("values", fields))))


def _values(raw: dict[Any, Any]) -> dict[str, float]:
    if set(map(type, raw)) == {str} and set(map(type, raw.values())) == {float}:
        return raw  # nearly always so, and in a quarter of the time of a look at each pair
    return {_name(name): _number(value, name) for name, value in raw.items()}


def _map(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise EventError("shape", f"a map is needed, not {type(value).__name__}")
    return value


def _name(name: Any) -> str:
    if type(name) is not str:
        raise EventError("point-name", f"a point's name is text, not {type(name).__name__}")
    return name


def _number(value: Any, name: str) -> float:
    if type(value) not in _NUMBER:
        raise EventError("not-a-number", f"'{name}' is {type(value).__name__}, not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise EventError("not-finite", f"'{name}' is beyond a float") from error


def _samples(packed: Any, name: str) -> Samples:
    if type(packed) is not cbor2.CBORTag or packed.tag != _FLOAT32_LE or type(packed.value) is not bytes:
        raise EventError("not-a-number", f"'{name}' is not packed float32 (CBOR tag {_FLOAT32_LE})")
    if len(packed.value) % 4:
        raise EventError("shape", f"'{name}' has {len(packed.value)} bytes, not a multiple of 4")
    return _native(packed.value)


def _native(raw: bytes) -> Samples:
    samples = array("f")
    samples.frombytes(raw)
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def _little_endian(samples: Samples) -> bytes:
    if sys.byteorder == "big":
        samples = samples[:]
        samples.byteswap()
    return samples.tobytes()


def _check_block(rate: float, values: dict[str, Samples]) -> None:
    lengths = {len(samples) for samples in values.values()}
    if not values or lengths == {0}:
        raise EventError("empty", "a block without samples")
    if len(values) > MAX_POINTS or sum(len(samples) for samples in values.values()) > MAX_SAMPLES:
        raise EventError("too-many-points", f"at most {MAX_POINTS} points and {MAX_SAMPLES} samples a block")
    if len(lengths) > 1:
        raise EventError("shape", f"the points of a block have different lengths: {sorted(lengths)}")
    if not (math.isfinite(rate) and rate > 0):
        raise EventError("shape", f"rate {rate} is not a frequency in Hz")
    if not all(math.isfinite(sum(samples)) for samples in values.values()):
        raise EventError("not-finite", "a sample is NaN or infinite")


def _refuse_infinite(values: dict[str, float]) -> None:
    """A sum may overflow although every value is finite: look again, one by one."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise EventError("not-finite", f"'{name}' is {value}")


def _time(at: Any, arrival: int) -> int:
    if at is None:
        return arrival
    if type(at) is str:
        at = _rfc3339(at)
    if type(at) is not int:
        raise EventError("shape", f"'at' is {type(at).__name__}, not UTC nanoseconds")
    if at < EARLIEST:
        raise EventError("time-past", f"'at' {at} lies before 2000 (it is in nanoseconds)")
    if at > arrival + MAX_AHEAD:
        raise EventError("time-future", f"'at' {at} lies more than a day ahead of this box's clock")
    return at


def _rfc3339(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise EventError("shape", f"'at' {text[:40]!r} is not an RFC 3339 time") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000) * 1000
