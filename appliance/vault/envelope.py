"""A sealed record: bytes that open under one key, in one place of one vault, and nowhere else. Pure, but for the salt.

    record = CBOR [format, suite, epoch, salt, commitment, ciphertext and tag]
    aad    = CBOR ["millwright/record", format, suite, vault, name, version, epoch]

Both are canonical: a record has one encoding. The README of this folder gives it byte by byte, and
tests/vectors/vault holds records to check a decoder with.
"""

import os
from dataclasses import dataclass

import cbor2

from appliance.errors import SealError, VaultError
from appliance.vault import suites
from appliance.vault.canonical import Reader
from appliance.vault.ciphers import TAG_BYTES
from appliance.vault.port import MAX_SECRET_BYTES
from appliance.vault.suites import COMMITMENT_BYTES, SALT_BYTES, Suite

FORMAT = 1
VAULT_BYTES = 16
MAX_NAME_BYTES = 512  # of UTF-8
MAX_NUMBER = (1 << 63) - 1  # of versions and epochs
MAX_RECORD_BYTES = MAX_SECRET_BYTES + 128

_PURPOSE = "millwright/record"
_MAX_SMALL = 255  # of formats and suites


@dataclass(frozen=True)
class Place:
    """Where a record belongs. It opens nowhere else: not under another name, not as an older version of itself."""

    vault: bytes  # the vault's id, 16 bytes
    name: str
    version: int
    epoch: int  # of the key that seals it

    def __post_init__(self) -> None:
        if len(self.vault) != VAULT_BYTES:
            raise SealError(f"a vault's id has {VAULT_BYTES} bytes, not {len(self.vault)}")
        if not 0 < len(self.name.encode(errors="replace")) <= MAX_NAME_BYTES or not self.name.isprintable():
            raise SealError(f"a record's name has 1 to {MAX_NAME_BYTES} bytes, all of them printable")
        if not (0 <= self.version <= MAX_NUMBER and 0 <= self.epoch <= MAX_NUMBER):
            raise SealError(f"version {self.version} or epoch {self.epoch} of '{self.name}' is out of range")


@dataclass(frozen=True)
class Record:
    """A record taken apart, nothing of it verified: which suite and which epoch's key it asks for."""

    suite: Suite
    epoch: int
    sealed: bytes  # salt, commitment, ciphertext and tag: what a suite opens


def seal(suite: Suite, key: bytes, place: Place, plaintext: bytes) -> bytes:
    """At most MAX_RECORD_BYTES, different each time. VaultError where `plaintext` has more than MAX_SECRET_BYTES."""
    return seal_with_salt(suite, key, place, plaintext, os.urandom(SALT_BYTES))


def seal_with_salt(suite: Suite, key: bytes, place: Place, plaintext: bytes, salt: bytes) -> bytes:
    """For test vectors only: a salt used twice under one key gives both plaintexts away."""
    if len(plaintext) > MAX_SECRET_BYTES:
        raise VaultError(
            f"'{place.name}' has {len(plaintext)} bytes, more than the {MAX_SECRET_BYTES} of a secret",
            "keep the file elsewhere, encrypted, and its key in the vault",
        )
    sealed = suites.seal_with_salt(suite, key, plaintext, _aad(suite, place), salt)
    body = SALT_BYTES + COMMITMENT_BYTES
    return cbor2.dumps([FORMAT, suite.id, place.epoch, sealed[:SALT_BYTES], sealed[SALT_BYTES:body], sealed[body:]])


def open(key: bytes, place: Place, record: bytes) -> bytes:  # noqa: A001  # read as envelope.open
    """What was sealed there. SealError names the record, and says nothing of what it holds."""
    parts = read(record)
    if parts.epoch != place.epoch:
        raise SealError(f"'{place.name}' was sealed in epoch {parts.epoch}, not {place.epoch}")
    try:
        return parts.suite.open(key, parts.sealed, _aad(parts.suite, place))
    except SealError as error:
        raise SealError(
            f"'{place.name}', version {place.version}, does not open: {error.message}",
            "put the secret again, or restore the vault's file from its backup",
        ) from error


def read(record: bytes) -> Record:
    """The parts of a record. SealError where it is not exactly one."""
    if len(record) > MAX_RECORD_BYTES:
        raise SealError(f"a record of {len(record)} bytes, more than {MAX_RECORD_BYTES}")
    reader = Reader(record)
    reader.array(6)
    if (found := reader.number(_MAX_SMALL)) != FORMAT:
        raise SealError(f"a record of format {found}", "a newer release has written it: update, then open it")
    suite = suites.by_id(reader.number(_MAX_SMALL))
    epoch = reader.number(MAX_NUMBER)
    salt = reader.string(SALT_BYTES, SALT_BYTES)
    commitment = reader.string(COMMITMENT_BYTES, COMMITMENT_BYTES)
    body = reader.string(TAG_BYTES, TAG_BYTES + MAX_SECRET_BYTES)
    reader.end()
    return Record(suite, epoch, salt + commitment + body)


def _aad(suite: Suite, place: Place) -> bytes:
    return cbor2.dumps([_PURPOSE, FORMAT, suite.id, place.vault, place.name, place.version, place.epoch])
