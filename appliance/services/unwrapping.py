"""The fleet's private keys, in the vault: what an encrypted update is opened with. `Unwrapper` of `ota.sealed`.

millwright vault put fleet/plant-a < FILE      what `millwright-publish fleetkey FILE` has written; any name below
                                               `fleet/` will do, and there may be several while keys change
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from appliance.errors import SealError, VaultError
from appliance.vault import hpke
from appliance.vault.port import Entry
from appliance.vault.secret import Secret
from ota.errors import SealedError, StorageError
from ota.sealed import recipient

NAMES = "fleet/"  # in the vault
MAX_KEYS = 16


class Keeper(Protocol):
    """Of secrets: the vault that runs, by its socket."""

    def entries(self, prefix: str = "") -> Sequence[Entry]: ...

    def get(self, name: str) -> Secret: ...


class FleetKeys:
    """Asked anew each time: a key that was put a moment ago counts."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def unwrap(self, wanted: str, wrapped: bytes, info: bytes) -> bytes | None:
        """None where the vault has no key of this recipient. SealedError: another key's, another file's, altered."""
        try:
            for private in self._privates():
                if recipient(hpke.public_of(private.reveal())) == wanted:
                    return hpke.unwrap(private.reveal(), wrapped, info)
        except SealError as error:
            raise SealedError(error.message, "Publish it anew, for this fleet's key.") from error
        except VaultError as error:
            raise StorageError(f"the fleet's key: {error.message}", error.remedy) from error
        return None

    def _privates(self) -> Iterator[Secret]:
        for entry in list(self._keeper.entries(NAMES))[:MAX_KEYS]:
            private = self._keeper.get(entry.name)
            try:
                hpke.public_of(private.reveal())
            except SealError as error:
                raise VaultError(f"'{entry.name}' is no private key", "Put what fleetkey has written.") from error
            yield private
