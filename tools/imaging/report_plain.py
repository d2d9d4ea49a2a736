"""Plain Debian, as one sets it up by hand for the same work: what the image is put beside.

The installer's base system, Debian's kernel, an ssh server, mosquitto and Python, on one ext4 partition; started by
Debian's signed boot loader, with the Secure Boot keys that a PC comes with.
"""

import shutil
from pathlib import Path

from tools.imaging import builder
from tools.imaging.machine import Machine
from tools.imaging.places import Places

PACKAGES = (
    "linux-image-amd64",
    "grub-efi-amd64-signed",
    "shim-signed",
    "systemd-sysv",
    "systemd-timesyncd",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "mosquitto",
    "python3",
)
SIZE_GB = 12  # of the disk, as the image's
_LABEL = "plain"
_COMMAND_LINE = f"root=LABEL={_LABEL} ro quiet console=tty0 console=ttyS0"
_FILES = {
    "etc/hostname": "plain\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 plain\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/fstab": f"LABEL={_LABEL} / ext4 errors=remount-ro 0 1\nLABEL=ESP /boot/efi vfat umask=0077 0 1\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\n\nallow-hotplug enp0s2\niface enp0s2 inet dhcp\n",
    "boot/grub/grub.cfg": f"linux /vmlinuz {_COMMAND_LINE}\ninitrd /initrd.img\nboot\n",
    "boot/efi/EFI/debian/grub.cfg": (
        f"search --no-floppy --label {_LABEL} --set=root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
    ),
}
_ESP = {
    "usr/lib/shim/shimx64.efi.signed": "boot/efi/EFI/BOOT/BOOTX64.EFI",
    "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed": "boot/efi/EFI/BOOT/grubx64.efi",
}
_PARTITIONS = {
    "10-esp": "Type=esp\nLabel=ESP\nFormat=vfat\nSizeMinBytes=512M\nSizeMaxBytes=512M\nCopyFiles=/boot/efi:/\n",
    "20-root": f"Type=root\nLabel={_LABEL}\nFormat=ext4\nCopyFiles=/\nCopyFiles=/boot\nExcludeFilesTarget=/boot/efi/\n",
}


def make(where: Places) -> Path:
    """Its disk. Made once, then kept. BuilderError."""
    disk = where.cache / "plain.raw"
    if disk.exists():
        return disk
    print("image: making a plain Debian to stand beside", flush=True)
    tree = where.cache / "plain"
    builder.debian(where, tree, "important", PACKAGES)
    for name, text in _FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    for source, target in _ESP.items():
        (tree / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / source, tree / target)
    _lay_out(where, tree, disk)
    shutil.rmtree(tree)
    return disk


def _lay_out(where: Places, tree: Path, disk: Path) -> None:
    definitions = where.cache / "plain.repart"
    definitions.mkdir(exist_ok=True)
    for name, text in _PARTITIONS.items():
        (definitions / f"{name}.conf").write_text(f"[Partition]\n{text}")
    new = disk.with_suffix(".new")
    new.unlink(missing_ok=True)
    command = ["systemd-repart", "--offline=yes", "--dry-run=no", "--empty=create", f"--size={SIZE_GB}G"]
    command += [f"--definitions={definitions}", f"--copy-source={tree}", str(new)]
    builder.run(where, command, where.cache / "plain.repart.log")
    new.rename(disk)


def machine(where: Places) -> Machine:
    """With a disk of its own."""
    made = Machine(where, where.trials / "plain")
    made.prepare(make(where), SIZE_GB)
    shutil.copyfile(where.builder / "usr/share/OVMF/OVMF_VARS_4M.ms.fd", made.folder / "vars.fd")
    return made
