"""The opened vault."""

from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.vault.port import Backend, Counter, Entry, Layer, Status
from appliance.vault.recovery import Recipient, RecoveryKey
from appliance.vault.secret import Secret
from appliance.vault.strongbox import DISK, Disk

Clock = Callable[[], int]  # UTC ns


class Chest:
    """A Keeper. Thread-safe: readers never wait, writers one after the other. One process at a time."""

    def status(self) -> Status: ...
    def get(self, name: str) -> Secret: ...
    def put(self, name: str, content: Secret) -> Entry: ...
    def remove(self, name: str) -> None: ...
    def entries(self, prefix: str = "") -> Sequence[Entry]: ...
    def rotate(self, layer: Layer, name: str = "") -> None: ...
    def bind(self, backend: Backend) -> None:
        """Also open with this backend from now on."""

    def unbind(self, backend: str) -> None:
        """No longer; the key is rotated. The last one cannot be taken away."""

    def recipients(self) -> tuple[Recipient, ...]: ...
    def add_recipient(self, recipient: Recipient) -> None: ...
    def remove_recipient(self, name: str) -> None: ...
    def renew_recovery(self) -> RecoveryKey:
        """A new recovery key; the old one opens nothing that is written from now on."""

    def close(self) -> None: ...
    def __enter__(self) -> "Chest": ...
    def __exit__(self, *reason: object) -> None: ...


def exists(folder: Path, disk: Disk = DISK) -> bool: ...


def create(
    folder: Path,
    backend: Backend,
    suite: str,
    recipients: Sequence[Recipient],
    counter: Counter | None,
    now: Clock,
    *,
    box: str = "",
    disk: Disk = DISK,
) -> tuple[Chest, RecoveryKey]:
    """`key.printed()` is shown once. `box` names this box in backups."""


def open(folder: Path, backends: Sequence[Backend], counter: Counter | None, now: Clock, *, disk: Disk = DISK) -> Chest:
    """`backends` in order of strength."""


def recover(
    folder: Path,
    key: RecoveryKey,
    backend: Backend,
    counter: Counter | None,
    now: Clock,
    *,
    accept_older: bool = False,
    disk: Disk = DISK,
) -> Chest:
    """Open by recovery key, renew the vault's key, and bind it to this box alone."""
