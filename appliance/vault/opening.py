"""Opens a vault with all that belongs to it: the chest, and the audit journal whose signing key the chest keeps."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.errors import VaultError
from appliance.vault import chest
from appliance.vault.audit import journal
from appliance.vault.chest import Chest, Clock
from appliance.vault.keyring import AUDIT_KEY
from appliance.vault.port import AuditSink, Backend, Counter, Custody
from appliance.vault.secret import Secret

log = logging.getLogger(__name__)

FOLDER = "vault"  # of the state folder


class OpenVault:
    """`close` ends the journal with a checkpoint, then forgets the keys."""

    def __init__(self, opened: Chest, audit: Counter | None, folder: Path, now: Clock) -> None:
        self.custody: Custody = opened
        self._journal: journal.Journal | None = None
        try:
            self._journal = journal.Journal(folder / journal.FOLDER, audit_key(opened), audit, now)
        except VaultError as error:
            # A disk that takes no line must not keep a secret from its owner.
            log.error("nothing is audited: %s", error)

    @property
    def audit(self) -> AuditSink:
        return self._journal or Unwritten()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
        self.custody.close()

    def __enter__(self) -> "OpenVault":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


class Unwritten:
    """An AuditSink for want of a journal."""

    def note(self, actor: str, action: str, subject: str, outcome: str, detail: dict[str, Any] | None = None) -> None:
        log.warning("not in the journal: %s of '%s' by %s: %s", action, subject, actor, outcome)

    def tick(self) -> None:
        return None


def unlock(
    folder: Path, backends: Sequence[Backend], counter: Counter | None, audit: Counter | None, now: Clock, latch: bool
) -> OpenVault:
    """VaultError, BindingError, SealError, StoreError: as `chest.open` says. `latch`: nothing opens until the next
    boot."""
    opened = OpenVault(chest.open(folder, backends, counter, now), audit, folder, now)
    for backend in backends if latch else ():
        backend.latch()
    return opened


def audit_key(opened: Custody) -> Ed25519PrivateKey:
    """Made where there is none yet. VaultError."""
    if not any(entry.name == AUDIT_KEY for entry in opened.entries(AUDIT_KEY)):
        opened.put(AUDIT_KEY, Secret(os.urandom(32)))
    return Ed25519PrivateKey.from_private_bytes(opened.get(AUDIT_KEY).reveal())
