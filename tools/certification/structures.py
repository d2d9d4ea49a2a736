"""What a TPM writes, read without one; and what only one TPM can read, written. Pure.

The structures of the TPM 2.0 library, part 2, as far as an authority looks at them: P-256 keys, quotes, statements
about keys. Everything else is refused. MakeCredential is part 1, 24: a secret for the TPM that has an endorsement key,
and for an attestation key of this name.
"""

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from appliance.errors import VaultError

ECC, SHA256, NULL, AES, CFB_MODE, ECDSA = 0x23, 0x0B, 0x10, 0x06, 0x43, 0x18
P256 = 0x03
FIXED_TPM, FIXED_PARENT, SENSITIVE_ORIGIN = 1 << 1, 1 << 4, 1 << 5
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18
# PolicySecret(endorsement hierarchy): TCG EK Credential Profile, B.6.
ENDORSEMENT_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
ENDORSEMENT_ATTRIBUTES = 0x000300B2
GENERATED = 0xFF544347
QUOTED, CERTIFIED = 0x8018, 0x8017


@dataclass(frozen=True)
class Public:
    """A P-256 key of a TPM's."""

    attributes: int
    policy: bytes
    symmetric: int  # algorithm, NULL where it encrypts nothing
    scheme: int
    key: ec.EllipticCurvePublicKey
    name: bytes  # a hash of all that it is

    def has(self, attributes: int) -> bool:
        return self.attributes & attributes == attributes


@dataclass(frozen=True)
class Statement:
    kind: int
    qualifying: bytes
    registers: tuple[int, ...] = ()  # of a quote
    digest: bytes = b""  # of their values, in their order
    name: bytes = b""  # of the key that is certified


def public(content: bytes) -> Public:
    """Of TPMT_PUBLIC. VaultError."""
    read = _Reader(content)
    if (read.u16(), read.u16()) != (ECC, SHA256):
        raise _unlike("a key of another kind than P-256 with SHA-256 names")
    attributes, policy = read.u32(), read.sized(64)
    symmetric = read.u16()
    if symmetric != NULL and (symmetric, read.u16(), read.u16()) != (AES, 128, CFB_MODE):
        raise _unlike("a storage key of another kind than AES-128")
    scheme = read.u16()
    if scheme != NULL and (scheme, read.u16()) != (ECDSA, SHA256):
        raise _unlike("another signature than ECDSA with SHA-256")
    if (read.u16(), read.u16()) != (P256, NULL):
        raise _unlike("another curve than P-256")
    x, y = read.sized(32), read.sized(32)
    read.end()
    try:
        key = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        ).public_key()
    except ValueError:
        raise _unlike("a point that is not on its curve") from None
    return Public(
        attributes, policy, symmetric, scheme, key, struct.pack(">H", SHA256) + hashlib.sha256(content).digest()
    )


def statement(content: bytes) -> Statement:
    """Of TPMS_ATTEST. VaultError for one that no TPM has made of itself, or of another kind."""
    read = _Reader(content)
    if read.u32() != GENERATED:
        raise _unlike("a statement that no TPM made")
    kind, _signer, qualifying = read.u16(), read.sized(68), read.sized(64)
    read.take(17 + 8)  # clock and firmware
    if kind == CERTIFIED:
        found = Statement(kind, qualifying, name=read.sized(68))
        read.sized(68)  # its qualified name
    elif kind == QUOTED:
        registers = _selection(read)
        found = Statement(kind, qualifying, registers, read.sized(64))
    else:
        raise _unlike("a statement about something else")
    read.end()
    return found


def make_credential(endorsement: Public, name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET."""
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    shared = ephemeral.exchange(ec.ECDH(), endorsement.key)
    own = ephemeral.public_key().public_numbers()
    theirs = endorsement.key.public_numbers()
    seed = _kdf_e(shared, b"IDENTITY\0", own.x.to_bytes(32, "big"), theirs.x.to_bytes(32, "big"))
    cipher = Cipher(algorithms.AES128(_kdf_a(seed, b"STORAGE", name, 128)), CFB(bytes(16))).encryptor()
    encrypted = cipher.update(_sized(secret)) + cipher.finalize()
    mac = hmac.digest(_kdf_a(seed, b"INTEGRITY", b"", 256), encrypted + name, "sha256")
    point = _sized(own.x.to_bytes(32, "big")) + _sized(own.y.to_bytes(32, "big"))
    return _sized(mac) + encrypted, point


def new_secret() -> bytes:
    return secrets.token_bytes(32)


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._rest = content

    def take(self, count: int) -> bytes:
        if count > len(self._rest):
            raise _unlike("bytes missing")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def sized(self, most: int) -> bytes:
        size = self.u16()
        if size > most:
            raise _unlike("a part that is too long")
        return self.take(size)

    def end(self) -> None:
        if self._rest:
            raise _unlike("bytes too many")


def _selection(read: _Reader) -> tuple[int, ...]:
    """Of one bank, SHA-256: an empty one or another's values prove nothing here."""
    if read.u32() != 1 or read.u16() != SHA256:
        raise _unlike("a quote of other registers than SHA-256's")
    size = read.take(1)[0]
    if size > 4:
        raise _unlike("a quote of too many registers")
    bits = int.from_bytes(read.take(size), "little")
    return tuple(register for register in range(8 * size) if bits >> register & 1)


def _kdf_a(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """Part 1, 11.4.10.2; one block of SHA-256 is enough here."""
    message = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.digest(key, message, "sha256")[: bits // 8]


def _kdf_e(shared: bytes, label: bytes, own: bytes, theirs: bytes) -> bytes:
    return hashlib.sha256(struct.pack(">I", 1) + shared + label + own + theirs).digest()


def _sized(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


def _unlike(what: str) -> VaultError:
    return VaultError(f"the box's TPM: {what}", "This authority takes P-256 keys and statements of a TPM 2.0 only.")
