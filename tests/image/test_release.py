"""The profile that boxes get: no way in but what a seed opens, and nothing taken from whoever starts the machine."""

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.image import surgery
from tests.image.boxes import EPOCH, FEW_MINUTES, MODHEX, OLD
from tools.imaging import builder, building, keys, releasing
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

SEED = """host_name = "press-4"

[ssh]
keys = ["{key}"]
"""


@dataclass
class Administrator:
    """With the key that the seed brought."""

    running: Running
    key: Path

    def run(self, command: str) -> "subprocess.CompletedProcess[str]":
        known = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=20")
        to = ("-i", str(self.key), "-p", str(self.running.port), "root@127.0.0.1")
        command_line = ["ssh", "-q", "-o", "BatchMode=yes", *known, *to, command]
        return subprocess.run(command_line, capture_output=True, text=True, timeout=FEW_MINUTES, check=False)

    def check(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def box(where: Places) -> Iterator[Administrator]:
    """A release from the factory, with a seed; the machine offers it the probe that `dev` takes."""
    builder.make(where)
    keys.make(where)
    image = building.renew(where, building.order("release", OLD, EPOCH))
    machine = Machine(where, where.trials / "release", opened=22, extra=("-device", "VGA"))
    machine.prepare(releasing.raw_image(image))
    key = machine.folder / "administrator"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    surgery.sow(machine, SEED.format(key=key.with_suffix(".pub").read_text().strip()))
    with machine.running() as running:
        administrator = Administrator(running, key)
        end = time.monotonic() + FEW_MINUTES
        while administrator.run("true").returncode:
            assert time.monotonic() < end, "nobody answers ssh"
            time.sleep(5)
        yield administrator
        running.shut_down()


def test_it_starts_and_does_its_work(box: Administrator) -> None:
    assert box.check("systemctl is-system-running --wait").strip() == "running"
    assert box.check(". /etc/os-release; hostname; echo $IMAGE_VERSION").split() == ["press-4", OLD]
    assert "open by tpm" in box.check("millwright health --timeout 480")


def test_recovery_keys_are_on_the_screen(box: Administrator) -> None:
    """For whoever stands before it, and not on a serial line."""
    screen = box.check("cat /dev/vcs1")
    key = re.compile(rf"\b{MODHEX}(-{MODHEX}){{7}}\b")
    assert key.search(screen), screen
    assert not key.search(box.running.console())


def test_it_takes_nothing_from_whoever_starts_the_machine(box: Administrator) -> None:
    assert box.check("systemctl show -P LoadState probe.service").strip() == "not-found"
    assert box.run("ls /run/credentials/@system").returncode != 0
    words = box.check("cat /proc/cmdline")
    assert "systemd.import_credentials=no" in words
    assert "lockdown=confidentiality" in words or "lockdown=integrity" in words


def test_nobody_else_gets_in(box: Administrator) -> None:
    """No password, no shell on the screen, no port that was not asked for."""
    assert "publickey" in box.check(
        "/usr/sbin/sshd -T -f /usr/lib/millwright/image/sshd_config | grep -i authenticationm"
    )
    listening = box.check("ss -Htln | awk '{ print $4 }'").split()
    assert {one.rpartition(":")[2] for one in listening if not one.startswith(("127.", "[::1]"))} <= {"22", "8883"}
    assert box.check("grep -Ev '^[^:]+:[!*]' /etc/shadow || echo none").strip() == "none"
    assert box.run("systemctl is-active debug-shell.service").stdout.strip() == "inactive"
