"""From one system to the next and back: what is good is blessed, what is broken ends on the system before it."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tools.imaging import builder, releasing
from tools.imaging.machine import Machine, Running
from tools.imaging.places import Places

OLD, NEW = "1.0", "1.1"
STAGED = "/var/lib/millwright/os/staged"
FEW_MINUTES = 900.0
LONG = 3000.0  # three boots that fail, and one that does not


@dataclass(frozen=True)
class Box:
    """A machine that was set up once; tests work on copies of it."""

    machine: Machine

    def copy(self, name: str) -> Machine:
        folder = self.machine.folder.with_name(name)
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        folder.mkdir()
        for part in (self.machine.disk, "vars.fd", "tpm"):
            subprocess.run(["cp", "-r", "--sparse=always", str(self.machine.folder / part), str(folder)], check=True)
        return replace(self.machine, folder=folder)


@pytest.fixture(scope="module")
def box(where: Places, old: Path) -> Box:
    """Set up, with something to lose, and shut down."""
    machine = Machine(where, where.trials / "box")
    machine.prepare(releasing.raw_image(old))
    with machine.running() as running:
        running.wait_probe()
        running.check("systemctl is-system-running --wait", FEW_MINUTES)
        running.check("echo kept >/var/lib/millwright/os/witness; sync")
        (machine.folder / "recovery.key").write_text(recovery_key(running))
        (machine.folder / "machine-id").write_text(running.check("cat /etc/machine-id"))
        running.shut_down()
    return Box(machine)


def recovery_key(running: Running) -> str:
    return running.wait_for(r"\b([cbdefghijklnrtuv]{8}(?:-[cbdefghijklnrtuv]{8}){7})\b", 60)[1]


@pytest.fixture
def staged(where: Places, new: Path) -> Iterator[Path]:
    """The parts of the new system, for a test to break."""
    folder = where.trials / "parts"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir(parents=True)
    for part in releasing.parts(new):
        subprocess.run(["cp", "--sparse=always", str(part), str(folder)], check=True)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def stick(folder: Path, disk: Path) -> tuple[str, ...]:
    """QEMU's options for a second disk with the parts on it: an ext4 file system that is made without mounting."""
    disk.unlink(missing_ok=True)
    subprocess.run(["truncate", "-s", "3G", str(disk)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "parts", "-d", str(folder), str(disk)], check=True)
    drive = f"if=none,id=stick,format=raw,readonly=on,file={disk}"
    return ("-drive", drive, "-device", "virtio-blk-pci,drive=stick")


def write(running: Running) -> None:
    """As `millwright update os apply` does once it has verified all parts: into the slot that does not run."""
    running.check("mkdir -p /run/parts; mount -o ro /dev/disk/by-label/parts /run/parts")
    running.check(f"cp --sparse=always /run/parts/* {STAGED}/", FEW_MINUTES)
    running.check(f"/usr/lib/systemd/systemd-sysupdate --verify=no update {NEW}", FEW_MINUTES)
    entries = running.check("ls $(bootctl --print-boot-path)/EFI/Linux")
    assert f"millwright_{NEW}+3-0.efi" in entries.split(), entries


def restarted(running: Running) -> None:
    """Until a system is up again, whichever: firmware and boot loader may go round several times."""
    start = len(running.console())
    running.run("systemctl reboot; sleep 5", 60)
    running.wait_for("BdsDxe: starting", FEW_MINUTES, start)
    running.wait_probe(LONG)
    running.run("systemctl is-system-running --wait", FEW_MINUTES)


def version(running: Running) -> str:
    return running.check(". /etc/os-release; echo $IMAGE_VERSION").strip()


def stands_on_old(running: Running) -> None:
    """The old system runs, whole; the new one is not tried again."""
    assert version(running) == OLD
    assert running.run("systemctl is-system-running").text.strip() == "running"
    assert running.check("cat /var/lib/millwright/os/witness").strip() == "kept"
    entries = running.check("ls $(bootctl --print-boot-path)/EFI/Linux").split()
    assert f"millwright_{OLD}.efi" in entries
    assert f"millwright_{NEW}.efi" not in entries, "it was blessed"


def test_a_good_update_is_blessed_and_the_data_survive(box: Box, staged: Path) -> None:
    machine = box.copy("good")
    machine = replace(machine, extra=stick(staged, machine.folder / "stick.raw"))
    with machine.running() as running:
        running.wait_probe()
        write(running)
        restarted(running)
        assert version(running) == NEW
        running.check("systemctl is-active boot-complete.target systemd-bless-boot.service")
        entries = running.check("ls $(bootctl --print-boot-path)/EFI/Linux").split()
        assert sorted(entries) == [f"millwright_{OLD}.efi", f"millwright_{NEW}.efi"]
        assert running.check("cat /var/lib/millwright/os/witness").strip() == "kept"
        assert running.check("cat /etc/machine-id") == (box.machine.folder / "machine-id").read_text()
        assert running.run("systemctl is-system-running").text.strip() == "running"


def _no_vault_no_health(where: Places, folder: Path) -> None:
    _another_kernel_image(where, folder, "systemd.mask=millwright-detect.service")


def _panic(where: Places, folder: Path) -> None:
    _another_kernel_image(where, folder, "init=/usr/bin/false")


def _unsigned(where: Places, folder: Path) -> None:
    _another_kernel_image(where, folder, "", sign=False)


def _tampered(_where: Places, folder: Path) -> None:
    """One bit of the kernel."""
    image = next(folder.glob("*.efi"))
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)


def _rotten(_where: Places, folder: Path) -> None:
    """Bytes of the root file system that every start reads."""
    root = next(path for path in folder.glob("*.root-*.raw") if "verity" not in path.name)
    with root.open("r+b") as file:
        file.seek(1024)
        file.write(b"\0" * 4096)


def _another_kernel_image(where: Places, folder: Path, words: str, *, sign: bool = True) -> None:
    """The same kernel with other words on its command line."""
    image = next(folder.glob("*.efi"))
    key = f"--secureboot-private-key={where.keys}/secure-boot.key --secureboot-certificate={where.keys}/secure-boot.crt"
    pcr = f"--pcr-private-key={where.keys}/pcr.key --pcr-public-key={where.keys}/pcr.crt --pcr-banks=sha256"
    script = f"""set -eu
cd /tmp
for part in linux initrd cmdline osrel uname ucode; do
    objcopy --dump-section .$part=$part {image} /dev/null 2>/dev/null || :
done
extra=; [ ! -s ucode ] || extra="--microcode=ucode"
ukify build --linux=linux --initrd=initrd $extra --os-release=@osrel --uname="$(tr -d '\\0' <uname)" \\
    --cmdline="$(tr -d '\\0' <cmdline) {words}" {pcr} {key if sign else ""} --output={image}
"""
    builder.run(where, ["sh", "-c", script], where.cache / "ukify.log")


@pytest.mark.parametrize("spoil", [_unsigned, _tampered, _panic, _rotten, _no_vault_no_health])
def test_a_broken_update_ends_on_the_old_system(
    box: Box, staged: Path, where: Places, spoil: "type[object]"
) -> None:
    spoil(where, staged)  # type: ignore[call-arg]
    machine = box.copy("broken")
    machine = replace(machine, extra=stick(staged, machine.folder / "stick.raw"))
    with machine.running() as running:
        running.wait_probe()
        write(running)
        restarted(running)
        stands_on_old(running)


def test_an_older_entry_is_not_blessed_in_the_place_of_a_refused_one(box: Box, staged: Path, where: Places) -> None:
    """The trap: firmware refuses the new kernel, the old one runs, and the variable still names the new one."""
    _unsigned(where, staged)
    machine = box.copy("trap")
    machine = replace(machine, extra=stick(staged, machine.folder / "stick.raw"))
    with machine.running() as running:
        running.wait_probe()
        write(running)
        restarted(running)
        assert version(running) == OLD
        said = running.check("journalctl -b -u systemd-bless-boot --no-pager")
        assert re.search(r"was counted, and .* was booted", said), said
