"""What waits to leave the box: entries, the lanes they leave by, and the frames that hold many of them. Pure.

Each lane has numbers of its own, which rise in the order of sending: a receiver that remembers the highest number of
each lane knows what it has had already. `prev` is the number that was sent before, so that it sees a gap, too.
"""

import hashlib
import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec
from msgspec import Struct


class Lane(IntEnum):
    """In the order of their leaving."""

    ALARM = 0
    STATE = 1
    SCORE = 2
    READING = 3


NAMES = {lane: lane.name.lower() for lane in Lane}
SINGLE = (Lane.ALARM, Lane.STATE)  # each in a row of its own, numbered when it is sent, the newest first


class Entry(Struct, frozen=True, gc=False):
    """One event on its way out. `key` names what it is the present state of; `sense` is what tells one state of it from
    the next, the payload where it is empty. `mark` recognises one that comes a second time; empty: nothing does."""

    lane: Lane
    topic: str
    payload: bytes
    key: str = ""
    sense: bytes = b""
    mark: bytes = b""


class Parcel(Struct, frozen=True, gc=False):
    """An entry that is being sent. `newest`: nothing later of the same key is known here."""

    lane: Lane
    seq: int
    prev: int
    topic: str
    payload: bytes
    key: str = ""
    newest: bool = True


class Load(NamedTuple):
    """Entries side by side. `seqs` is None where they follow each other without a gap."""

    topics: list[str]
    payloads: list[bytes]
    seqs: list[int] | None = None


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Load).decode
_SUM = 4  # bytes of CRC-32 in front


class RottenError(Exception):
    """A frame's bytes are not those that were written."""


def pack(load: Load) -> bytes:
    data = _pack(load)
    return zlib.crc32(data).to_bytes(_SUM, "big") + data


def unpack(data: bytes) -> Load:
    """RottenError."""
    body = data[_SUM:]
    if zlib.crc32(body) != int.from_bytes(data[:_SUM], "big"):
        raise RottenError("its check sum is wrong")
    try:
        return _unpack(body)
    except msgspec.MsgspecError as error:
        raise RottenError(str(error)) from error


def digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


def mark(topic: str, payload: bytes) -> bytes:
    """Of a message that the bus may deliver twice; 8 bytes."""
    return hashlib.blake2b(b"%s\0%s" % (topic.encode(), payload), digest_size=8).digest()


def numbers(load: Load, first: int) -> Sequence[int]:
    return range(first, first + len(load.topics)) if load.seqs is None else load.seqs
