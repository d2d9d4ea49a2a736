"""How a box asks an outside authority for its certificate: the messages, and what ties them together. Pure, JSON.

    authority   nonce, 32 bytes, good once
    box         Request: a certificate request (PKCS #10), signed with the key that is to be certified, and with it
                  Attestation  of a TPM: its endorsement key, an attestation key, a quote of the registers and, for a
                               key in the TPM, a statement that it is; both carry `binding(request, nonce)`
                  Previous     a signature of `binding` with the key of the certificate that is to be renewed
                  token        a MAC of `binding` with a token that the authority gave out once
    authority   Challenge: a secret encrypted to the endorsement key for this attestation key; none without a TPM
    box         Proof: a MAC of `binding` with that secret
    authority   Issued

Where messages are carried by hand, the authority sends Sealed: the certificates, encrypted with the secret, and the
challenge beside them. What cannot be opened there was asked for by another box than it said.
"""

import hashlib
import hmac
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from msgspec import Meta, Struct

from appliance.errors import VaultError
from appliance.vault.certificates.authority import NAME

NONCE_BYTES = SECRET_BYTES = TOKEN_BYTES = 32
MAX_BYTES = 64 << 10  # of any message
REGISTERS = (0, 1, 2, 3, 4, 5, 6, 7, 11)  # that a box quotes; 11 is the system's own image
MAX_REGISTERS = 24

Brief = Annotated[bytes, Meta(max_length=1024)]
Long = Annotated[bytes, Meta(max_length=16 << 10)]
_Message = TypeVar("_Message", bound=Struct)


class Level(IntEnum):
    """What an authority knows of the key that it certifies, the stronger the higher."""

    SOFTWARE = 10  # who had a token once; the key is as safe as the box's vault
    BOX = 20  # the box has this TPM and these registers; its key is in its vault
    KEY = 30  # and the key cannot leave the TPM

    @property
    def words(self) -> str:
        return {10: "key in software", 20: "key in software, box with TPM", 30: "key in TPM"}[self]


class Signed(Struct, frozen=True, forbid_unknown_fields=True):
    """TPMS_ATTEST, and a signature of it in DER."""

    attested: Brief
    signature: Brief


class Attestation(Struct, frozen=True, forbid_unknown_fields=True):
    """Public keys are TPMT_PUBLIC. `device` and `certification` are there where the key is in the TPM."""

    endorsement: Brief
    attestation: Brief
    registers: Annotated[dict[str, Annotated[bytes, Meta(min_length=32, max_length=32)]], Meta(max_length=24)]
    quote: Signed
    endorsement_certificate: Long = b""
    device: Brief = b""
    certification: Signed | None = None


class Previous(Struct, frozen=True, forbid_unknown_fields=True):
    certificate: Long  # DER
    signature: Brief


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    request: Long  # DER
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    attestation: Attestation | None = None
    previous: Previous | None = None
    token: Annotated[bytes, Meta(max_length=32)] = b""
    format: Literal[1] = 1


class Nonce(Struct, frozen=True, forbid_unknown_fields=True):
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Challenge(Struct, frozen=True, forbid_unknown_fields=True, tag="challenge"):
    """Contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET."""

    credential: Brief
    secret: Brief


class Proof(Struct, frozen=True, forbid_unknown_fields=True):
    binding: Annotated[bytes, Meta(min_length=32, max_length=32)]
    proof: Annotated[bytes, Meta(min_length=32, max_length=32)]


class Issued(Struct, frozen=True, forbid_unknown_fields=True, tag="issued"):
    """PEM: the box's certificate first, the authority's last."""

    certificates: Long


class Sealed(Struct, frozen=True, forbid_unknown_fields=True, tag="sealed"):
    challenge: Challenge
    content: Long


def encode(message: Struct) -> bytes:
    return msgspec.json.encode(message)


def decode(content: bytes, kind: type[_Message]) -> _Message:
    """VaultError for what is no such message, or of a later format."""
    decoded: _Message = _decoded(content, kind)
    return decoded


def decode_answer(content: bytes) -> Challenge | Issued | Sealed:
    """VaultError."""
    answer: Challenge | Issued | Sealed = _decoded(content, Challenge | Issued | Sealed)
    return answer


def binding(request: bytes, nonce: bytes) -> bytes:
    """What every statement in a request is about."""
    return hashlib.sha256(request + nonce).digest()


def token_proof(token: bytes, bound: bytes) -> bytes:
    return hmac.digest(token, b"millwright/enrolment/1/token" + bound, "sha256")


def proof(secret: bytes, bound: bytes) -> Proof:
    return Proof(bound, hmac.digest(secret, b"millwright/enrolment/1/proof" + bound, "sha256"))


def seal(secret: bytes, bound: bytes, certificates: bytes) -> bytes:
    """A secret seals one message: the nonce may be the same each time."""
    return AESGCM(_sealing(secret)).encrypt(bytes(12), certificates, bound)


def unseal(secret: bytes, bound: bytes, content: bytes) -> bytes:
    """VaultError."""
    try:
        return AESGCM(_sealing(secret)).decrypt(bytes(12), content, bound)
    except InvalidTag:
        raise VaultError("the answer is none to this request", "Make a new request, and have it answered.") from None


def certificate_request(name: str, level: Level, key: ec.EllipticCurvePrivateKey) -> bytes:
    """DER. It says where its key is kept; the authority believes what it can verify. VaultError for a bad name."""
    if not NAME.fullmatch(name):
        raise VaultError(
            f"'{name}' cannot be this box's name to an authority",
            "Use up to 64 small letters, digits, '.', '_' and '-': --name press-hall-2.",
        )
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(name, level))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def subject(name: str, level: Level) -> x509.Name:
    """The unit says of what strength the identity is, to everyone who looks at the certificate."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, level.words),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


class RemoteKey(ec.EllipticCurvePrivateKey):
    """A P-256 key that is elsewhere, and signs there."""

    def __init__(self, public: ec.EllipticCurvePublicKey, sign: Callable[[bytes], bytes]) -> None:
        """`sign` makes a DER signature of 32 bytes, a SHA-256."""
        self._public, self._sign = public, sign

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        return self._sign(hashlib.sha256(data).digest())

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        self._refuse()

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        self._refuse()

    def private_bytes(self, encoding: Any, format: Any, encryption_algorithm: Any) -> bytes:  # noqa: A002  # as inherited
        self._refuse()

    def __copy__(self) -> "RemoteKey":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "RemoteKey":
        return self

    def _refuse(self) -> NoReturn:
        raise TypeError("the key is elsewhere: it signs and does nothing else")


def _sealing(secret: bytes) -> bytes:
    return hmac.digest(secret, b"millwright/enrolment/1/seal", "sha256")


def _decoded(content: bytes, kind: Any) -> Any:
    if len(content) > MAX_BYTES:
        raise VaultError(f"a message of an authority or a box has more than {MAX_BYTES} bytes", "It is none.")
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VaultError(f"not a message between box and authority: {error}", "Is it of the same release?") from None
