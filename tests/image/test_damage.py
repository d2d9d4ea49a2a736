"""A disk too small, and damaged data: what can be mended is, what cannot is told, and nothing is erased."""

import os
from pathlib import Path

from tests.image import surgery
from tests.image.boxes import FEW_MINUTES, Box, up, vault_is_open
from tools.imaging import releasing
from tools.imaging.machine import Machine
from tools.imaging.places import Places

DATA = "millwright-data"
HEADER = 16 << 20  # of LUKS2, as cryptsetup lays it out
SUPERBLOCK = 1024
TOO_SMALL_GB = 5


def test_a_disk_that_is_too_small_is_told(where: Places, old: Path) -> None:
    machine = Machine(where, where.trials / "small")
    machine.prepare(releasing.raw_image(old), TOO_SMALL_GB)
    with machine.running() as running:
        running.wait_for("the disk could not be laid out; it wants 6 GB", FEW_MINUTES)
        running.wait_for("Mend what the lines above name, then restart", FEW_MINUTES)


def test_a_damaged_file_system_of_the_data_is_mended(box: Box) -> None:
    """Its first superblock and what stands behind it are lost: a copy further in is found."""
    machine = box.copy("damaged")
    surgery.overwrite(machine, DATA, HEADER + SUPERBLOCK, os.urandom(8192))
    with machine.running() as running:
        running.wait_for("errors that want a deeper look", FEW_MINUTES)
        up(running)
        vault_is_open(running)
        running.shut_down()


def test_data_without_their_header_are_told_of_and_left_alone(box: Box) -> None:
    machine = box.copy("beheaded")
    surgery.overwrite(machine, DATA, 0, os.urandom(HEADER))
    before = _data(machine)
    with machine.running() as running:
        running.wait_for("the header of the data is damaged", FEW_MINUTES)
        running.wait_for("Mend what the lines above name, then restart", FEW_MINUTES)
    assert _data(machine) == before


def _data(machine: Machine) -> bytes:
    begin, _ = surgery.partition(machine, DATA)
    with (machine.folder / machine.disk).open("rb") as disk:
        disk.seek(begin)
        return disk.read(2 * HEADER)
