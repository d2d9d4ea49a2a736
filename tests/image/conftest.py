"""The built image in a machine of its own: only `tools/image test` runs these tests, each of which takes minutes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image import boxes, offers
from tests.image.boxes import EPOCH, NEW, OLD, Box, found, put_by, up
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
            up(running)
            put_by(running)
        kept = found(machine)
    assert kept is not None
    return kept


@pytest.fixture(scope="session")
def stick(where: Places, old: Path, new: Path) -> Path:
    """A disk with the repository in which both systems are."""
    return offers.stick(where, old, new)


@pytest.fixture(scope="session")
def strange(where: Places, stick: Path) -> Path:
    """A disk with repositories that nothing is taken from."""
    return offers.strange(where, stick)


@pytest.fixture(scope="session")
def applied(box: Box, stick: Path) -> Box:
    """With the new system beside the old, waiting for a restart."""
    return boxes.applied(box, stick)
