"""The only place that spells a topic: `mw/v1/<kind>/<path...>`.

For readings, blocks, scores and alarms the path is an asset in the ISA-95 habit, `site/area/line/asset`: 1 to 8 levels
of `[a-z0-9_.-]+`. For states it is the service, for commands `<service>/<verb>/<id>`.

An asset's alarm stands at its own topic; one of another condition than an anomaly has a level more, which no asset can
have: `mw/v1/alarm/line1/pump/~flat-line`. So each of them is retained, and ends, by itself.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from appliance.errors import EventError
from appliance.events.schema import ANOMALY, Kind

ROOT = "mw/v1"
MAX_LEVELS = 8
MAX_PATH = 240  # characters; mosquitto allows 65535, a database key and a screen do not

_LEVEL = r"[a-z0-9_.-]+"
_PATH = re.compile(rf"{_LEVEL}(?:/{_LEVEL}){{0,{MAX_LEVELS - 1}}}")
_NOT_IN_LEVEL = re.compile(r"[^a-z0-9_.-]+")
_PREFIX = f"{ROOT}/"
_ALARMS = f"{ROOT}/{Kind.ALARM.value}/"
_CONDITION = re.compile(r"/~([a-z0-9-]{1,40})")
_KINDS = {kind.value: kind for kind in Kind}


class Address(NamedTuple):
    """A parsed topic."""

    kind: Kind
    path: str


def check_path(path: str) -> str:
    """The path itself, or EventError("topic") that says what an asset may look like."""
    if len(path) > MAX_PATH or not _PATH.fullmatch(path):
        meant = mended(path)
        hint = f"; did you mean '{meant[:80]}'?" if meant else ""
        raise EventError(
            "topic", f"'{path[:80]}' is not 1 to {MAX_LEVELS} levels of a-z 0-9 _ . - ({MAX_PATH} at most){hint}"
        )
    return path


def mended(path: str) -> str:
    """The path that was probably meant: in lower case, with `_` for what it may not have, without empty levels. Empty
    where there is none."""
    levels = [_NOT_IN_LEVEL.sub("_", level) for level in path[: 2 * MAX_PATH].strip().lower().split("/") if level]
    found = "/".join(levels)
    return found if len(found) <= MAX_PATH and _PATH.fullmatch(found) else ""


@lru_cache(16_384)
def topic(kind: Kind, path: str) -> str:
    return f"{ROOT}/{kind.value}/{check_path(path)}"


def alarm(asset: str, condition: str = ANOMALY) -> str:
    """EventError("topic") where the condition is not 1 to 40 of a-z 0-9 -."""
    if condition == ANOMALY:
        return topic(Kind.ALARM, asset)
    if not _CONDITION.fullmatch(f"/~{condition}"):
        raise EventError("topic", f"'{condition[:80]}' is no condition of an alarm")
    return f"{topic(Kind.ALARM, asset)}/~{condition}"


def condition(text: str) -> str:
    """What an alarm's topic says that it is about."""
    _, mark, name = text.rpartition("/~")
    return name if mark else ANOMALY


def state(service: str) -> str:
    return topic(Kind.STATE, service)


def command(service: str, verb: str, identity: str) -> str:
    return topic(Kind.COMMAND, f"{service}/{verb}/{identity}")


def everything(kind: Kind) -> str:
    """The filter of all messages of a kind."""
    return f"{ROOT}/{kind.value}/#"


def of_asset(kind: Kind, asset: str) -> tuple[str, str]:
    """The filters of an asset's messages of a kind, and of all below it."""
    return topic(kind, asset), f"{topic(kind, asset)}/#"


def commands_of(service: str) -> str:
    """The filter of all commands to a service."""
    return f"{ROOT}/{Kind.COMMAND.value}/{service}/#"


def parse(text: str) -> Address:
    """Kind and path of a topic. EventError("topic") where it breaks the grammar."""
    whole = text
    if text.startswith(_ALARMS) and (found := _CONDITION.search(text)) and found.end() == len(text):
        text = text[: found.start()]
    head, _, path = text.removeprefix(_PREFIX).partition("/")
    kind = _KINDS.get(head)
    if kind is None or not text.startswith(_PREFIX):
        raise EventError("topic", f"'{whole[:80]}' is not {ROOT}/<{'|'.join(_KINDS)}>/<asset>")
    if not path:
        raise EventError("topic", f"'{whole[:80]}' names no asset: {ROOT}/{head}/<asset>")
    return Address(kind, check_path(path))
