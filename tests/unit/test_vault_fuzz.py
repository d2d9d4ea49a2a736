"""Harmed records and wrapped keys by the ten thousand: every one is a SealError, and none opens.

MILLWRIGHT_FUZZ_RECORDS says how many, MILLWRIGHT_FUZZ_SEED with which seed.
"""

import hashlib
import os
import random
from collections.abc import Callable, Sequence

import cbor2
import pytest

from appliance.errors import SealError
from appliance.vault import envelope, hpke
from appliance.vault.envelope import Place
from appliance.vault.suites import SUITES

SEED = int(os.environ.get("MILLWRIGHT_FUZZ_SEED", "20261121"))
RECORDS = int(os.environ.get("MILLWRIGHT_FUZZ_RECORDS", "50000"))
LONGEST = 3600  # seconds, of a run that is asked for

KEY = bytes(range(32))
SIZES = (0, 20, 300)
PLACES = [Place(bytes(16), f"mqtt/{number}", number, number * 300) for number in range(3)]
_EDGES = (0, 1, 23, 24, 25, 26, 27, 31, 32, 64, 95, 128, 159, 192, 246, 255)  # where CBOR's heads change their meaning

Harm = Callable[[random.Random, bytearray, bytes], bytes | bytearray]


def flip(chance: random.Random, data: bytearray, _: bytes) -> bytearray:
    for _flip in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def overwrite(chance: random.Random, data: bytearray, _: bytes) -> bytearray:
    data[chance.randrange(min(len(data), chance.choice((8, len(data)))))] = chance.choice(_EDGES)
    return data


def cut(chance: random.Random, data: bytearray, _: bytes) -> bytearray:
    return data[: chance.randrange(len(data))]


def lengthen(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    return bytes(data) + chance.randbytes(chance.randint(1, 40))


def insert(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(chance.randint(1, 9)) + data[at:]


def drop(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.randint(1, 9) :]


def splice(chance: random.Random, data: bytearray, other: bytes) -> bytes:
    return bytes(data[: chance.randrange(len(data))]) + other[chance.randrange(len(other)) :]


def mix(chance: random.Random, data: bytearray, other: bytes) -> bytes:
    """Well formed: fields of two, or a field of another type."""
    fields, others = cbor2.loads(bytes(data)), cbor2.loads(other)
    at = chance.randrange(len(fields))
    spare = (None, True, -1, 2**63, 2**64, 1.5, "text", [], {}, b"", chance.randbytes(32), cbor2.CBORTag(1, 1))
    fields[at] = chance.choice((others[at % len(others)], fields[0], chance.choice(spare)))
    return cbor2.dumps(fields)


def head(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    """Another head, of whatever length, where one of a string stands."""
    at = chance.choice([place for place, byte in enumerate(data[:120]) if byte in (0x58, 0x59)] or [0])
    first = chance.choice((0x18, 0x38, 0x58, 0x78, 0x98, 0xB8, 0xD8, 0xF8)) + chance.randrange(8)
    return data[:at] + bytes((first,)) + chance.randbytes(chance.choice((1, 2, 4, 8))) + data[at + 2 :]


def noise(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    return data[: chance.randrange(8)] + chance.randbytes(chance.randrange(200))


HARMS: tuple[Harm, ...] = (flip, overwrite, cut, lengthen, insert, drop, splice, mix, head, noise)


def fuzz(right: Sequence[bytes], opens: Callable[[int, bytes], bytes], rounds: int) -> dict[str, int]:
    """How often each harm was done; fails, with what repeats it, on whatever opens or raises anything but SealError.

    `opens` is told which of the right ones was harmed."""
    chance = random.Random(SEED)
    done = dict.fromkeys((harm.__name__ for harm in HARMS), 0)
    for number in range(rounds):
        harm, which = chance.choice(HARMS), chance.randrange(len(right))
        harmed = bytes(harm(chance, bytearray(right[which]), chance.choice(right)))
        if harmed in right:
            continue
        done[harm.__name__] += 1
        try:
            opens(which, harmed)
        except SealError:
            continue
        except BaseException as error:
            raise AssertionError(f"seed {SEED}, number {number}, {harm.__name__}: {harmed.hex()}") from error
        raise AssertionError(f"opened: seed {SEED}, number {number}, {harm.__name__}: {harmed.hex()}")
    return done


@pytest.mark.timeout(LONGEST)
def test_no_harmed_record_opens_or_crashes() -> None:
    """Each is opened in the place of the one that was harmed, or that its front was taken from."""
    places = [place for place in PLACES for _ in SUITES for _ in SIZES]
    right = [envelope.seal(suite, KEY, place, bytes(size)) for place in PLACES for suite in SUITES for size in SIZES]

    def opens(which: int, record: bytes) -> bytes:
        return envelope.open(KEY, places[which], record)

    assert [len(opens(which, record)) for which, record in enumerate(right)] == [*SIZES] * 6
    assert min(fuzz(right, opens, RECORDS).values()) > RECORDS / 40


@pytest.mark.timeout(LONGEST)
@pytest.mark.parametrize("kind", hpke.KINDS)
def test_no_harmed_wrapped_key_unwraps_or_crashes(kind: hpke.Kind) -> None:
    private, public = hpke.from_seed(hashlib.sha256(kind.encode()).digest(), kind)
    right = [hpke.wrap(public, KEY[:size], b"info") for size in (1, 16, 32)]

    def opens(_: int, wrapped: bytes) -> bytes:
        return hpke.unwrap(private, wrapped, b"info")

    assert [len(opens(which, wrapped)) for which, wrapped in enumerate(right)] == [1, 16, 32]
    rounds = RECORDS if kind == "x25519" else RECORDS // 5  # a decapsulation each
    assert min(fuzz(right, opens, rounds).values()) > rounds / 40
