"""The box's own certificate authority: X.509 without a network, for ever.

Pure: keys, names and times in, certificates out. ECDSA on P-256, which every device's TLS knows. The authority's own
certificate never ends (RFC 5280's 99991231235959Z): a box that nobody visits has no one to renew it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.errors import VaultError

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")  # of a device or a box, its common name
DAYS = 397
NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
# Clocks of small devices are behind; a certificate that is valid from now on only would lock them out today.
_BEFORE = timedelta(days=2)
RENEW_SHARE = 3  # renewed when less than a third of its time is left


@dataclass(frozen=True)
class Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def found(name: str, now: int) -> Authority:
    """A new authority. `now` in UTC ns."""
    key = new_key()
    subject = common_name(name)
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(_date(now) - _BEFORE)
        .not_valid_after(NEVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(key, builder.sign(key, hashes.SHA256()))


def issue_server(
    authority: Authority, key: ec.EllipticCurvePublicKey, names: Sequence[str], now: int, days: int = DAYS
) -> x509.Certificate:
    """For a server that is reached under `names`: DNS names and addresses."""
    alternative = x509.SubjectAlternativeName([_general_name(name) for name in names])
    builder = leaf(authority, key, common_name(names[0]), now, days, ExtendedKeyUsageOID.SERVER_AUTH)
    return builder.add_extension(alternative, critical=False).sign(authority.key, hashes.SHA256())


def issue_client(
    authority: Authority, key: ec.EllipticCurvePublicKey, name: str, now: int, days: int = DAYS
) -> x509.Certificate:
    """For a device; the broker knows it by `name`, its common name."""
    builder = leaf(authority, key, common_name(name), now, days, ExtendedKeyUsageOID.CLIENT_AUTH)
    return builder.sign(authority.key, hashes.SHA256())


def key_of_request(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key that asks, from a certificate request in PEM. What it asks to be called is not looked at: who signs
    decides that. VaultError."""
    try:
        asked = x509.load_pem_x509_csr(request)
        if not asked.is_signature_valid:
            raise ValueError("its signature is wrong")
        key = asked.public_key()
    except (ValueError, InvalidSignature) as error:
        reason = str(error).partition(".")[0]
        raise VaultError(f"the certificate request cannot be used: {reason}", "Make it anew on the device.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise VaultError("the certificate request has another key than ECDSA P-256", "Make one on that curve.")
    return key


def revoked(authority: Authority, serials: Sequence[int], now: int) -> bytes:
    """A list of revoked certificates, PEM. It has no end of its own: one that runs out locks everybody out."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(_date(now) - _BEFORE)
        .next_update(NEVER)
    )
    for serial in serials:
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_date(now)).build()
        builder = builder.add_revoked_certificate(one)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def is_due(certificate: x509.Certificate, now: int) -> bool:
    """Time to renew: less than a third of its life is left, or the clock stands before its beginning."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return not begins <= _date(now) <= ends - (ends - begins) / RENEW_SHARE


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(content: bytes) -> ec.EllipticCurvePrivateKey:
    """VaultError where it is no key of ours."""
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise VaultError("a key in the vault cannot be read", "See 'millwright vault status'.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise VaultError("a key in the vault is of another kind", "See 'millwright vault status'.")
    return key


def leaf(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    now: int,
    days: int,
    use: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    """A certificate for one use, yet to be signed."""
    issuer = authority.certificate
    begins = max(_date(now) - _BEFORE, issuer.not_valid_before_utc)
    return (
        x509.CertificateBuilder(issuer.subject, subject, key, x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(min(_date(now) + timedelta(days=days), NEVER))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Python 3.13 refuses an authority that does not say what its key is for."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _date(now: int) -> datetime:
    return datetime.fromtimestamp(now // 1_000_000_000, UTC)
