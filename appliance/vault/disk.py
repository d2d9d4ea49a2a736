"""The key of a box's disk where there is no TPM: bound to the box as the vault's key is, by `backends/fingerprint`.

What it takes to open it lies in the disk's own header, a token of LUKS2, so it goes where the disk goes:

    {"type": "millwright-fingerprint", "keyslots": ["0"], "host": hex of 32 bytes, "blob": base64}

The host secret, a file in the vault's folder otherwise, is in the token: a thief of the disk has it in both cases.
Network ports are no parts here: their drivers are loaded after the disk was opened.
"""

import base64
import binascii
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.errors import BindingError, SealError
from appliance.vault.backends import fingerprint
from appliance.vault.backends.fingerprint import BoxFacts, Fingerprint, Keepsake, Machine
from appliance.vault.enrolment import Report
from appliance.vault.factors import Fact
from appliance.vault.port import KEY_BYTES, MAX_BLOB_BYTES, Opened, Promise
from appliance.vault.secret import Secret

TYPE = "millwright-fingerprint"
KEYSLOT = 0
HOST_BYTES = 32
MAX_TOKEN_BYTES = 3 * MAX_BLOB_BYTES
LATE = ("nic",)
RECOVER = "Put the old parts back, or type the recovery key of the disk."


@dataclass(frozen=True)
class Made:
    """A new key, and the token that opens it on this box. `report` tells what it is worth."""

    key: Secret
    token: str
    report: Report
    promise: Promise


def make(machine: Machine) -> Made:
    """BindingError where the box has too little of its own."""
    host = Held(os.urandom(HOST_BYTES))
    backend = _backend(machine, host)
    key = Secret(os.urandom(KEY_BYTES))
    blob = base64.b64encode(backend.seal(key)).decode()
    token = {"type": TYPE, "keyslots": [str(KEYSLOT)], "host": host.value.hex(), "blob": blob}
    return Made(key, json.dumps(token), backend.report(), backend.promise)


def unlock(token: str, machine: Machine) -> Opened:
    """BindingError says what of the box is another now; SealError where the token is damaged."""
    host, blob = _parsed(token)
    try:
        return _backend(machine, host).open(blob)
    except BindingError as error:
        raise BindingError(error.message.replace("the vault was", "the disk was"), RECOVER) from error


@dataclass(frozen=True)
class Held:
    """The host secret, as the token holds it."""

    value: bytes = field(repr=False)
    what: str = "the host secret in the disk's header"

    def read(self) -> bytes | None:
        return self.value

    def create(self) -> bytes:
        return self.value


@dataclass(frozen=True)
class _Early:
    """The machine as it is known before its disk was opened."""

    machine: Machine
    host: Keepsake

    @property
    def uefi(self) -> Keepsake | None:
        return self.machine.uefi

    def facts(self) -> BoxFacts:
        found = self.machine.facts()
        kept = tuple(fact for fact in found.facts if fact.kind not in LATE)
        return _Facts(kept, found.hypervisor, found.memory_kib, found.unreadable)


@dataclass(frozen=True)
class _Facts:
    facts: Sequence[Fact]
    hypervisor: str
    memory_kib: int
    unreadable: Sequence[str]


def _backend(machine: Machine, host: Keepsake) -> Fingerprint:
    return fingerprint.create(fingerprint.Settings(), _Early(machine, host))


def _parsed(token: str) -> tuple[Held, bytes]:
    if len(token) > MAX_TOKEN_BYTES:
        raise SealError(f"a token of {len(token)} characters in the disk's header is too long to be ours")
    try:
        fields = json.loads(token)
        host, blob = bytes.fromhex(fields["host"]), base64.b64decode(fields["blob"], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise SealError("the token in the disk's header is damaged", RECOVER) from error
    if len(host) != HOST_BYTES:
        raise SealError("the token in the disk's header is damaged", RECOVER)
    return Held(host), blob
