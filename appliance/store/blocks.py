"""A waveform as it lies in the database: float32 samples, bytes of equal weight together, compressed. Pure."""

import json
from array import array
from typing import NamedTuple

from appliance.events.schema import Block
from appliance.store.seal import RotError, seal, unseal

LEVEL = 3  # of zstandard
_WIDTH = 4  # bytes of a float32
_SECOND = 1_000_000_000  # ns
_DAY_S = 86_400.0


class Sealed(NamedTuple):
    points: str  # JSON
    data: bytes


def encode(block: Block) -> Sealed:
    points = json.dumps(list(block.values), ensure_ascii=False, separators=(",", ":"))
    raw = b"".join(samples.tobytes() for samples in block.values.values())
    body = b"".join(raw[byte::_WIDTH] for byte in range(_WIDTH))
    return Sealed(points, seal(body, LEVEL, points.encode()))


def decode(at: int, rate: float, points: str, data: bytes) -> Block:
    """RotError where the data is not what `encode` made."""
    body, names = unseal(data, points.encode()), json.loads(points)
    count, left = divmod(len(body), _WIDTH * len(names))
    if left:
        raise RotError(f"{len(body)} bytes for {len(names)} points")
    raw = bytearray(len(body))
    for byte in range(_WIDTH):
        raw[byte::_WIDTH] = body[byte * len(body) // _WIDTH : (byte + 1) * len(body) // _WIDTH]
    samples = array("f")
    samples.frombytes(bytes(raw))
    return Block(at, rate, {name: samples[row * count : (row + 1) * count] for row, name in enumerate(names)})


def end(block: Block) -> int:
    """The time of the last sample, UTC ns; no block is taken to last more than a day."""
    return block.at + round(min((samples(block) - 1) / block.rate, _DAY_S) * _SECOND)


def samples(block: Block) -> int:
    """A point."""
    return len(next(iter(block.values.values())))
