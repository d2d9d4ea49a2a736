"""The power is cut at moments of a recording of a disk's writes: is there a system that starts, each time?

What is looked for on the disk is what a start needs: a table of partitions, the boot loader, the kernel image and the
verified root of one system at least. Caches are cut, too: of what was not flushed any part may be missing.
"""

import hashlib
import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.image import surgery
from tests.image.boxes import RECORDING
from tools.imaging import builder, writes
from tools.imaging.machine import Machine
from tools.imaging.writes import Recording, Replay

MOMENTS = int(os.environ.get("MILLWRIGHT_POWER_MOMENTS", "60"))
SEED = int(os.environ.get("MILLWRIGHT_POWER_SEED", "0")) or time.time_ns() % 1_000_000
LOADERS = ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi", "loader/loader.conf")
TABLES = 34 * 512  # at both ends of a disk
_SYSTEM = re.compile(r"EFI/Linux/millwright_([0-9.]+?)(\+\d+(?:-\d+)?)?\.efi")
_PIECE = 1 << 22
_TAKE = """image=$1 to=$2; shift 2
for path in "$@" $(mdir -b -i "$image" ::/EFI/Linux | sed -n 's|^::/\\(EFI/Linux/millwright_\\)|\\1|p'); do
    mkdir -p "$to/${path%/*}"
    mcopy -n -Q -i "$image" "::/$path" "$to/$path" || rm -f "$to/$path"
done
"""


@dataclass(frozen=True)
class System:
    version: str
    kernel: str  # SHA-256
    root: tuple[str, ...]  # SHA-256 of the partition and of its hashes


def look_over(disk: Machine, ended: Machine, versions: tuple[str, str]) -> Counter[str]:
    """`disk` is a copy of what it was when the recording of `ended` began, and is changed. How often which systems
    were there, whole: `+` behind those that are on trial. AssertionError where none is that was blessed."""
    dice, found = random.Random(SEED), Counter[str]()
    recorded = writes.read(ended.folder / RECORDING)
    loaders = _loaders(_files(disk))
    before, after = _system(disk, versions[0]), _system(ended, versions[1])
    assert not _written(disk, recorded, before), f"the root of {before.version} was written"
    unread = None if _written(ended, recorded, after) else after.root
    replay = Replay(disk.folder / disk.disk, recorded)
    for moment in _moments(disk, recorded, dice):
        with replay.cut(moment, dice):
            files = _files(disk)
            there = {_name(path): files[path] for path in files if _SYSTEM.fullmatch(path)}
            whole = {name for name in there if there[name] == before.kernel and _has_partitions(disk, before)}
            late = {name for name in there if there[name] == after.kernel}
            if late and (unread or _root(disk, after.version)) == after.root:
                whole |= late
        assert _loaders(files) == loaders, f"write {moment} of MILLWRIGHT_POWER_SEED={SEED}: no boot loader"
        assert whole & set(versions), f"write {moment} of MILLWRIGHT_POWER_SEED={SEED}: only {whole} would start"
        found[" and ".join(sorted(whole))] += 1
    return found


def _moments(disk: Machine, recorded: Recording, dice: random.Random) -> list[int]:
    """Half of them where the boot partition or a table of partitions is written, which is a small part of all; and
    the last."""
    end = (disk.folder / disk.disk).stat().st_size
    places = (surgery.partition(disk, "esp"), (0, TABLES), (end - TABLES, TABLES))
    near = sorted({number + 1 for place in places for number in recorded.touching(*place)})
    anywhere = dice.choices(range(len(recorded.writes) + 1), k=MOMENTS - MOMENTS // 2)
    return sorted([*anywhere, *dice.choices(near or [0], k=MOMENTS // 2), len(recorded.writes)])


def _name(path: str) -> str:
    """`1.1`, or `1.1+` while it is tried."""
    name = _SYSTEM.fullmatch(path)
    assert name is not None
    return f"{name[1]}{'+' if name[2] else ''}"


def _system(disk: Machine, version: str) -> System:
    kernels = {digest for path, digest in _files(disk).items() if path.startswith(f"EFI/Linux/millwright_{version}")}
    assert len(kernels) == 1, f"{version} has {len(kernels)} kernels"
    root = _root(disk, version)
    assert root, f"{version} has no root"
    return System(version, kernels.pop(), root)


def _labels(version: str) -> tuple[str, str]:
    return f"millwright_{version}", f"millwright_{version}_verity"


def _has_partitions(disk: Machine, system: System) -> bool:
    return surgery.partitions(disk).keys() >= set(_labels(system.version))


def _written(disk: Machine, recorded: Recording, system: System) -> bool:
    """Whether its root was, in part at least."""
    return any(recorded.touching(*surgery.partition(disk, label)) for label in _labels(system.version))


def _loaders(files: dict[str, str]) -> dict[str, str]:
    return {path: files.get(path, "") for path in LOADERS}


def _files(disk: Machine) -> dict[str, str]:
    """SHA-256 by path, of what can be read of the boot loader's files and of the systems'. Each for itself: the file
    that is being written may well be torn."""
    taken = disk.folder / "taken"
    shutil.rmtree(taken, ignore_errors=True)
    taken.mkdir()
    begin, _ = surgery.partition(disk, "esp")
    image = f"{disk.folder / disk.disk}@@{begin}"
    command = ["env", "MTOOLS_SKIP_CHECK=1", "sh", "-c", _TAKE, "take", image, str(taken), *LOADERS]
    subprocess.run(builder.entered(disk.where, command), capture_output=True, check=False)
    paths = [path for path in taken.rglob("*") if path.is_file()]
    return {str(path.relative_to(taken)): _digest(path, 0, path.stat().st_size) for path in paths}


def _root(disk: Machine, version: str) -> tuple[str, ...]:
    there = surgery.partitions(disk)
    return tuple(_digest(disk.folder / disk.disk, *there[label]) for label in _labels(version) if label in there)


def _digest(path: Path, at: int, size: int) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(at)
        for left in range(size, 0, -_PIECE):
            sha.update(file.read(min(left, _PIECE)))
    return sha.hexdigest()
