"""Who comes in at the broker's door to devices: the box's certificates, and the devices that were certified."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.bus import acl
from appliance.bus.door import Door
from appliance.config.schema import Broker
from appliance.vault.certificates import authority, registry
from appliance.vault.certificates.holdings import Holdings, Secrets

FOLDER = "certificates"
LOOK_AGAIN_NS = 3600 * 1_000_000_000  # for a certificate that is due


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
            revoked=self._revoked(serials),
            access=acl.text(device for device in devices.devices.values() if not device.revoked),
        )

    def _revoked(self, serials: Sequence[int]) -> bytes:
        return authority.revoked(self._holdings.authority(), serials, self._clock())

    def _names(self) -> list[str]:
        host = socket.gethostname()
        return self._settings.tls_names or [host, f"{host}.local", "localhost", "127.0.0.1"]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
