"""The image on a stick installs itself on a disk of the machine, one of 4096-byte sectors too, which then starts."""

import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from tests.image import surgery
from tests.image.boxes import FEW_MINUTES, up
from tools.imaging import releasing
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

STICK_GB = 4
INSIDE = "inside.raw"
NVME = "nvme,serial=NV4K0001,logical_block_size=4096,physical_block_size=4096"
LEFT = "usb-storage,removable=on,drive=left"
MENU = r"Install Millwright on a disk"
NUMBER = r"Number of the disk"


def test_a_stick_installs_itself_on_a_disk_of_large_sectors(where: Places, old: Path) -> None:
    machine = _stick(where, old)
    with machine.running() as running:
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
    with replace(machine, disk=INSIDE, attached=NVME, extra=()).running() as running:
        up(running)
        assert running.check("cat /sys/block/nvme0n1/queue/logical_block_size").strip() == "4096"
        said = running.check("journalctl -u millwright-boot-options.service --no-pager -o cat")
        assert "the boot options stand" in said, said  # the installer wrote them
        running.shut_down()


def test_who_missed_the_menu_of_a_stick_is_asked(where: Places, old: Path) -> None:
    with _stick(where, old).running() as running:
        running.wait_for("Type install and Enter", 2 * FEW_MINUTES)
        running.type("install\r")
        running.wait_for(NUMBER, FEW_MINUTES)
        running.type("\r")
        running.wait_for("nothing was written", FEW_MINUTES)


def test_a_seed_installs_it_without_a_person(where: Places, old: Path) -> None:
    """And switches the machine off; the box has what else the seed says. The stick keeps its seed; left in the machine
    it does no harm, though its partitions have the same names."""
    machine = _stick(where, old)
    surgery.sow(machine, 'install = "only"\nhost_name = "press-3"\n')
    with machine.running() as running:
        running.wait_for("nvme0n1 was written and verified", 2 * FEW_MINUTES)
        running.wait_for_end(FEW_MINUTES)
    assert surgery.SEED in surgery.esp(machine, "mdir", "-b", "-a", "::/")
    left = ("-usb", "-drive", f"if=none,id=left,format=raw,file={machine.folder / machine.disk}", "-device", LEFT)
    with replace(machine, disk=INSIDE, attached=NVME, extra=left).running() as running:
        up(running)
        for name in ("root", "data"):
            under = running.check(f"ls /sys/class/block/$(basename $(readlink -f /dev/mapper/{name}))/slaves").split()
            assert all(part.startswith("nvme0n1p") for part in under), (name, under)
        assert "millwright-data" not in running.check("lsblk --noheadings --output PARTLABEL /dev/sda")
        assert running.check("hostname").strip() == "press-3"
        assert surgery.SEED not in running.check("ls $(bootctl --print-boot-path)")
        running.shut_down()


def _stick(where: Places, image: Path) -> Machine:
    """In a machine with two disks: one that it can go to, and one that is too small."""
    machine = Machine(where, where.trials / "install", attached="usb-storage,removable=on")
    machine.prepare(releasing.raw_image(image), STICK_GB)
    inside, small = machine.folder / INSIDE, machine.folder / "small.raw"
    for disk, size in ((inside, "12G"), (small, "4G")):
        subprocess.run(["truncate", "-s", size, str(disk)], check=True)
    extra = ["-drive", f"if=none,id=inside,format=raw,file={inside}", "-device", f"{NVME},drive=inside,bootindex=2"]
    extra += ["-drive", f"if=none,id=small,format=raw,file={small}", "-device", "virtio-blk-pci,drive=small"]
    return replace(machine, extra=("-usb", *extra))


def _open_the_menu(running: Running, start: int) -> None:
    """With a key that is pressed again and again: one of them is seen by the boot loader."""
    end = time.monotonic() + FEW_MINUTES
    while not re.search(MENU, running.console()[start:]):
        assert time.monotonic() < end, "the boot loader showed no menu"
        assert "Welcome to" not in running.console()[start:], "it started without asking"
        running.type(" " * 10)
