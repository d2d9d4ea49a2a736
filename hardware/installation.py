"""Puts the system that was started from a stick on a disk of this machine, in the disk's own sectors.

    source = running(Path("/"))                  # what is copied, and from which disk
    targets(source, disks.find())                # where it may go
    write(source, disk, folder)                  # the disk is erased; `folder`: an empty one, for work

systemd-repart lays out the disk and copies the root and its hashes; the copy is verified by the root hash that was
started with. The boot partition is made anew, because FAT counts in the disk's sectors, and its files are copied.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.disks import Disk, refusal

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
DATA = "millwright-data"
DATA_BYTES = 512 << 20  # as in repart.d
MARK = "millwright-installed"  # on the boot partition of what was installed: no seed there installs it again
MINUTES = 60.0
_ROOTHASH = re.compile(r"\broothash=([0-9a-f]{64})\b")


class InstallationError(Exception):
    """What could not be done. Where the disk was begun it is not whole."""


@dataclass(frozen=True)
class Part:
    device: Path
    uuid: str
    label: str
    bytes: int


@dataclass(frozen=True)
class Source:
    disk: str  # its name in /sys/block
    boot: Part
    root: Part
    hashes: Part
    roothash: str

    @property
    def needed(self) -> int:
        """Bytes of a disk: this system, the next one beside it, the smallest room for data, and what lies between."""
        return self.boot.bytes + 2 * (self.root.bytes + self.hashes.bytes) + DATA_BYTES + (16 << 20)


def running(root: Path = Path("/")) -> Source:
    """Of the verified root that is mounted. InstallationError where this is no such system."""
    found = _ROOTHASH.search((root / "proc/cmdline").read_text())
    mapped = [path for path in sorted(root.glob("sys/block/dm-*")) if (path / "dm/name").read_text().strip() == "root"]
    if not found or not mapped:
        raise InstallationError("this system does not run from a verified root")
    names = {path.name for path in (mapped[0] / "slaves").iterdir()}
    disk = next((path.name for path in (root / "sys/block").iterdir() if any((path / n).is_dir() for n in names)), "")
    parts = listed(disk)
    return _source(disk, parts, names, found[1])


def _source(disk: str, parts: Sequence[dict[str, Any]], names: set[str], roothash: str) -> Source:
    boot = next((part for part in parts if part["parttype"] == ESP), None)
    own = [_part(part) for part in parts if part["name"] in names]
    uuids = {_uuid(roothash[:32]): "root", _uuid(roothash[32:]): "hashes"}
    known = {uuids[part.uuid]: part for part in own if part.uuid in uuids}
    if boot is None or len(known) != len(uuids):
        raise InstallationError(f"the partitions of {disk} are not those of an image")
    return Source(disk, _part(boot), known["root"], known["hashes"], roothash)


def listed(disk: str) -> list[dict[str, Any]]:
    """Its partitions, as lsblk tells them."""
    columns = "NAME,TYPE,SIZE,PARTTYPE,PARTUUID,PARTLABEL"
    said = _run("lsblk", "--json", "--list", "--bytes", "--output", columns, f"/dev/{disk}")
    found: list[dict[str, Any]] = json.loads(said)["blockdevices"]
    return [one for one in found if one["type"] == "part"]


def targets(source: Source, found: Sequence[Disk]) -> list[tuple[Disk, str]]:
    """Every disk, and why it cannot be the one; empty where it can."""
    return [
        (disk, "this system was started from it" if disk.name == source.disk else refusal(disk, source.needed))
        for disk in found
    ]


def only(source: Source, found: Sequence[Disk], named: str) -> Disk:
    """Where a seed says the system goes: `named`, or with "only" the one disk that does not come and go and is large
    enough. Never one that is a box already: that is for a person to decide. InstallationError."""
    possible = [disk for disk, why in targets(source, found) if not why and not disk.removable]
    if named != "only":
        possible = [disk for disk in possible if str(disk.device) == named or disk.name == named]
    if len(possible) != 1:
        names = ", ".join(disk.name for disk in possible) or "none"
        raise InstallationError(f"the seed says install = '{named}', and of the disks here that may be: {names}")
    if any(part["partlabel"] == DATA for part in listed(possible[0].name)):
        raise InstallationError(f"{possible[0].name} has a box's data on it: it is not erased without a person")
    return possible[0]


def write(source: Source, disk: Disk, work: Path) -> Path:
    """The boot partition that was made. InstallationError names the step."""
    folder = work / "repart.d"
    folder.mkdir(parents=True)
    for name, text in definitions(source).items():
        (folder / name).write_text(text)
    repart = ["systemd-repart", "--dry-run=no", "--empty=force", "--seed=random", "--json=short"]
    made = _nodes(_run(*repart, f"--definitions={folder}", str(disk.device)))
    _run("udevadm", "settle")
    _run("blockdev", "--flushbufs", str(disk.device))
    _run("veritysetup", "verify", made["10-root.conf"], made["20-root-verity.conf"], source.roothash)
    boot = Path(made["00-esp.conf"])
    _copy_boot(source.boot.device, boot, work)
    return boot


def _nodes(told: str) -> dict[str, str]:
    """Devices by the names of their definitions, of what systemd-repart says in its last line."""
    rows = json.loads(told.strip().splitlines()[-1])
    return {Path(row["file"]).name: row["node"] for row in rows}


def definitions(source: Source) -> dict[str, str]:
    """Of systemd-repart, by file name."""
    esp = f"[Partition]\nType=esp\nFormat=vfat\n{_size(source.boot)}"
    return {
        "00-esp.conf": esp,
        "10-root.conf": _copied("root", source.root),
        "20-root-verity.conf": _copied("root-verity", source.hashes),
    }


def _copied(kind: str, part: Part) -> str:
    named = f"Type={kind}\nLabel={part.label}\nUUID={part.uuid}\n"
    return f"[Partition]\n{named}CopyBlocks={part.device}\nReadOnly=yes\n{_size(part)}"


def _size(part: Part) -> str:
    return f"SizeMinBytes={part.bytes}\nSizeMaxBytes={part.bytes}\n"


def _copy_boot(source: Path, target: Path, work: Path) -> None:
    """The mark comes last; without it and without a kernel the disk does not start."""
    old, new = work / "from", work / "to"
    with _mounted(source, old, "ro"), _mounted(target, new, "rw"):
        shutil.copytree(old, new, dirs_exist_ok=True)
        (new / MARK).touch()
        _run("sync", "--file-system", str(new))


class _mounted:  # noqa: N801 - reads as the verb it is
    def __init__(self, device: Path, folder: Path, mode: str) -> None:
        self._device, self._folder, self._mode = device, folder, mode

    def __enter__(self) -> None:
        self._folder.mkdir(exist_ok=True)
        _run("mount", "-t", "vfat", "-o", f"{self._mode},nosuid,nodev,noexec", str(self._device), str(self._folder))

    def __exit__(self, *_exception: object) -> None:
        _run("umount", str(self._folder))


def _part(fields: dict[str, Any]) -> Part:
    return Part(Path("/dev") / fields["name"], fields["partuuid"], fields["partlabel"] or "", int(fields["size"]))


def _uuid(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallationError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise InstallationError(f"{' '.join(command)}\n{done.stderr.strip()[-600:]}")
    return done.stdout
