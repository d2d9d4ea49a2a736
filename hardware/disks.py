"""The disks of this machine, and why one of them must not be written to. `root` is another file tree in tests."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512  # bytes of what /sys counts sizes in
_NOT_DISKS = re.compile(r"(loop|ram|zram|sr|fd|md|dm-|nbd)\d+")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Disk:
    name: str  # in /sys/block
    bytes: int
    model: str
    sector: int  # logical, bytes
    removable: bool
    read_only: bool
    uses: tuple[str, ...]  # why it is in use: mount points, holders, swap

    @property
    def device(self) -> Path:
        return Path("/dev") / self.name

    @property
    def holds_the_system(self) -> bool:
        return "/" in self.uses


def find(root: Path = Path("/"), loops: bool = False) -> list[Disk]:
    """Those that an image could be written to; loop devices only where they are wanted."""
    names = sorted(path.name for path in (root / "sys/block").iterdir())
    wanted = [name for name in names if not _NOT_DISKS.fullmatch(name) or (loops and name.startswith("loop"))]
    return [disk for name in wanted if (disk := read(name, root)).bytes]


def read(name: str, root: Path = Path("/")) -> Disk:
    folder = root / "sys/block" / name
    vendor, model = _text(folder / "device/vendor"), _text(folder / "device/model")
    return Disk(
        name=name,
        bytes=int(_text(folder / "size") or 0) * SECTOR,
        model=" ".join(f"{vendor} {model}".split()) or "no name",
        sector=int(_text(folder / "queue/logical_block_size") or SECTOR),
        removable=_text(folder / "removable") == "1",
        read_only=_text(folder / "ro") == "1",
        uses=tuple(sorted(_uses(folder, root))),
    )


def of_device(device: Path, root: Path = Path("/")) -> Disk | None:
    """The disk that is this device; None where it is no whole disk."""
    name = device.resolve().name
    return read(name, root) if (root / "sys/block" / name).is_dir() else None


def refusal(disk: Disk, needed: int) -> str:
    """Why nothing is written to it; empty where it may be."""
    if disk.holds_the_system:
        return "this system runs from it"
    if disk.uses:
        return f"it is in use: {', '.join(disk.uses)}"
    if disk.read_only:
        return "it can only be read"
    if disk.bytes < needed:
        return f"it has {disk.bytes:,} bytes, and the image needs {needed:,}"
    return ""


def _uses(folder: Path, root: Path) -> Iterator[str]:
    """Of the disk, its partitions, and whatever is built on them."""
    numbers = set(_numbers(folder))
    for number, point in _mounts(root):
        if number in numbers:
            yield point
    swaps = _text(root / "proc/swaps", 1 << 20).splitlines()[1:]
    names = {path.name for path in (folder, *_parts(folder))}
    yield from (f"swap on {line.split()[0]}" for line in swaps if line.split() and Path(line.split()[0]).name in names)
    for part in (folder, *_parts(folder)):
        holders = part / "holders"
        yield from (f"held by {path.name}" for path in (holders.iterdir() if holders.is_dir() else ()))


def _numbers(folder: Path) -> Iterator[str]:
    """major:minor of it, its partitions, and what holds them, such as an opened LUKS volume."""
    for path in (folder, *_parts(folder)):
        if number := _text(path / "dev"):
            yield number
        holders = path / "holders"
        for holder in holders.iterdir() if holders.is_dir() else ():
            yield from _numbers(holder.resolve())


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if (path / "partition").exists()) if folder.is_dir() else []


def _mounts(root: Path) -> Iterator[tuple[str, str]]:
    for line in _text(root / "proc/self/mountinfo", 8 << 20).splitlines():
        fields = line.split()
        if len(fields) > 4:
            yield fields[2], _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4])


def _text(path: Path, limit: int = 4096) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(limit).decode("utf-8", "replace").strip()
    except OSError:
        return ""
