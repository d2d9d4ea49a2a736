"""This box's identity towards an outside authority: its key, its certificate, and what it takes to renew them.

Everything is in the vault: `identity/device` is the key and the certificates, PEM, one behind the other, of use as it
is wherever a client's certificate is wanted; `identity/pending` a key whose certificate was asked for;
`identity/account` who the authority is. A key of a TPM stands there as its "TSS2 PRIVATE KEY", which only this TPM can
use. A change is one secret: after a power cut the old identity is there, or the new one.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from appliance.errors import BindingError, VaultError
from appliance.vault.certificates import authority, enrolment
from appliance.vault.certificates.enrolment import (
    Attestation,
    Challenge,
    Issued,
    Level,
    Previous,
    Proof,
    RemoteKey,
    Request,
    Sealed,
    Signed,
)
from appliance.vault.port import Entry
from appliance.vault.secret import Secret

DEVICE, PENDING, ACCOUNT = "identity/device", "identity/pending", "identity/account"
TPM_KEY = b"-----BEGIN TSS2 PRIVATE KEY-----"
_MARK = b"-----BEGIN CERTIFICATE-----"
# TPMT_PUBLIC of a P-256 key without a scheme ends with its coordinates: each 2 bytes of length, then 32.
_POINT_BYTES = 68
_T = TypeVar("_T")


class Secrets(Protocol):
    """As much of a Keeper as is needed here."""

    def get(self, name: str) -> Secret: ...

    def put(self, name: str, content: Secret) -> Entry: ...

    def remove(self, name: str) -> None: ...

    def entries(self, prefix: str = "") -> Sequence[Entry]: ...


class Endorsement(Protocol):
    @property
    def public(self) -> bytes: ...

    @property
    def certificate(self) -> bytes: ...


class Statement(Protocol):
    @property
    def attested(self) -> bytes: ...

    @property
    def signature(self) -> bytes: ...


class Quote(Protocol):
    @property
    def statement(self) -> Statement: ...

    @property
    def values(self) -> Mapping[int, bytes]: ...


class Attestor(Protocol):
    """A TPM: see `hardware/attestation.py`. OSError where it refuses or is not there."""

    def endorsement(self) -> Endorsement: ...

    def make_attestation_key(self) -> bytes: ...

    def make_device_key(self) -> bytes: ...

    def public(self, key: bytes) -> bytes: ...

    def sign(self, key: bytes, digest: bytes) -> bytes: ...

    def quote(self, attestation_key: bytes, registers: Iterable[int], qualifying: bytes) -> Quote: ...

    def certify(self, attestation_key: bytes, key: bytes, qualifying: bytes) -> Statement: ...

    def activate(self, attestation_key: bytes, credential: bytes, secret: bytes) -> bytes: ...


class Account(Struct, frozen=True, forbid_unknown_fields=True):
    """Whom the box is enrolled with, or about to be."""

    name: str  # of this box, there
    url: str = ""  # empty: messages are carried by hand
    authority: bytes = b""  # its certificate, PEM; pinned
    level: int = Level.SOFTWARE  # that is asked for
    attestation_key: bytes = b""


class Pending(Struct, frozen=True, forbid_unknown_fields=True):
    key: bytes
    bound: bytes


@dataclass(frozen=True)
class Identity:
    """What is shown to others, without the key."""

    certificate: x509.Certificate
    chain: bytes
    in_tpm: bool

    @property
    def name(self) -> str:
        return _text(self.certificate, NameOID.COMMON_NAME)

    @property
    def level(self) -> str:
        """As the authority has found it."""
        return _text(self.certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)


class Identities:
    """`clock` gives UTC ns, never before what this box has certainly seen."""

    def __init__(self, secrets: Secrets, clock: Callable[[], int], attestor: Callable[[], Attestor | None]) -> None:
        """`attestor` gives the TPM when one is needed, None where there is none that can be used."""
        self._secrets, self._clock, self._attestor = secrets, clock, attestor

    def current(self) -> Identity | None:
        """VaultError where the vault's content is none."""
        kept = self._get(DEVICE)
        if kept is None:
            return None
        key, mark, rest = kept.partition(_MARK)
        with suppress(ValueError):
            return Identity(x509.load_pem_x509_certificate(mark + rest), mark + rest, key.startswith(TPM_KEY))
        raise VaultError(f"the vault's '{DEVICE}' is no certificate with its key", f"millwright vault remove {DEVICE}")

    def account(self) -> Account | None:
        kept = self._get(ACCOUNT)
        return _decoded(ACCOUNT, kept, Account) if kept is not None else None

    def is_pending(self) -> bool:
        return self._get(PENDING) is not None

    def is_due(self) -> bool:
        """A third of the certificate's life is left, or less."""
        found = self.current()
        return found is not None and authority.is_due(found.certificate, self._clock())

    def sign(self, message: bytes) -> tuple[bytes, bytes] | None:
        """This box's certificate, DER, and an ECDSA signature over SHA-256 by its key, DER; None before it is enrolled.
        Whoever signs here begins the message with what it is for. VaultError, BindingError."""
        found, kept = self.current(), self._get(DEVICE)
        if found is None or kept is None:
            return None
        key = kept.partition(_MARK)[0]
        if found.in_tpm:
            with _told():
                signature = self._tpm().sign(key, hashlib.sha256(message).digest())
        else:
            signature = authority.load_key(key).sign(message, ec.ECDSA(hashes.SHA256()))
        return found.certificate.public_bytes(serialization.Encoding.DER), signature

    def open_account(self, account: Account) -> None:
        """Who the authority is from now on. The attestation key of before is kept: it is this TPM's."""
        before = self.account()
        kept = before.attestation_key if before else b""
        self._keep(ACCOUNT, msgspec.structs.replace(account, attestation_key=account.attestation_key or kept))

    def ask(self, nonce: bytes, token: bytes = b"") -> Request:
        """A new key and the request for its certificate; the key waits in the vault. VaultError, BindingError."""
        account = self._opened()
        level = Level(account.level)
        if level is Level.SOFTWARE:
            return self._ask_in_software(account, nonce, token)
        with _told():
            return self._ask_attested(account, level, nonce, token)

    def prove(self, challenge: Challenge) -> Proof:
        """BindingError where the challenge is meant for another box."""
        secret = self._activated(challenge)
        return enrolment.proof(secret, self._waiting().bound)

    def install(self, answer: Issued | Sealed) -> Identity:
        """The certificate is this box's from now on. VaultError where it is not for the key that waits, or of another
        authority; nothing has changed then."""
        waiting, account = self._waiting(), self._opened()
        chain = answer.certificates if isinstance(answer, Issued) else self._unsealed(answer, waiting)
        self._check(chain, waiting, account)
        self._secrets.put(DEVICE, Secret(waiting.key.rstrip() + b"\n" + chain))
        self._secrets.remove(PENDING)
        found = self.current()
        assert found is not None
        return found

    # ---- asking -------------------------------------------------------------------------------------------------

    def _ask_in_software(self, account: Account, nonce: bytes, token: bytes) -> Request:
        key = authority.new_key()
        asked = enrolment.certificate_request(account.name, Level.SOFTWARE, key)
        bound = enrolment.binding(asked, nonce)
        self._keep(PENDING, Pending(authority.key_pem(key), bound))
        previous = None if token else self._previous(bound)
        return Request(asked, nonce, previous=previous, token=_token(token, bound))

    def _previous(self, bound: bytes) -> Previous | None:
        kept = self._get(DEVICE)
        if kept is None or kept.startswith(TPM_KEY):
            return None
        key, mark, rest = kept.partition(_MARK)
        signature = authority.load_key(key).sign(bound, ec.ECDSA(Prehashed(hashes.SHA256())))
        certificate = x509.load_pem_x509_certificate(mark + rest)
        return Previous(certificate.public_bytes(serialization.Encoding.DER), signature)

    def _ask_attested(self, account: Account, level: Level, nonce: bytes, token: bytes) -> Request:
        tpm = self._tpm()
        attestation_key = self._attestation_key(account, tpm)
        key, signer = self._new_key(level, tpm)
        asked = enrolment.certificate_request(account.name, level, signer)
        bound = enrolment.binding(asked, nonce)
        self._keep(PENDING, Pending(key, bound))
        endorsement = tpm.endorsement()
        quote = tpm.quote(attestation_key, enrolment.REGISTERS, bound)
        is_inside = level is Level.KEY
        certified = tpm.certify(attestation_key, key, bound) if is_inside else None
        shown = Attestation(
            endorsement.public,
            tpm.public(attestation_key),
            {str(number): value for number, value in quote.values.items()},
            _signed(quote.statement),
            endorsement.certificate,
            tpm.public(key) if is_inside else b"",
            _signed(certified) if certified else None,
        )
        return Request(asked, nonce, shown, token=_token(token, bound))

    def _new_key(self, level: Level, tpm: Attestor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
        if level is Level.BOX:
            own = authority.new_key()
            return authority.key_pem(own), own
        made = tpm.make_device_key()
        return made, RemoteKey(_point(tpm.public(made)), lambda digest: tpm.sign(made, digest))

    def _attestation_key(self, account: Account, tpm: Attestor) -> bytes:
        """The one of before, where this TPM still knows it: it does not once it was cleared, nor in another box."""
        if account.attestation_key:
            with suppress(OSError):
                tpm.quote(account.attestation_key, enrolment.REGISTERS, bytes(32))
                return account.attestation_key
        made = tpm.make_attestation_key()
        self._keep(ACCOUNT, msgspec.structs.replace(account, attestation_key=made))
        return made

    # ---- the answer ---------------------------------------------------------------------------------------------

    def _activated(self, challenge: Challenge) -> bytes:
        with _told():
            return self._tpm().activate(self._opened().attestation_key, challenge.credential, challenge.secret)

    def _unsealed(self, answer: Sealed, waiting: Pending) -> bytes:
        return enrolment.unseal(self._activated(answer.challenge), waiting.bound, answer.content)

    def _check(self, chain: bytes, waiting: Pending, account: Account) -> None:
        try:
            own, *_ = x509.load_pem_x509_certificates(chain)
            issuer = x509.load_pem_x509_certificate(account.authority)
            own.verify_directly_issued_by(issuer)
            key, uses = own.public_key(), own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            raise VaultError("the certificate is none of the authority that is trusted", _AGAIN) from None
        if key != self._public(waiting.key) or ExtendedKeyUsageOID.CLIENT_AUTH not in uses:
            raise VaultError("the certificate is for another key than the one that was made here", _AGAIN)
        if own.not_valid_after_utc <= datetime.fromtimestamp(self._clock() // 1_000_000_000, UTC):
            raise VaultError("the certificate has ended already", "Look at the clocks of this box and the authority.")

    def _public(self, key: bytes) -> ec.EllipticCurvePublicKey:
        if not key.startswith(TPM_KEY):
            return authority.load_key(key).public_key()
        with _told():
            return _point(self._tpm().public(key))

    # ---- the vault ----------------------------------------------------------------------------------------------

    def _tpm(self) -> Attestor:
        found = self._attestor()
        if found is None:
            raise BindingError("no TPM can be used", "'millwright doctor' says why; --key vault does without one.")
        return found

    def _opened(self) -> Account:
        account = self.account()
        if account is None:
            raise VaultError("this box is enrolled with nobody", "millwright identity enrol URL --fingerprint SHA256")
        return account

    def _waiting(self) -> Pending:
        kept = self._get(PENDING)
        if kept is None:
            raise VaultError("no certificate was asked for, or it is here already", _AGAIN)
        return _decoded(PENDING, kept, Pending)

    def _get(self, name: str) -> bytes | None:
        if not any(entry.name == name for entry in self._secrets.entries(name)):
            return None
        return self._secrets.get(name).reveal()

    def _keep(self, name: str, value: Struct) -> None:
        self._secrets.put(name, Secret(msgspec.json.encode(value)))


_AGAIN = "Make a new request: millwright identity renew, or millwright identity request FILE."


@contextmanager
def _told() -> Iterator[None]:
    """What the TPM says becomes a BindingError."""
    try:
        yield
    except OSError as error:
        remedy = "Is this the box that asked? A TPM that was cleared is enrolled anew, with a token."
        raise BindingError(f"the TPM: {error}", remedy) from error


def fingerprint(certificate: x509.Certificate) -> str:
    """By which an authority is known: SHA-256 of the whole certificate, hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _token(token: bytes, bound: bytes) -> bytes:
    return enrolment.token_proof(token, bound) if token else b""


def _signed(statement: Statement) -> Signed:
    return Signed(statement.attested, statement.signature)


def _point(public: bytes) -> ec.EllipticCurvePublicKey:
    x, y = public[-_POINT_BYTES + 2 : -34], public[-32:]
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)


def _text(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    return "".join(str(one.value) for one in certificate.subject.get_attributes_for_oid(oid))


def _decoded(name: str, content: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise VaultError(f"the vault's '{name}' is of another release", f"millwright vault remove {name}") from None
