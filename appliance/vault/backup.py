"""Backups: `Chest.backup` makes one; only a recovery key reads it. It is the vault's file under a key of its own,
bound to no box.

    ticket = CBOR [body, signature]
    body   = CBOR ["millwright/ticket/1", vault, digest of the backup, box, issued, valid until, signer]

A ticket allows one backup on one box for a time. It is signed with a recovery key of that very vault, the same that
reads the backup or another: who restores need not be who allows it. Where a box restores its own backup none is needed.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cbor2

from appliance.errors import RefusedError, SealError, VaultError
from appliance.vault import chest, envelope, keyring, layout, suites, unlocking
from appliance.vault.canonical import Reader
from appliance.vault.chest import Clock
from appliance.vault.keyring import Keyring
from appliance.vault.layout import Purpose, Root, Survey
from appliance.vault.port import Backend, Counter
from appliance.vault.recovery import SIGNER_BYTES, RecoveryKey
from appliance.vault.strongbox import DISK, Disk

MAX_TICKET_BYTES = 1024
_SIGNATURE_BYTES = 64
_PURPOSE = b"millwright/ticket/1"


@dataclass(frozen=True)
class Facts:
    """What a backup tells without a key. Nothing of it is verified."""

    vault: str  # the vault's id, hex
    box: str  # that it was made on; "" where the vault did not know
    suite: str
    at: int  # UTC ns
    generation: int
    secrets: int  # whole ones
    recipients: tuple[str, ...]  # whose recovery keys read it


@dataclass(frozen=True)
class Report:
    """What a restore did."""

    vault: str  # the id it has now, hex
    secrets: int
    missing: tuple[str, ...]  # that were damaged in the backup, or before it was made
    backup: Facts
    allowed_by: str  # the recipient that signed the ticket; "" where none was needed
    kept: tuple[Path, ...]  # copies of the vault that was replaced
    did: tuple[str, ...]  # for a person, in order


@dataclass(frozen=True)
class Ticket:
    vault: bytes
    backup: bytes  # SHA-256
    box: str
    issued: int  # UTC ns
    valid_until: int
    signer: bytes

    def body(self) -> bytes:
        return cbor2.dumps(
            [_PURPOSE, self.vault, self.backup, self.box.encode(), self.issued, self.valid_until, self.signer]
        )


def inspect(data: bytes) -> Facts:
    """SealError where it is no backup; VaultError where a newer release has made it."""
    survey, root = _backup(data)
    head = root.head
    return Facts(
        vault=head.vault.hex(),
        box=head.box,
        suite=suites.by_id(head.suite).name,
        at=head.written,
        generation=head.generation,
        secrets=len(survey.records),
        recipients=tuple(one.recipient.name for one in head.wrapped),
    )


def ticket(data: bytes, key: RecoveryKey, box: str, now: int, valid_until: int) -> bytes:
    """Allows a restore of this very backup on `box`, until `valid_until` (UTC ns). SealError where `key` is none of
    those that the backup names; VaultError where it would never be valid."""
    if not box or len(box.encode()) > layout.MAX_BOX_BYTES or valid_until <= now:
        raise VaultError("a ticket names a box, and ends later than now", "Say for which box, and until when.")
    _, root = _backup(data)
    signers = [one.recipient.signer for one in root.head.wrapped if key.is_of(one.recipient)]
    if not signers:
        raise SealError("this recovery key is none of the backup's", "Sign with a key that the backup names.")
    body = Ticket(root.head.vault, hashlib.sha256(data).digest(), box, now, valid_until, signers[0]).body()
    return cbor2.dumps([body, key.sign(body)])


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
    replacing: bool = False,
    disk: Disk = DISK,
) -> Report:
    """A vault in `folder` with what the backup holds, bound to `backend` under a new key.

    A ticket is needed where `box` is not the one that the backup was made on: RefusedError. There it becomes another
    vault, with keys and an id of its own. VaultError where `folder` has a vault and it is not to be replaced; SealError
    where the backup is damaged or the key none of its; BindingError; StoreError.
    """
    facts = inspect(data)
    unlocked = unlocking.by_recovery(_backup(data)[0], key, backend.promise, Purpose.BACKUP)
    elsewhere = not box or box != facts.box
    allowed_by = _allowed(ticket, data, unlocked.ring, box, now()) if elsewhere else ""
    ring = keyring.from_backup(unlocked.ring, box, elsewhere=elsewhere, now=now())
    made, kept = chest.establish(folder, ring, backend, counter, now, replacing=replacing, disk=disk)
    with made:
        status = made.status()
    return Report(
        vault=status.vault,
        secrets=status.secrets,
        missing=unlocked.ring.damaged(),
        backup=facts,
        allowed_by=allowed_by,
        kept=kept,
        did=(*_did(facts, box, elsewhere, backend, status.secrets, kept), *unlocked.warnings),
    )


def _backup(data: bytes) -> tuple[Survey, Root]:
    survey = layout.survey((data[: layout.MAX_FILE_BYTES + 1],))
    if not survey.roots or survey.roots[0].head.purpose is not Purpose.BACKUP:
        raise SealError("this is no backup of a vault, or it is damaged beyond reading", "Is it the right file?")
    return survey, survey.roots[0]


def _allowed(data: bytes | None, backup: bytes, ring: Keyring, box: str, now: int) -> str:
    """The recipient that signed the ticket. RefusedError names what does not fit."""
    remedy = "Have a ticket signed for this backup and this box: millwright vault ticket."
    if data is None:
        raise RefusedError(f"the backup is of box '{ring.head.box}', this is '{box}': that needs a ticket", remedy)
    try:
        body, signature = _signed(data)
        found = _ticket(body)
    except SealError as error:
        raise RefusedError(f"the ticket cannot be read: {error.message}", remedy) from error
    signers = [one.recipient for one in ring.head.wrapped if one.recipient.signer == found.signer]
    wrong = {
        "is signed by none of the backup's recovery keys": not (signers and signers[0].verify(signature, body)),
        "is for another backup": (found.vault, found.backup) != (ring.head.vault, hashlib.sha256(backup).digest()),
        f"is for box '{found.box}', and this is '{box}'": found.box != box,
        f"was valid until {_date(found.valid_until)}": now > found.valid_until,
    }
    for words, holds in wrong.items():
        if holds:
            raise RefusedError(f"the ticket {words}", remedy)
    return signers[0].name


def _signed(data: bytes) -> tuple[bytes, bytes]:
    reader = Reader(data[: MAX_TICKET_BYTES + 1])
    reader.array(2)
    parts = reader.string(1, MAX_TICKET_BYTES), reader.string(_SIGNATURE_BYTES, _SIGNATURE_BYTES)
    reader.end()
    return parts


def _ticket(body: bytes) -> Ticket:
    reader = Reader(body)
    reader.array(7)
    if reader.string(1, 64) != _PURPOSE:
        raise SealError("it is something else, or of a newer release")
    found = Ticket(
        vault=reader.string(envelope.VAULT_BYTES, envelope.VAULT_BYTES),
        backup=reader.string(layout.DIGEST_BYTES, layout.DIGEST_BYTES),
        box=reader.text(1, layout.MAX_BOX_BYTES),
        issued=reader.number(envelope.MAX_NUMBER),
        valid_until=reader.number(envelope.MAX_NUMBER),
        signer=reader.string(SIGNER_BYTES, SIGNER_BYTES),
    )
    reader.end()
    return found


def _did(facts: Facts, box: str, elsewhere: bool, backend: Backend, secrets: int, kept: tuple[Path, ...]) -> list[str]:
    made = f"a backup of {_date(facts.at)}, generation {facts.generation}, made on box '{facts.box}'"
    said = [f"opened {made}", f"restored {secrets} secrets under a new key, bound to {backend.name}"]
    if elsewhere:
        said.append(f"made it another vault, for box '{box}': no key of the first one opens it")
    said += [f"kept the vault that was there as {path.name}" for path in kept]
    return said


def _date(at: int) -> str:
    return datetime.fromtimestamp(at // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
