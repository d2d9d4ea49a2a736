"""tools/flash IMAGE DEVICE: writes an image to a disk, and reads it back.

IMAGE is a .img or .raw, or one of these as .zst; a .bmap beside it says which of its blocks hold anything. SHA256SUMS
beside it is checked, and with --key its signature SHA256SUMS.gpg. Without a DEVICE, and with --list, the disks are
listed. What is mounted or held, the disk that this system runs from and one that is too small are refused. DEVICE may
be a file, which is made.

Exit codes: 0 written and read back; 1 it failed, or is refused; 2 wrong usage; 4 nobody confirmed it.
"""

import argparse
import fcntl
import hashlib
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import zstandard

from hardware import disks
from hardware.disks import Disk
from tools.imaging import bmap
from tools.imaging.bmap import BmapError, Map, Range

CHUNK = 4 << 20
MAX_WINDOW = 1 << 27
SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.gpg"
MAX_SUMS = 1 << 20
EDGE = 1 << 20  # bytes at the end of a disk where an older partition table may lie
BLKDISCARD, BLKFLSBUF = 0x1277, 0x1261
NOT_CONFIRMED = 4

Progress = Callable[[str, int, int], None]


class FlashError(Exception):
    """Why it is not done, or what went wrong."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.list or args.image is None or args.device is None:
        print("\n".join(table(disks.find(loops=args.loops))))
        return 0 if args.list else 2
    try:
        return _flash(args)
    except (FlashError, BmapError, OSError) as error:
        print(f"\ntools/flash: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tools/flash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE")
    parser.add_argument("device", nargs="?", type=Path, metavar="DEVICE")
    parser.add_argument("--list", action="store_true", help="the disks, and what uses them")
    parser.add_argument("--key", type=Path, metavar="FILE", help="a keyring of gpg: who must have signed it")
    parser.add_argument("--unchecked", action="store_true", help="even without checksums beside the image")
    parser.add_argument("--yes", metavar="NAME", default="", help="the device's name, in place of typing it")
    parser.add_argument("--loops", action="store_true", help="loop devices, too")
    return parser


def _flash(args: argparse.Namespace) -> int:
    tell = _Line()
    disk = disks.of_device(args.device)
    if disk is None and (args.device.exists() and not stat.S_ISREG(args.device.stat().st_mode)):
        raise FlashError(f"{args.device} is no whole disk: name one of those that --list shows")
    print(checked(args.image, args.key, args.unchecked))
    plan = mapped(args.image)
    if disk is not None:
        _refuse(disk, args.image, plan)
    if not _confirmed(args, disk, plan):
        print("Nothing was written.")
        return NOT_CONFIRMED
    with _opened(args.device, disk, plan) as out:
        written = write(args.image, plan, out, tell)
        _flushed(out, disk)
        read_back(written, out, tell)
    print(f"\n{args.device}: {plan.mapped_bytes:,} bytes written and read back; it can be taken away.")
    return 0


# ---- before anything is written -------------------------------------------------------------------------------------


def table(found: list[Disk]) -> list[str]:
    rows = [("DISK", "SIZE", "MODEL", "IN USE")]
    for one in found:
        kind = f"{one.model}{', removable' if one.removable else ''}{', 4Kn' if one.sector == 4096 else ''}"
        rows.append((str(one.device), f"{one.bytes / 1e9:.1f} GB", kind, ", ".join(one.uses)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def checked(image: Path, key: Path | None, unchecked: bool) -> str:
    """What is known of the image, in words. FlashError where its checksum or signature is wrong, or missing."""
    sums = image.with_name(SUMS)
    if not sums.is_file():
        if key is None and unchecked:
            return f"{image.name}: not checked, there is no {SUMS} beside it"
        raise FlashError(f"there is no {SUMS} beside {image.name}: fetch it, or use --unchecked")
    signed = _signed(sums, key) if key is not None else "signature not checked (--key)"
    told = {line.split()[-1].lstrip("*"): line.split()[0] for line in _lines(sums) if len(line.split()) == 2}
    if image.name not in told:
        raise FlashError(f"{sums} does not name {image.name}")
    for path in (image, map_of(image)):
        if path.is_file() and path.name in told and _sha256(path) != told[path.name]:
            raise FlashError(f"{path.name} is not what {SUMS} says: it is damaged, or another one")
    return f"{image.name}: checksum right, {signed}"


def _signed(sums: Path, key: Path) -> str:
    command = ["gpgv", "--keyring", str(key.absolute()), str(sums.with_name(SIGNATURE)), str(sums)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FlashError(f"gpgv cannot be run: {error.strerror}: install gpgv") from error
    if done.returncode:
        raise FlashError(f"the signature of {SUMS} is not good: {done.stderr.strip()[-200:]}")
    return "signature good"


def _lines(sums: Path) -> list[str]:
    with sums.open("rb") as file:
        return file.read(MAX_SUMS).decode("utf-8", "replace").splitlines()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_of(image: Path) -> Path:
    """Where its block map is: box.img.bmap for box.img and for box.img.zst; box.img.bmap for box.raw, too."""
    plain = image.with_name(image.name.removesuffix(".zst"))
    stem = plain.name.removesuffix(".raw").removesuffix(".img")
    beside = plain.with_name(f"{stem}.img.bmap")
    return beside if beside.is_file() else plain.with_name(f"{plain.name}.bmap")


def mapped(image: Path) -> Map:
    """What is to be written. BmapError."""
    path = map_of(image)
    if path.is_file():
        return bmap.read(path)
    if image.suffix != ".zst":
        return bmap.whole(image.stat().st_size)
    with image.open("rb") as file:
        size = zstandard.frame_content_size(file.read(18))
    if size < 0:
        raise FlashError(f"{image.name} does not say how large it is: its .bmap is needed beside it")
    return bmap.whole(size)


def _refuse(disk: Disk, image: Path, plan: Map) -> None:
    if why := disks.refusal(disk, plan.image_bytes):
        raise FlashError(f"{disk.device} ({disk.model}) is not written to: {why}")
    sector = sector_of(image)
    if sector and sector != disk.sector:
        raise FlashError(
            f"{disk.device} has sectors of {disk.sector} bytes, and the image's partition table is for {sector}: "
            "take the image for such disks, or install from a stick, which lays the table out for the disk"
        )


def sector_of(image: Path) -> int:
    """Which sectors its partition table is for: 512 or 4096 bytes; 0 where it has none."""
    begin = b""
    for piece in _pieces(image):
        begin += piece
        if len(begin) >= 8192:
            break
    return next((size for size in (512, 4096) if begin[size : size + 8] == b"EFI PART"), 0)


def _confirmed(args: argparse.Namespace, disk: Disk | None, plan: Map) -> bool:
    name: str = args.device.name
    about = f"{disk.bytes / 1e9:.1f} GB, {disk.model}" if disk else "a file"
    print(f"{args.device} ({about}) gets {plan.image_bytes:,} bytes; whatever is on it is lost.")
    if args.yes:
        return str(args.yes) == name
    if not sys.stdin.isatty():
        raise FlashError(f"nobody can be asked: confirm it with --yes {name}")
    return input(f"Type its name, {name}, to go on: ").strip() == name


# ---- writing --------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(device: Path, disk: Disk | None, plan: Map) -> Iterator[BinaryIO]:
    """Alone: the kernel refuses a disk that is mounted, also where it was mounted since."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if disk else os.O_CREAT | os.O_NOFOLLOW)
    with os.fdopen(os.open(device, flags, 0o600), "r+b", buffering=0) as out:
        if disk is None:
            out.truncate(0)
            out.truncate(plan.image_bytes)
        else:
            with suppress(OSError):  # not every disk can
                fcntl.ioctl(out, BLKDISCARD, struct.pack("QQ", 0, disk.bytes))
            end = disk.bytes - max(disk.bytes - EDGE, plan.image_bytes)
            if end > 0:
                os.pwrite(out.fileno(), bytes(end), disk.bytes - end)
        yield out


def write(image: Path, plan: Map, out: BinaryIO, tell: Progress) -> Map:
    """Range by range, each checked while it passes; the map with the checksums of what was written. FlashError where
    the image is not what its map says."""
    stream = _Stream(_pieces(image))
    done, written = 0, []
    for one in plan.ranges:
        stream.skip_to(one.start)
        found, at = hashlib.sha256(), one.start
        while at < one.end:
            piece = stream.read(min(CHUNK, one.end - at))
            found.update(piece)
            _put(out, piece, at)
            at += len(piece)
            done += len(piece)
            tell("written", done, plan.mapped_bytes)
        _compare(one, found.hexdigest(), f"{image.name} is not what its block map says")
        written.append(Range(one.start, one.end, found.hexdigest()))
    return Map(plan.image_bytes, tuple(written))


def _put(out: BinaryIO, piece: bytes, at: int) -> None:
    view = memoryview(piece)
    while view:
        count = os.pwrite(out.fileno(), view, at)
        view, at = view[count:], at + count


def read_back(plan: Map, out: BinaryIO, tell: Progress) -> None:
    """FlashError where the disk gives other bytes than the map's checksums are of."""
    done = 0
    for one in plan.ranges:
        found, at = hashlib.sha256(), one.start
        while at < one.end:
            piece = os.pread(out.fileno(), min(CHUNK, one.end - at), at)
            if not piece:
                raise FlashError("the disk ends before the image does: it has less room than it says")
            found.update(piece)
            at += len(piece)
            done += len(piece)
            tell("read back", done, plan.mapped_bytes)
        _compare(one, found.hexdigest(), f"the disk gives other bytes than were written, from byte {one.start:,} on")


def _compare(one: Range, found: str, problem: str) -> None:
    if one.sha256 and found != one.sha256:
        raise FlashError(problem)


def _flushed(out: BinaryIO, disk: Disk | None) -> None:
    """What is read back comes from the disk, not from memory."""
    os.fsync(out.fileno())
    if disk is not None:
        with suppress(OSError):
            fcntl.ioctl(out, BLKFLSBUF)
    os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _pieces(image: Path) -> Iterator[bytes]:
    """The image's bytes, unpacked."""
    with image.open("rb") as file:
        source = (
            file
            if image.suffix != ".zst"
            else zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(file)
        )
        try:
            while piece := source.read(CHUNK):
                yield piece
        except zstandard.ZstdError as error:
            raise FlashError(f"{image.name} is damaged: {error}") from error


class _Stream:
    """Bytes in turn; what is skipped is unpacked and thrown away."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest, self._at = pieces, memoryview(b""), 0

    def skip_to(self, offset: int) -> None:
        while self._at < offset:
            self.read(min(CHUNK, offset - self._at))

    def read(self, count: int) -> bytes:
        """At least one byte, at most `count`."""
        if not self._rest:
            piece = next(self._pieces, b"")
            if not piece:
                raise FlashError("the image ends before its block map does")
            self._rest = memoryview(piece)
        found = bytes(self._rest[:count])
        self._rest = self._rest[count:]
        self._at += len(found)
        return found


class _Line:
    """A line that says how far it is, on a terminal."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, what: str, done: int, length: int) -> None:
        text = f"{what}: {100 * done // max(length, 1)} % of {length / 1e6:.0f} MB"
        if text != self._shown and sys.stdout.isatty():
            print(f"\r{text.ljust(len(self._shown))}", end="", flush=True)
        self._shown = text


if __name__ == "__main__":
    sys.exit(main())
