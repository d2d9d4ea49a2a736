"""The built image in a machine of its own: only `tools/image test` runs these tests, each of which takes minutes."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.boxes import EPOCH, NEW, OLD, Box, set_up
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


@pytest.fixture(scope="session")
def box(where: Places, old: Path) -> Box:
    machine = Machine(where, where.trials / "box")
    machine.prepare(releasing.raw_image(old))
    with machine.running() as running:
        return set_up(running)


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
