"""Secrets sealed by a TPM under a policy, and keys of others that it is shown. Formats are the TPM's own.

Sealed bytes are TPM2B_PRIVATE and TPM2B_PUBLIC of a keyedhash object, one after the other. Only its policy opens it: it
has no password that works, and failed guesses of others do not lock it (noDA).
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tpm2_pytss import TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_DIGEST,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_SENSITIVE_CREATE,
    TPMT_PUBLIC,
)

from hardware.tpm.errors import DamagedError, TpmError
from hardware.tpm.link import Link, again, judged, translated

MAX_SECRET_BYTES = 128  # of a keyedhash object, on every TPM
MAX_SEALED_BYTES = 1024
SEALED = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.NODA
# A key that only says whether a signature is good.
VERIFIER = TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.USERWITHAUTH


def seal(link: Link, secret: bytes, policy: bytes) -> bytes:
    template = TPM2B_PUBLIC(TPMT_PUBLIC.parse("keyedhash", objectAttributes=SEALED, authPolicy=policy))
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=secret))
    parent = link.parent
    with translated("a key cannot be sealed"), link.salted() as session:
        private, public, *_ = again(
            lambda: link.esys.create(parent_handle=parent, in_sensitive=sensitive, in_public=template, session1=session)
        )
    return bytes(private.marshal() + public.marshal())


@contextmanager
def loaded(link: Link, sealed: bytes) -> Iterator[ESYS_TR]:
    """DamagedError where this TPM did not make it."""
    private, public = _parted(sealed)
    parent = link.parent
    with judged("a sealed key"), link.reading() as session:
        handle = again(
            lambda: link.esys.load(parent_handle=parent, in_private=private, in_public=public, session1=session)
        )
    with link.flushed(handle):
        yield handle


def unseal(link: Link, sealed: bytes, meet: Callable[[ESYS_TR], None]) -> bytes:
    """`meet` fulfils the policy in the session it is given, from the start each time it is called.

    RefusedError where the TPM finds it is not fulfilled.
    """
    with loaded(link, sealed) as handle, link.policy() as policy, link.reading() as session:

        def attempt() -> bytes:
            link.esys.policy_restart(session_handle=policy)
            meet(policy)
            return bytes(link.esys.unseal(item_handle=handle, session1=policy, session2=session))

        with translated("the key stays sealed"):
            return again(attempt)


def verifier(public_key: bytes) -> TPM2B_PUBLIC:
    """From PEM or DER: P-256 or RSA of 2048 to 4096 bits. DamagedError."""
    key = _usable(public_key)
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    public = TPM2B_PUBLIC.from_pem(data=pem, objectAttributes=VERIFIER, nameAlg=TPM2_ALG.SHA256)
    if isinstance(key, ec.EllipticCurvePublicKey):
        # The library leaves leading zeros out, and a TPM then refuses one key in 128.
        point = key.public_numbers()
        public.publicArea.unique.ecc.x = point.x.to_bytes(32, "big")
        public.publicArea.unique.ecc.y = point.y.to_bytes(32, "big")
    return public


def der(public_key: bytes) -> bytes:
    """The one encoding of a key that a TPM can verify with. DamagedError."""
    return _usable(public_key).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def name_of(public_key: bytes) -> bytes:
    """The TPM's name of a key: a hash of all that it is."""
    return bytes(verifier(public_key).get_name())


@contextmanager
def shown(link: Link, public_key: bytes) -> Iterator[ESYS_TR]:
    """A key of others, loaded to verify with. A ticket is good under the owner's hierarchy, and until the next boot."""
    public = verifier(public_key)
    with translated("a public key"):
        handle = again(lambda: link.esys.load_external(in_public=public, hierarchy=ESYS_TR.OWNER))
    with link.flushed(handle):
        yield handle


def digest(content: bytes) -> TPM2B_DIGEST:
    return TPM2B_DIGEST(content)


def refuses(error: TSS2_Exception) -> bool:
    """The TPM itself says no, not what lies between."""
    return not int(error.rc) >> 16


def _usable(public_key: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    try:
        load = serialization.load_pem_public_key if public_key[:1] == b"-" else serialization.load_der_public_key
        key = load(public_key)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DamagedError(f"not a public key: {error}") from error
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in (2048, 3072, 4096):
        return key
    raise DamagedError("a TPM verifies signatures of P-256 or of RSA with 2048 to 4096 bits")


def _parted(sealed: bytes) -> tuple[TPM2B_PRIVATE, TPM2B_PUBLIC]:
    if not 4 < len(sealed) <= MAX_SEALED_BYTES:
        raise DamagedError("a sealed key: not of a TPM's making")
    length = 2 + struct.unpack(">H", sealed[:2])[0]
    try:
        private, first = TPM2B_PRIVATE.unmarshal(sealed[:length])
        public, second = TPM2B_PUBLIC.unmarshal(sealed[length:])
    except (TSS2_Exception, TpmError, ValueError) as error:
        raise DamagedError(f"a sealed key: not of a TPM's making ({error})") from error
    if first + second != len(sealed):
        raise DamagedError("a sealed key: bytes too many")
    return private, public
