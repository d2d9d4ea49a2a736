"""Joins the vault and this machine: what there is to bind a vault's key with, and the vault opened with it.

Beside `assembly` the only module that names adapters: those of `appliance/vault/backends` and of `hardware`.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance import plugins
from appliance.config.document import Document
from appliance.config.schema import Config
from appliance.vault import choice, opening
from appliance.vault.choice import Candidate
from appliance.vault.port import Backend, Counter

if TYPE_CHECKING:
    from appliance.vault.opening import OpenVault

BACKENDS = "appliance.vault.backends"
TPM = Path("/dev/tpmrm0")


class Box:
    """What this machine has to bind a vault's key with, as the configuration wants it."""

    def __init__(self, config: Config, document: Document) -> None:
        """ConfigError where a backend's table has a mistake."""
        from hardware import identity

        self._config = config
        self._settings = {name: _settings(name, config, document) for name in plugins.names(BACKENDS)}
        self.folder = config.paths.state / opening.FOLDER
        self.machine = identity.Box(host_secret=self.folder / "host-secret")
        self.warnings: tuple[str, ...] = ()

    def backend(self) -> Backend:
        """The one that a vault is bound to: as configured, else the strongest. VaultError where that does not work."""
        chosen = choice.choose(self.candidates(), self._config.vault.backend)
        self.warnings = chosen.warnings
        return self._made(chosen.name)

    def backends(self) -> list[Backend]:
        """Those that may open a vault, the stronger first: the named one, or all but the one that protects nothing."""
        if self._config.vault.backend != choice.AUTO:
            return [self.backend()]
        ranked = sorted(self.candidates(), key=lambda one: -one.strength)
        return [self._made(one.name) for one in ranked if one.strength > 0 and one.present and not one.reason]

    def candidates(self) -> list[Candidate]:
        return [_tpm(), Candidate("fingerprint", 20), Candidate("plain", 0)]

    def counter(self) -> Counter | None:
        """That tells an older vault's file from the latest."""
        return None

    def audit_counter(self) -> Counter | None:
        """That tells a journal that was cut off from a whole one."""
        return None

    def name(self) -> str:
        """Of this box, for backups: 32 hex digits. OSError."""
        return self.machine.box_id(create=True)

    def _made(self, name: str) -> Backend:
        made: Backend = plugins.load(BACKENDS, name).create(self._settings[name], self.machine)
        return made


def unlock(config: Config, document: Document, *, latch: bool = False) -> "OpenVault":
    """VaultError, with the remedy, where it does not open; StoreError where another process has it open."""
    box = Box(config, document)
    counters = box.counter(), box.audit_counter()
    return opening.unlock(box.folder, box.backends(), *counters, time.time_ns, latch)


def _settings(name: str, config: Config, document: Document) -> Any:
    table: dict[str, Any] = getattr(config.vault, name)
    return document.into(plugins.load(BACKENDS, name).Settings, table, ("vault", name))


def _tpm() -> Candidate:
    known = "tpm" in plugins.names(BACKENDS)
    reason = "" if known or not TPM.exists() else "this release knows no TPM"
    return Candidate("tpm", 30, TPM.exists(), reason)
