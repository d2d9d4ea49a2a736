"""The disk under a folder: space, file system, and how worn the flash is where it tells.

eMMC tells its wear in /sys (JEDEC eMMC 5.0: life time in tenths, and the state of the reserve blocks); other disks
tell it only to root and through tools of their own, and have `wear_percent` None here. `root` is another file tree in
tests.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_ESCAPED = re.compile(r"\\([0-7]{3})")
_RESERVE = {1: "normal", 2: "80 % used", 3: "90 % used"}


@dataclass(frozen=True)
class Storage:
    path: Path
    total_bytes: int
    free_bytes: int  # that this user may use
    free_inodes: int | None  # None: this file system does not count them
    filesystem: str = ""  # ext4, btrfs, tmpfs, ...; empty: not known
    read_only: bool = False
    disk: str = ""  # its name in /sys/block; empty: not on a disk
    wear_percent: int | None = None  # of the life time used up, rounded up to tenths; above 100: past its end
    reserve: str = ""  # eMMC's spare blocks


@dataclass(frozen=True)
class _Mount:
    number: str  # major:minor
    point: str
    options: tuple[str, ...]
    filesystem: str


def find(path: Path, root: Path = Path("/")) -> Storage:
    """Of the disk that holds `path`, or its nearest parent that exists. OSError where that cannot be asked."""
    path = _existing(path.absolute())
    space = os.statvfs(path)
    mount = _mount(path.resolve(), root)
    disk = _disk(mount.number, root) if mount else ""
    return Storage(
        path=path,
        total_bytes=space.f_blocks * space.f_frsize,
        free_bytes=space.f_bavail * space.f_frsize,
        free_inodes=space.f_favail if space.f_files else None,
        filesystem=mount.filesystem if mount else "",
        read_only=bool(space.f_flag & os.ST_RDONLY) or (mount is not None and "ro" in mount.options),
        disk=disk,
        wear_percent=_wear(disk, root),
        reserve=_reserve(disk, root),
    )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _mount(path: Path, root: Path) -> _Mount | None:
    """The mount whose point is the longest beginning of the path; the last of equal ones lies on top."""
    best: _Mount | None = None
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount = _parsed(line)
        if mount and path.is_relative_to(mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _parsed(line: str) -> _Mount | None:
    """A line of mountinfo(5): id parent major:minor root point options [tags...] - filesystem source options."""
    before, dash, after = line.partition(" - ")
    fields, kinds = before.split(), after.split()
    if not dash or len(fields) < 6 or not kinds:
        return None
    point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4])
    return _Mount(fields[2], point, tuple(fields[5].split(",")), kinds[0])


def _disk(number: str, root: Path) -> str:
    """The whole disk of a partition, through mappings (encryption, volumes), of which the first disk is taken."""
    block = root / "sys/dev/block" / number
    if not block.exists():
        return ""
    block = block.resolve()
    for _ in range(8):  # mappings upon mappings end sooner
        below = sorted((block / "slaves").glob("*"))
        if not below:
            break
        block = below[0].resolve()
    return block.parent.name if (block / "partition").exists() else block.name


def _wear(disk: str, root: Path) -> int | None:
    """The worse of the two kinds of memory cells: 0x01 is up to 10 %, ..., 0x0a up to 100 %, 0x0b beyond."""
    used = [int(word, 16) for word in _hexadecimal(disk, "life_time", root)]
    return max(used) * 10 if any(used) else None


def _reserve(disk: str, root: Path) -> str:
    words = _hexadecimal(disk, "pre_eol_info", root)
    return _RESERVE.get(int(words[0], 16), "") if words else ""


def _hexadecimal(disk: str, name: str, root: Path) -> list[str]:
    words = _text(root / "sys/block" / disk / "device" / name).split() if disk else []
    return words if all(re.fullmatch(r"0x[0-9a-fA-F]{1,2}", word) for word in words) else []


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
