"""Joins the vault and this machine: what there is to bind a vault's key with, and the vault opened with it.

Beside `assembly` the only module that names adapters: those of `appliance/vault/backends` and of `hardware`.
"""

import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from appliance import plugins
from appliance.config.document import Document
from appliance.config.schema import Config
from appliance.errors import BindingError
from appliance.vault import chest, choice, opening
from appliance.vault.choice import Candidate
from appliance.vault.port import Backend, Counter

if TYPE_CHECKING:
    from appliance.vault.enrolment import Report
    from appliance.vault.opening import OpenVault
    from hardware.tpm import Counter as TpmCounter
    from hardware.tpm import Found

BACKENDS = "appliance.vault.backends"


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
        bound = chest.bindings(self.folder)
        chosen = choice.choose(self.candidates(), self._config.vault.backend, bound)
        self.warnings = chosen.warnings
        return self._made(chosen.name)

    def backends(self) -> list[Backend]:
        """Those that may open a vault, the stronger first: the named one, or all but the one that protects nothing."""
        if self._config.vault.backend != choice.AUTO:
            return [self.backend()]
        ranked = sorted(self.candidates(), key=lambda one: -one.strength)
        return [self._made(one.name) for one in ranked if one.strength > 0 and one.present and not one.reason]

    def candidates(self) -> list[Candidate]:
        found = self.tpm
        tpm = Candidate("tpm", 30, found.present, found.reason, found.remedy)
        return [tpm, Candidate("fingerprint", 20), Candidate("plain", 0)]

    @cached_property
    def tpm(self) -> "Found":
        """What this machine has of a TPM. It is asked once."""
        from hardware import tpm

        return tpm.find()

    def counter(self) -> Counter | None:
        """That tells an older vault's file from the latest; None where there is no TPM that counts."""
        return self._counter("vault")

    def audit_counter(self) -> Counter | None:
        """That tells a journal that was cut off from a whole one."""
        return self._counter("audit")

    def _counter(self, purpose: str) -> Counter | None:
        from hardware import tpm

        if self._config.vault.backend == "plain" or not self.tpm.usable:
            return None
        return TranslatedCounter(tpm.Tpm(self.tpm.tcti).counter(purpose, str(self.folder.resolve())))

    def name(self) -> str:
        """Of this box, for backups: 32 hex digits. OSError."""
        return self.machine.box_id(create=True)

    def report(self, name: str) -> "Report | None":
        """What the backend of that name would make a key of now; None where that cannot be told in bits."""
        reported: Callable[[], Report] | None = getattr(self._made(name), "report", None)
        return reported() if reported else None

    def _made(self, name: str) -> Backend:
        from hardware import tpm

        machine = tpm.Tpm(self.tpm.tcti) if name == "tpm" else self.machine
        made: Backend = plugins.load(BACKENDS, name).create(self._settings[name], machine)
        return made


class TranslatedCounter:
    """A counter of `hardware`, whose troubles are OSErrors, as the vault's port has it."""

    def __init__(self, counter: "TpmCounter") -> None:
        self._counter = counter

    def value(self) -> int:
        return _counted(self._counter.value)

    def advance(self) -> int:
        return _counted(self._counter.advance)


def _counted(act: Callable[[], int]) -> int:
    try:
        return act()
    except OSError as error:
        raise BindingError(f"the TPM's counter: {error}", "'millwright doctor' looks at the TPM; try again.") from error


def unlock(config: Config, document: Document, *, latch: bool = False) -> "OpenVault":
    """VaultError, with the remedy, where it does not open; StoreError where another process has it open."""
    box = Box(config, document)
    counters = box.counter(), box.audit_counter()
    return opening.unlock(box.folder, box.backends(), *counters, time.time_ns, latch)


def _settings(name: str, config: Config, document: Document) -> Any:
    table: dict[str, Any] = getattr(config.vault, name)
    return document.into(plugins.load(BACKENDS, name).Settings, table, ("vault", name))
