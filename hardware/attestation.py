"""What a TPM says of the box it is soldered to: keys that never leave it, and statements signed inside it.

    Attestor(tpm).endorsement()                  the key that its maker gave it, and the maker's certificate
    .make_attestation_key() .make_device_key()   PEM ("TSS2 PRIVATE KEY"), of use to this TPM alone
    .quote() .certify()                          statements about registers and about a key, signed by the first kind
    .activate()                                  opens what was encrypted to the endorsement key for one attestation key
    .sign()                                      with the device key, which signs whatever it is given

Bytes in and out: public keys are TPMT_PUBLIC, statements TPMS_ATTEST, signatures DER. Errors: `hardware.tpm.errors`.
Run on swtpm, not yet on a real TPM; only swtpm's indices for an endorsement certificate were read.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hardware.tpm import Tpm
from hardware.tpm.errors import DamagedError, MissingError

if TYPE_CHECKING:
    from hardware.tpm.link import Link

CERTIFICATE = 0x01C0000A  # index of the certificate of the P-256 endorsement key: TCG EK Credential Profile, low range
MAX_CERTIFICATE_BYTES = 4096
MAX_PEM_BYTES = 4096
_CHUNK = 512  # bytes of an index in one answer, less than any TPM's limit


@dataclass(frozen=True)
class Endorsement:
    public: bytes
    certificate: bytes  # DER; empty where the maker put none into the TPM


@dataclass(frozen=True)
class Statement:
    attested: bytes
    signature: bytes


@dataclass(frozen=True)
class Quote:
    statement: Statement
    values: dict[int, bytes]  # of the registers, SHA-256 bank; the statement has their digest only


class Attestor:
    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm

    def endorsement(self) -> Endorsement:
        with self._tpm.session() as link, _endorsement_key(link) as (_, public):
            return Endorsement(public, _certificate(link))

    def make_attestation_key(self) -> bytes:
        """Restricted: it signs nothing but what the TPM itself has to say."""
        return self._make("ecc256:ecdsa-sha256:null", restricted=True)

    def make_device_key(self) -> bytes:
        return self._make("ecc256:null:null", restricted=False)

    def public(self, key: bytes) -> bytes:
        """DamagedError where it is no key of a TPM's."""
        return bytes(_parsed(key).public.publicArea.marshal())

    def sign(self, key: bytes, digest: bytes) -> bytes:
        """Of 32 bytes, ECDSA. DamagedError where this TPM did not make the key."""
        from tpm2_pytss.constants import TPM2_ALG
        from tpm2_pytss.types import TPMT_SIG_SCHEME

        from hardware.tpm.link import again, translated

        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.ECDSA)
        scheme.details.any.hashAlg = TPM2_ALG.SHA256
        with self._tpm.session() as link, _loaded(link, key) as handle, translated("the device key"):
            return _der(again(lambda: link.esys.sign(key_handle=handle, digest=digest, in_scheme=scheme)))

    def quote(self, attestation_key: bytes, registers: Iterable[int], qualifying: bytes) -> Quote:
        """Of registers as they are now. Where one moves meanwhile, all are read again."""
        from hardware.tpm import registers as platform
        from hardware.tpm.link import again, translated

        wanted = sorted(registers)
        with self._tpm.session() as link, _loaded(link, attestation_key) as handle, translated("a quote"):
            while True:
                values = platform.read(link, wanted)
                made = again(
                    lambda: link.esys.quote(
                        sign_handle=handle, pcr_select=platform.choice(wanted), qualifying_data=qualifying
                    )
                )
                if platform.read(link, wanted) == values:
                    return Quote(_statement(*made), values)

    def certify(self, attestation_key: bytes, key: bytes, qualifying: bytes) -> Statement:
        """That `key` is in this very TPM."""
        from tpm2_pytss.constants import TPM2_ALG
        from tpm2_pytss.types import TPMT_SIG_SCHEME

        from hardware.tpm.link import again, translated

        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)  # as the attestation key has it
        with (
            self._tpm.session() as link,
            _loaded(link, attestation_key) as signer,
            _loaded(link, key) as certified,
            translated("a statement about a key"),
        ):
            made = again(
                lambda: link.esys.certify(
                    object_handle=certified, sign_handle=signer, qualifying_data=qualifying, in_scheme=scheme
                )
            )
            return _statement(*made)

    def activate(self, attestation_key: bytes, credential: bytes, secret: bytes) -> bytes:
        """What was encrypted to this TPM for this attestation key: `credential` is the content of TPM2B_ID_OBJECT,
        `secret` of TPM2B_ENCRYPTED_SECRET. DamagedError where it was meant for another TPM or another key."""
        from tpm2_pytss.constants import ESYS_TR
        from tpm2_pytss.types import TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT

        from hardware.tpm.link import again, judged

        blob, wrapped = TPM2B_ID_OBJECT(credential), TPM2B_ENCRYPTED_SECRET(secret)
        with (
            self._tpm.session() as link,
            _endorsement_key(link) as (endorsement, _),
            _loaded(link, attestation_key) as key,
            link.policy() as policy,
            judged("a credential for this box"),
        ):

            def attempt() -> bytes:
                link.esys.policy_restart(session_handle=policy)
                link.esys.policy_secret(auth_handle=ESYS_TR.ENDORSEMENT, policy_session=policy, expiration=0)
                return bytes(
                    link.esys.activate_credential(
                        activate_handle=key,
                        key_handle=endorsement,
                        credential_blob=blob,
                        secret=wrapped,
                        session2=policy,
                    )
                )

            return again(attempt)

    def _make(self, kind: str, *, restricted: bool) -> bytes:
        from tpm2_pytss.constants import TPMA_OBJECT
        from tpm2_pytss.tsskey import TSSPrivKey
        from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE

        from hardware.tpm.link import STORAGE, again, translated

        # As the storage key: made in this TPM, never to leave it, and no failed guess locks it.
        attributes = STORAGE & ~TPMA_OBJECT.DECRYPT | TPMA_OBJECT.SIGN_ENCRYPT
        if not restricted:
            attributes &= ~TPMA_OBJECT.RESTRICTED
        template = TPM2B_PUBLIC.parse(kind, objectAttributes=attributes)
        with self._tpm.session() as link, translated("a key of this TPM"), link.salted() as session:
            parent = link.parent
            private, public, *_ = again(
                lambda: link.esys.create(
                    parent_handle=parent,
                    in_sensitive=TPM2B_SENSITIVE_CREATE(),
                    in_public=template,
                    session1=session,
                )
            )
        return bytes(TSSPrivKey(private, public).to_pem())


@contextmanager
def _endorsement_key(link: "Link") -> "Iterator[tuple[Any, bytes]]":
    """Its handle and public area. The same each time: it follows from the TPM's own seed and the standard template."""
    from tpm2_pytss.constants import ESYS_TR
    from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE
    from tpm2_pytss.utils import ek_template

    from hardware.tpm.link import again, translated

    template = TPM2B_PUBLIC(publicArea=ek_template.lookup("EK-ECC256").template.publicArea)
    with translated("the TPM's endorsement key"):
        handle, public, *_ = again(
            lambda: link.esys.create_primary(
                in_sensitive=TPM2B_SENSITIVE_CREATE(), in_public=template, primary_handle=ESYS_TR.ENDORSEMENT
            )
        )
    with link.flushed(handle):
        yield handle, bytes(public.publicArea.marshal())


def _certificate(link: "Link") -> bytes:
    from hardware.tpm import indices
    from hardware.tpm.link import again

    try:
        with indices.at(link, CERTIFICATE) as index, link.reading() as session:

            def part(offset: int, size: int) -> bytes:
                return bytes(
                    again(lambda: link.esys.nv_read(nv_index=index, size=size, offset=offset, session1=session))
                )

            size = min(int(indices.public(link, index).dataSize), MAX_CERTIFICATE_BYTES)
            return _whole(b"".join(part(at, min(_CHUNK, size - at)) for at in range(0, size, _CHUNK)))
    except MissingError:
        return b""


def _whole(content: bytes) -> bytes:
    """Without what fills an index behind a certificate: DER says how long it is."""
    if content[:2] != b"\x30\x82":
        return b""
    return content[: 4 + int.from_bytes(content[2:4], "big")]


@contextmanager
def _loaded(link: "Link", key: bytes) -> "Iterator[Any]":
    from hardware.tpm.link import again, judged

    parsed, parent = _parsed(key), link.parent
    with judged("a key of this TPM"), link.reading() as session:
        handle = again(
            lambda: link.esys.load(
                parent_handle=parent, in_private=parsed.private, in_public=parsed.public, session1=session
            )
        )
    with link.flushed(handle):
        yield handle


def _parsed(key: bytes) -> Any:
    from tpm2_pytss import TSS2_Exception
    from tpm2_pytss.tsskey import TSSPrivKey

    try:
        if len(key) > MAX_PEM_BYTES:
            raise ValueError("it is too long")
        return TSSPrivKey.from_pem(key)
    except (TSS2_Exception, ValueError, TypeError) as error:
        raise DamagedError(f"not a key of a TPM: {error}") from error


def _statement(attested: Any, signature: Any) -> Statement:
    return Statement(bytes(attested), _der(signature))


def _der(signature: Any) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    ecdsa = signature.signature.ecdsa
    r, s = (int.from_bytes(bytes(number), "big") for number in (ecdsa.signatureR, ecdsa.signatureS))
    return encode_dss_signature(r, s)
