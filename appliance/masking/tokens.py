"""Reversible stand-ins for personal data, keyed by the vault.

The same value gives the same token under one key, so that a cloud can count and join what it cannot read (and can see
that two are equal: that is the price). Another key for each destination keeps two of them from comparing notes.
"""

import base64
import binascii
import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from appliance.masking.patterns import KINDS, Kind

KEY_BYTES = 64  # AES-256-SIV, RFC 5297
SHAPE = re.compile("<(" + "|".join(KINDS) + r"|text)(?::([a-z2-7]{26,2000}))?>")


class Tokens:
    def __init__(self, key: bytes) -> None:
        """ValueError unless `key` has KEY_BYTES."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of tokens has {KEY_BYTES} bytes, not {len(key)}")
        self._cipher = AESSIV(key)

    def of(self, kind: Kind | str, value: str) -> str:
        """`<phone:mfrggzdf...>`"""
        sealed = self._cipher.encrypt(value.encode() + b"\x01", [kind.encode()])
        return f"<{kind}:{base64.b32encode(sealed).decode().rstrip('=').lower()}>"

    def restore(self, text: str) -> str:
        """The text with its tokens turned back; one that this key did not make stays as it is."""
        return SHAPE.sub(self._restored, text)

    def _restored(self, token: re.Match[str]) -> str:
        kind, written = token.groups()
        if written is None:
            return token[0]
        try:
            sealed = base64.b32decode(written.upper() + "=" * (-len(written) % 8))
            return self._cipher.decrypt(sealed, [kind.encode()])[:-1].decode()
        except (InvalidTag, binascii.Error, ValueError):
            return token[0]
