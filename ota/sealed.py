"""Files that only one fleet can read: a chunked AEAD, whose key is wrapped to the fleet's public key.

    MWSEAL01 | chunk | chunk | ... | last chunk        each: up to 64 KiB, AES-256-GCM, its tag of 16 bytes at the end
    nonce    = number of the chunk, 11 bytes big-endian | 1 where it is the last one, else 0         (STREAM)
    aad      = JSON ["millwright/payload/1", fleet, path of the target, version]

Each file has a key of its own, so that no nonce is used twice under one. A chunk that is moved, doubled, left out or
of another file does not open; a file that was cut off lacks its last chunk. The key stands, wrapped once for each
recipient, in the target's signed data; what it is wrapped under (`info` of HPKE) is the same context as the aad. Who
holds the private key is behind `Unwrapper`: this box's vault.

What opens is written beside its name and renamed at the end: nobody sees the first half of a forgery.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ota import durable
from ota.errors import SealedError

MAGIC = b"MWSEAL01"
KEY_BYTES = 32
CHUNK, TAG = 64 << 10, 16
_CONTEXT = "millwright/payload/1"


class Unwrapper(Protocol):
    """Holds private keys of a fleet, and never gives them away."""

    def unwrap(self, wanted: str, wrapped: bytes, info: bytes) -> bytes | None:
        """None where it has no key of the recipient `wanted`. SealedError: another key's, another file's, altered.
        StorageError: it cannot be asked now."""
        ...


def context(fleet: str, path: str, version: str) -> bytes:
    """What a file is of: whoever takes it for another one cannot open it."""
    return msgspec.json.encode([_CONTEXT, fleet, path, version])


def recipient(public: bytes) -> str:
    """How a fleet's public key is named in signed data."""
    return hashlib.sha256(public).hexdigest()[:16]


def seal(source: Path, target: Path, key: bytes, of: bytes) -> None:
    """Encrypt a file, synced. `key` is of this file alone."""
    with source.open("rb") as plain, target.open("wb") as sealed:
        sealed.write(MAGIC)
        cipher = AESGCM(key)
        for nonce, chunk in _numbered(plain, CHUNK):
            sealed.write(cipher.encrypt(nonce, chunk, of))
        sealed.flush()
        os.fsync(sealed.fileno())


def unseal(source: Path, target: Path, key: bytes, of: bytes) -> None:
    """Decrypt a file to a name that stands for all of it or does not exist. SealedError: no byte of it is there.

    Takes a few chunks of memory, whatever the file's size.
    """
    draft = target.with_name(f".{target.name}.opening")
    try:
        with source.open("rb") as sealed, draft.open("wb") as plain:
            _open(sealed, plain, key, of)
            plain.flush()
            os.fsync(plain.fileno())
        durable.move(draft, target)
    except SealedError:
        draft.unlink(missing_ok=True)
        raise
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise durable.unusable(target, error) from error


def unsealed_bytes(sealed_bytes: int) -> int:
    """How long a file of so many bytes is at most, once it is opened."""
    return max(sealed_bytes - len(MAGIC) - TAG, 0)


def _open(sealed: BinaryIO, plain: BinaryIO, key: bytes, of: bytes) -> None:
    if sealed.read(len(MAGIC)) != MAGIC:
        raise _wrong("it does not begin like one")
    if len(key) != KEY_BYTES:
        raise _wrong(f"its key has {len(key)} bytes")
    cipher = AESGCM(key)
    for nonce, chunk in _numbered(sealed, CHUNK + TAG):
        try:
            plain.write(cipher.decrypt(nonce, chunk, of))
        except (InvalidTag, ValueError) as error:
            raise _wrong(f"its chunk {int.from_bytes(nonce[:-1], 'big')} does not open, or it ends there") from error


def _numbered(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Nonces and chunks; at least one, and the last one is known to be the last."""
    number, chunk = 0, file.read(size)
    while True:
        following = file.read(size) if len(chunk) == size else b""
        yield number.to_bytes(11, "big") + bytes([not following]), chunk
        if not following:
            return
        number, chunk = number + 1, following


def _wrong(what: str) -> SealedError:
    return SealedError(f"an encrypted file: {what}", "Publish it anew, for this fleet's key.")
