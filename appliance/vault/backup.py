"""Backups: readable with a recovery key only."""

from dataclasses import dataclass
from pathlib import Path

from appliance.vault.chest import Chest, Clock
from appliance.vault.port import Backend, Counter
from appliance.vault.recovery import RecoveryKey
from appliance.vault.strongbox import DISK, Disk


@dataclass(frozen=True)
class Facts:
    """What a backup tells without a key; nothing of it is verified."""

    vault: str
    box: str  # it was made on
    suite: str
    at: int  # UTC ns
    generation: int
    secrets: int
    recipients: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What a restore did."""

    vault: str
    backup_vault: str
    backup_box: str
    backup_at: int
    backup_generation: int
    secrets: int
    missing: tuple[str, ...]  # damaged in the backup
    set_aside: tuple[Path, ...]
    signer: str  # the recipient that signed the ticket; "" where none was needed
    did: tuple[str, ...]  # in words, for a person


def make(chest: Chest) -> bytes: ...


def inspect(data: bytes) -> Facts: ...


def ticket(data: bytes, key: RecoveryKey, box: str, now: int, valid_until: int) -> bytes:
    """Allows a restore of this very backup on `box`."""


def restore(
    folder: Path,
    data: bytes,
    key: RecoveryKey,
    ticket: bytes | None,
    box: str,
    backend: Backend,
    counter: Counter | None,
    now: Clock,
    *,
    replace: bool = False,
    disk: Disk = DISK,
) -> Report:
    """A ticket is needed where `box` is another than the backup was made on; `replace` sets a vault aside that is in
    the folder."""
