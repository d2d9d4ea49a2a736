"""Binds the vault's key to the machine's TPM 2.0 and to what was booted.

    [vault]
    backend = "tpm"

    [vault.tpm]

There is nothing to set. On a system whose releases are signed (a unified kernel image with a signature for PCR 11) the
key takes both: a signature over the release that runs, and its place on an allow-list in the TPM, with PCR 7. An update
is allowed before the restart and alone after it, so that older signed releases no longer open. On any other system the
allow-list holds PCR 7 alone. See `measured` for the format.
"""

import hmac
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from appliance.errors import BindingError, SealError, VaultError
from appliance.vault import measured
from appliance.vault.measured import Blob, Registers
from appliance.vault.port import KEY_BYTES, Opened, Promise
from appliance.vault.secret import Secret

SEED_BYTES = 32
RECOVER = "Open the vault with its recovery key: millwright vault recover."


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine's TPM: what it binds to follows from the system that runs."""


class Tpm(Protocol):
    """`hardware.tpm.Tpm` is one. Troubles are OSErrors: FileNotFoundError where an allow-list is gone, PermissionError
    where the TPM refuses, and one that is a ValueError, too, where it is given what it did not make."""

    @property
    def latch_digest(self) -> bytes: ...
    def session(self) -> AbstractContextManager[Any]: ...
    def identity(self) -> bytes: ...
    def registers(self, which: Iterable[int]) -> dict[int, bytes]: ...
    def release_key(self) -> bytes: ...
    def seal_signed(self, secret: bytes, key: bytes) -> bytes: ...
    def unseal_signed(self, sealed: bytes, key: bytes) -> bytes: ...
    def create_list(self, seed: bytes, slots: Sequence[Mapping[int, bytes]]) -> int: ...
    def read_list(self, handle: int) -> list[dict[int, bytes]]: ...
    def write_list(self, handle: int, seed: bytes, slots: Sequence[Mapping[int, bytes]]) -> None: ...
    def remove_list(self, handle: int) -> None: ...
    def seal_listed(self, secret: bytes, handle: int, seed: bytes) -> bytes: ...
    def unseal_listed(self, sealed: bytes, handle: int) -> bytes: ...
    def latch(self, lists: Iterable[int]) -> None: ...


@dataclass(frozen=True)
class Held:
    """The allow-list of an opened vault, and what may change it."""

    handle: int
    seed: Secret
    state: Registers  # of the machine, as it was when the vault opened
    release_key: bytes


class TpmBackend:
    name = "tpm"

    def __init__(self, machine: Tpm) -> None:
        self._tpm = machine
        self._held: Held | None = None
        with told():
            self.promise = _promise(signed=bool(machine.release_key()))

    def seal(self, key: Secret) -> bytes:
        """A vault that was opened keeps its allow-list, unless its releases are signed with another key now; another
        vault gets a list of its own, for the machine as it is."""
        with told(), self._tpm.session():
            release_key = self._tpm.release_key()
            if self._held is not None and release_key in (b"", self._held.release_key):
                return self._sealed(key, self._held)
            held = self._fresh(release_key)
            try:
                sealed = self._sealed(key, held)
                self.open(sealed)  # a key that does not open again here must not be relied on
            except (OSError, VaultError):
                self._tpm.remove_list(held.handle)
                raise
            return sealed

    def open(self, blob: bytes) -> Opened:
        parsed, body, check = measured.parse(blob)
        with told(), self._tpm.session():
            if self._tpm.identity() != parsed.identity:
                raise BindingError(
                    "the vault was sealed by another TPM, or this one was cleared since (in the firmware's setup, by "
                    "another operating system, or with a new board)",
                    RECOVER,
                )
            state = self._tpm.registers(measured.bound(parsed.release_key))
            secret = self._unsealed(parsed)
            offered = self._tpm.release_key()
        key, seed = secret[:KEY_BYTES], secret[KEY_BYTES:]
        if len(seed) != SEED_BYTES or not hmac.compare_digest(measured.check(key, body), check):
            raise SealError("the TPM's binding was altered, or its halves are of different ones", RECOVER)
        self._held = Held(parsed.handle, Secret(seed), state, parsed.release_key)
        if offered in (b"", parsed.release_key):
            return Opened(Secret(key))
        return Opened(Secret(key), ("the vault is not bound to the key that signs this release",), reseal=True)

    def latch(self) -> None:
        """Extends PCR 11, and shuts the allow-list until the next boot: either alone is enough."""
        with told():
            self._tpm.latch([self._held.handle] if self._held else [])

    # ---- the allow-list: for who updates the system --------------------------------------------------------------

    def state(self) -> Registers:
        """Of the machine when the vault opened: PCR 7, and PCR 11 where releases are signed. VaultError."""
        return self._opened().state

    def allow(self, old: Registers, new: Registers) -> None:
        """Before the restart: the state that runs, and the one that will. In one write. VaultError where `old` is not
        the state that runs: an update that fails must find the vault open."""
        self._accept([old, new], old)

    def commit(self, new: Registers) -> None:
        """After the restart, once it proved sound: the state that runs, alone. Older releases no longer open it."""
        self._accept([new], new)

    def _accept(self, slots: Sequence[Registers], running: Registers) -> None:
        held = self._opened()
        if running != held.state:
            raise VaultError(
                "the allow-list would shut out the system that runs",
                "Allow the running state and the new one, restart, and commit the new one then.",
            )
        with told():
            self._tpm.write_list(held.handle, held.seed.reveal(), slots)

    def forget(self, blob: bytes) -> None:
        """Frees the TPM's memory of a blob that nothing needs any more, where it is not that of the opened vault."""
        handle = measured.parse(blob)[0].handle
        if self._held is None or self._held.handle != handle:
            with told():
                self._tpm.remove_list(handle)

    def _opened(self) -> Held:
        if self._held is None:
            raise VaultError("the vault is not open: its allow-list can be changed by who has opened it only")
        return self._held

    # ---- sealing and unsealing -----------------------------------------------------------------------------------

    def _fresh(self, release_key: bytes) -> Held:
        state = self._tpm.registers(measured.bound(release_key))
        seed = Secret(os.urandom(SEED_BYTES))
        return Held(self._tpm.create_list(seed.reveal(), [state]), seed, state, release_key)

    def _sealed(self, key: Secret, held: Held) -> bytes:
        tpm, secret = self._tpm, key.reveal() + held.seed.reveal()
        signed = b""
        if held.release_key:
            half = os.urandom(len(secret))
            signed, secret = tpm.seal_signed(half, held.release_key), _xor(secret, half)
        listed = tpm.seal_listed(secret, held.handle, held.seed.reveal())
        registers = tpm.registers(measured.WATCHED) | dict(held.state)
        blob = Blob(tpm.identity(), held.release_key, signed, listed, held.handle, registers)
        return measured.encode(blob, key.reveal())

    def _unsealed(self, blob: Blob) -> bytes:
        try:
            secret = self._tpm.unseal_listed(blob.listed, blob.handle)
            if not blob.release_key:
                return secret
            half = self._tpm.unseal_signed(blob.signed, blob.release_key)
        except FileNotFoundError as error:
            raise BindingError(
                f"{error}: somebody has taken away or replaced the vault's allow-list", RECOVER
            ) from error
        except PermissionError as error:
            raise self._explained(blob, error) from error
        return _xor(secret, half)

    def _explained(self, blob: Blob, error: PermissionError) -> BindingError:
        now = self._tpm.registers(measured.WATCHED)
        try:
            slots = self._tpm.read_list(blob.handle)
        except OSError:
            slots = None
        message, remedy = measured.moved(blob, now, slots, self._tpm.latch_digest)
        return BindingError(f"{message} [{error}]", remedy)


def create(settings: Settings, machine: Tpm) -> TpmBackend:
    return TpmBackend(machine)


@contextmanager
def told() -> Iterator[None]:
    """The TPM's troubles as the vault's."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ValueError):
            raise SealError(str(error), RECOVER) from error
        raise BindingError(str(error), "Look at `millwright doctor` for the TPM; try again.") from error


def _xor(one: bytes, other: bytes) -> bytes:
    if len(one) != len(other):
        raise SealError("the halves of the TPM's binding have different lengths", RECOVER)
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def _promise(*, signed: bool) -> Promise:
    protects = [
        "a stolen disk",
        "a copy of the disk's content in another box",
        "Secure Boot switched off or its keys exchanged",
    ]
    does_not = [
        "root on this box before the vault is latched, and what is in memory after",
        "the whole box, stolen: what it does by itself it does for a thief",
        "who takes the TPM's chip apart, or controls the firmware before it measures anything",
    ]
    if signed:
        protects += [
            "a system that is not signed by the release's key",
            "an older signed release, once a newer one is committed",
        ]
    else:
        does_not.insert(
            0, "another system that Secure Boot accepts, started on this box: no release is signed (PCR 11)"
        )
    return Promise(30, tuple(protects), tuple(does_not))
