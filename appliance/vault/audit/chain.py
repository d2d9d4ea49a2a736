"""The audit chain: every line holds the hash of the one before it, and checkpoints sign what lies behind them.

A line is one JSON object in UTF-8, written as it is hashed. A checkpoint is a line whose `detail` carries a signature
over the hash before it and the counter's value, so that nothing behind it can be changed, taken out or moved without
the key, and nothing cut off without turning the counter back.

Pure: lines, keys and counters in, lines and reports out.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Struct, field
from msgspec import json as msgspec_json

BEGIN = "audit.begin"
CHECKPOINT = "audit.checkpoint"
PRUNED = "audit.pruned"
MAX_LINE_BYTES = 8192
MAX_TEXT = 500  # characters of each text of an entry
NOTHING = "0" * 64  # what the first line names as the one before it
_SIGNED = b"millwright audit checkpoint 1"


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One line. The same words as the `audit` event on the bus."""

    seq: int  # 1, 2, ... without a gap
    at: int  # UTC ns
    actor: str  # the unit or user
    action: str  # vault.get
    subject: str  # the secret's name, never what it holds
    outcome: str  # done, refused, failed
    previous: str  # SHA-256 of the line before, hex
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tip:
    """Where a chain ends: what the next line is built on."""

    seq: int = 0
    digest: str = NOTHING


@dataclass(frozen=True)
class Flaw:
    """The first thing that is wrong."""

    seq: int  # of the entry, as far as it can be told
    what: str


@dataclass(frozen=True)
class Report:
    entries: int
    first: int  # the oldest entry that is still there
    checkpoints: int
    signed_through: int  # entries up to here cannot have been changed without the key
    anchored: bool  # the end was compared with a counter
    flaw: Flaw | None = None

    @property
    def unsigned(self) -> int:
        """Entries behind the last checkpoint: chained, but not yet signed."""
        return self.first + self.entries - 1 - self.signed_through


def add(tip: Tip, at: int, actor: str, action: str, subject: str, outcome: str, detail: dict[str, Any]) -> bytes:
    """The next line, without its newline. Texts are cut at MAX_TEXT."""
    entry = {
        "seq": tip.seq + 1,
        "at": at,
        "actor": actor[:MAX_TEXT],
        "action": action[:MAX_TEXT],
        "subject": subject[:MAX_TEXT],
        "outcome": outcome[:MAX_TEXT],
        "previous": tip.digest,
        "detail": detail,
    }
    line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    if len(line) > MAX_LINE_BYTES:
        return add(tip, at, actor, action, subject, outcome, {"detail": "left out: too long"})
    return line


def sign(tip: Tip, at: int, counter: int | None, key: Ed25519PrivateKey) -> bytes:
    """A checkpoint's line. `counter`: the value that it will have once the line is safe."""
    return _checkpoint(tip, at, counter, key.sign(_to_sign(tip, at, counter)))


def _checkpoint(tip: Tip, at: int, counter: int | None, signature: bytes) -> bytes:
    return add(tip, at, "vault", CHECKPOINT, "", "done", {"counter": counter, "signature": signature.hex()})


def after(tip: Tip, line: bytes) -> Tip:
    return Tip(tip.seq + 1, digest(line))


def digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def parse(line: bytes) -> Entry:
    """ValueError where it is not a line of a chain."""
    if len(line) > MAX_LINE_BYTES:
        raise ValueError("it is too long")
    return msgspec_json.decode(line, type=Entry)


def verify(lines: Iterable[bytes], key: Ed25519PublicKey, counter: int | None) -> Report:
    """Read a whole chain and stop at its first flaw. `counter`: the anchor's value now, None without an anchor."""
    reader = _Reader(key)
    for line in lines:
        if flaw := reader.read(line):
            return reader.report(counter, flaw)
    return reader.report(counter, reader.flaw_of_start() or reader.flaw_of_end(counter))


class _Reader:
    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self._tip = Tip()
        self._start: Entry | None = None
        self._pruned: Sequence[object] = ()
        self._entries = self._checkpoints = self._signed_through = 0
        self._counted: int | None = None

    def read(self, line: bytes) -> Flaw | None:
        try:
            entry = parse(line)
        except ValueError as error:
            return Flaw(self._tip.seq + 1, f"the line is not an entry: {error}")
        if self._start is None:
            self._start, self._tip = entry, Tip(entry.seq - 1, entry.previous)
        flaw = self._misplaced(entry) or self._badly_signed(entry, line)
        if flaw is None:
            self._entries += 1
            self._tip = after(self._tip, line)
            if entry.action == PRUNED:
                self._pruned = (entry.detail.get("through"), entry.detail.get("hash"))
        return flaw

    def _misplaced(self, entry: Entry) -> Flaw | None:
        expected = self._tip.seq + 1
        if entry.seq > expected:
            return Flaw(expected, f"entries {expected} to {entry.seq - 1} are missing")
        if entry.seq < expected:
            return Flaw(expected, f"entry {entry.seq} stands where entry {expected} belongs")
        if entry.previous != self._tip.digest:
            return Flaw(expected - 1, f"it is not what entry {expected} names as the one before it: it was changed")
        return None

    def _badly_signed(self, entry: Entry, line: bytes) -> Flaw | None:
        if entry.action != CHECKPOINT:
            return None
        counter, signature = entry.detail.get("counter"), entry.detail.get("signature")
        if not (counter is None or isinstance(counter, int)) or not isinstance(signature, str):
            return Flaw(entry.seq, "the checkpoint has no signature")
        try:
            raw = bytes.fromhex(signature)
            self._key.verify(raw, _to_sign(self._tip, entry.at, counter))
        except (InvalidSignature, ValueError):
            return Flaw(entry.seq, "the checkpoint's signature is not of this vault's key")
        if line != _checkpoint(self._tip, entry.at, counter, raw):  # what no signature covers has one form only
            return Flaw(entry.seq, "the checkpoint was changed")
        if flaw := self._leap(entry.seq, counter):
            return flaw
        self._checkpoints += 1
        self._signed_through, self._counted = entry.seq, counter
        return None

    def _leap(self, seq: int, counter: int | None) -> Flaw | None:
        """Each checkpoint counts one more; the same again where the counter could not be advanced. A vault that goes on
        writing behind a cut signs the next one with a count that gives the cut away."""
        before = self._counted
        if before is None or counter in (before, before + 1):
            return None
        return Flaw(
            self._signed_through + 1,
            f"the checkpoints before it and at {seq} were made at {before} and {counter} of the counter: what stood "
            "between them was cut off, or an older copy was put back",
        )

    def flaw_of_start(self) -> Flaw | None:
        """A chain begins with its first entry, or where a signed entry says that older ones were removed."""
        if self._start is None or self._start.previous == NOTHING:
            return None
        if self._pruned == (self._start.seq - 1, self._start.previous):
            return None
        return Flaw(self._start.seq - 1, f"entries before {self._start.seq} are missing, and no entry says why")

    def flaw_of_end(self, counter: int | None) -> Flaw | None:
        if counter is None or counter == self._counted:
            return None
        if self._counted is None:
            return Flaw(self._tip.seq + 1, "no checkpoint is anchored, but the counter is: the entries were replaced")
        if self._counted == counter + 1:  # power was cut between the line and the counter
            return None
        return Flaw(
            self._tip.seq + 1,
            f"the last checkpoint was made at {self._counted} of the counter, which stands at {counter}: the end was "
            "cut off, or an older copy was put back",
        )

    def report(self, counter: int | None, flaw: Flaw | None) -> Report:
        first = self._start.seq if self._start else 1
        return Report(self._entries, first, self._checkpoints, self._signed_through, counter is not None, flaw)


def _to_sign(tip: Tip, at: int, counter: int | None) -> bytes:
    place = "-" if counter is None else str(counter)
    return b"\n".join((_SIGNED, tip.digest.encode(), str(tip.seq).encode(), str(at).encode(), place.encode()))
