"""Updates by hand: a stick with the same repository under the same rules, and receipts that go back on it.

    <stick>/millwright/metadata/        as on the web, with a timestamp and a snapshot that live longer
    <stick>/millwright/targets/
    <stick>/millwright/receipts/<device>/<number>.json

A stick can be old, half written, pulled out, or made by an enemy: it is a `Source` like any other. An older one does no
harm: the box goes by what it knows, and takes from the stick the files that fit.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from ota import durable
from ota.errors import FetchError
from ota.manifest import Hash, Name, Version
from ota.sources import Repository

FOLDER = "millwright"
MAX_RECEIPTS = 10_000  # of all devices, on one stick
MAX_WAITING, MAX_KNOWN = 200, 400  # receipts of this box
_MAX_BYTES = 16 << 10  # of one receipt
_MAX_KEPT = 8 << 20
_DEVICE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
_NUMBER = re.compile(r"\d{6}\.json")

_PURPOSE = b"millwright/receipt/1\0"

Sign = Callable[[bytes], str]  # by the device's own key: certificate and signature; empty where there is none now


class Receipt(Struct, frozen=True, forbid_unknown_fields=True):
    """What became of one bundle on one device. `seen` is the version of the snapshot that it knows, `runs` the bundle
    that it runs under this model's name since then: a delta can start from there."""

    device: Annotated[str, Meta(min_length=1, max_length=64)]
    at_s: Annotated[float, Meta(ge=0)]
    model: Name
    version: Version
    bundle: Hash
    outcome: Literal["brought", "confirmed", "rolled-back", "refused"]
    reason: Annotated[str, Meta(max_length=1000)] = ""
    campaign: Annotated[str, Meta(max_length=64)] = ""
    seen: Annotated[int, Meta(ge=0)] = 0
    runs: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$")] = ""
    signature: Annotated[str, Meta(max_length=4096)] = ""


def repository(stick: Path) -> Repository | None:
    """What is on it; None where it is not one of ours."""
    return Repository.within(stick, FOLDER) if (stick / FOLDER / "metadata").is_dir() else None


def signed(receipt: Receipt, sign: Sign) -> Receipt:
    return msgspec.structs.replace(receipt, signature=sign(message(receipt)))


def message(receipt: Receipt) -> bytes:
    """What is signed: the receipt without its signature. `signature` is base64 of the device's certificate (DER), a
    dot, base64 of an ECDSA signature over SHA-256 (DER)."""
    return _PURPOSE + msgspec.json.encode(msgspec.structs.replace(receipt, signature=""), order="sorted")


def leave(stick: Path, receipt: Receipt) -> Path:
    """Write a receipt on the stick, synced. FetchError where the stick cannot be written."""
    if not _DEVICE.fullmatch(receipt.device):
        raise FetchError(f"'{receipt.device}' is no name for a folder", "Letters, digits, dot, dash, underscore.")
    try:
        folder = _folder(stick, receipt.device)
        try:
            with os.scandir(folder) as entries:
                numbers = [int(entry.name[:6]) for entry in entries if _NUMBER.fullmatch(entry.name)]
            name = f"{max(numbers, default=0) + 1:06}.json"
            _write(folder, name, msgspec.json.encode(receipt))
        finally:
            os.close(folder)
    except OSError as error:
        raise FetchError(f"{stick}: {error.strerror}", "The stick cannot be written; the update is done.") from error
    return stick / FOLDER / "receipts" / receipt.device / name


class Owed:
    """Receipts that wait for a stick, in a file; those of what has ended once are not made again."""

    def __init__(self, file: Path, sign: Sign = lambda message: "") -> None:
        self._file, self._sign = file, sign
        self._kept = _kept(file)

    @property
    def count(self) -> int:
        return len(self._kept.waiting)

    def wants(self, receipts: Mapping[str, Receipt]) -> bool:
        """Whether there is anything to settle."""
        return bool(self._kept.waiting) or any(key not in self._kept.known for key in receipts)

    def settle(self, receipts: Mapping[str, Receipt], sticks: Iterable[Path]) -> list[Path]:
        """Take in those that are new, by an id of each; write all that wait on every stick that there is. What was
        written. A stick that cannot be written leaves them waiting. StorageError."""
        kept = self._kept
        new = {key: receipt for key, receipt in receipts.items() if key not in kept.known}
        if new:
            known = (*kept.known, *new)[-MAX_KNOWN:]
            kept = Kept(known, (*kept.waiting, *new.values())[-MAX_WAITING:])
            self._write(kept)
        left: list[Path] = []
        for stick in sticks if kept.waiting else ():
            with suppress(FetchError):
                left.extend([leave(stick, signed(receipt, self._sign)) for receipt in kept.waiting])
        if left:
            self._write(Kept(kept.known, ()))
        return left

    def _write(self, kept: "Kept") -> None:
        durable.write(self._file, msgspec.json.encode(kept))
        self._kept = kept


class Kept(Struct, frozen=True, forbid_unknown_fields=True):
    known: tuple[str, ...] = ()
    waiting: tuple[Receipt, ...] = ()


def _kept(file: Path) -> Kept:
    try:
        with file.open("rb") as opened:
            return msgspec.json.decode(opened.read(_MAX_KEPT), type=Kept)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Kept()  # receipts are a courtesy: what cannot be read stops no update


def receipts(folder: Path) -> Iterator[Receipt]:
    """Those that came back, of a stick's `receipts` folder. Anybody may write there; what cannot be read is skipped."""
    paths = (path for path in sorted(folder.glob("*/*.json")) if _NUMBER.fullmatch(path.name))
    for _, path in zip(range(MAX_RECEIPTS), paths, strict=False):
        if (found := _read(path)) is not None and found.device == path.parent.name:
            yield found


def _read(path: Path) -> Receipt | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return msgspec.json.decode(file.read(_MAX_BYTES), type=Receipt)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _folder(stick: Path, device: str) -> int:
    """A descriptor of the device's folder. Links on the stick are not followed: they may lead to files of this box."""
    here = os.open(stick, os.O_RDONLY | os.O_DIRECTORY)
    for part in (FOLDER, "receipts", device):
        try:
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _write(folder: int, name: str, data: bytes) -> None:
    with suppress(FileNotFoundError):
        os.unlink(f"{name}.new", dir_fd=folder)  # of a stick that was pulled out in the middle
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(f"{name}.new", flags, 0o644, dir_fd=folder), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{name}.new", name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
