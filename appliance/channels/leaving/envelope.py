"""The envelope: an event as JSON, with the number by which a receiver knows it. Pure.

    {"from":"3f2a…","lane":"alarm","seq":7,"prev":6,"at":…,…}

A receiver keeps the highest `seq` it has for good of each `from` and lane, and drops what is not above it. `prev` is
what left before in that lane: where it is above what the receiver has, something is missing, and it says so.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from appliance.store.parcels import NAMES, Parcel


class Head(msgspec.Struct, frozen=True, gc=False, rename={"sender": "from"}):
    """The part of an envelope that a receiver needs."""

    sender: str
    lane: str
    seq: int
    prev: int


class Packed(msgspec.Struct, frozen=True, gc=False):
    """What tells the parts of a pack apart."""

    topic: str


class Word(msgspec.Struct, frozen=True):
    """What a receiver says of itself: retained, with `online = false` as its last will. `run` changes whenever it wants
    everything again that it has not confirmed."""

    online: bool
    run: str = ""


class Marks(msgspec.Struct, frozen=True):
    """What a receiver has for good of one sender: the highest number of each lane."""

    run: str
    marks: dict[str, int]


class Verdict(NamedTuple):
    fresh: bool
    missing: bool = False  # something before it has not come


head = msgspec.json.Decoder(Head).decode
word = msgspec.json.Decoder(Word).decode
marks = msgspec.json.Decoder(Marks).decode
parts = msgspec.json.Decoder(list[msgspec.Raw]).decode  # of a pack
part = msgspec.json.Decoder(Packed).decode


def seal(outbox: str, parcel: Parcel) -> bytes:
    return b'{"from":"%s","lane":"%s","seq":%d,"prev":%d,%s' % (
        outbox.encode(),
        _LANES[parcel.lane],
        parcel.seq,
        parcel.prev,
        parcel.payload[1:],
    )


def pack(outbox: str, parcels: Sequence[Parcel]) -> bytes:
    """Several in one: a JSON list, each with its topic."""
    return b"[%s]" % b",".join(
        [b'{"topic":%s,%s' % (_quoted(parcel.topic), seal(outbox, parcel)[1:]) for parcel in parcels]
    )


@lru_cache(16_384)
def _quoted(topic: str) -> bytes:
    return msgspec.json.encode(topic)


def judge(seq: int, prev: int, mark: int) -> Verdict:
    """What a receiver does with a number, whose own is `mark`."""
    return Verdict(fresh=seq > mark and prev <= mark, missing=prev > mark)


_LANES = [NAMES[lane].encode() for lane in sorted(NAMES)]
