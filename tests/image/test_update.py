"""From one system to the next and back: what is good is blessed, what is broken ends on the system before it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.image.boxes import NEW, OLD, Box, give_witness, restarted, stands_on_old, with_stick, write
from tools.imaging import builder
from tools.imaging.places import Places

Spoil = Callable[[Places, Path], None]


def test_a_good_update_is_blessed_and_the_data_survive(box: Box, staged: Path) -> None:
    with with_stick(box.copy("good"), staged).running() as running:
        running.wait_probe()
        machine_id = give_witness(running)
        write(running)
        restarted(running, NEW)
        running.check("systemctl is-active boot-complete.target systemd-bless-boot.service")
        assert "open by tpm" in running.check("millwright health --timeout 300", 600)
        entries = running.check("ls $(bootctl --print-boot-path)/EFI/Linux").split()
        assert sorted(entries) == [f"millwright_{OLD}.efi", f"millwright_{NEW}.efi"]
        assert running.check("cat /var/lib/millwright/os/witness").strip() == "kept"
        assert running.check("cat /etc/machine-id") == machine_id
        assert running.run("systemctl is-system-running").text.strip() == "running"


def _failing_health(where: Places, folder: Path) -> None:
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
    pcr = f"--pcr-private-key={where.keys}/pcr.key --pcr-certificate={where.keys}/pcr.crt --pcr-banks=sha256"
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


@pytest.mark.parametrize("spoil", [_unsigned, _tampered, _panic, _rotten, _failing_health])
def test_a_broken_update_ends_on_the_old_system(box: Box, staged: Path, where: Places, spoil: Spoil) -> None:
    spoil(where, staged)
    with with_stick(box.copy("broken"), staged).running() as running:
        running.wait_probe()
        give_witness(running)
        write(running, tries=1)
        restarted(running, OLD)
        stands_on_old(running)
        if spoil in (_unsigned, _tampered):
            # The trap: the firmware refused it and took the old one, and the variable still names what was counted.
            said = running.check("journalctl -b -u systemd-bless-boot --no-pager")
            assert re.search(r"was counted, and .* was booted", said), said
