"""The machine's TPM 2.0: whether there is one, and what the vault asks of it.

    find() -> Found                   is there one, which, and why can it not be used
    Tpm(tcti)                         seal and unseal, registers, allow-lists, counters

What speaks to a TPM (tpm2-pytss) is imported at the first use, so that this can be imported everywhere. Errors are the
OSErrors of `errors`. Nothing here was run on a real TPM yet; all of it runs on swtpm, a TPM in software.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware.tpm.errors import DamagedError, MissingError, RefusedError, TpmError
from hardware.tpm.release import REGISTER, Release

if TYPE_CHECKING:
    from hardware.tpm.link import Link

__all__ = ["Counter", "DamagedError", "Found", "MissingError", "RefusedError", "Release", "Tpm", "TpmError", "find"]

DEVICE = "dev/tpmrm0"
FALLBACK = "dev/tpm0"
TCTI = "MILLWRIGHT_TPM"  # another than the machine's own, as tpm2-tools spell it; for tests
LATCH = hashlib.sha256(b"millwright/latch").digest()  # extended into PCR 11


@dataclass(frozen=True)
class Found:
    """`present` and no `reason`: it can be used, by `tcti`."""

    present: bool
    tcti: str = ""
    maker: str = ""  # of the chip, as it says: IFX, INTC, STM, ...
    model: str = ""
    firmware: str = ""
    reason: str = ""
    remedy: str = ""

    @property
    def usable(self) -> bool:
        return self.present and not self.reason


def find(root: Path = Path("/")) -> Found:
    """Nothing is raised."""
    tcti = os.environ.get(TCTI, "")
    if not tcti:
        missing = _unusable(root)
        if missing is not None:
            return missing
        tcti = f"device:/{DEVICE}"
    try:
        from hardware.tpm import properties
    except ImportError:
        return Found(True, tcti, reason="the library that speaks to it is not installed", remedy="Run: tools/setup tpm")
    try:
        with Tpm(tcti).session() as link:
            return Found(True, tcti, *properties.read(link))
    except TpmError as error:
        return Found(True, tcti, reason=str(error), remedy="Look at `dmesg` for the TPM, and at the firmware's setup.")


class Tpm:
    """Each call connects, and leaves nothing loaded behind; calls within one `session` share a connection."""

    def __init__(self, tcti: Any = f"device:/{DEVICE}", release: Release | None = None) -> None:
        """`tcti` as tpm2-tools spell it, or a function that gives one of the library's own kind."""
        self._tcti: Callable[[], Any] = tcti if callable(tcti) else lambda: tcti
        self._release = release or Release()
        self._link: Link | None = None

    @contextmanager
    def session(self) -> "Iterator[Link]":
        """TpmError where it cannot be reached."""
        if self._link is not None:
            yield self._link
            return
        try:
            from hardware.tpm import link
        except ImportError as error:
            raise TpmError("the library that speaks to a TPM is not installed: tools/setup tpm") from error
        self._link = link.connect(self._tcti())
        try:
            with link.translated("the TPM"):  # whatever was not told more exactly
                yield self._link
        finally:
            self._link.close()
            self._link = None

    @property
    def latch_digest(self) -> bytes:
        """What `latch` extends into PCR 11."""
        return LATCH

    def identity(self) -> bytes:
        """The name of its storage key: another TPM has another, and so has this one once it was cleared."""
        with self.session() as link:
            return link.name(link.parent)

    def registers(self, which: Iterable[int]) -> dict[int, bytes]:
        from hardware.tpm import registers

        with self.session() as link:
            return registers.read(link, which)

    def extend(self, register: int, digest: bytes) -> None:
        from hardware.tpm import registers

        with self.session() as link:
            registers.extend(link, register, digest)

    # ---- what a release's signature opens ------------------------------------------------------------------------

    def release_key(self) -> bytes:
        """DER of the key that signs this system's releases; empty where it is no signed release. DamagedError."""
        pem = self._release.key()
        if not pem:
            return b""
        from hardware.tpm import objects

        return objects.der(pem)

    def seal_signed(self, secret: bytes, key: bytes) -> bytes:
        """For every release that `key` signs. At most 128 bytes."""
        from hardware.tpm import objects, policies

        with self.session() as link:
            return objects.seal(link, secret, policies.of_signer(objects.name_of(key)))

    def unseal_signed(self, sealed: bytes, key: bytes) -> bytes:
        """RefusedError where PCR 11 is none that `key` has signed; DamagedError."""
        from hardware.tpm import objects, policies, registers

        with self.session() as link:
            now = registers.read(link, [REGISTER])
            ticket = registers.approve(link, key, registers.chosen(now, self._release.signatures()))
            signed, name = policies.of_registers(now), objects.name_of(key)

            def meet(policy: Any) -> None:
                registers.show(link, policy, now)
                registers.approved(link, policy, signed, name, ticket)

            return objects.unseal(link, sealed, meet)

    # ---- what an allow-list opens --------------------------------------------------------------------------------

    def create_list(self, seed: bytes, slots: Sequence[Mapping[int, bytes]]) -> int:
        """A new allow-list; who has the seed (32 bytes) may change it. Its handle."""
        from hardware.tpm import lists

        with self.session() as link:
            return lists.create(link, seed, slots)

    def read_list(self, handle: int) -> list[dict[int, bytes]]:
        """MissingError, RefusedError where it is shut, DamagedError."""
        from hardware.tpm import lists

        with self.session() as link:
            return lists.read(link, handle)

    def write_list(self, handle: int, seed: bytes, slots: Sequence[Mapping[int, bytes]]) -> None:
        """In one write: the old list or the new one, whatever happens. MissingError, RefusedError."""
        from hardware.tpm import lists

        with self.session() as link:
            lists.write(link, handle, seed, slots)

    def lists(self) -> list[int]:
        from hardware.tpm import indices

        with self.session() as link:
            return indices.present(link, indices.LISTS)

    def remove_list(self, handle: int) -> None:
        from hardware.tpm import indices

        with self.session() as link:
            if handle in indices.LISTS:
                indices.undefine(link, handle)

    def seal_listed(self, secret: bytes, handle: int, seed: bytes) -> bytes:
        """For the states of the machine that the list names, now or later. At most 128 bytes. MissingError where the
        list is not the one that was made with the seed."""
        from hardware.tpm import lists, objects, policies

        with self.session() as link:
            return objects.seal(link, secret, policies.of_list(lists.name(link, handle, seed)))

    def unseal_listed(self, sealed: bytes, handle: int) -> bytes:
        """RefusedError where the registers are none of the list's; MissingError, DamagedError."""
        from hardware.tpm import lists

        with self.session() as link:
            return lists.unseal(link, sealed, handle)

    def latch(self, lists: Iterable[int]) -> None:
        """Until the next boot nothing opens: PCR 11 becomes what no release has, and the lists are shut."""
        from hardware.tpm import lists as module

        with self.session():
            self.extend(REGISTER, LATCH)
            for handle in lists:
                with self.session() as link:
                    module.shut(link, handle)

    def counter(self, purpose: str, owner: str) -> "Counter":
        """One for each purpose of each owner; made when it is first advanced."""
        return Counter(self, purpose, owner)


class Counter:
    """Never goes back: see `counters`."""

    def __init__(self, tpm: Tpm, purpose: str, owner: str) -> None:
        self._tpm, self._of = tpm, (purpose, owner)

    def value(self) -> int:
        """0 where it is not there: never advanced, taken away, or the TPM was cleared."""
        from hardware.tpm import counters

        with self._tpm.session() as link:
            return counters.value(link, counters.label(*self._of))

    def advance(self) -> int:
        from hardware.tpm import counters

        with self._tpm.session() as link:
            return counters.advance(link, counters.label(*self._of))

    def remove(self) -> None:
        from hardware.tpm import counters

        with self._tpm.session() as link:
            counters.remove(link, counters.label(*self._of))


def _unusable(root: Path) -> Found | None:
    device = root / DEVICE
    if not device.exists():
        if (root / FALLBACK).exists():
            reason, remedy = f"there is /{FALLBACK}, but no /{DEVICE}: it is no TPM 2.0, or the kernel is too old", ""
            return Found(True, reason=reason, remedy=remedy or "A TPM 1.2 is not supported.")
        remedy = "Switch it on in the firmware's setup, where it may be called fTPM, PTT or security device."
        return Found(
            False, reason=f"there is no /{DEVICE}: this machine has no TPM 2.0, or it is switched off", remedy=remedy
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return Found(True, reason=f"no permission on /{DEVICE}", remedy="Run as root, or: usermod -aG tss USER")
    return None
