"""The firmware's boot options: the boot loader more often than a new system is tried. Deciding is pure; `keep` does it.

A kernel image that the firmware refuses ends the boot loader, which has counted that try. The firmware takes its next
boot option then; where it has none it stops, and waits for a person. With the loader there once more than there are
tries, the last of them finds the new system given up, and starts the one before it.
"""

import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from hardware.slots import TRIES, SlotError, variables

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # vendor id of the firmware's own variables
LOADERS = {  # by what the kernel calls the processor
    "x86_64": "\\EFI\\systemd\\systemd-bootx64.efi",
    "aarch64": "\\EFI\\systemd\\systemd-bootaa64.efi",
}
NAME = "Millwright"
OPTIONS = TRIES + 1
MAX_OPTIONS = 256
MAX_BYTES = 4096
_ACTIVE = 1
_KEPT = struct.pack("<I", 7)  # attributes of a variable: not volatile, for the boot and the system
_END = b"\x7f\xff\x04\x00"


@dataclass(frozen=True)
class Partition:
    """The boot partition, as a boot option names it; `start` and `length` in blocks of its disk."""

    number: int
    start: int
    length: int
    id: UUID


@dataclass(frozen=True)
class Change:
    """Options to be written, by their number, and the order; None where it stays."""

    options: Mapping[int, bytes]
    order: tuple[int, ...] | None


def encode(name: str, where: Partition, loader: str) -> bytes:
    """An EFI_LOAD_OPTION."""
    file = f"{loader}\0".encode("utf-16-le")
    disk = struct.pack("<BBHIQQ16sBB", 4, 1, 42, where.number, where.start, where.length, where.id.bytes_le, 2, 2)
    path = disk + struct.pack("<BBH", 4, 4, 4 + len(file)) + file + _END
    return struct.pack("<IH", _ACTIVE, len(path)) + f"{name}\0".encode("utf-16-le") + path


def name_of(option: bytes) -> str:
    """Its description; empty where it has none."""
    text = option[6 : 6 + MAX_BYTES]
    end = next((at for at in range(0, len(text) - 1, 2) if text[at : at + 2] == b"\0\0"), 0)
    return text[:end].decode("utf-16-le", "replace")


def change(found: Mapping[int, bytes], order: Sequence[int], where: Partition, loader: str) -> Change:
    """What makes of `found` and `order` that our options come first, each under a name of its own; others' are kept,
    behind them. Nothing where it is so already. SlotError where there is no room."""
    wanted = {f"{NAME} {number}": encode(f"{NAME} {number}", where, loader) for number in range(1, OPTIONS + 1)}
    taken = {name_of(option): number for number, option in sorted(found.items(), reverse=True)}
    free = (number for number in range(MAX_OPTIONS) if number not in found)
    numbers = {name: taken[name] if name in taken else next(free, -1) for name in wanted}
    if -1 in numbers.values():
        raise SlotError(f"the firmware has {len(found)} boot options, and there is no room for more")
    ours = tuple(numbers.values())
    new = (*ours, *(number for number in order if number not in ours))
    written = {numbers[name]: option for name, option in wanted.items() if found.get(numbers[name]) != option}
    return Change(written, new if new != tuple(order) else None)


def keep(where: Partition, root: Path = Path("/"), machine: str = "") -> Change:
    """Writes what is not so already, the order last; `machine`: this one's processor unless given. SlotError."""
    loader = LOADERS.get(machine or platform.machine())
    if loader is None:
        raise SlotError(f"there is no boot loader for a processor '{machine or platform.machine()}'")
    folder = root / variables.FOLDER
    try:
        found = {
            int(path.name[4:8], 16): _read(path)
            for path in folder.glob(f"Boot[0-9A-F][0-9A-F][0-9A-F][0-9A-F]-{GLOBAL}")
        }
        order = folder / f"BootOrder-{GLOBAL}"
        raw = _read(order) if order.exists() else b""
        made = change(found, struct.unpack(f"<{len(raw) // 2}H", raw[: len(raw) // 2 * 2]), where, loader)
        for number, option in made.options.items():
            _write(folder / f"Boot{number:04X}-{GLOBAL}", option)
        if made.order is not None:
            _write(order, struct.pack(f"<{len(made.order)}H", *made.order))
    except OSError as error:
        raise SlotError(f"the firmware's boot options: {error}") from error
    return made


def boot_partition(root: Path = Path("/")) -> Partition:
    """From which the boot loader was started, as it says itself. SlotError."""
    told = variables.text("LoaderDevicePartUUID", root)
    if told is None:
        raise SlotError("the boot loader does not say which partition it was started from")
    try:
        identity = UUID(told)
        device = (root / "dev/disk/by-partuuid" / str(identity)).resolve(strict=True)
    except (OSError, ValueError) as error:
        raise SlotError(f"the boot partition {told}: {error}") from error
    return _described(device, identity, root)


def partition(device: Path, root: Path = Path("/")) -> Partition:
    """One of a disk that was just written. SlotError."""
    links = (root / "dev/disk/by-partuuid").glob("*")
    identity = next((UUID(link.name) for link in links if link.resolve() == device.resolve()), None)
    if identity is None:
        raise SlotError(f"{device} is no partition with an id of its own")
    return _described(device.resolve(), identity, root)


def _described(device: Path, identity: UUID, root: Path) -> Partition:
    facts = root / "sys/class/block" / device.name
    try:
        block = int((facts.resolve().parent / "queue/logical_block_size").read_text())
        number, start, length = (int((facts / name).read_text()) for name in ("partition", "start", "size"))
    except (OSError, ValueError) as error:
        raise SlotError(f"the boot partition {device}: {error}") from error
    return Partition(number, start * 512 // block, length * 512 // block, identity)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES)[4:]


def _write(path: Path, value: bytes) -> None:
    """In one call, as efivarfs wants it."""
    with path.open("wb", buffering=0) as file:
        file.write(_KEPT + value)
