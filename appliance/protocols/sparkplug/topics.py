"""The topics of Sparkplug B, and the state of a host application, which is told in JSON."""

from enum import StrEnum
from typing import NamedTuple

import msgspec

from appliance.errors import EventError

NAMESPACE = "spBv1.0"
FILTER = f"{NAMESPACE}/#"


class Verb(StrEnum):
    """What a message is: the third part of its topic."""

    NBIRTH = "NBIRTH"
    NDEATH = "NDEATH"
    NDATA = "NDATA"
    NCMD = "NCMD"
    DBIRTH = "DBIRTH"
    DDEATH = "DDEATH"
    DDATA = "DDATA"
    DCMD = "DCMD"


class Address(NamedTuple):
    group: str
    verb: Verb
    node: str
    device: str = ""  # empty: the node itself


def parse(text: str) -> Address:
    """EventError("topic") where it is not a node's or a device's topic; host states are told by `host`."""
    parts = text.split("/")
    if parts[0] != NAMESPACE or not 4 <= len(parts) <= 5 or parts[2] not in Verb.__members__ or not all(parts):
        raise EventError("topic", f"'{text[:80]}' is not {NAMESPACE}/<group>/<message>/<node>[/<device>]")
    verb = Verb(parts[2])
    if (verb.value[0] == "D") != (len(parts) == 5):
        raise EventError("topic", f"'{text[:80]}': {verb} names {'a' if verb.value[0] == 'D' else 'no'} device")
    return Address(parts[1], verb, parts[3], parts[4] if len(parts) == 5 else "")


def topic(group: str, verb: Verb, node: str, device: str = "") -> str:
    """EventError("topic") where a part cannot stand in a topic."""
    parts = [group, verb.value, node, *([device] if device else [])]
    for part in parts:
        if not part or not part.isprintable() or any(letter in part for letter in "+#/"):
            raise EventError("topic", f"{part[:40]!r} cannot be part of a Sparkplug topic")
    return "/".join((NAMESPACE, *parts))


def host(identity: str) -> str:
    """The topic of a host application's state, `{"online": true, "timestamp": ms}`, retained and its last will."""
    return f"{NAMESPACE}/STATE/{identity}"


class HostState(msgspec.Struct):
    """Of a host application. `timestamp` in UTC ms: of the session that it speaks of."""

    online: bool
    timestamp: int = 0


def host_state(payload: bytes) -> HostState:
    """EventError("shape")."""
    try:
        return msgspec.json.decode(payload, type=HostState)
    except msgspec.MsgspecError as error:
        raise EventError("shape", f"no state of a host: {error}") from None
