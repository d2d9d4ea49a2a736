"""The built image in a machine of its own: only `tools/image test` runs these tests, each of which takes minutes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tools.imaging import building, builder, keys, places, releasing
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

if os.environ.get("MILLWRIGHT_IMAGE_TESTS") != "yes":
    collect_ignore_glob = ["test_*.py"]

OLD, NEW = "1.0", "1.1"
EPOCH = 1_763_600_000
STAGED = "/var/lib/millwright/os/staged"


@pytest.fixture(scope="session")
def where() -> Places:
    return places.find()


def _built(where: Places, version: str) -> Path:
    """Of the tree as it is; built again only where it changed since."""
    builder.make(where)
    keys.make(where)
    return building.renew(where, building.order("dev", version, EPOCH))


@pytest.fixture(scope="session")
def old(where: Places) -> Path:
    return _built(where, OLD)


@pytest.fixture(scope="session")
def new(where: Places) -> Path:
    return _built(where, NEW)


@dataclass(frozen=True)
class Box:
    """A box that was started once and shut down: its machine, and what it showed its owner."""

    machine: Machine
    recovery_key: str

    def copy(self, name: str) -> Machine:
        """Another machine with the same disk, firmware and TPM."""
        folder = self.machine.folder.with_name(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for part in (self.machine.disk, "vars.fd", "tpm"):
            subprocess.run(
                ["cp", "-r", "--sparse=always", "--reflink=auto", self.machine.folder / part, folder / part], check=True
            )
        return replace(self.machine, folder=folder)


@pytest.fixture(scope="session")
def first_boot(where: Places, old: Path) -> Iterator[Running]:
    """From the factory: the machine as it runs for the first time."""
    machine = Machine(where, where.trials / "first")
    machine.prepare(releasing.raw_image(old))
    with machine.running() as running:
        running.wait_probe()
        yield running
