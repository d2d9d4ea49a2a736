"""The power is cut while an update is written and tried: at any moment a whole system starts afterwards."""

import os
import random
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.image.boxes import FEW_MINUTES, NEW, OLD, Box, give_witness, stage, version, with_stick
from tools.imaging.machine import Machine

CUTS = int(os.environ.get("MILLWRIGHT_POWER_CUTS", "2"))
SEED = int(os.environ.get("MILLWRIGHT_POWER_SEED", "0")) or time.time_ns() % 1_000_000
SPAN_S = 240.0  # of writing, restarting, and most of the first boot of the new system


def test_power_cuts_leave_a_system_that_starts(box: Box, staged: Path) -> None:
    dice = random.Random(SEED)
    print(f"\nMILLWRIGHT_POWER_SEED={SEED}")
    machine = with_stick(box.copy("cut"), staged)
    for number in range(CUTS):
        moment = dice.uniform(0, SPAN_S)
        what = _cut(machine, moment)
        print(f"cut {number + 1} of {CUTS} after {moment:.0f} s: {what}", flush=True)
        if what != OLD:  # nothing is left to be updated
            machine = with_stick(box.copy("cut"), staged)


def _cut(machine: Machine, moment: float) -> str:
    """The version that stands afterwards."""
    with machine.running() as running:
        running.wait_probe()
        give_witness(running)
        stage(running)
        update = f"/usr/lib/systemd/systemd-sysupdate --verify=no update {NEW} && systemctl reboot"
        running.check(f"nohup sh -c '{update}' >/dev/null 2>&1 &")
        with suppress(subprocess.TimeoutExpired):
            running.process.wait(moment)
        running.kill()
    with machine.running() as running:
        running.wait_probe()
        running.check("veritysetup status root | grep -q verified")
        assert running.run("systemctl is-system-running --wait", FEW_MINUTES).text.strip() == "running"
        assert running.check("cat /var/lib/millwright/os/witness").strip() == "kept"
        found = version(running)
        assert found in (OLD, NEW)
        running.shut_down()
        return found
