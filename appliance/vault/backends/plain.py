"""For development only: the key lies open in the vault's file. Refused on an image.

[vault]
backend = "plain"
"""

from typing import Protocol

import msgspec

from appliance.errors import BindingError, SealError
from appliance.vault.port import KEY_BYTES, Opened, Promise
from appliance.vault.secret import Secret

HEAD = b"millwright/plain/1\0"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No protection, for development: whoever reads the vault's file reads all secrets."""


class Machine(Protocol):
    """`hardware.identity.Box` is one."""

    @property
    def installed(self) -> bool:
        """This is the appliance's image, not a developer's machine."""


class Plain:
    name = "plain"
    promise = Promise(0, (), ("anything at all: whoever reads the vault's file has every secret in it",))

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def seal(self, key: Secret) -> bytes:
        self._refuse_on_an_image()
        return HEAD + key.reveal()

    def open(self, blob: bytes) -> Opened:
        self._refuse_on_an_image()
        if len(blob) != len(HEAD) + KEY_BYTES or not blob.startswith(HEAD):
            raise SealError("this is not a key of the backend 'plain'")
        return Opened(Secret(blob[len(HEAD) :]), ("nothing is protected: the backend is 'plain'",))

    def latch(self) -> None:
        """There is nothing to shut."""

    def _refuse_on_an_image(self) -> None:
        if self._machine.installed:
            raise BindingError(
                "the backend 'plain' protects nothing and is refused on an installed box",
                'Set backend = "auto" under [vault].',
            )


def create(settings: Settings, machine: Machine) -> Plain:
    return Plain(machine)
