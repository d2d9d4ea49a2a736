"""What is installed from a stick, on which disk, and why not on another."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from hardware import installation
from hardware.disks import Disk
from hardware.installation import InstallationError, Part, Source

ROOTHASH = "5b2a" * 8 + "77e1" * 8
ROOT = Part(Path("/dev/sdb2"), "5b2a5b2a-5b2a-5b2a-5b2a-5b2a5b2a5b2a", "millwright_1.0", 2 << 30)
HASHES = Part(Path("/dev/sdb3"), "77e177e1-77e1-77e1-77e1-77e177e177e1", "millwright_1.0_verity", 32 << 20)
BOOT = Part(Path("/dev/sdb1"), "0d4f2c1e-1111-4222-8333-444455556666", "esp", 512 << 20)
SOURCE = Source("sdb", BOOT, ROOT, HASHES, ROOTHASH)
STICK = Disk("sdb", 16 << 30, "USB stick", 512, True, False, ("/",))
NVME = Disk("nvme0n1", 64 << 30, "Fast", 4096, False, False, ())
SMALL = Disk("mmcblk0", 4 << 30, "eMMC", 512, False, False, ())
DEVICES: list[dict[str, object]] = [
    {"name": "sdb", "type": "disk", "size": 16 << 30, "parttype": None, "partuuid": None, "partlabel": None},
    *(
        {
            "name": part.device.name,
            "type": "part",
            "size": part.bytes,
            "parttype": installation.ESP if part is BOOT else "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
            "partuuid": part.uuid,
            "partlabel": part.label,
        }
        for part in (BOOT, ROOT, HASHES)
    ),
]


@pytest.fixture
def lsblk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What lsblk says, for this test to write: it answers so for every disk."""
    folder = tmp_path / "bin"
    folder.mkdir()
    said = tmp_path / "said.json"
    said.write_text(json.dumps({"blockdevices": DEVICES}))
    program = folder / "lsblk"
    program.write_text(f"#!/bin/sh\ncat {said}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return said


def _system(root: Path, command_line: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cmdline").write_text(command_line)
    for name in ("sdb2", "sdb3"):
        (root / "sys/block/sdb" / name).mkdir(parents=True)
        (root / "sys/block/dm-0/slaves" / name).mkdir(parents=True)
    (root / "sys/block/dm-0/dm").mkdir()
    (root / "sys/block/dm-0/dm/name").write_text("root\n")
    return root


def test_what_runs_is_found_by_its_root_hash(tmp_path: Path, lsblk: Path) -> None:
    found = installation.running(_system(tmp_path, f"ro roothash={ROOTHASH} panic=10"))
    assert found == SOURCE


@pytest.mark.parametrize("command_line", ["ro", f"ro roothash={ROOTHASH.replace('5b', '5c')}"])
def test_another_system_is_not_installed(tmp_path: Path, lsblk: Path, command_line: str) -> None:
    with pytest.raises(InstallationError):
        installation.running(_system(tmp_path, command_line))


def test_each_disk_says_why_it_is_not_the_one() -> None:
    told = {disk.name: why for disk, why in installation.targets(SOURCE, [STICK, NVME, SMALL])}
    assert told["nvme0n1"] == ""
    assert "started from it" in told["sdb"]
    assert f"the image needs {SOURCE.needed:,}" in told["mmcblk0"]


def test_without_a_person_the_only_disk_or_the_named_one_is_taken(lsblk: Path) -> None:
    lsblk.write_text('{"blockdevices": []}')
    assert installation.only(SOURCE, [STICK, NVME, SMALL], "only") == NVME
    assert installation.only(SOURCE, [STICK, NVME, replace(NVME, name="sda")], "/dev/sda").name == "sda"


@pytest.mark.parametrize(
    ("disks", "named"), [([STICK, NVME, replace(NVME, name="sda")], "only"), ([STICK], "only"), ([STICK, NVME], "sdb")]
)
def test_without_a_person_nothing_is_guessed(lsblk: Path, disks: list[Disk], named: str) -> None:
    with pytest.raises(InstallationError, match="the seed says"):
        installation.only(SOURCE, disks, named)


def test_without_a_person_no_box_is_erased(lsblk: Path) -> None:
    data = {**DEVICES[1], "name": "nvme0n1p6", "partlabel": "millwright-data"}
    lsblk.write_text(json.dumps({"blockdevices": [data]}))
    with pytest.raises(InstallationError, match="a box's data"):
        installation.only(SOURCE, [STICK, NVME], "only")


def test_the_layout_names_what_is_copied() -> None:
    made = installation.definitions(SOURCE)
    assert "UUID=5b2a5b2a-5b2a-5b2a-5b2a-5b2a5b2a5b2a\nCopyBlocks=/dev/sdb2\n" in made["10-root.conf"]
    assert "Type=root-verity\nLabel=millwright_1.0_verity\n" in made["20-root-verity.conf"]
    assert f"SizeMinBytes={32 << 20}\nSizeMaxBytes={32 << 20}\n" in made["20-root-verity.conf"]
    assert f"Format=vfat\nSizeMinBytes={512 << 20}\n" in made["00-esp.conf"]
