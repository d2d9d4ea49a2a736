"""The audit journal on disk: files of lines that are only ever appended to.

Each note is on disk when `note` returns. A checkpoint is written every CHECKPOINT_ENTRIES notes, a minute after the
first unsigned one, and at the close; entries behind the last one are chained but could be cut off unseen.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.errors import BindingError, VaultError
from appliance.runtime import files
from appliance.vault.audit import chain
from appliance.vault.audit.folding import Folding, Likeness
from appliance.vault.port import Counter

FOLDER = "audit"
CHECKPOINT_ENTRIES = 32
CHECKPOINT_NS = 60_000_000_000
FILE_BYTES = 4 << 20
BUDGET_BYTES = 64 << 20
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = "{:012d}.jsonl"  # the first entry's number


class Journal:
    """One writer. Times are taken from `clock`, UTC ns."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey, counter: Counter | None, clock: Callable[[], int]) -> None:
        """VaultError where the folder cannot be written. A line that a power cut left half written is cut off, which
        is noted."""
        self._folder, self._key, self._counter, self._clock = folder, key, counter, clock
        self._folding = Folding()
        self._lost = 0
        self._unsigned, self._unsigned_since = 0, 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            torn = _mend(folder)
            self._tip, counted, self._unsigned = _end(folder)
        except OSError as error:
            raise _unwritable(folder, error) from error
        self._unsigned_since = clock()
        self._complete(counted)
        if self._tip.seq == 0:
            self.note("vault", chain.BEGIN, "", "done", {"key": key.public_key().public_bytes_raw().hex()})
        if torn:
            self.note("vault", "audit.torn", "", "done", {"bytes": torn})

    def note(self, actor: str, action: str, subject: str, outcome: str, detail: dict[str, Any] | None = None) -> None:
        """Never raises: a disk that is full must not keep a key from its owner. What could not be written is counted,
        and the count is written when it can be."""
        self.tick()
        like = Likeness(actor, action, subject, outcome, json.dumps(detail or {}, sort_keys=True))
        if self._folding.is_first(like, self._clock()):
            self._write(actor, action, subject, outcome, detail or {})
        if self._unsigned >= CHECKPOINT_ENTRIES:
            self.checkpoint()

    def tick(self) -> None:
        """What is due by the clock: counts of like notes, and a checkpoint. Call it every now and then."""
        now = self._clock()
        self._tell_repeated(now)
        if self._unsigned and not 0 <= now - self._unsigned_since < CHECKPOINT_NS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Sign what is not signed yet; files over the budget go."""
        if self._unsigned and self._sign():
            self._prune()

    def _sign(self) -> bool:
        """The line first, then the counter: a cut between the two is completed at the next start."""
        try:
            value = self._counter.value() + 1 if self._counter else None
            if not self._append(chain.sign(self._tip, self._clock(), value, self._key)):
                return False
            self._unsigned = 0
            if self._counter:
                self._counter.advance()
        except BindingError:  # a TPM that does not answer now; the next checkpoint signs these entries, too
            return False
        return True

    def close(self) -> None:
        self._tell_repeated(self._clock(), all_of_them=True)
        self.checkpoint()

    def _tell_repeated(self, now: int, all_of_them: bool = False) -> None:
        for like, more in self._folding.due(now, all_of_them):
            self._write(*like[:4], {**json.loads(like.detail), "repeated": more})

    def _write(self, actor: str, action: str, subject: str, outcome: str, detail: dict[str, Any]) -> None:
        if self._lost:
            lost = chain.add(self._tip, self._clock(), "vault", "audit.lost", "", "failed", {"entries": self._lost})
            if not self._append(lost):
                self._lost += 1
                return
            self._lost = 0
        if not self._append(chain.add(self._tip, self._clock(), actor, action, subject, outcome, detail)):
            self._lost += 1

    def _append(self, line: bytes) -> bool:
        path = self._current()
        before = path.stat().st_size if path.exists() else 0
        try:
            with os.fdopen(os.open(path, _APPEND, files.PRIVATE), "ab") as file:
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if not before:
                files.sync_folder(self._folder)
        except OSError:
            with suppress(OSError):
                os.truncate(path, before)
            return False
        self._tip = chain.after(self._tip, line)
        if not self._unsigned:
            self._unsigned_since = self._clock()
        self._unsigned += 1
        return True

    def _current(self) -> Path:
        newest = _files(self._folder)[-1:]
        if newest and newest[0].stat().st_size < FILE_BYTES:
            return newest[0]
        return self._folder / _NAME.format(self._tip.seq + 1)

    def _complete(self, counted: int | None) -> None:
        """Power was cut between the last checkpoint and the counter."""
        if self._counter and counted is not None and counted == self._counter.value() + 1:
            self._counter.advance()

    def _prune(self) -> None:
        """The oldest files go where the budget is used up; a signed entry says so before they go."""
        kept = _files(self._folder)
        over = sum(path.stat().st_size for path in kept) - BUDGET_BYTES
        going: list[Path] = []
        while over > 0 and len(kept) - len(going) > 1:
            going.append(kept[len(going)])
            over -= going[-1].stat().st_size
        if not going:
            return
        *_, last = _lines(going[-1])
        self._write("vault", chain.PRUNED, "", "done", {"through": chain.parse(last).seq, "hash": chain.digest(last)})
        if self._sign():
            for path in going:
                path.unlink()
            files.sync_folder(self._folder)


def set_aside(folder: Path) -> Path | None:
    """What another vault has noted, and signed with another key, is kept beside; where. OSError."""
    if not folder.exists():
        return None
    names = (folder.with_name(f"{folder.name}.{number}.replaced") for number in range(1, 1 << 20))
    aside = folder.rename(next(name for name in names if not name.exists()))
    files.sync_folder(folder.parent)
    return aside


def verify(folder: Path, key: Ed25519PublicKey, counter: Counter | None) -> chain.Report:
    """VaultError where the journal cannot be read."""
    try:
        return chain.verify(read(folder), key, counter.value() if counter else None)
    except OSError as error:
        raise VaultError(f"{folder} cannot be read: {error.strerror}", "Read it as root, or as its owner.") from error


def read(folder: Path) -> Iterator[bytes]:
    """All lines, the oldest first: JSON lines, as a SIEM takes them."""
    for path in _files(folder):
        yield from _lines(path)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(chain.MAX_LINE_BYTES + 2):
            yield line.rstrip(b"\n")


def _mend(folder: Path) -> int:
    """Cut off a last line that has no end. How many bytes it had."""
    newest = _files(folder)[-1:]
    if not newest:
        return 0
    content = newest[0].read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(newest[0], whole)
    return len(content) - whole


def _end(folder: Path) -> tuple[chain.Tip, int | None, int]:
    """The tip, the counter's value of the last checkpoint, and the entries behind that one."""
    tip, counted, unsigned = chain.Tip(), None, 0
    for path in _files(folder)[-2:]:
        for line in _lines(path):
            try:
                entry = chain.parse(line)
            except ValueError:
                continue  # `verify` names it; the chain goes on behind it
            tip = chain.Tip(entry.seq, chain.digest(line))
            unsigned += 1
            if entry.action == chain.CHECKPOINT:
                counted, unsigned = entry.detail.get("counter"), 0
    return tip, counted if isinstance(counted, int) else None, unsigned


def _unwritable(folder: Path, error: OSError) -> VaultError:
    return VaultError(f"{folder} cannot be written: {error.strerror}", "Make room or give the right to write.")
