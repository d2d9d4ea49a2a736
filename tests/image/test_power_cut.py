"""The power is cut while an update is written, tried and blessed: at any moment a whole system starts afterwards."""

import json
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
    entries,
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
STARTING_S = 200.0  # firmware, boot loader, the initrd, and some of the trial
RESTARTING_S = 250.0  # with the end of the system before it
BLESSING_S = 150.0  # what is left of a trial when its system answers
UPDATING_S = 500.0  # fetching, rebuilding, checking, writing


def test_power_cuts_leave_a_system_that_starts(box: Box, applied: Box, stick: Path) -> None:
    """After each cut a system starts, verified and with its data, and goes on with the update; that is cut again, until
    the new system is blessed or given up. Then all of it is looked over, and another box begins."""
    dice = random.Random(SEED)
    print(f"\nMILLWRIGHT_POWER_SEED={SEED}", flush=True)
    left = CUTS
    while left > 0:
        written = dice.random() < 0.5
        machine = with_stick((applied if written else box).copy(f"cut-{SEED}"), stick)
        if written:
            left -= _cut_its_start(machine, dice)
        while _goes_on(machine, dice, left):
            left -= 1


def _cut_its_start(machine: Machine, dice: random.Random) -> int:
    """Of the new system, from power on."""
    with machine.running() as running:
        _cut(running, dice.uniform(0, STARTING_S), "power on")
    return 1


def _goes_on(machine: Machine, dice: random.Random, left: int) -> bool:
    """It starts; whether it was cut again."""
    with machine.running() as running:
        running.wait_probe()
        running.check("veritysetup status root | grep -q verified")
        has_its_data(running, journal=False)
        runs, there = version(running), set(entries(running))
        assert runs in (OLD, NEW)
        print(f"  {runs} starts; {', '.join(sorted(there))}", flush=True)
        ended = {f"millwright_{NEW}.efi", f"millwright_{NEW}+0-3.efi"} & there
        if ended or left <= 0:
            _is_whole(running, bool(ended))
            running.shut_down()
            return False
        if runs == NEW:
            _cut(running, dice.uniform(0, BLESSING_S), "the trial answered")
        elif f"millwright_{NEW}" in "".join(there):
            running.run("nohup systemctl reboot >/dev/null 2>&1 &")
            _cut(running, dice.uniform(0, RESTARTING_S), "the restart")
        else:
            mount_updates(running)
            running.check(f"nohup millwright update os apply --restart --from {UPDATES} >/dev/null 2>&1 &")
            _cut(running, dice.uniform(0, UPDATING_S), "the update")
        return True


def _cut(running: Running, moment: float, began: str) -> None:
    with suppress(subprocess.TimeoutExpired):
        running.process.wait(moment)
    running.kill()
    print(f"cut {moment:.0f} s after {began}", flush=True)


def _is_whole(running: Running, ended: bool) -> None:
    """`ended`: blessed or given up, which the book must know, too."""
    assert state(running) == "running", running.run("systemctl --failed --no-legend --plain").text
    has_its_data(running)
    vault_is_open(running)
    found = json.loads(running.check("millwright update os status --json"))
    active, history = found["book"]["active"], found["book"]["history"]
    assert active is None or not ended, active
    steps = [one["trail"][-1]["step"] for one in (*history, *([active] if active else []))]
    print(f"  whole; {', '.join(steps)}", flush=True)
