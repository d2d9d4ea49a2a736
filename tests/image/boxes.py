"""A box that was set up, copies of it to be broken, and how an update is written and tried on them."""

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tools.imaging.machine import Machine, MachineError, Running

OLD, NEW = "1.0", "1.1"
EPOCH = 1_763_600_000  # of the images that are tried: the same tree gives the same image, which is then kept
STAGED = "/var/lib/millwright/os/staged"
FEW_MINUTES = 900.0
LONG = 3000.0  # three boots that fail, and one that does not
KEPT = "recovery.key"
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
        for part in (self.machine.disk, "vars.fd", "tpm"):
            subprocess.run(["cp", "-r", "--sparse=always", str(self.machine.folder / part), str(folder)], check=True)
        return replace(self.machine, folder=folder)


def put_by(running: Running) -> None:
    """Shut down, and kept for tests of this image."""
    (running.machine.folder / KEPT).write_text(recovery_key(running))
    running.shut_down()


def found(machine: Machine) -> Box | None:
    """One that was put by."""
    kept = machine.folder / KEPT
    return Box(machine, kept.read_text()) if kept.exists() else None


def recovery_key(running: Running) -> str:
    """Of the disk, as the console showed it."""
    return running.wait_for(rf"\b({MODHEX}(?:-{MODHEX}){{7}})\b", 120)[1]


def with_stick(machine: Machine, folder: Path) -> Machine:
    """With the files of `folder` on a second disk: an ext4 file system that is made without mounting."""
    disk = machine.folder / "stick.raw"
    subprocess.run(["truncate", "-s", "3G", str(disk)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "parts", "-d", str(folder), str(disk)], check=True)
    drive = f"if=none,id=stick,format=raw,readonly=on,file={disk}"
    return replace(machine, extra=("-drive", drive, "-device", "virtio-blk-pci,drive=stick"))


def write(running: Running, tries: int = 3) -> None:
    """As `millwright update os apply` does once it has verified all parts: into the slot that does not run. Fewer
    `tries` than it is given save minutes."""
    stage(running)
    running.check(f"/usr/lib/systemd/systemd-sysupdate --verify=no update {NEW}", FEW_MINUTES)
    entries = running.check("ls $(bootctl --print-boot-path)/EFI/Linux")
    assert f"millwright_{NEW}+3-0.efi" in entries.split(), entries
    if tries != 3:
        folder = "$(bootctl --print-boot-path)/EFI/Linux"
        running.check(f"mv {folder}/millwright_{NEW}+3-0.efi {folder}/millwright_{NEW}+{tries}-0.efi; sync")


def stage(running: Running) -> None:
    """What would be fetched lies on the stick."""
    running.check(f"mount -o ro /dev/disk/by-label/parts {STAGED}")


def restarted(running: Running, wanted: str) -> None:
    """Until the system `wanted` is up: firmware, boot loader and a system that is given up may come before it."""
    start = len(running.console())
    running.run("nohup systemctl reboot >/dev/null 2>&1 &", 60)
    running.wait_for("BdsDxe: starting", FEW_MINUTES, start)
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        running.wait_probe(LONG)
        with suppress(MachineError):  # it may be one that restarts while it is asked
            if version(running) == wanted:
                running.run("systemctl is-system-running --wait", FEW_MINUTES)
                return
            running.wait_for("BdsDxe: starting", FEW_MINUTES, len(running.console()))
    raise MachineError(f"{wanted} did not come up")


def version(running: Running) -> str:
    return running.check(". /etc/os-release; echo $IMAGE_VERSION").strip()


def give_witness(running: Running) -> str:
    """Something to lose; and who the box is."""
    running.check("echo kept >/var/lib/millwright/os/witness; sync")
    return running.check("cat /etc/machine-id")


def stands_on_old(running: Running) -> None:
    """The old system runs, whole; the new one was not taken for good."""
    assert version(running) == OLD
    assert running.run("systemctl is-system-running").text.strip() == "running"
    assert running.check("cat /var/lib/millwright/os/witness").strip() == "kept"
    entries = running.check("ls $(bootctl --print-boot-path)/EFI/Linux").split()
    assert f"millwright_{OLD}.efi" in entries
    assert f"millwright_{NEW}.efi" not in entries, "it was blessed"
