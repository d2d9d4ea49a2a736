"""A vault that is there and does not open: whoever asks is told why, and what to do."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

from appliance.errors import MillwrightError, VaultError
from appliance.vault.port import Entry, Layer, Status
from appliance.vault.secret import Secret


class Locked:
    """A Custody that answers everything with the error that kept it from opening."""

    def __init__(self, error: MillwrightError) -> None:
        self.error = error

    def status(self) -> Status:
        self._refuse()

    def get(self, name: str) -> Secret:
        self._refuse()

    def put(self, name: str, content: Secret) -> Entry:
        self._refuse()

    def remove(self, name: str) -> None:
        self._refuse()

    def entries(self, prefix: str = "") -> Sequence[Entry]:
        self._refuse()

    def rotate(self, layer: Layer, name: str = "") -> None:
        self._refuse()

    def backup(self) -> bytes:
        self._refuse()

    def renew_recovery(self) -> Secret:
        self._refuse()

    def recipients(self) -> Sequence[str]:
        self._refuse()

    def add_recipient(self, line: str) -> None:
        self._refuse()

    def remove_recipient(self, name: str) -> None:
        self._refuse()

    def expect(self, running: Mapping[str, str], coming: Mapping[str, str]) -> str:
        self._refuse()

    def settled(self) -> None:
        self._refuse()

    def close(self) -> None:
        """There is nothing to forget."""

    def _refuse(self) -> NoReturn:
        kind = type(self.error) if isinstance(self.error, VaultError) else VaultError
        raise kind(self.error.message, self.error.remedy)
