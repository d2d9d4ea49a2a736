"""The built image in a machine of its own: only `tools/image test` runs these tests, each of which takes minutes."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.boxes import EPOCH, FEW_MINUTES, NEW, OLD, Box, found, put_by
from tools.imaging import builder, building, keys, places, releasing
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

if os.environ.get("MILLWRIGHT_IMAGE_TESTS") != "yes":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def where() -> Places:
    return places.find()


def _built(where: Places, version: str) -> Path:
    builder.make(where)
    keys.make(where)
    return building.renew(where, building.order("dev", version, EPOCH))


@pytest.fixture(scope="session")
def old(where: Places) -> Path:
    return _built(where, OLD)


@pytest.fixture(scope="session")
def new(where: Places) -> Path:
    return _built(where, NEW)


@pytest.fixture(scope="module")
def first_boot(where: Places, old: Path) -> Iterator[Running]:
    """From the factory: the machine as it runs for the first time."""
    machine = Machine(where, where.trials / "first")
    machine.prepare(releasing.raw_image(old))
    with machine.running() as running:
        running.wait_probe()
        yield running
        put_by(running)


@pytest.fixture(scope="session")
def box(where: Places, old: Path) -> Box:
    """That of the test of the first boot, where it ran on this image; else another one."""
    machine = Machine(where, where.trials / "first")
    if machine.is_older_than(old) or not (kept := found(machine)):
        machine.prepare(releasing.raw_image(old))
        with machine.running() as running:
            running.wait_probe()
            running.run("systemctl is-system-running --wait", FEW_MINUTES)
            put_by(running)
        kept = found(machine)
    assert kept is not None
    return kept


@pytest.fixture
def staged(where: Places, new: Path) -> Iterator[Path]:
    """The parts of the new system, for a test to break."""
    folder = where.trials / "parts"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir(parents=True)
    for part in releasing.parts(new):
        subprocess.run(["cp", "--sparse=always", str(part), str(folder)], check=True)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)
