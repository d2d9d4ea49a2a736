"""Changes to the disk of a machine that is off, as a broken release, bad luck or an enemy would make them."""

import struct
import subprocess
from pathlib import Path

from tests.image.boxes import NEW
from tools.imaging import builder
from tools.imaging.machine import Machine
from tools.imaging.places import Places

FOLDER = "::/EFI/Linux"
WAITING = f"millwright_{NEW}+3-0.efi"
_SECTOR = 512


def partition(machine: Machine, label: str) -> tuple[int, int]:
    """Where it begins and how long it is, in bytes, as the GPT says."""
    with (machine.folder / machine.disk).open("rb") as disk:
        disk.seek(_SECTOR)
        first, count, size = struct.unpack_from("<QII", disk.read(_SECTOR), 72)
        disk.seek(first * _SECTOR)
        table = disk.read(count * size)
    for start in range(0, len(table), size):
        begin, end = struct.unpack_from("<QQ", table, start + 32)
        if table[start + 56 : start + 128].decode("utf-16-le").rstrip("\0") == label:
            return begin * _SECTOR, (end - begin + 1) * _SECTOR
    raise AssertionError(f"no partition is called {label}")


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


def listed(machine: Machine) -> set[str]:
    return {line.rpartition("/")[2] for line in esp(machine, "mdir", "-b", FOLDER).split()}


def other_words(where: Places, image: Path, words: str, *, sign: bool = True) -> None:
    """The same kernel with more words on its command line, signed anew or not at all."""
    key = f"--secureboot-private-key={where.keys}/secure-boot.key --secureboot-certificate={where.keys}/secure-boot.crt"
    pcr = f"--pcr-private-key={where.keys}/pcr.key --pcr-banks=sha256"
    script = f"""set -eu
cd /tmp
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
