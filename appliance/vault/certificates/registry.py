"""Who has a certificate of this box, and what he may do on the bus. One file, without secrets."""

from pathlib import Path

import msgspec
from msgspec import Struct, field

from appliance.errors import DamagedError, VaultError
from appliance.runtime import files
from appliance.vault.certificates.authority import NAME

FILE = "devices.json"
MAX_DEVICES = 100_000
MAX_BYTES = 64 << 20


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """One that may connect. `publish` and `subscribe` are topic filters."""

    name: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    serials: tuple[str, ...] = ()  # of its certificates, hex, the newest last
    until: int = 0  # of the newest certificate, UTC ns
    revoked: bool = False


class Registered(Struct, frozen=True, forbid_unknown_fields=True):
    format: int = 1
    devices: dict[str, Device] = field(default_factory=dict)
    revoked_serials: tuple[str, ...] = ()


def load(folder: Path) -> Registered:
    """DamagedError where the file is not what was written."""
    path = folder / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DamagedError(f"{path} is too large", "It is not a file of this program.")
        return msgspec.json.decode(path.read_bytes(), type=Registered)
    except FileNotFoundError:
        return Registered()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} is damaged: {error}", "Put back a copy, or remove it and certify anew.") from error
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}", "Read it as its owner.") from error


def save(folder: Path, registered: Registered) -> None:
    files.write_atomic(folder / FILE, msgspec.json.format(msgspec.json.encode(registered), indent=1))


def admitted(registered: Registered, device: Device, serial: int, until: int) -> Registered:
    """With a new certificate for a device, whose rights are now those of `device`. VaultError for a bad name."""
    if not NAME.fullmatch(device.name):
        raise VaultError(
            f"'{device.name}' cannot be a device's name",
            "Use up to 64 small letters, digits, '.', '_' and '-', such as 'pump-3'.",
        )
    before = registered.devices.get(device.name)
    if before is None and len(registered.devices) >= MAX_DEVICES:
        raise VaultError(f"there are {MAX_DEVICES} devices already", "Revoke those that are gone.")
    serials = (*(before.serials if before and not before.revoked else ()), f"{serial:x}")
    entry = msgspec.structs.replace(device, serials=serials, until=until, revoked=False)
    return msgspec.structs.replace(registered, devices={**registered.devices, device.name: entry})


def without(registered: Registered, name: str) -> Registered:
    """With all certificates of a device revoked. VaultError where there is none of that name."""
    device = registered.devices.get(name)
    if device is None:
        raise VaultError(f"no device is called '{name}'", "See 'millwright devices certified'.")
    gone = msgspec.structs.replace(device, revoked=True, publish=(), subscribe=())
    return msgspec.structs.replace(
        registered,
        devices={**registered.devices, name: gone},
        revoked_serials=(*registered.revoked_serials, *device.serials),
    )
