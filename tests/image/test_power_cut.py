"""The power is cut while an update is written, tried and blessed: at any moment a whole system starts afterwards."""

import os
import random
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.image.boxes import (
    NEW,
    OLD,
    UPDATES,
    Box,
    has_its_data,
    mount_updates,
    state,
    vault_is_open,
    version,
    with_stick,
)
from tools.imaging.machine import Machine, Running

CUTS = int(os.environ.get("MILLWRIGHT_POWER_CUTS", "2"))
SEED = int(os.environ.get("MILLWRIGHT_POWER_SEED", "0")) or time.time_ns() % 1_000_000
STARTING_S = 200.0  # firmware, boot loader, the initrd, and the trial to its blessing
UPDATING_S = 600.0  # fetching, rebuilding, checking, writing, shutting down, and some of the trial


def test_power_cuts_leave_a_system_that_starts(box: Box, applied: Box, stick: Path) -> None:
    dice = random.Random(SEED)
    print(f"\nMILLWRIGHT_POWER_SEED={SEED}", flush=True)
    left = CUTS
    while left:
        if dice.random() < 0.5:
            machine = with_stick(applied.copy("cut"), stick)
            left -= _cut_its_start(machine, dice.uniform(0, STARTING_S))
        else:
            machine = with_stick(box.copy("cut"), stick)
        while not _is_whole_and_done(machine) and left:
            left -= _cut_its_update(machine, dice.uniform(0, UPDATING_S))


def _cut_its_start(machine: Machine, moment: float) -> int:
    """Of the new system: its trial."""
    with machine.running() as running:
        _cut(running, moment)
    print(f"cut {moment:.0f} s after power on: the trial", flush=True)
    return 1


def _cut_its_update(machine: Machine, moment: float) -> int:
    with machine.running() as running:
        running.wait_probe()
        step = running.check("millwright update os status | grep -F 1.1 | tail -1").strip()
        mount_updates(running)
        running.check(f"nohup millwright update os apply --again --restart --from {UPDATES} >/dev/null 2>&1 &")
        _cut(running, moment)
    print(f"cut {moment:.0f} s into the update; it began with: {step}", flush=True)
    return 1


def _cut(running: Running, moment: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        running.process.wait(moment)
    running.kill()


def _is_whole_and_done(machine: Machine) -> bool:
    """A whole system starts, with its data and its vault; whether it is the new one, blessed."""
    with machine.running() as running:
        running.wait_probe()
        assert state(running) == "running", running.run("systemctl --failed --no-legend --plain").text
        running.check("veritysetup status root | grep -q verified")
        has_its_data(running)
        vault_is_open(running)
        found = version(running)
        assert found in (OLD, NEW)
        said = running.check("millwright update os status")
        print(f"  {found} came up whole; {said.splitlines()[-1]}", flush=True)
        running.shut_down()
    return found == NEW
