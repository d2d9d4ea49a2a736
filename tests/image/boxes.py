"""A box that was set up, copies of it to be broken, and how an update is applied and tried on them."""

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tools.imaging.machine import Machine, MachineError, Running

OLD, NEW = "1.0", "1.1"
EPOCH = 1_763_600_000  # of the images that are tried: the same tree gives the same image, which is then kept
FEW_MINUTES = 900.0
LONG = 3000.0  # three boots that fail, and one that does not
KEPT = "recovery.key"
RECORDING = "writes.log"  # of the disk, beside it
UPDATES = "/run/updates"
ENTRIES = "$(bootctl --print-boot-path)/EFI/Linux"
MODHEX = "[cbdefghijklnrtuv]{8}"


@dataclass(frozen=True)
class Box:
    """It was set up, and runs on no machine at present; tests work on copies of it."""

    machine: Machine
    recovery_key: str

    def copy(self, name: str) -> Machine:
        folder = self.machine.folder.with_name(name)
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        folder.mkdir()
        for part in (self.machine.disk, "vars.fd", "tpm", KEPT):
            command = ["cp", "-r", "--reflink=auto", "--sparse=always", str(self.machine.folder / part), str(folder)]
            subprocess.run(command, check=True)
        return replace(self.machine, folder=folder, extra=(), recording="")


def put_by(running: Running) -> None:
    """Shut down, and kept for tests of this image."""
    key = recovery_key(running)
    running.shut_down()
    (running.machine.folder / KEPT).write_text(key)


def found(machine: Machine) -> Box | None:
    """One that was put by."""
    kept = machine.folder / KEPT
    return Box(replace(machine, extra=()), kept.read_text()) if kept.exists() else None


def recovery_key(running: Running) -> str:
    """Of the disk, as the console showed it."""
    return running.wait_for(rf"\b({MODHEX}(?:-{MODHEX}){{7}})\b", 120)[1]


def with_stick(machine: Machine, stick: Path, name: str = "stick", *, writable: bool = False) -> Machine:
    """With this disk on its USB, so to say."""
    drive = f"if=none,id={name},format=raw,readonly={'off' if writable else 'on'},file={stick}"
    return replace(machine, extra=(*machine.extra, "-drive", drive, "-device", f"virtio-blk-pci,drive={name}"))


def up(running: Running) -> None:
    """The system has started, all of it, with its data."""
    running.wait_probe()
    assert state(running) == "running", running.run("systemctl --failed --no-legend --plain").text
    has_its_data(running)


def state(running: Running) -> str:
    return running.run("systemctl is-system-running --wait", FEW_MINUTES).text.strip()


def has_its_data(running: Running, *, journal: bool = True) -> None:
    """/var is the opened disk and has the vault, and the journal of this start, once services run."""
    said = running.check("grep ' /var ' /proc/mounts; systemctl show var.mount -p ActiveState -p Result")
    assert "/dev/mapper/data /var ext4" in said, said
    assert "ActiveState=active" in said, said
    running.check("test -s /var/lib/millwright/vault/vault.1")
    if journal:  # of a boot without /var it is in memory alone
        running.check("journalctl --directory=/var/log/journal -b -u millwright-vault.service -n1 --no-pager | grep .")


def mount_updates(running: Running) -> None:
    running.check(f"mkdir -p {UPDATES}; mount -o ro /dev/disk/by-label/updates {UPDATES}")


def applied(box: Box, stick: Path) -> Box:
    """Of `box`, with the new system beside the old, waiting for a restart. Kept, as it takes minutes, and recorded."""
    kept = found(replace(box.machine, folder=box.machine.folder.with_name("applied")))
    made = None if kept is None else (kept.machine.folder / KEPT).stat().st_mtime
    if kept and made and made > max(stick.stat().st_mtime, (box.machine.folder / KEPT).stat().st_mtime):
        return kept
    machine = replace(with_stick(box.copy("applied"), stick), recording=RECORDING)
    (machine.folder / KEPT).unlink()
    with machine.running() as running:
        up(running)
        give_witness(running)
        mount_updates(running)
        plan = running.check(f"millwright update os plan --from {UPDATES}", FEW_MINUTES)
        for line in (f"{OLD} -> {NEW}", "it will open", "comes back by itself", "Nothing was done."):
            assert line in plan, plan
        said = running.check(f"millwright update os apply --from {UPDATES}", LONG)
        assert f"{NEW} is waiting" in said, said
        print(plan, said)
        assert f"millwright_{NEW}+3-0.efi" in entries(running)
        running.shut_down()
    (machine.folder / KEPT).write_text(box.recovery_key)
    kept = found(machine)
    assert kept is not None
    return kept


def comes_up(running: Running, wanted: str) -> None:
    """Until the system `wanted` is up: firmware, boot loader and a system that is given up may come before it."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        running.wait_probe(LONG)
        with suppress(MachineError):  # it may be one that restarts while it is asked
            if version(running) == wanted:
                break
            running.wait_for("BdsDxe: starting", FEW_MINUTES, len(running.console()))
    else:
        raise MachineError(f"{wanted} did not come up")
    up(running)


def version(running: Running) -> str:
    return running.check(". /etc/os-release; echo $IMAGE_VERSION").strip()


def entries(running: Running) -> list[str]:
    return running.check(f"ls {ENTRIES}").split()


def give_witness(running: Running) -> None:
    """Something to lose; and who the box is."""
    running.check("cat /etc/machine-id >/var/lib/millwright/os/witness; sync")


def witness_stands(running: Running) -> None:
    running.check("cmp /etc/machine-id /var/lib/millwright/os/witness")


def vault_is_open(running: Running) -> None:
    said = running.check("millwright health --timeout 300", FEW_MINUTES)
    assert "open by tpm" in said, said


def stands_on_old(running: Running) -> None:
    """The old system runs, whole; the new one was not taken for good, and it is remembered."""
    assert version(running) == OLD
    witness_stands(running)
    vault_is_open(running)
    there = entries(running)
    assert f"millwright_{OLD}.efi" in there
    assert f"millwright_{NEW}.efi" not in there, "it was blessed"
    said = running.check("millwright update os status")
    assert f"The last one, {NEW}, was rolled-back" in said, said
