"""Who wrote a receipt: the box that it speaks of, by the certificate that an authority for boxes gave it.

Receipts decide when a campaign goes on and when it stops, and they lie on sticks, where anybody may write. What is not
signed by the box itself counts for nothing here. A box signs as the name that it was enrolled by: `update.device` must
be that name.
"""

import base64
import binascii
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ota import courier
from ota.courier import Receipt
from ota.errors import PublishError

_MAX_PEM = 1 << 20


def signed_by_boxes(receipts: Iterable[Receipt], authority: Path) -> list[Receipt]:
    """Those that are. PublishError where the authority's file has no certificate."""
    issuers = _issuers(authority)
    return [receipt for receipt in receipts if _is_signed(receipt, issuers)]


def _is_signed(receipt: Receipt, issuers: list[x509.Certificate]) -> bool:
    given, _, signature = receipt.signature.partition(".")
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(given, validate=True))
        _check(certificate, receipt, issuers)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(base64.b64decode(signature, validate=True), courier.message(receipt), ec.ECDSA(hashes.SHA256()))
    except (ValueError, TypeError, InvalidSignature, binascii.Error, OverflowError, x509.InvalidVersion):
        return False
    return True


def _check(certificate: x509.Certificate, receipt: Receipt, issuers: list[x509.Certificate]) -> None:
    """ValueError, TypeError, InvalidSignature."""
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [receipt.device]:
        raise ValueError("another box's certificate")
    at = datetime.fromtimestamp(receipt.at_s, UTC)
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise ValueError("out of date when it was signed")
    issuer = next((one for one in issuers if one.subject == certificate.issuer), None)
    if issuer is None:
        raise ValueError("of another authority")
    certificate.verify_directly_issued_by(issuer)


def _issuers(path: Path) -> list[x509.Certificate]:
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificates(file.read(_MAX_PEM))
    except OSError as error:
        raise PublishError(f"{path}: {error.strerror}", "Name the certificate of the authority for boxes.") from error
    except ValueError as error:
        raise PublishError(f"{path} has no certificate", "Name the certificate of the authority for boxes.") from error
