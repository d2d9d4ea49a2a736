"""How bytes are sealed under a key: AES-256-GCM with SHA-256, or SM4-GCM with SM3. Pure, but for the salt.

    commitment, record key, nonce = HKDF(key, salt, "millwright/1/<suite>/seal" 0 aad)     32, 32 or 16, 12 bytes
    sealed = salt, commitment, AEAD(record key, nonce, plaintext, aad)                     32, 32, n + 16 bytes

The salt is 256 random bits a record, so no record key, and no nonce under it, is ever used twice. GCM alone does not
commit to its key: one ciphertext can be made that opens under two. The commitment does, and to the salt and the aad,
and it is compared before anything is decrypted.
"""

import hmac
import os
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from appliance.errors import SealError, VaultError
from appliance.vault.ciphers import AES_256_GCM, NONCE_BYTES, SM4_GCM, TAG_BYTES, Cipher, hkdf
from appliance.vault.port import KEY_BYTES

SALT_BYTES = 32
COMMITMENT_BYTES = 32
OVERHEAD_BYTES = SALT_BYTES + COMMITMENT_BYTES + TAG_BYTES
MAX_PLAINTEXT_BYTES = 1 << 29  # a backup of a vault that is full has 257 MiB
MAX_AAD_BYTES = 1 << 20
MAX_DERIVED_BYTES = 1024

_BODY = SALT_BYTES + COMMITMENT_BYTES  # where ciphertext and tag begin
_SCHEME = "millwright/1"  # a new derivation is a new number


@dataclass(frozen=True, eq=False)  # there is one of each
class Suite:
    """One cipher and one hash, under a number that stands in every record. Keys have KEY_BYTES in every suite."""

    id: int
    name: str
    cipher: Cipher
    hash: hashes.HashAlgorithm

    def seal(self, key: bytes, plaintext: bytes, aad: bytes) -> bytes:
        """`plaintext` and OVERHEAD_BYTES, fresh each time. VaultError where it has more than MAX_PLAINTEXT_BYTES."""
        return seal_with_salt(self, key, plaintext, aad, os.urandom(SALT_BYTES))

    def open(self, key: bytes, sealed: bytes, aad: bytes) -> bytes:
        """What was sealed under this key with this aad. SealError where it was not, whatever the bytes are."""
        if not OVERHEAD_BYTES <= len(sealed) <= OVERHEAD_BYTES + MAX_PLAINTEXT_BYTES:
            raise SealError(f"{len(sealed)} bytes are too few or too many to be sealed ones")
        view = memoryview(sealed)
        salt, claimed, body = bytes(view[:SALT_BYTES]), view[SALT_BYTES:_BODY], view[_BODY:]
        commitment, record_key, nonce = self._keys(key, salt, aad)
        try:
            if not hmac.compare_digest(commitment, claimed):
                raise SealError("sealed under another key, for another place, or altered")
            return self.cipher.open(record_key, nonce, body, aad)
        finally:
            record_key[:] = bytes(len(record_key))

    def derive(self, key: bytes, info: bytes, length: int = KEY_BYTES, salt: bytes = b"") -> bytes:
        """A key for one purpose, named by `info`; 1 to MAX_DERIVED_BYTES. Independent of every key that seals."""
        if not 0 < length <= MAX_DERIVED_BYTES:
            raise ValueError(f"{length} bytes are not between 1 and {MAX_DERIVED_BYTES}")
        return bytes(self._expand(key, salt, "derive", info, length))

    def mac(self, key: bytes, data: bytes) -> bytes:
        """32 bytes that only who has the key can make; compare them with hmac.compare_digest."""
        code = HMAC(bytes(self._expand(key, b"", "mac", b"", 32)), self.hash)
        code.update(data)
        return code.finalize()

    def _keys(self, key: bytes, salt: bytes, aad: bytes) -> tuple[bytes, bytearray, bytes]:
        if len(aad) > MAX_AAD_BYTES:
            raise ValueError(f"associated data of {len(aad)} bytes, more than {MAX_AAD_BYTES}")
        wanted = COMMITMENT_BYTES + self.cipher.key_bytes + NONCE_BYTES
        derived = self._expand(key, salt, "seal", aad, wanted)
        commitment, nonce = bytes(derived[:COMMITMENT_BYTES]), bytes(derived[-NONCE_BYTES:])
        record_key = derived[COMMITMENT_BYTES:-NONCE_BYTES]
        derived[:] = bytes(wanted)
        return commitment, record_key, nonce

    def _expand(self, key: bytes, salt: bytes, use: str, info: bytes, length: int) -> bytearray:
        """Labels end in a zero, so that none begins another."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {KEY_BYTES} bytes is wanted, not of {len(key)}")
        label = f"{_SCHEME}/{self.name}/{use}".encode() + b"\0"
        return hkdf(self.hash, key, salt, label + info, length)


def seal_with_salt(suite: Suite, key: bytes, plaintext: bytes, aad: bytes, salt: bytes) -> bytes:
    """For test vectors only: a salt used twice under one key gives both plaintexts away."""
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt of {SALT_BYTES} bytes is wanted, not of {len(salt)}")
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise VaultError(f"{len(plaintext)} bytes are more than can be sealed at once, {MAX_PLAINTEXT_BYTES}")
    commitment, record_key, nonce = suite._keys(key, salt, aad)
    try:
        return salt + commitment + suite.cipher.seal(record_key, nonce, plaintext, aad)
    finally:
        record_key[:] = bytes(len(record_key))


AES = Suite(1, "aes-256-gcm", AES_256_GCM, hashes.SHA256())
SM4 = Suite(2, "sm4-gcm", SM4_GCM, hashes.SM3())
SUITES = (AES, SM4)


def by_id(number: int) -> Suite:
    """SealError where there is no such suite: the number stands in a record."""
    for suite in SUITES:
        if suite.id == number:
            return suite
    raise SealError(f"there is no suite {number}", "a newer release has sealed this: update, then open it")


def by_name(name: str) -> Suite:
    """VaultError where there is no such suite: the name stands in a configuration."""
    for suite in SUITES:
        if suite.name == name:
            return suite
    raise VaultError(f"there is no suite '{name}'", f"the suites are {', '.join(suite.name for suite in SUITES)}")
