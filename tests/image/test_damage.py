"""A disk too small or full, and damaged data: what can be mended is, what cannot is told, and nothing is erased."""

import os
from pathlib import Path

from tests.image import surgery
from tests.image.boxes import FEW_MINUTES, Box, has_its_data, state, up, vault_is_open
from tools.imaging import releasing
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

DATA = "millwright-data"
HEADER = 16 << 20  # of LUKS2, as cryptsetup lays it out
SUPERBLOCK = 1024
TOO_SMALL_GB = 5
SERVICES = [f"millwright-{name}.service" for name in ("vault", "broker", "record", "detect", "update", "ingest")]
# To the last block, those that are kept for root among them. Services that run would give some back.
FILL = """systemctl stop 'millwright-*.timer' 'millwright-*.service' systemd-journald.socket systemd-journald.service
mkdir -p /var/lib/filled
for turn in 1 2 3; do
    for size in 1G 32M 1M; do
        number=0
        while fallocate -l $size /var/lib/filled/$turn-$size-$number; do number=$((number + 1)); done
    done
    dd if=/dev/zero of=/var/lib/filled/$turn bs=4k
    sync
done
df --output=avail /var | tail -1"""


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


def test_a_box_whose_disk_is_full_to_the_last_block_starts(box: Box) -> None:
    """After a power cut, too. It is healthy, as it judges what comes in, and tells what it lacks."""
    machine = box.copy("full")
    with machine.running() as running:
        up(running)
        assert running.check(FILL, FEW_MINUTES).split()[-1] == "0"
    with machine.running() as running:
        running.wait_probe()
        assert state(running) in ("running", "degraded")
        has_its_data(running, journal=False)
        running.check(f"systemctl is-active {' '.join(SERVICES)}")
        wanting = _without_room(running)
        vault_is_open(running)
        assert "fail state folder: the disk is full." in _doctor(running)
        running.check("rm -r /var/lib/filled; sync")
        for unit in wanting:
            running.check(f"systemctl restart {unit}")
        vault_is_open(running)
        said = _doctor(running)
        assert "ok   state folder:" in said, said
        assert "record trouble" not in said, said
        assert state(running) == "running"
        running.shut_down()


def _without_room(running: Running) -> list[str]:
    """Units that systemd itself had no room for, to give them a /var/tmp of their own: none of the services, which are
    tried again. Nothing else has failed."""
    failed = running.check("systemctl --failed --no-legend --plain").splitlines()
    units = [line.split()[0] for line in failed]
    for unit in units:
        assert running.check(f"systemctl show -P Result {unit}").strip() == "resources", failed
    assert not set(units) & set(SERVICES), failed
    return units


def _doctor(running: Running) -> str:
    """What it says; it ends with 1 where it has found something."""
    return running.run("millwright doctor", FEW_MINUTES).text
