"""The two authenticated ciphers, one shot each, and HKDF: a forged tag never yields a byte of plaintext.

Nonces have 12 bytes and tags 16, and nothing else is accepted. Here is the bare mathematics: nonces, key commitment and
what is bound to a ciphertext are the affair of `suites`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher as Context
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.errors import SealError

NONCE_BYTES = 12
TAG_BYTES = 16

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Cipher:
    """`seal(key, nonce, plaintext, aad)` gives ciphertext and tag; `open(key, nonce, sealed, aad)` the plaintext, or
    SealError. ValueError where the key or the nonce has the wrong length."""

    name: str
    key_bytes: int
    seal: Callable[[Buffer, Buffer, Buffer, Buffer], bytes]
    open: Callable[[Buffer, Buffer, Buffer, Buffer], bytes]


def hkdf(algorithm: HashAlgorithm, key: Buffer, salt: bytes, info: bytes, length: int) -> bytearray:
    """RFC 5869. ValueError where more than 255 digests are asked for."""
    derived = bytearray(length)
    HKDF(algorithm, length, salt or None, info).derive_into(key, derived)
    return derived


def _check(key: Buffer, key_bytes: int, nonce: Buffer) -> None:
    if len(key) != key_bytes:
        raise ValueError(f"a key of {key_bytes} bytes is wanted, not of {len(key)}")
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce of {NONCE_BYTES} bytes is wanted, not of {len(nonce)}")


def _forged() -> SealError:
    return SealError("the tag does not fit: the key, the place or the bytes are others than were sealed")


def _seal_aes(key: Buffer, nonce: Buffer, plaintext: Buffer, aad: Buffer) -> bytes:
    _check(key, 32, nonce)
    return AESGCM(key).encrypt(nonce, plaintext, aad)


def _open_aes(key: Buffer, nonce: Buffer, sealed: Buffer, aad: Buffer) -> bytes:
    _check(key, 32, nonce)
    if len(sealed) < TAG_BYTES:
        raise _forged()
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise _forged() from None


def _seal_sm4(key: Buffer, nonce: Buffer, plaintext: Buffer, aad: Buffer) -> bytes:
    _check(key, 16, nonce)
    context = Context(algorithms.SM4(bytes(key)), modes.GCM(bytes(nonce))).encryptor()
    context.authenticate_additional_data(aad)
    return context.update(plaintext) + context.finalize() + context.tag


def _open_sm4(key: Buffer, nonce: Buffer, sealed: Buffer, aad: Buffer) -> bytes:
    """The context hands out plaintext before it has seen the tag: it is kept here until the tag fits, or wiped."""
    _check(key, 16, nonce)
    if len(sealed) < TAG_BYTES:
        raise _forged()
    view = memoryview(sealed)
    body, tag = view[:-TAG_BYTES], bytes(view[-TAG_BYTES:])
    context = Context(algorithms.SM4(bytes(key)), modes.GCM(bytes(nonce), tag)).decryptor()
    context.authenticate_additional_data(aad)
    plaintext = bytearray(len(body) + 15)  # update_into wants room for a block more, less a byte
    try:
        written = context.update_into(body, plaintext)
        context.finalize()
        return bytes(memoryview(plaintext)[:written])
    except InvalidTag:
        raise _forged() from None
    finally:
        plaintext[:] = bytes(len(plaintext))


AES_256_GCM = Cipher("aes-256-gcm", 32, _seal_aes, _open_aes)
SM4_GCM = Cipher("sm4-gcm", 16, _seal_sm4, _open_sm4)
