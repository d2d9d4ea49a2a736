"""Whether a request is what it says, and of what strength. Pure: the messages and the rules in, a verdict out.

1. the request is signed with the key it asks for
2. with a TPM: the attestation key is restricted and signed both statements, which carry this request and nonce;
   the registers are those of the quote and of the rules; the key in the request is the one that is certified
3. that the attestation key is of this endorsement key is not known before the box has answered a challenge
4. who it is: a name that was admitted with this endorsement key, a token's, or that of its last certificate
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import NameOID
from msgspec import Meta, Struct, field

from appliance.errors import RefusedError
from appliance.vault.certificates import enrolment
from appliance.vault.certificates.authority import NAME
from appliance.vault.certificates.enrolment import Attestation, Level, Previous, Request, Signed
from tools.certification import structures

_KEPT_INSIDE = structures.FIXED_TPM | structures.FIXED_PARENT | structures.SENSITIVE_ORIGIN


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """rules.toml of an authority."""

    least: Annotated[
        Literal["key", "box", "software"],
        Meta(description="What is certified at least: a key in a TPM, a box with a TPM, or any key of who has a token"),
    ] = "box"
    days: Annotated[int, Meta(ge=2, le=825, description="How long a certificate holds")] = 30
    late_days: Annotated[int, Meta(ge=0, le=825, description="A key in software is renewed so long after its end")] = 90
    registers: Annotated[
        dict[str, list[str]],
        Meta(description="Values that a box's registers (PCR, SHA-256) may have, hex, by their number; others: any"),
    ] = field(default_factory=dict)
    endorsers: Annotated[
        bool, Meta(description="The endorsement key must be certified by one of the authorities in endorsers/*.pem")
    ] = False


@dataclass(frozen=True)
class Known:
    """What the authority has written down, and who it is."""

    authority: x509.Certificate
    tokens: Mapping[str, str]  # token, hex -> the name that it is for
    boxes: Mapping[str, str]  # digest of an endorsement key, hex -> the name that it has
    revoked: frozenset[int] = frozenset()  # serial numbers
    endorsers: Sequence[x509.Certificate] = ()


@dataclass(frozen=True)
class Verdict:
    name: str
    level: Level
    key: ec.EllipticCurvePublicKey
    bound: bytes
    endorsement: structures.Public | None = None
    attestation_name: bytes = b""
    token: str = ""  # that was used up

    @property
    def box(self) -> str:
        """Digest of its endorsement key."""
        return self.endorsement.name.hex() if self.endorsement else ""


def judge(request: Request, rules: Rules, known: Known, now: int) -> Verdict:
    """`now` in UTC ns. The caller has found the nonce to be one of his own, and not used before. VaultError."""
    asked, key = _requested(request.request)
    bound = enrolment.binding(request.request, request.nonce)
    level, endorsement, attestation_name = Level.SOFTWARE, None, b""
    if request.attestation is not None:
        level, endorsement, attestation_name = _attested(request.attestation, key, bound, rules, known, now)
    least = Level[rules.least.upper()]
    if level < least:
        raise RefusedError(
            f"{level.words}, and this authority wants at least: {least.words}", "Use a TPM, or change its rules.toml."
        )
    name, token = _identified(request, endorsement, bound, rules, known, now)
    if name != asked:
        raise RefusedError(f"it asks for the name '{asked}' and is '{name}'", "Ask for that name, or get a new token.")
    return Verdict(name, level, key, bound, endorsement, attestation_name, token)


# ---- the request itself -----------------------------------------------------------------------------------------


def _requested(content: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    try:
        asked = x509.load_der_x509_csr(content)
        if not asked.is_signature_valid:
            raise ValueError("its signature is wrong")
        key = asked.public_key()
        (name,) = asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, InvalidSignature) as error:
        raise RefusedError(f"the certificate request cannot be used: {error}", "Make a new one.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RefusedError("the certificate request has another key than ECDSA P-256", "Make one on that curve.")
    if not isinstance(name.value, str) or not NAME.fullmatch(name.value):
        raise RefusedError("the certificate request has no name that a box may have", "Use a-z 0-9 . _ -")
    return name.value, key


# ---- the TPM ----------------------------------------------------------------------------------------------------


def _attested(
    shown: Attestation, key: ec.EllipticCurvePublicKey, bound: bytes, rules: Rules, known: Known, now: int
) -> tuple[Level, structures.Public, bytes]:
    endorsement = structures.public(shown.endorsement)
    if (endorsement.attributes, endorsement.policy) != (
        structures.ENDORSEMENT_ATTRIBUTES,
        structures.ENDORSEMENT_POLICY,
    ):
        raise RefusedError("its endorsement key is not of the standard kind", "It may not be one at all.")
    _check_endorsed(endorsement, shown.endorsement_certificate, rules, known, now)
    attestation = structures.public(shown.attestation)
    if not attestation.has(_KEPT_INSIDE | structures.RESTRICTED | structures.SIGN):
        raise RefusedError("its attestation key would sign anything", "It must be restricted, and fixed to the TPM.")
    _check_registers(shown, _said(shown.quote, attestation, structures.QUOTED, bound), rules)
    if shown.certification is None:
        return Level.BOX, endorsement, attestation.name
    certified = _said(shown.certification, attestation, structures.CERTIFIED, bound)
    device = structures.public(shown.device)
    if certified.name != device.name or not device.has(_KEPT_INSIDE | structures.SIGN):
        raise RefusedError("the key that it certifies is another one, or may leave the TPM", "Make a new request.")
    if device.key.public_numbers() != key.public_numbers():
        raise RefusedError("the key in the request is not the one in the TPM", "Make a new request.")
    return Level.KEY, endorsement, attestation.name


def _said(signed: Signed, by: structures.Public, kind: int, bound: bytes) -> structures.Statement:
    try:
        by.key.verify(signed.signature, signed.attested, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise RefusedError("a statement is not signed by its attestation key", "It may be another box's.") from None
    said = structures.statement(signed.attested)
    if said.kind != kind:
        raise RefusedError("a statement stands where another one should", "Make a new request.")
    if not hmac.compare_digest(said.qualifying, bound):
        raise RefusedError("a statement is about another request or nonce", "Make a new request with a new nonce.")
    return said


def _check_registers(shown: Attestation, quote: structures.Statement, rules: Rules) -> None:
    values = {int(number): value for number, value in shown.registers.items() if number.isdecimal()}
    digest = hashlib.sha256(b"".join(values[number] for number in sorted(values))).digest()
    if tuple(sorted(values)) != quote.registers or digest != quote.digest or len(values) != len(shown.registers):
        raise RefusedError("the registers are not those of the quote", "Make a new request.")
    for number, allowed in rules.registers.items():
        found = values.get(int(number), b"").hex()
        if found not in [one.lower() for one in allowed]:
            raise RefusedError(
                f"PCR {number} is {found or 'not quoted'}, which the rules do not allow",
                "Another firmware, boot setting or release runs there; put the value into rules.toml if it is good.",
            )


def _check_endorsed(endorsement: structures.Public, content: bytes, rules: Rules, known: Known, now: int) -> None:
    """The maker's certificate, where there is one, is for this key; where the rules want it, of a maker known here."""
    if not content:
        if rules.endorsers:
            raise RefusedError(
                "its TPM has no certificate of its maker", "Set endorsers = false, and admit it by token."
            )
        return
    try:
        certificate = x509.load_der_x509_certificate(content)
        matches = _spki(certificate.public_key()) == _spki(endorsement.key)
    except (ValueError, TypeError) as error:
        raise RefusedError(f"the certificate of its endorsement key cannot be read: {error}", "") from None
    if not matches:
        raise RefusedError("the certificate of its endorsement key is for another key", "It may be another TPM's.")
    if rules.endorsers and not any(_issued(certificate, one, now) for one in known.endorsers):
        raise RefusedError(
            f"its TPM was certified by '{certificate.issuer.rfc4514_string()}', who is not known here",
            "Put that authority's certificate into endorsers/.",
        )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate, now: int) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return certificate.not_valid_before_utc <= _date(now) <= certificate.not_valid_after_utc


# ---- who it is --------------------------------------------------------------------------------------------------


def _identified(
    request: Request, endorsement: structures.Public | None, bound: bytes, rules: Rules, known: Known, now: int
) -> tuple[str, str]:
    """Its name, and the token that it spent. A token goes first: it is how a box gets another name."""
    if request.token:
        for token, name in known.tokens.items():
            if hmac.compare_digest(enrolment.token_proof(bytes.fromhex(token), bound), request.token):
                return name, token
        raise RefusedError("the token is not one of this authority, or was used before", "Get another: tools/ca token.")
    if endorsement is not None:
        if known_as := known.boxes.get(endorsement.name.hex()):
            return known_as, ""
    elif request.previous is not None:
        return _renewed(request.previous, bound, rules, known, now), ""
    raise RefusedError("nobody knows this box yet", "Get a token for it: tools/ca token DIR NAME.")


def _renewed(previous: Previous, bound: bytes, rules: Rules, known: Known, now: int) -> str:
    try:
        certificate = x509.load_der_x509_certificate(previous.certificate)
        certificate.verify_directly_issued_by(known.authority)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # this authority certifies no other
        key.verify(previous.signature, bound, ec.ECDSA(Prehashed(hashes.SHA256())))
    except (ValueError, TypeError, InvalidSignature):
        raise RefusedError("the certificate to be renewed is not its own", "Get a token: tools/ca token.") from None
    if certificate.serial_number in known.revoked:
        raise RefusedError("the certificate to be renewed was revoked", "Get a token: tools/ca token DIR NAME.")
    if _date(now) > certificate.not_valid_after_utc + timedelta(days=rules.late_days):
        raise RefusedError("the certificate to be renewed has ended too long ago", "Get a token: tools/ca token.")
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def _spki(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey) or hasattr(key, "public_bytes")
    return bytes(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _date(now: int) -> datetime:
    return datetime.fromtimestamp(now // 1_000_000_000, UTC)
