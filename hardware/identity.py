"""What tells this box from every other: ids in its firmware, serial numbers of its parts, and two secrets put there.

Read, never judged: what of it is junk, and what it is worth, is decided by who uses it. Serial numbers in /sys are for
root; what exists but may not be read is named in `unreadable`. `root` is another file tree in tests.
"""

import ctypes
import errno
import fcntl
import hashlib
import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hardware.keepsake import HostFile, Variable

MAX_VALUE_BYTES = 256
MAX_PARTS = 64  # of one kind, that are looked at
HOST_SECRET = Path("/var/lib/millwright/vault/host-secret")
# An image carries the marker; its /etc is part of the verified root file system.
INSTALLED = "etc/millwright/INSTALLED"

SERIAL_FILES = ("board_serial", "product_serial", "chassis_serial")
HYPERVISORS = {
    "qemu": "QEMU",
    "kvm": "KVM",
    "vmware": "VMware",
    "virtualbox": "VirtualBox",
    "innotek": "VirtualBox",
    "xen": "Xen",
    "microsoft corporation virtual machine": "Hyper-V",
    "google compute engine": "Google Compute Engine",
    "amazon ec2": "Amazon EC2",
    "bochs": "Bochs",
    "parallels": "Parallels",
}

Permanent = Callable[[str], str]  # a network interface's name -> the address burnt into it, or ""


@dataclass(frozen=True)
class Fact:
    """One value, as it stands in the file. `place` and `model` are for people, and are no secrets."""

    kind: str  # system-uuid, serial, cpu-serial, tree-serial, soc-serial, memory, nic, disk; cpu-model, board-model
    value: str = field(repr=False)
    place: str = ""  # nvme0n1, enp1s0, DIMM A1
    model: str = ""  # of the part


@dataclass(frozen=True)
class Facts:
    """In the order in which they are to be preferred where one part has several."""

    facts: tuple[Fact, ...]
    hypervisor: str = ""  # whose guest this is; empty: real hardware, as far as it says so
    memory_kib: int = 0
    unreadable: tuple[str, ...] = ()  # paths that another user might read


class Box:
    """This machine, or the one whose file tree `root` is."""

    def __init__(
        self, root: Path = Path("/"), host_secret: Path = HOST_SECRET, permanent: Permanent | None = None
    ) -> None:
        self._root = root
        self._permanent = permanent or (burnt_in if root == Path("/") else _nothing)
        self.host = HostFile(host_secret)

    @property
    def uefi(self) -> Variable | None:
        """Where a secret off the disk may live; None where this box has no UEFI."""
        firmware = self._root / "sys/firmware/efi"
        return Variable(firmware / "efivars") if firmware.is_dir() else None

    @property
    def installed(self) -> bool:
        """This is the appliance's own image, not a laptop."""
        return (self._root / INSTALLED).exists()

    def facts(self) -> Facts:
        return read(self._root, self._permanent)

    def box_id(self, create: bool = False) -> str:
        """32 hex digits that stay as long as the box's secrets do, and give nothing of them away.

        `create` makes the secrets where there are none yet, the UEFI variable only where this user may; else a missing
        host secret is a FileNotFoundError. OSError.
        """
        variable = self.uefi
        uefi = _existing_or_made(variable, create) if variable else None
        host = self.host.create() if create else self.host.read()
        if host is None:
            raise FileNotFoundError(errno.ENOENT, "is not there yet", self.host.what)
        return hashlib.sha256(b"millwright/box-id/1\0" + host + (uefi or b"")).hexdigest()[:32]


def _existing_or_made(variable: Variable, create: bool) -> bytes | None:
    there = variable.read()
    if there is not None or not create:
        return there
    try:
        return variable.create()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return None
        raise


def read(root: Path = Path("/"), permanent: Permanent | None = None) -> Facts:
    """Nothing is raised: what is not there is not in it."""
    tree = _Tree(root)
    found = (
        *_firmware(tree),
        *_processor(tree),
        *_device_tree(tree),
        *_memory(tree),
        *_network(tree, permanent or _nothing),
        *_disks(tree),
    )
    return Facts(found, _hypervisor(tree), _memory_kib(tree), tuple(tree.unreadable))


class _Tree:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.unreadable: list[str] = []

    def bytes(self, path: Path, limit: int = MAX_VALUE_BYTES) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(limit)
        except PermissionError:
            self.unreadable.append(f"/{path.relative_to(self.root)}")
        except OSError:
            pass  # there is none, or the device does not tell
        return b""

    def text(self, path: Path, limit: int = MAX_VALUE_BYTES) -> str:
        """One line of printable characters."""
        return _printable(self.bytes(path, limit))

    def listed(self, path: Path, pattern: str = "*") -> list[Path]:
        try:
            return sorted(path.glob(pattern))[:MAX_PARTS]
        except OSError:
            return []


def _firmware(tree: _Tree) -> Iterator[Fact]:
    dmi = tree.root / "sys/class/dmi/id"
    model = _board(tree)
    if model:
        yield Fact("board-model", model)
    uuid = tree.text(dmi / "product_uuid")
    if uuid:
        yield Fact("system-uuid", uuid, model=model)
    for name in SERIAL_FILES:
        serial = tree.text(dmi / name)
        if serial:
            yield Fact("serial", serial, model=model)


def _board(tree: _Tree) -> str:
    dmi = tree.root / "sys/class/dmi/id"
    words = [tree.text(dmi / name) for name in ("board_vendor", "board_name")]
    return " ".join(word for word in words if word) or tree.text(tree.root / "sys/firmware/devicetree/base/model")


def _processor(tree: _Tree) -> Iterator[Fact]:
    facts = _cpuinfo(tree)
    model = facts.get("model name") or facts.get("Model", "")
    if model:
        yield Fact("cpu-model", model)
    inventory = tree.text(tree.root / "sys/devices/system/cpu/cpu0/topology/ppin")  # servers tell it, to root
    for serial in (inventory, facts.get("Serial", "")):
        if serial:
            yield Fact("cpu-serial", serial, model=model)


def _device_tree(tree: _Tree) -> Iterator[Fact]:
    model = _board(tree)
    for kind, name in (
        ("tree-serial", "sys/firmware/devicetree/base/serial-number"),
        ("soc-serial", "sys/devices/soc0/serial_number"),
    ):
        serial = tree.text(tree.root / name)
        if serial:
            yield Fact(kind, serial, model=model)


def _memory(tree: _Tree) -> Iterator[Fact]:
    """SMBIOS structure 17, one a module: offsets 0x10 locator, 0x17 maker, 0x18 serial number, 0x1a part number."""
    for entry in tree.listed(tree.root / "sys/firmware/dmi/entries", "17-*"):
        raw = tree.bytes(entry / "raw", 1024)
        serial = _smbios(raw, 0x18)
        if serial:
            model = " ".join(word for word in (_smbios(raw, 0x17), _smbios(raw, 0x1A)) if word)
            yield Fact("memory", serial, _smbios(raw, 0x10) or entry.name, model)


def _smbios(raw: bytes, offset: int) -> str:
    """The string whose number stands at `offset`: strings follow the structure, each ended by a zero."""
    length = raw[1] if len(raw) > 1 else 0
    number = raw[offset] if offset < length <= len(raw) else 0
    strings = raw[length:].split(b"\0")
    return _printable(strings[number - 1]) if 0 < number <= len(strings) else ""


def _network(tree: _Tree, permanent: Permanent) -> Iterator[Fact]:
    """Ports of the machine's own: no bridges, tunnels or virtual functions, and nothing that hangs on USB."""
    for port in tree.listed(tree.root / "sys/class/net"):
        device = port / "device"
        if not device.exists() or (device / "physfn").exists() or _on_usb(device):
            continue
        address = permanent(port.name)
        if not address and tree.text(port / "addr_assign_type") == "0":  # 0: the one it was made with
            address = tree.text(port / "address")
        if address:
            driver = device / "driver"
            yield Fact("nic", address, port.name, driver.resolve().name if driver.exists() else "")


def _disks(tree: _Tree) -> Iterator[Fact]:
    """The maker's serial number first: how the kernel writes world-wide names has changed between its releases."""
    for disk in tree.listed(tree.root / "sys/block"):
        device = disk / "device"
        if not device.exists() or _passing(tree, disk):
            continue
        model = tree.text(device / "model") or tree.text(device / "name")
        values = (
            tree.text(device / "serial") if disk.name.startswith("nvme") else "",
            _page_80(tree.bytes(device / "vpd_pg80")),
            tree.text(device / "cid"),
            tree.text(disk / "serial"),
            tree.text(disk / "eui"),
            tree.text(disk / "wwid"),
            tree.text(device / "wwid"),
        )
        for value in values:
            if value:
                yield Fact("disk", value, disk.name, model)


def _passing(tree: _Tree, disk: Path) -> bool:
    """What comes and goes: removable, on USB, or a part of a disk that is listed as one of its own."""
    flags = (tree.text(disk / name) == "1" for name in ("removable", "hidden"))
    return any(flags) or bool(re.search(r"boot\d|rpmb", disk.name)) or _on_usb(disk / "device")


def _page_80(raw: bytes) -> str:
    """SCSI's vital product data, page 0x80: four bytes of head, then the serial number."""
    return _printable(raw[4:]) if raw[1:2] == b"\x80" else ""


def _on_usb(device: Path) -> bool:
    return any(part.startswith("usb") for part in device.resolve().parts)


def _hypervisor(tree: _Tree) -> str:
    dmi = tree.root / "sys/class/dmi/id"
    said = " ".join(tree.text(dmi / name) for name in ("sys_vendor", "product_name")).lower()
    for word, name in HYPERVISORS.items():
        if word in said:
            return name
    hinted = "hypervisor" in _cpuinfo(tree).get("flags", "").split()
    return "a hypervisor" if hinted or (tree.root / "sys/firmware/devicetree/base/hypervisor").exists() else ""


def _memory_kib(tree: _Tree) -> int:
    found = re.search(rb"^MemTotal:\s+(\d{1,12}) kB", tree.bytes(tree.root / "proc/meminfo", 4096), re.MULTILINE)
    return int(found[1]) if found else 0


def _cpuinfo(tree: _Tree) -> dict[str, str]:
    """The first processor's lines, and the board's, which some architectures put last."""
    facts: dict[str, str] = {}
    for line in tree.bytes(tree.root / "proc/cpuinfo", 1 << 20).decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts


def _printable(raw: bytes) -> str:
    line = raw.partition(b"\n")[0].decode("ascii", "replace").replace("\0", " ")
    return "".join(letter for letter in line if letter.isprintable() and letter != "�").strip()


def _nothing(interface: str) -> str:
    return ""


def burnt_in(interface: str) -> str:
    """The permanent address by ioctl(SIOCETHTOOL, ETHTOOL_GPERMADDR): the current one may be made up, or a bond's."""
    asked = ctypes.create_string_buffer(struct.pack("=II", 0x20, 32), 8 + 32)  # command, room for an address
    request = struct.pack("16sP16x", interface.encode()[:15], ctypes.addressof(asked))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:  # asks where no network is allowed, too
            fcntl.ioctl(any_socket, 0x8946, request)
    except OSError:
        return ""
    size = min(struct.unpack_from("=I", asked.raw, 4)[0], 32)
    address = asked.raw[8 : 8 + size]
    return address.hex(":") if any(address) else ""
