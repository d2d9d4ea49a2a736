"""Signs the receipts of updates with this box's identity, where it is enrolled: `Sign` of `ota.courier`.

Who signs campaigns counts receipts of boxes alone if they name the boxes' authority. A vault that does not answer, or a
TPM that refuses, makes a receipt unsigned, never late.
"""

import base64
import logging
from typing import Protocol

from appliance.errors import VaultError
from ota.courier import Sign

log = logging.getLogger(__name__)


class Identities(Protocol):
    """`appliance.vault.certificates.identity.Identities`."""

    def sign(self, message: bytes) -> tuple[bytes, bytes] | None: ...


def signer(identities: Identities) -> Sign:
    """Certificate and signature, each in base64, a dot between them; empty where the box cannot sign now."""

    def sign(message: bytes) -> str:
        try:
            made = identities.sign(message)
        except VaultError as error:
            log.warning("a receipt is not signed: %s", error.message)
            return ""
        return ".".join(base64.b64encode(part).decode() for part in made) if made is not None else ""

    return sign
