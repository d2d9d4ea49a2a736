"""How far applying a patch has come, on disk: a file that only grows, a record whenever what it tells of is on disk.

    u32 length of the body | first 8 bytes of SHA-256(body) | body

A body is CBOR. A record that a power cut left unfinished does not fit its digest; it is cut away, and those before it
hold. The first names the patch (and so the old files: their digests are
in it); each later one is where to go on.
"""

import fcntl
import hashlib
import os
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType

import cbor2

from ota.delta.errors import DeltaError
from ota.delta.files import sync_folder

MAX_RECORD = 64 << 20  # bytes
_HEAD = 12


@dataclass(frozen=True)
class Position:
    """Everything ahead of frame `frame` of file number `file` is on disk.

    `written` bytes of that file came from its frames, the last part ended at `end`; `state` is the decoder's.
    """

    file: int = 0
    frame: int = 0
    written: int = 0
    end: int = 0
    state: bytes = b""


class Journal:
    """`position` is where to go on; the beginning, where the journal is new or of another patch."""

    def __init__(self, path: Path, identity: bytes) -> None:
        self._path = path
        self.position = Position()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DeltaError(f"{path}: {error.strerror}", "check who may write there") from error
        self._lock()
        records, end = _read(path)
        self.is_new = not records or records[0] != identity
        os.ftruncate(self._file, 0 if self.is_new else end)
        os.lseek(self._file, 0, os.SEEK_END)
        if self.is_new:
            self._append(identity)
            sync_folder(path.parent)
        else:
            self.position = next(
                (position for record in reversed(records) if (position := _position(record))), Position()
            )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise DeltaError(f"{self._path} is in use", "another process applies this patch: wait for it") from error

    def record(self, position: Position) -> None:
        """To be called when all that it tells of is on disk."""
        self._append(list(astuple(position)))
        self.position = position

    def restart(self) -> None:
        """From the beginning again."""
        self.record(Position())

    def _append(self, body: bytes | list[object]) -> None:
        encoded = cbor2.dumps(body)
        data = len(encoded).to_bytes(4, "little") + hashlib.sha256(encoded).digest()[:8] + encoded
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _read(path: Path) -> tuple[list[object], int]:
    """The first record and the last, and where the whole ones end."""
    records: list[object] = []
    end = 0
    try:
        with path.open("rb") as file:
            while len(head := file.read(_HEAD)) == _HEAD:
                length = int.from_bytes(head[:4], "little")
                body = file.read(length) if length <= MAX_RECORD else b""
                if hashlib.sha256(body).digest()[:8] != head[4:] or len(body) != length:
                    break
                records[1:] = [cbor2.loads(body)] if records else []
                records = records or [cbor2.loads(body)]
                end += _HEAD + length
    except (cbor2.CBORError, ValueError) as error:
        raise DeltaError(f"{path}: a record that is no CBOR: {error}", f"remove {path} to begin anew") from error
    return records, end


def _position(record: object) -> Position | None:
    if isinstance(record, list) and len(record) == 5 and isinstance(record[4], bytes):
        return Position(*record)
    return None
