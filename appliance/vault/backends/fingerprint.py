"""Binds the vault's key to what the box is made of, where there is no TPM.

    [vault]
    backend = "fingerprint"

    [vault.fingerprint]
    minimum_bits = 40
    uefi = true

Two secrets are always wanted: one in a UEFI variable, off the disk, where the box has UEFI, and one in a file for root.
Besides, k of n parts must be as they were when the key was sealed: see `enrolment` and `fingerprint`.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from appliance.errors import BindingError
from appliance.vault import enrolment, fingerprint, suites
from appliance.vault.enrolment import Plan, Report
from appliance.vault.factors import Fact, candidates
from appliance.vault.fingerprint import Unlocked
from appliance.vault.port import Opened, Promise
from appliance.vault.secret import Secret

Bits = Annotated[
    int,
    Meta(
        ge=16,
        le=256,
        description="Bits that a thief of the disk must be left to guess; with fewer of them nothing is sealed.",
    ),
]
Memory = Annotated[
    int,
    Meta(
        ge=8,
        le=256,
        description="MiB of memory that one guess takes (Argon2id), and opening too; at most an eighth of the box's.",
    ),
]
Uefi = Annotated[
    bool,
    Meta(
        description="Keep a secret in a UEFI variable where the box has UEFI. Without it serial numbers alone protect "
        "a stolen disk."
    ),
]
SuiteName = Annotated[Literal["aes-256-gcm", "sm4-gcm"], Meta(description="Cipher of the binding.")]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fingerprint of the box: protects a stolen disk or a copy of it, not a stolen box."""

    minimum_bits: Bits = 40
    memory_mib: Memory = 64
    uefi: Uefi = True
    suite: SuiteName = "aes-256-gcm"


class Keepsake(Protocol):
    """A place where the box keeps 32 random bytes. Its troubles are OSErrors."""

    @property
    def what(self) -> str:
        """For a message."""

    def read(self) -> bytes | None:
        """None where there is nothing yet."""

    def create(self) -> bytes:
        """What is there, or something new; on return it survives a power cut."""


class BoxFacts(Protocol):
    @property
    def facts(self) -> Sequence[Fact]: ...
    @property
    def hypervisor(self) -> str: ...
    @property
    def memory_kib(self) -> int: ...
    @property
    def unreadable(self) -> Sequence[str]: ...


class Machine(Protocol):
    """`hardware.identity.Box` is one."""

    @property
    def host(self) -> Keepsake: ...
    @property
    def uefi(self) -> Keepsake | None: ...
    def facts(self) -> BoxFacts: ...


class Fingerprint:
    name = "fingerprint"

    def __init__(self, settings: Settings, machine: Machine) -> None:
        self._settings = settings
        self._machine = machine
        self.promise = _promise(self._uefi is not None, machine.facts().hypervisor)

    def report(self) -> Report:
        """What a key would be sealed with now. Nothing is written and nothing refused."""
        return self._plan(self._machine.facts()).report

    def seal(self, key: Secret) -> bytes:
        """Makes the box's secrets where there are none yet."""
        facts = self._machine.facts()
        plan = self._plan(facts)
        try:
            enrolment.require(plan.report)
        except BindingError as error:
            raise BindingError(error.message + _unseen(facts), error.remedy) from None
        return fingerprint.seal(
            key.reveal(),
            self._made_secrets(),
            plan.factors,
            plan.needed,
            os.urandom(fingerprint.SALT_BYTES),
            fingerprint.affordable(facts.memory_kib, self._settings.memory_mib << 10),
            suites.by_name(self._settings.suite),
        )

    def open(self, blob: bytes) -> Opened:
        wanted = fingerprint.parse(blob).header.checks
        facts = self._machine.facts()
        try:
            unlocked = fingerprint.unlock(blob, self._read_secrets(wanted), candidates(facts.facts))
        except BindingError as error:
            raise BindingError(error.message + _unseen(facts), error.remedy) from None
        warnings = _warnings(unlocked, self._uefi is not None and "uefi" not in wanted)
        return Opened(Secret(unlocked.key), warnings, reseal=bool(warnings))

    def latch(self) -> None:
        """There is nothing that could be shut: the promise says so."""

    @property
    def _uefi(self) -> Keepsake | None:
        return self._machine.uefi if self._settings.uefi else None

    def _plan(self, facts: BoxFacts) -> Plan:
        return enrolment.plan(facts.facts, self._uefi is not None, facts.hypervisor, self._settings.minimum_bits)

    def _made_secrets(self) -> dict[str, bytes]:
        """The UEFI variable first: where it cannot be made nothing is left behind."""
        made = {}
        if self._uefi is not None:
            made["uefi"] = _made(self._uefi, "Mount efivarfs writable, or set uefi = false under [vault.fingerprint].")
        made["host"] = _made(self._machine.host, "Make room, and give root the right to write there.")
        return made

    def _read_secrets(self, wanted: Iterable[str]) -> dict[str, bytes | None]:
        """Those that the blob was sealed with, whatever is configured now."""
        places = {"uefi": self._machine.uefi, "host": self._machine.host}
        return {name: _read(place) for name in wanted if (place := places[name]) is not None}


def create(settings: Settings, machine: Machine) -> Fingerprint:
    return Fingerprint(settings, machine)


def _made(place: Keepsake, remedy: str) -> bytes:
    try:
        return place.create()
    except OSError as error:
        raise BindingError(f"{place.what} cannot be made: {error.strerror or error}", remedy) from error


def _read(place: Keepsake) -> bytes | None:
    try:
        return place.read()
    except OSError as error:
        remedy = "Run as root." if isinstance(error, PermissionError) else fingerprint.RECOVER
        raise BindingError(f"{place.what} cannot be read: {error.strerror or error}", remedy) from error


def _unseen(facts: BoxFacts) -> str:
    """Serial numbers are for root: who is another user misses parts that are there."""
    return f"; may not be read by this user: {', '.join(facts.unreadable)}" if facts.unreadable else ""


def _warnings(unlocked: Unlocked, uefi_unused: bool) -> tuple[str, ...]:
    told = [f"{slot.words} is not the one the vault was sealed with" for slot in unlocked.changed]
    if unlocked.damaged:
        told.append("the box's binding was damaged in part")
    if uefi_unused:
        told.append("the vault was sealed without a secret in the UEFI variables, and this box can have one")
    return tuple(told)


def _promise(uefi: bool, hypervisor: str) -> Promise:
    protects = ["a copy of the disk's content in another box"]
    does_not = [
        "root on this box, now or later: there is no latch, and root reads every part",
        "the whole box, stolen",
        "parts that were noted down: serial numbers stand on labels and in logs, addresses are sent to everybody",
    ]
    if uefi and not hypervisor:
        return Promise(20, ("a stolen disk", *protects), tuple(does_not))
    if uefi:
        does_not.append(f"a copy of the whole guest of {hypervisor}: UEFI variables and ids are files beside its disk")
    else:
        does_not.append("a stolen disk for long: no secret is off the disk, serial numbers of the rest can be guessed")
    return Promise(15, tuple(protects), tuple(does_not))
