"""A box that was set up starts again and again, after a power cut, too, on a machine with time and on one without: with
its data each time."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.image.boxes import Box, has_its_data, state, vault_is_open
from tools.imaging.machine import Machine

STARTS = int(os.environ.get("MILLWRIGHT_STARTS", "2"))
LONG = 2400.0
HOG = ["nice", "-n", "13", "sh", "-c", "while :; do :; done"]  # QEMU has 15: these take more than half of the time
UNITS = ("vault", "broker", "record", "detect", "update", "ingest")


@pytest.fixture(scope="module")
def machine(box: Box) -> Machine:
    return box.copy("starts")


@contextmanager
def _loaded(hogs: int) -> Iterator[None]:
    running = [subprocess.Popen(HOG) for _ in range(hogs)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


@pytest.mark.parametrize("number", range(STARTS))
def test_it_starts_with_its_data(machine: Machine, number: int) -> None:
    """Every second start is on a machine that has other work; of three the first ends with a power cut, so that the one
    after it shows what became of that."""
    with _loaded(2 * (number % 2)), machine.running() as running:
        running.wait_probe(LONG)
        assert state(running) == "running", running.run("systemctl --failed --no-legend --plain").text
        has_its_data(running)
        vault_is_open(running)
        mounted = int(running.check("systemctl show -P ActiveEnterTimestampMonotonic var.mount"))
        began = [
            int(running.check(f"systemctl show -P ExecMainStartTimestampMonotonic millwright-{name}.service"))
            for name in UNITS
        ]
        assert mounted < min(began)
        print(f"start {number + 1}: mounted at {mounted / 1e6:.0f} s, first service at {min(began) / 1e6:.0f} s")
        if number % 3:
            running.shut_down()
