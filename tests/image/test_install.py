"""The image on a stick installs itself on a disk of the machine, one of 4096-byte sectors too, which then starts."""

import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from tests.image.boxes import FEW_MINUTES
from tools.imaging import releasing
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

STICK_GB = 4
NVME = "nvme,serial=NV4K0001,logical_block_size=4096,physical_block_size=4096"
MENU = r"Install Millwright on a disk"
NUMBER = r"Number of the disk"


def test_a_stick_installs_itself_on_a_disk_of_large_sectors(where: Places, old: Path) -> None:
    machine = Machine(where, where.trials / "install", attached="usb-storage,removable=on")
    machine.prepare(releasing.raw_image(old), STICK_GB)
    inside, small = machine.folder / "inside.raw", machine.folder / "small.raw"
    for disk, size in ((inside, "12G"), (small, "4G")):
        subprocess.run(["truncate", "-s", size, str(disk)], check=True)
    extra = ["-drive", f"if=none,id=inside,format=raw,file={inside}", "-device", f"{NVME},drive=inside,bootindex=2"]
    extra += ["-drive", f"if=none,id=small,format=raw,file={small}", "-device", "virtio-blk-pci,drive=small"]
    with replace(machine, extra=("-usb", *extra)).running() as running:
        running.wait_for("BdsDxe: starting", FEW_MINUTES)
        running.wait_for("Custom Secure Boot keys successfully enrolled", FEW_MINUTES)
        start = len(running.console())
        _open_the_menu(running, start)
        running.type("2\r")
        running.wait_for(NUMBER, FEW_MINUTES)
        told = running.console()
        assert "the image needs" in told.split("vda", 1)[1].splitlines()[0]
        running.type("1\r")
        running.wait_for("Erase nvme0n1", FEW_MINUTES)
        running.type("nvme0n1\r")
        running.wait_for("nvme0n1 was written and verified", FEW_MINUTES)
    with replace(machine, disk="inside.raw", attached=NVME).running() as running:
        running.wait_probe()
        assert running.run("systemctl is-system-running --wait", FEW_MINUTES).text.strip() == "running"
        assert running.check("cat /sys/block/nvme0n1/queue/logical_block_size").strip() == "4096"
        assert "/dev/mapper/data /var ext4" in running.check("grep ' /var ' /proc/mounts")
        running.shut_down()


def _open_the_menu(running: Running, start: int) -> None:
    """With a key that is pressed again and again: one of them is seen by the boot loader."""
    end = time.monotonic() + FEW_MINUTES
    while not re.search(MENU, running.console()[start:]):
        assert time.monotonic() < end, "the boot loader showed no menu"
        assert "Welcome to" not in running.console()[start:], "it started without asking"
        running.type(" " * 10)
