"""Machines that are not at hand, as file trees: laid out from the tables in tests/machines.

A table says whether it was recorded or modelled. `like` names another table whose entries are taken first. Text files
stand under [files], directories and links as the kernel lays them under [ports], [disks] and [modules].
"""

import tomllib
from pathlib import Path
from typing import Any

from hardware.identity import Box

MACHINES = Path(__file__).parent / "machines"
NAMES = sorted(path.stem for path in MACHINES.glob("*.toml"))
EFIVARS = "sys/firmware/efi/efivars"
HOST_SECRET = "var/lib/millwright/vault/host-secret"


def table(name: str) -> dict[str, Any]:
    content = tomllib.loads((MACHINES / f"{name}.toml").read_text("utf-8"))
    assert content["origin"] in ("recorded", "modelled")
    under = table(content["like"]) if "like" in content else {}
    for key in ("files", "ports", "disks", "modules"):
        content[key] = {**under.get(key, {}), **content.get(key, {})}
    content.setdefault("uefi", under.get("uefi", False))
    return content


def box(name: str, root: Path) -> Box:
    """Laid out under `root`, which need not exist."""
    return at(lay(table(name), root))


def at(root: Path) -> Box:
    return Box(root, root / HOST_SECRET)


def lay(machine: dict[str, Any], root: Path) -> Path:
    for path, text in machine["files"].items():
        write(root / path, f"{text}\n".encode())
    for name, port in machine["ports"].items():
        _port(root, name, port)
    for name, disk in machine["disks"].items():
        _disk(root, name, disk)
    for number, module in enumerate(machine["modules"].values()):
        write(root / f"sys/firmware/dmi/entries/17-{number}/raw", _module(**module))
    if machine["uefi"]:
        write(root / EFIVARS / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", b"\x06\0\0\0\1")
    return root


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _port(root: Path, name: str, port: dict[str, str]) -> None:
    """address, and where it has hardware: bus and driver."""
    here = root / "sys/class/net" / name
    write(here / "address", f"{port['address']}\n".encode())
    write(here / "addr_assign_type", f"{port.get('assigned', '0')}\n".encode())
    if "bus" in port:
        device = _linked(root, here / "device", f"sys/devices/{port['bus']}")
        if "driver" in port and not (device / "driver").exists():
            _linked(root, device / "driver", f"sys/bus/drivers/{port['driver']}")


def _disk(root: Path, name: str, disk: dict[str, str]) -> None:
    """bus where it has hardware; page_80 is SCSI's serial number; every other key is a file under the disk."""
    here = root / "sys/block" / name
    here.mkdir(parents=True)
    if "bus" in disk:
        _linked(root, here / "device", f"sys/devices/{disk['bus']}")
    for path, text in disk.items():
        if path == "page_80":
            serial = text.encode()
            write(here / "device/vpd_pg80", bytes([0, 0x80, 0, len(serial)]) + serial)
        elif path != "bus":
            write(here / path, f"{text}\n".encode())


def _module(locator: str, maker: str, serial: str, part: str) -> bytes:
    """SMBIOS structure 17 of 40 bytes, and its strings."""
    head = bytearray(40)
    head[:4] = (17, 40, 0x2A, 0x00)
    for offset, number in ((0x10, 1), (0x17, 2), (0x18, 3), (0x1A, 4)):
        head[offset] = number
    return bytes(head) + b"".join(text.encode() + b"\0" for text in (locator, maker, serial, part)) + b"\0"


def _linked(root: Path, link: Path, target: str) -> Path:
    place = root / target
    place.mkdir(parents=True, exist_ok=True)
    link.symlink_to(place)
    return place
