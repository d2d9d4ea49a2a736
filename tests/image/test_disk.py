"""The disk in other hands, a box that lost its TPM, and one that never had any: what opens the data, what is told."""

import re
from dataclasses import replace
from pathlib import Path

from tests.image.boxes import FEW_MINUTES, Box, recovery_key, up
from tools.imaging import releasing
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

ASKED = r"(?i)(please enter|passphrase|recovery key).*(millwright-data|data)"
DATA = "/dev/disk/by-partlabel/millwright-data"
BOX = ("-uuid", "8c1d5e4a-6f0b-4d27-9a63-51e20c7fb9d4", "-smbios", "type=1,product=Mini,serial=PF3KT9QW71")
OTHER = ("-uuid", "1f2e3d4c-5b6a-4978-8695-a4b3c2d1e0f9", "-smbios", "type=1,product=Mini,serial=ZX81QQ40PK")


def test_another_tpm_opens_it_once_the_recovery_key_was_typed(box: Box) -> None:
    machine = replace(box.copy("foreign"), tpm="another")
    (machine.folder / "another").mkdir()
    with machine.running() as running:
        _opened_by_recovery_key(running, "the TPM does not open the data", box.recovery_key)
        assert "systemd-tpm2" in running.check(f"cryptsetup luksDump {DATA}")
    with machine.running() as running:
        _opens_by_itself(running)
    with replace(machine, tpm="tpm").running() as running:
        running.wait_for("the TPM does not open the data", FEW_MINUTES)


def test_without_a_tpm_the_recovery_key_opens_it_each_time(box: Box) -> None:
    """Never in a weaker way than it was closed."""
    machine = replace(box.copy("foreign"), tpm="")
    with machine.running() as running:
        _opened_by_recovery_key(running, "the machine has none", box.recovery_key)
        assert "it asks for the recovery key at its next start, too" in running.console()
        assert "millwright-fingerprint" not in running.check(f"cryptsetup luksDump {DATA}")


def test_a_box_without_a_tpm_opens_by_its_parts_and_no_other_box_does(where: Places, old: Path) -> None:
    machine = Machine(where, where.trials / "parts-bound", tpm="", watchdog="", extra=BOX)
    machine.prepare(releasing.raw_image(old))
    with machine.running() as running:
        running.wait_probe()
        assert running.run("systemctl is-system-running --wait", FEW_MINUTES).text.strip() == "running"
        running.wait_for("does not protect from: the whole box, stolen", 60)
        assert "open by fingerprint" in running.check("millwright health --timeout 300", FEW_MINUTES)
        running.check("lsmod | grep softdog; systemctl show -p WatchdogDevice | grep /dev/watchdog0")
        assert re.search("does not +the whole box, stolen", running.check("millwright vault status"))
        unseen = recovery_key(running)
        running.check("touch /var/lib/etc/recovery-key-unseen")  # as where the power is cut before it is shown
        running.shut_down()
    with machine.running() as running:
        _opens_by_itself(running)
        key = recovery_key(running)
        running.check("! test -e /var/lib/etc/recovery-key-unseen")
        running.shut_down()
    with replace(machine, extra=OTHER).running() as running:
        _opened_by_recovery_key(running, "bound to the parts of another box", key, wrong=unseen)
    with replace(machine, extra=OTHER).running() as running:
        _opens_by_itself(running)


def _opens_by_itself(running: Running) -> None:
    up(running)
    assert not re.search(ASKED, running.console())


def _opened_by_recovery_key(running: Running, told: str, key: str, wrong: str = "not-the-key") -> None:
    """Which leaves no trace of itself. The power is cut behind it: what was bound stays bound."""
    running.wait_for(told, FEW_MINUTES)
    running.wait_for(ASKED, FEW_MINUTES)
    running.type(f"{wrong}\r")
    running.wait_for(ASKED, FEW_MINUTES, len(running.console()))
    running.type(f"{key.upper()}\r")
    running.wait_probe()
    assert running.check("ls /var/lib/millwright/vault/vault.1")
    assert running.run("ls /run/millwright-unlock").code != 0
