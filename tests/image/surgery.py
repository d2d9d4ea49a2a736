"""Changes to the disk of a machine that is off, as a broken release, bad luck or an enemy would make them."""

import struct
import subprocess
import zlib
from pathlib import Path
from typing import BinaryIO

from tests.image.boxes import NEW
from tools.imaging import builder
from tools.imaging.machine import Machine
from tools.imaging.places import Places

FOLDER = "::/EFI/Linux"
SEED = "millwright-seed.toml"
WAITING = f"millwright_{NEW}+3-0.efi"
_SECTOR = 512
_HEADER = 92  # bytes of a table's header that are summed


def partition(machine: Machine, label: str) -> tuple[int, int]:
    """Where it begins and how long it is, in bytes, as the GPT says."""
    return partitions(machine)[label]


def partitions(machine: Machine) -> dict[str, tuple[int, int]]:
    """By label, as the first of the two tables says that is whole."""
    path = machine.folder / machine.disk
    with path.open("rb") as disk:
        found = _table(disk, _SECTOR) or _table(disk, path.stat().st_size - _SECTOR)
    assert found is not None, "both partition tables are damaged"
    return found


def _table(disk: BinaryIO, at: int) -> dict[str, tuple[int, int]] | None:
    """UEFI 2.10, 5.3.2: a header and its entries, each with a sum of its own."""
    disk.seek(at)
    header = disk.read(_HEADER)
    first, count, size, sum_of_entries = struct.unpack_from("<QIII", header, 72)
    blank = header[:16] + bytes(4) + header[20:]
    if header[:8] != b"EFI PART" or zlib.crc32(blank) != struct.unpack_from("<I", header, 16)[0]:
        return None
    disk.seek(first * _SECTOR)
    entries = disk.read(count * size)
    if zlib.crc32(entries) != sum_of_entries:
        return None
    return dict(_entry(entries[start : start + size]) for start in range(0, len(entries), size))


def _entry(raw: bytes) -> tuple[str, tuple[int, int]]:
    begin, end = struct.unpack_from("<QQ", raw, 32)
    return raw[56:128].decode("utf-16-le").rstrip("\0"), (begin * _SECTOR, (end - begin + 1) * _SECTOR)


def overwrite(machine: Machine, label: str, at: int, data: bytes) -> None:
    begin, length = partition(machine, label)
    assert at + len(data) <= length
    with (machine.folder / machine.disk).open("r+b") as disk:
        disk.seek(begin + at)
        disk.write(data)


def esp(machine: Machine, tool: str, *words: str) -> str:
    """One of mtools, on the boot partition."""
    begin, _ = partition(machine, "esp")
    image = f"{machine.folder / machine.disk}@@{begin}"
    return inside(machine.where, ["env", "MTOOLS_SKIP_CHECK=1", tool, "-i", image, *words])


def take_entry(machine: Machine) -> Path:
    """The kernel image that waits, off the disk."""
    file = machine.folder / "waiting.efi"
    file.unlink(missing_ok=True)
    esp(machine, "mcopy", f"{FOLDER}/{WAITING}", str(file))
    esp(machine, "mdel", f"{FOLDER}/{WAITING}")
    return file


def put_entry(machine: Machine, file: Path, version: str = NEW, tries: int = 1) -> None:
    """Of a kernel image, under a version. One try in place of three saves minutes."""
    esp(machine, "mcopy", str(file), f"{FOLDER}/millwright_{version}+{tries}-0.efi")


def sow(machine: Machine, text: str) -> None:
    """A seed on the boot partition."""
    file = machine.folder / SEED
    file.write_text(text)
    esp(machine, "mcopy", "-o", str(file), f"::/{SEED}")


def listed(machine: Machine) -> set[str]:
    return {line.rpartition("/")[2] for line in esp(machine, "mdir", "-b", FOLDER).split()}


def other_words(where: Places, image: Path, words: str, *, sign: bool = True, known: bool = True) -> None:
    """The same kernel with more words on its command line, signed anew or not at all; `known`: by the key that the data
    open to."""
    key = f"--secureboot-private-key={where.keys}/secure-boot.key --secureboot-certificate={where.keys}/secure-boot.crt"
    pcr = f"--pcr-private-key={f'{where.keys}/pcr.key' if known else '/tmp/stranger.key'} --pcr-banks=sha256"
    script = f"""set -eu
cd /tmp
openssl genrsa -out stranger.key 2048 2>/dev/null
for part in linux initrd cmdline osrel uname ucode; do
    objcopy --dump-section .$part=$part {image} /dev/null 2>/dev/null || :
done
extra=; [ ! -s ucode ] || extra="--microcode=ucode"
ukify build --linux=linux --initrd=initrd $extra --os-release=@osrel --uname="$(tr -d '\\0' <uname)" \\
    --cmdline="$(tr -d '\\0' <cmdline) {words}" {pcr} {key if sign else ""} --output={image}
"""
    inside(where, ["sh", "-c", script])


def inside(where: Places, command: list[str]) -> str:
    """What it writes, in the builder."""
    done = subprocess.run(builder.entered(where, command), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout
