"""Wraps a key for whoever holds a private key: recovery, escrow, a standby (RFC 9180, base mode).

    kind 1, x25519            DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM
    kind 2, mlkem768-x25519   the same with ML-KEM-768 beside X25519 (X-Wing): also against what records today and has a
                              quantum computer later

    private = kind, 32 bytes: the seed          public = kind, 32 or 1216 bytes
    wrapped = CBOR [format, kind, encapsulated and ciphertext]

Base mode says who can read, never who has written: whoever unwraps takes the wrapped key from a place he trusts.
"""

import hashlib
import os
from typing import Literal, get_args

import cbor2
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from appliance.errors import SealError, VaultError
from appliance.vault.canonical import Reader

Kind = Literal["x25519", "mlkem768-x25519"]

FORMAT = 1
SEED_BYTES = 32
MAX_KEY_BYTES = 1024  # of what is wrapped
MAX_WRAPPED_BYTES = 4096
MAX_INFO_BYTES = 4096

KINDS: tuple[Kind, ...] = get_args(Kind)
_PURPOSE = b"millwright/wrap/1\0"
_MLKEM_SEED, _MLKEM_PUBLIC = 64, 1184
_PUBLIC_BYTES = {"x25519": 32, "mlkem768-x25519": _MLKEM_PUBLIC + 32}
_ENCAPSULATED = {"x25519": 32, "mlkem768-x25519": 1120}
_TAG_BYTES = 16
_SUITES = {
    "x25519": Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    "mlkem768-x25519": Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
}

_Private = X25519PrivateKey | MLKEM768X25519PrivateKey
_Public = X25519PublicKey | MLKEM768X25519PublicKey


def generate(kind: Kind = "x25519") -> tuple[bytes, bytes]:
    """A new private key and its public key."""
    return from_seed(os.urandom(SEED_BYTES), kind)


def from_seed(seed: bytes, kind: Kind = "x25519") -> tuple[bytes, bytes]:
    """The private and public key of 32 secret bytes, always the same. VaultError where this box lacks ML-KEM."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed of {SEED_BYTES} bytes is wanted, not of {len(seed)}")
    number = bytes((KINDS.index(kind) + 1,))
    return number + seed, number + _public_bytes(seed, kind)


def public_of(private: bytes) -> bytes:
    """The public key of a private one."""
    kind = _private_kind(private)
    return private[:1] + _public_bytes(private[1:], kind)


def kind_of(public: bytes) -> Kind:
    """SealError where the bytes are no public key."""
    kind = _kind(public[0] if public else 0, "a public key")
    if len(public) != 1 + _PUBLIC_BYTES[kind]:
        raise SealError(f"a public {kind} key has {1 + _PUBLIC_BYTES[kind]} bytes, not {len(public)}")
    return kind


def wrap(public: bytes, key: bytes, info: bytes) -> bytes:
    """`key` for the holder of `public`, only under the same `info`: say in it what the key is of.

    1 to MAX_KEY_BYTES; fresh each time. SealError where `public` is no public key that can be wrapped to.
    """
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"{len(key)} bytes are not between 1 and {MAX_KEY_BYTES}")
    kind, context = kind_of(public), _info(info)
    try:
        sealed = _SUITES[kind].encrypt(key, _public_key(public[1:], kind), context)
    except ValueError as error:
        raise SealError("a public key that nothing can be wrapped to", "take the recipient's key anew") from error
    return cbor2.dumps([FORMAT, KINDS.index(kind) + 1, sealed])


def unwrap(private: bytes, wrapped: bytes, info: bytes) -> bytes:
    """What was wrapped. SealError where it was for another key, with another `info`, or is altered."""
    kind, context = _private_kind(private), _info(info)
    wrapped_kind, sealed = _read(wrapped)
    if wrapped_kind != kind:
        raise SealError(f"wrapped for a {wrapped_kind} key, and this is a {kind} one", "use the other recovery key")
    try:
        return _SUITES[kind].decrypt(sealed, _private_key(private[1:], kind), context)
    except (InvalidTag, ValueError):
        raise SealError("wrapped for another key or another purpose, or altered") from None


def _read(wrapped: bytes) -> tuple[Kind, bytes]:
    if len(wrapped) > MAX_WRAPPED_BYTES:
        raise SealError(f"a wrapped key of {len(wrapped)} bytes, more than {MAX_WRAPPED_BYTES}")
    reader = Reader(wrapped)
    reader.array(3)
    if (found := reader.number(255)) != FORMAT:
        raise SealError(f"a wrapped key of format {found}", "a newer release has written it: update, then open it")
    kind = _kind(reader.number(255), "a wrapped key")
    least = _ENCAPSULATED[kind] + 1 + _TAG_BYTES
    sealed = reader.string(least, least - 1 + MAX_KEY_BYTES)
    reader.end()
    return kind, sealed


def _private_kind(private: bytes) -> Kind:
    kind = _kind(private[0] if private else 0, "a private key")
    if len(private) != 1 + SEED_BYTES:
        raise SealError(f"a private key has {1 + SEED_BYTES} bytes, not {len(private)}")
    return kind


def _kind(number: int, what: str) -> Kind:
    if not 0 < number <= len(KINDS):
        raise SealError(f"{what} of kind {number}", "a newer release has made it: update, then use it")
    return KINDS[number - 1]


def _info(info: bytes) -> bytes:
    if len(info) > MAX_INFO_BYTES:
        raise ValueError(f"info of {len(info)} bytes, more than {MAX_INFO_BYTES}")
    return _PURPOSE + info


def _private_key(seed: bytes, kind: Kind) -> _Private:
    if kind == "x25519":
        return X25519PrivateKey.from_private_bytes(seed)
    return MLKEM768X25519PrivateKey(*_hybrid(seed))


def _public_bytes(seed: bytes, kind: Kind) -> bytes:
    if kind == "x25519":
        return X25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return b"".join(key.public_key().public_bytes_raw() for key in _hybrid(seed))


def _hybrid(seed: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    """Expanded as X-Wing does, so that the seed is one of its keys."""
    expanded = hashlib.shake_256(seed).digest(_MLKEM_SEED + 32)
    try:
        lattice = MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED])
    except UnsupportedAlgorithm as error:
        raise _no_lattice() from error
    return lattice, X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED:])


def _public_key(raw: bytes, kind: Kind) -> _Public:
    if kind == "x25519":
        return X25519PublicKey.from_public_bytes(raw)
    try:
        lattice = MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC])
    except UnsupportedAlgorithm as error:
        raise _no_lattice() from error
    return MLKEM768X25519PublicKey(lattice, X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC:]))


def _no_lattice() -> VaultError:
    return VaultError("this box's cryptography has no ML-KEM-768", "use x25519 recipients")
