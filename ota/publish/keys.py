"""Signing keys: each in a file of its own, encrypted, or in a token that never gives it away (PKCS#11).

alice            Ed25519, PKCS#8 in PEM, encrypted with a passphrase
alice.pub        what the others get: the public key as TUF writes it, in JSON
hsm:2?label=T    a token: ECDSA on P-256 or P-384, key 2 of token T; PYKCS11LIB names the token's library
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, HSMSigner, Key, Signer, SSlibKey

from ota.errors import PublishError

TOKEN = "hsm:"
MIN_PASSPHRASE = 12  # characters

Secret = Callable[[str], str]  # asks for the passphrase or PIN of what it is given


def create(path: Path, secret: Secret) -> Key:
    """A new key in a new file, and its public half beside it."""
    passphrase = secret(str(path))
    if len(passphrase) < MIN_PASSPHRASE:
        raise PublishError(f"a passphrase of {len(passphrase)} characters", f"Take {MIN_PASSPHRASE} or more.")
    private = Ed25519PrivateKey.generate()
    encrypted = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode()),
    )
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(encrypted)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise PublishError(f"{path} is there already", "A key is never overwritten: take another name.") from error
    public: Key = CryptoSigner(private).public_key
    write_public(public, public_path(path))
    return public


def signer(name: str, secret: Secret) -> Signer:
    """For a file or a token. PublishError: not there, or the wrong passphrase."""
    if name.startswith(TOKEN):
        return _token(name, secret)
    path = Path(name)
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), secret(name).encode())
    except OSError as error:
        raise PublishError(f"{path}: {error.strerror}", "Name the file of a private key.") from error
    except (ValueError, TypeError) as error:
        raise PublishError(f"{path} does not open", "Check the passphrase.") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise PublishError(f"{path} is not an Ed25519 key", "Make one: millwright-publish key FILE")
    return CryptoSigner(private)


def public(name: str, secret: Secret) -> Key:
    """The public half: of a token, of `NAME.pub`, or of a file that is one."""
    if name.startswith(TOKEN):
        return signer(name, secret).public_key
    path = Path(name)
    return read_public(path if path.suffix == ".pub" else public_path(path))


def public_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")


def write_public(key: Key, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode({"keyid": key.keyid, **key.to_dict()}), indent=1))


def read_public(path: Path) -> Key:
    try:
        plain: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        return Key.from_dict(plain.pop("keyid"), plain)
    except OSError as error:
        raise PublishError(f"{path}: {error.strerror}", "Name the file of a public key.") from error
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PublishError(f"{path} is no public key", "It is the file NAME.pub beside a key.") from error


def _token(name: str, secret: Secret) -> Signer:
    from securesystemslib.exceptions import UnsupportedLibraryError

    number, _, query = name.removeprefix(TOKEN).partition("?")
    try:
        _, found = HSMSigner.import_(int(number or 2), query.removeprefix("label=") or None, lambda _: secret(name))
    except UnsupportedLibraryError as error:
        raise PublishError("no library for tokens is installed", "Run: tools/setup publish") from error
    except ValueError as error:
        raise PublishError(f"{name}: {error}", "Check PYKCS11LIB, the number and the label.") from error
    if not isinstance(found, SSlibKey):
        raise PublishError(f"{name}: a key of a kind that is not known", "Take ECDSA on P-256.")
    return HSMSigner.from_priv_key_uri(name, found, lambda _: secret(name))
