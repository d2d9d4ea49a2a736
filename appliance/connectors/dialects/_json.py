"""JSON from devices: bounded, and flattened into points."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from appliance.connectors.dialects.port import MAX_PAYLOAD, Value
from appliance.errors import EventError

MAX_POINTS = 512  # of one message
MAX_DEPTH = 6
MAX_TEXT = 200  # characters of a fact

_any = msgspec.json.Decoder()


def parse(payload: bytes, most: int = MAX_PAYLOAD) -> Any:
    """Any JSON. EventError "too-large" or "malformed"."""
    if len(payload) > most:
        raise EventError("too-large", f"{len(payload)} bytes of JSON where {most} are allowed")
    try:
        return _any.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventError("malformed", f"no JSON: {error}: {payload[:40]!r}") from None


def mapping(payload: bytes, most: int = MAX_PAYLOAD) -> dict[str, Any]:
    """A JSON object; EventError "shape" for anything else."""
    found = parse(payload, most)
    if type(found) is not dict:
        raise EventError("shape", f"a JSON object is needed, not {type(found).__name__}")
    return found


def flat(tree: Mapping[str, Any], separator: str = ".") -> dict[str, Value]:
    """The leaves of a tree, by their path. Lists are left out: their places mean nothing. EventError beyond a bound."""
    values: dict[str, Value] = {}
    for path, value in _leaves(tree, "", separator, MAX_DEPTH):
        if len(values) >= MAX_POINTS:
            raise EventError("too-many-points", f"more than {MAX_POINTS} values in a message")
        values[path] = value
    return values


def _leaves(tree: Mapping[str, Any], above: str, separator: str, depth: int) -> Iterator[tuple[str, Value]]:
    if not depth:
        raise EventError("shape", f"values in more than {MAX_DEPTH} levels")
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}{separator}", separator, depth - 1)
        elif value is None or isinstance(value, bool | int | float | str):
            yield f"{above}{name}", value


def text(value: Any) -> str:
    """A fact of a device, in one bounded line; empty where it is none."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return ""
    return "".join(letter for letter in str(value)[:MAX_TEXT] if letter.isprintable()).strip()


def number(payload: bytes) -> Value:
    """A bare value as devices publish it: `21.5`, `ON`, `unavailable`. EventError where it is too long for one."""
    if len(payload) > MAX_TEXT:
        raise EventError("too-large", f"a bare value of {len(payload)} bytes")
    try:
        found = payload.decode().strip()
    except UnicodeDecodeError as error:
        raise EventError("malformed", f"no text: {error}") from None
    try:
        value = float(found)
    except ValueError:
        return found
    return value if math.isfinite(value) else None


def child(tree: Any, *names: str) -> dict[str, Any]:
    """An object below an object; an empty one where there is none."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}
