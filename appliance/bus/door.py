"""The broker's door to devices: a TLS listener that knows each one by its certificate."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from appliance.runtime import files

FOLDER = "door"


@dataclass(frozen=True)
class Door:
    """What mosquitto needs to open it. PEM; `access` is an access list of `appliance.bus.acl`."""

    port: int
    address: str  # to listen at; empty: all of this machine's
    certificates: bytes
    key: bytes = field(repr=False)
    authority: bytes
    revoked: bytes
    access: str


Doorkeeper = Callable[[], Awaitable[Door]]
"""The door as it is to be now; asked every few seconds."""


def configuration(door: Door, folder: Path) -> list[str]:
    """Lines of mosquitto.conf. The access list holds for every listener: its first lines let those in who come without
    a name, which is only possible on the listeners inside this machine."""
    return [
        f"listener {door.port} {door.address}".rstrip(),
        "tls_version tlsv1.2",
        f"cafile {folder / 'authority.pem'}",
        f"certfile {folder / 'certificates.pem'}",
        f"keyfile {folder / 'key.pem'}",
        f"crlfile {folder / 'revoked.pem'}",
        "require_certificate true",
        "use_identity_as_username true",
        f"acl_file {folder / 'access'}",
    ]


def write(door: Door, folder: Path) -> None:
    """All of it into a folder of ours, which is in memory on an appliance and closed to others everywhere."""
    inside = "# Clients without a name are services of this machine.\ntopic readwrite #\ntopic read $SYS/#\n"
    for name, content in (
        ("authority.pem", door.authority),
        ("certificates.pem", door.certificates),
        ("key.pem", door.key),
        ("revoked.pem", door.revoked),
        ("access", (inside + door.access).encode()),
    ):
        files.write_atomic(folder / name, content)
