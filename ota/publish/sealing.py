"""Encryption for a fleet: a key for each file, wrapped to the fleet's public keys as the appliance's vault unwraps it.

    HPKE (RFC 9180, base mode), HKDF-SHA256, AES-256-GCM          info = "millwright/wrap/1" 00 | context of the file
    wrapped = CBOR [1, kind, encapsulated and ciphertext]         kind 1: X25519; kind 2: ML-KEM-768 with X25519
    public  = kind, the key's bytes                               kind 1: 32 bytes; kind 2: 1184 and 32

Nothing here can open what was sealed: whoever publishes keeps the plain files of the workshop, in `plain/`, to make
deltas of them. In the open remain names, versions, sizes and content hashes; and campaigns.
"""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cbor2
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite
from msgspec.structs import replace

from ota import manifest, sealed
from ota.errors import PublishError
from ota.manifest import SEALED, Bundle, Delta

_PURPOSE = b"millwright/wrap/1\0"
_FORMAT = 1
_X25519, _HYBRID = 1, 2
_RAW, _LATTICE = 32, 1184  # bytes
_LENGTHS = {_X25519: 1 + _RAW, _HYBRID: 1 + _LATTICE + _RAW}


def create(path: Path) -> str:
    """A fleet's key: the private half in a new file, for the vaults of its boxes, and `NAME.pub`. The recipient."""
    private = X25519PrivateKey.generate()
    public = bytes([_X25519]) + private.public_key().public_bytes_raw()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(bytes([_X25519]) + private.private_bytes_raw())
            file.flush()
            os.fsync(file.fileno())
        path.with_name(f"{path.name}.pub").write_text(f"{base64.b64encode(public).decode()}\n")
    except OSError as error:
        raise PublishError(f"{path}: {error.strerror}", "Name a file that is not there yet.") from error
    return sealed.recipient(public)


def read_public(path: Path) -> str:
    """The line of a public key, checked. PublishError."""
    try:
        line = path.read_bytes()[:4096].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PublishError(f"{path} cannot be read", "Name the .pub file of a fleet's key.") from error
    _public(line)
    return line


def recipients(lines: Sequence[str]) -> dict[str, bytes]:
    """Public keys by their ids."""
    return {sealed.recipient(public): public for public in map(_public, lines)}


def seal(content: Bundle | Delta, fleet: str, lines: Sequence[str], plain: Path, target: Path) -> Bundle | Delta:
    """Encrypt a target's file for these public keys. The content, with the wrapped key and the need to open it."""
    path = manifest.path_of(content, fleet)
    of = sealed.context(fleet, path, content.version)
    key = os.urandom(sealed.KEY_BYTES)
    sealed.seal(plain, target, key, of)
    keys = {name: _wrap(public, key, of) for name, public in recipients(lines).items()}
    needs = replace(content.needs, features=(*content.needs.features, SEALED))
    return replace(content, sealed=keys, needs=needs)


def bare(content: Bundle) -> Bundle:
    """As it was before it was sealed."""
    features = tuple(feature for feature in content.needs.features if feature != SEALED)
    return replace(content, sealed={}, needs=replace(content.needs, features=features))


def is_for(keys: Mapping[str, bytes], lines: Sequence[str]) -> bool:
    """Whether it is sealed for exactly these; for nobody where it is not sealed."""
    return set(keys) == set(recipients(lines))


def _wrap(public: bytes, key: bytes, of: bytes) -> bytes:
    kind, raw = public[0], public[1:]
    try:
        if kind == _X25519:
            suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
            wrapped = suite.encrypt(key, X25519PublicKey.from_public_bytes(raw), _PURPOSE + of)
        else:
            suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
            lattice = MLKEM768PublicKey.from_public_bytes(raw[:_LATTICE])
            hybrid = MLKEM768X25519PublicKey(lattice, X25519PublicKey.from_public_bytes(raw[_LATTICE:]))
            wrapped = suite.encrypt(key, hybrid, _PURPOSE + of)
    except ValueError as error:
        raise PublishError("a public key that nothing can be wrapped to", "Take the fleet's key anew.") from error
    return cbor2.dumps([_FORMAT, kind, wrapped])


def _public(line: str) -> bytes:
    try:
        public = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PublishError("a fleet's public key that is no base64", "Name the .pub file of a fleet's key.") from error
    if not public or len(public) != _LENGTHS.get(public[0], 0):
        raise PublishError("no public key of a kind that is known", "Name the .pub file of a fleet's key.")
    return public
