"""What a TPM made of a vault's key, and what the platform's registers (PCR) say when it does not open. Pure.

    blob = CBOR [body, check]        check = HMAC-SHA256 under the key, over "millwright/tpm/1" 00 body
    body = CBOR [1, identity, release key, signed, listed, handle, [[register, value], ...]]

`signed` opens for the releases of that key and `listed` for the states of the allow-list at `handle`: key and seed are
the two XORed. Without a release key `signed` is empty, and `listed` is both alone. The registers are those of the day
it was sealed; they decide nothing, and are compared to say what has moved.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cbor2

from appliance.errors import SealError
from appliance.vault.canonical import Reader
from appliance.vault.port import MAX_BLOB_BYTES

FORMAT = 1
SECURE_BOOT, RELEASE = 7, 11
WATCHED = (0, 1, 2, 3, 4, 5, 6, SECURE_BOOT, RELEASE)
MAX_NAME_BYTES = 66
MAX_KEY_BYTES = 1024
MAX_SEALED_BYTES = 1024
REGISTER_BYTES = 32

Registers = Mapping[int, bytes]

MEANINGS = {
    0: ("the firmware", "a firmware update"),
    1: ("the firmware's settings", "a change in the firmware's setup, or of memory or another part"),
    2: ("drivers on cards", "a card put in or taken out, or its firmware updated"),
    3: ("settings of cards", "a change in a card's setup"),
    4: ("the boot loader", "an update of the boot loader or the kernel, or a boot from another disk"),
    5: ("partitions and the boot loader's settings", "a change of partitions or boot entries"),
    6: ("the maker's own events", "waking from sleep, or a service mode"),
    SECURE_BOOT: (
        "Secure Boot and its keys",
        "an update of the list of revoked software (dbx), Secure Boot switched on or off, or its keys exchanged",
    ),
    RELEASE: (
        "the release that was booted",
        "an older or other release, a kernel command line that was edited, or a vault that was latched in this boot",
    ),
}


@dataclass(frozen=True)
class Blob:
    identity: bytes  # the name of the TPM's storage key
    release_key: bytes  # DER; empty where no release is signed
    signed: bytes
    listed: bytes
    handle: int
    registers: Registers


def check(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, b"millwright/tpm/1\0" + body, hashlib.sha256)


def encode(blob: Blob, key: bytes) -> bytes:
    registers = [[number, value] for number, value in sorted(blob.registers.items())]
    values = [FORMAT, blob.identity, blob.release_key, blob.signed, blob.listed, blob.handle, registers]
    body = cbor2.dumps(values)
    return cbor2.dumps([body, check(key, body)])


def parse(raw: bytes) -> tuple[Blob, bytes, bytes]:
    """The blob, its body, and the check over it. SealError."""
    if len(raw) > MAX_BLOB_BYTES:
        raise SealError(f"a binding of {len(raw)} bytes is not one by a TPM")
    outer = Reader(raw)
    outer.array(2)
    body, mac = outer.string(1, MAX_BLOB_BYTES), outer.string(32, 32)
    outer.end()
    return _body(body), body, mac


def _body(body: bytes) -> Blob:
    reader = Reader(body)
    reader.array(7)
    number = reader.number(255)
    if number != FORMAT:
        raise SealError(f"a binding of format {number}", "It was made by another release of this software.")
    identity = reader.string(2, MAX_NAME_BYTES)
    release_key, signed = reader.string(0, MAX_KEY_BYTES), reader.string(0, MAX_SEALED_BYTES)
    listed, handle = reader.string(1, MAX_SEALED_BYTES), reader.number((1 << 32) - 1)
    registers = {}
    for _ in range(reader.items(24)):
        reader.array(2)
        register = reader.number(23)
        registers[register] = reader.string(REGISTER_BYTES, REGISTER_BYTES)
    reader.end()
    if bool(release_key) != bool(signed):
        raise SealError("a binding with one half of a release's signature")
    return Blob(identity, release_key, signed, listed, handle, registers)


def bound(release_key: bytes) -> tuple[int, ...]:
    """The registers that an allow-list names."""
    return (SECURE_BOOT, RELEASE) if release_key else (SECURE_BOOT,)


def moved(blob: Blob, now: Registers, slots: Sequence[Registers] | None, latched: bytes) -> tuple[str, str]:
    """Why it does not open, in words, and the remedy. `slots`: of the allow-list, None where it cannot be read;
    `latched`: what is extended into PCR 11 to shut it."""
    known = [slot[RELEASE] for slot in slots or () if RELEASE in slot] + [blob.registers.get(RELEASE, b"")]
    if any(now[RELEASE] == _extended(value, latched) for value in known):
        return "the vault was opened in this boot and then shut until the next one", "Restart the box."
    culprits = _outside(now, slots) if slots else []
    if not culprits:
        culprits = [number for number in bound(blob.release_key) if now[number] != blob.registers.get(number)]
    if not culprits:
        return "the TPM refuses, although no register has moved that the vault is bound to", _RECOVER
    told = "; ".join(_told(number) for number in culprits)
    others = [number for number in WATCHED if number not in culprits and now[number] != blob.registers.get(number)]
    if others:
        told += ". Not bound, and moved since it was sealed: " + ", ".join(
            f"PCR {n} ({MEANINGS[n][0]})" for n in others
        )
    return f"the machine is not as the vault allows: {told}", _UNDO


_RECOVER = "Open it with the recovery key: millwright vault recover."
_UNDO = f"Undo that change and restart. Or, if it is to stay: {_RECOVER}"


def _outside(now: Registers, slots: Sequence[Registers]) -> list[int]:
    """Registers whose value stands in no slot; where each stands in some, but not together, those of the nearest."""
    numbers = sorted(slots[0])
    alone = [number for number in numbers if all(slot[number] != now[number] for slot in slots)]
    if alone:
        return alone
    misses = [[number for number in numbers if slot[number] != now[number]] for slot in slots]
    return min(misses, key=len)


def _told(number: int) -> str:
    what, usual = MEANINGS[number]
    return f"PCR {number} has moved, which measures {what} (usually {usual})"


def _extended(value: bytes, digest: bytes) -> bytes:
    return hashlib.sha256(value + digest).digest()
