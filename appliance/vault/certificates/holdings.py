"""The certificates that the box holds: its authority, and its broker's, renewed before they end.

The keys are in the vault and nowhere else.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cryptography import x509

from appliance.errors import VaultError
from appliance.vault.certificates import authority
from appliance.vault.certificates.authority import Authority
from appliance.vault.port import Entry
from appliance.vault.secret import Secret

AUTHORITY, SERVER = "tls/authority", "tls/broker"
"""Secrets of the vault: a key and its certificate, both PEM, one behind the other."""


class Secrets(Protocol):
    """As much of a Keeper as is needed here."""

    def get(self, name: str) -> Secret: ...

    def put(self, name: str, content: Secret) -> Entry: ...

    def entries(self, prefix: str = "") -> Sequence[Entry]: ...


@dataclass(frozen=True)
class Identity:
    """What a server shows and proves itself with: PEM, the chain behind the certificate."""

    certificates: bytes
    key: Secret
    authority: bytes


class Holdings:
    def __init__(self, secrets: Secrets, box: str, clock: Callable[[], int]) -> None:
        """`box`: its name, for people. Times from `clock`, UTC ns."""
        self._secrets, self._box, self._clock = secrets, box, clock

    def authority(self) -> Authority:
        """This box's, founded on first use."""
        if kept := self._kept(AUTHORITY):
            key, certificate = kept
            return Authority(authority.load_key(key), certificate)
        new = authority.found(f"{self._box} (Millwright)", self._clock())
        self._keep(AUTHORITY, authority.key_pem(new.key), new.certificate)
        return new

    def server(self, names: Sequence[str]) -> Identity:
        """The broker's: renewed when it is due, or when it is reached under other names than before."""
        issuer = self.authority()
        kept = self._kept(SERVER)
        if kept is None or authority.is_due(kept[1], self._clock()) or _names(kept[1]) != set(names):
            key = authority.new_key()
            certificate = authority.issue_server(issuer, key.public_key(), names, self._clock())
            kept = authority.key_pem(key), certificate
            self._keep(SERVER, *kept)
        own = authority.pem(issuer.certificate)
        return Identity(authority.pem(kept[1]) + own, Secret(kept[0]), own)

    def _kept(self, name: str) -> tuple[bytes, x509.Certificate] | None:
        if not any(entry.name == name for entry in self._secrets.entries(name)):
            return None
        content = self._secrets.get(name).reveal()
        with suppress(ValueError):
            key, mark, certificate = content.partition(b"-----BEGIN CERTIFICATE-----")
            return key, x509.load_pem_x509_certificate(mark + certificate)
        raise VaultError(f"the vault's '{name}' is no certificate with its key", f"millwright vault remove {name}")

    def _keep(self, name: str, key: bytes, certificate: x509.Certificate) -> None:
        self._secrets.put(name, Secret(key + authority.pem(certificate)))


def _names(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}
