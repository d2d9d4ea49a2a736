"""The disk in other hands, and a box that lost its TPM's trust: locked, and opened by who has the recovery key."""

import shutil
from dataclasses import replace

from tests.image.boxes import FEW_MINUTES, Box

ASKED = r"(?i)(please enter|passphrase|recovery key).*(millwright-data|data)"


def test_another_tpm_does_not_open_it_and_the_recovery_key_does(box: Box) -> None:
    machine = replace(box.copy("foreign"), tpm="another")
    (machine.folder / "another").mkdir()
    with machine.running() as running:
        running.wait_for(ASKED, FEW_MINUTES)
        running.type("not-the-key\r")
        running.wait_for(ASKED, FEW_MINUTES, len(running.console()))
        running.type(f"{box.recovery_key}\r")
        running.wait_probe()
        assert running.check("ls /var/lib/millwright/vault/vault.1")


def test_a_machine_without_a_tpm_says_so(box: Box) -> None:
    machine = replace(box.copy("without"), tpm="")
    shutil.copyfile(machine.where.builder / "usr/share/OVMF/OVMF_VARS_4M.fd", machine.folder / "vars.fd")
    with machine.running() as running:
        running.wait_for(ASKED, FEW_MINUTES)
