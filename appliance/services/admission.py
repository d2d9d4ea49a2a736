"""Who comes in at the broker's door to devices: the box's certificates, and the devices that were certified."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from appliance.bus import acl
from appliance.bus.door import Door
from appliance.config.schema import Broker
from appliance.events import topics
from appliance.events.schema import Kind
from appliance.runtime import files
from appliance.vault.certificates import authority, registry
from appliance.vault.certificates.holdings import Holdings, Secrets
from appliance.vault.certificates.registry import Device
from appliance.vault.secret import Secret

FOLDER = "certificates"
SECOND = 1_000_000_000  # ns
LOOK_AGAIN_NS = 3600 * SECOND  # for a certificate that is due
SPOKEN = (Kind.READING, Kind.BLOCK)  # kinds of messages that a device sends of its asset


@dataclass(frozen=True)
class Given:
    """What a device is handed: PEM."""

    certificate: bytes
    key: Secret | None  # None: the device has its own
    authority: bytes


class Admission:
    """`door` is a Doorkeeper. The vault is asked only when something changed, and once an hour."""

    def __init__(self, secrets: Secrets, state: Path, settings: Broker, clock: Callable[[], int]) -> None:
        self._folder, self._settings, self._clock = state / FOLDER, settings, clock
        self._holdings = Holdings(secrets, socket.gethostname(), clock)
        self._made: Door | None = None
        self._made_at, self._made_of = 0, 0

    async def door(self) -> Door:
        """VaultError where the vault does not give the keys; DamagedError for a registry that cannot be read."""
        now, changed = self._clock(), _changed(self._folder / registry.FILE)
        if self._made is None or changed != self._made_of or not 0 <= now - self._made_at < LOOK_AGAIN_NS:
            self._made = await asyncio.to_thread(self._door)
            self._made_at, self._made_of = now, changed
        return self._made

    def certify(self, device: Device, request: bytes | None, days: int) -> Given:
        """Admit a device, or renew its certificate and rights. Without a request of its own it is given a key, too.
        VaultError."""
        issuer, now = self._holdings.authority(), self._clock()
        key = authority.new_key() if request is None else None
        public = key.public_key() if key else authority.key_of_request(request or b"")
        certificate = authority.issue_client(issuer, public, device.name, now, days)
        until = round(certificate.not_valid_after_utc.timestamp()) * SECOND
        with self._registering():
            before = registry.load(self._folder)
            registry.save(self._folder, registry.admitted(before, device, certificate.serial_number, until))
        own = Secret(authority.key_pem(key)) if key else None
        return Given(authority.pem(certificate), own, authority.pem(issuer.certificate))

    def revoke(self, name: str) -> None:
        """VaultError where there is no such device."""
        with self._registering():
            registry.save(self._folder, registry.without(registry.load(self._folder), name))

    def devices(self) -> list[Device]:
        """By name, the revoked ones too."""
        return [device for _, device in sorted(registry.load(self._folder).devices.items())]

    def _registering(self) -> AbstractContextManager[None]:
        return files.held(self._folder / "lock", "certifies a device")

    def _door(self) -> Door:
        devices = registry.load(self._folder)
        identity = self._holdings.server(self._names())
        serials = [int(serial, 16) for serial in devices.revoked_serials]
        return Door(
            port=self._settings.tls_port,
            address=self._settings.tls_address,
            certificates=identity.certificates,
            key=identity.key.reveal(),
            authority=identity.authority,
            revoked=authority.revoked(self._holdings.authority(), serials, self._clock()),
            access=acl.text(device for device in devices.devices.values() if not device.revoked),
        )

    def _names(self) -> list[str]:
        host = socket.gethostname()
        return self._settings.tls_names or [host, f"{host}.local", "localhost", "127.0.0.1"]


def rights(name: str, assets: Sequence[str], publish: Sequence[str], subscribe: Sequence[str]) -> Device:
    """A device that speaks for assets, and what else it may do. EventError for an asset that is none."""
    speaks = [one for asset in assets for kind in SPOKEN for one in topics.of_asset(kind, asset)]
    return Device(name, (*speaks, *publish), tuple(subscribe))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
