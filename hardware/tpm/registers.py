"""The platform's registers (PCR), SHA-256 bank, and what opens by their values."""

from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tpm2_pytss import TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
from tpm2_pytss.types import (
    TPM2B_DIGEST,
    TPM2B_NAME,
    TPML_DIGEST_VALUES,
    TPML_PCR_SELECTION,
    TPMT_HA,
    TPMT_SIGNATURE,
    TPMT_TK_VERIFIED,
    TPMU_HA,
)

from hardware.tpm import objects, policies
from hardware.tpm.errors import RefusedError, TpmError
from hardware.tpm.link import Link, again, translated
from hardware.tpm.release import Signature


def read(link: Link, registers: Iterable[int]) -> dict[int, bytes]:
    """In calls of at most eight, which is what one answer holds."""
    wanted = sorted(registers)
    found: dict[int, bytes] = {}
    for start in range(0, len(wanted), 8):
        found |= _read(link, wanted[start : start + 8])
    return found


def _read(link: Link, registers: list[int]) -> dict[int, bytes]:
    with translated("the TPM's registers"):
        _, _, digests = again(lambda: link.esys.pcr_read(pcr_selection_in=choice(registers)))
    if len(digests) != len(registers):
        raise TpmError("this TPM keeps no registers with SHA-256")
    return {register: bytes(digest) for register, digest in zip(registers, digests, strict=True)}


def extend(link: Link, register: int, digest: bytes) -> None:
    value = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))])
    with translated(f"PCR {register}"):
        again(lambda: link.esys.pcr_extend(pcr_handle=ESYS_TR(register), digests=value))


def choice(registers: Iterable[int]) -> TPML_PCR_SELECTION:
    return TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(register) for register in sorted(registers)))


def show(link: Link, policy: ESYS_TR, registers: Iterable[int]) -> None:
    """PolicyPCR with the registers as they are."""
    link.esys.policy_pcr(policy_session=policy, pcr_digest=TPM2B_DIGEST(), pcrs=choice(registers))


def chosen(now: Mapping[int, bytes], signatures: Iterable[Signature]) -> list[Signature]:
    """Those that speak of the registers as they are, of one key or several. RefusedError where there is none."""
    policy = policies.of_registers(now)
    found = [one for one in signatures if one.policy == policy]
    if not found:
        raise RefusedError("no signature of the release is for PCR 11 as it is now")
    return found


def approve(link: Link, public_key: bytes, signatures: Iterable[Signature]) -> TPMT_TK_VERIFIED:
    """The TPM's own ticket that the key has signed the policy, by one of these. RefusedError where it has not."""
    with objects.shown(link, public_key) as key:
        for one in signatures:
            ticket = _ticket(link, key, public_key, one)
            if ticket is not None:
                return ticket
    raise RefusedError("the signature is not one of the release key that was sealed for")


def _ticket(link: Link, key: ESYS_TR, public_key: bytes, one: Signature) -> TPMT_TK_VERIFIED | None:
    """None where the signature is not good."""
    try:
        signature = signature_of(public_key, one.signature)
        # PolicyAuthorize wants the policy and an empty reference, hashed.
        signed = objects.digest(policies.hashed(one.policy))
        return again(lambda: link.esys.verify_signature(key_handle=key, digest=signed, signature=signature))
    except RefusedError:
        return None
    except TSS2_Exception as error:
        if objects.refuses(error):
            return None
        raise TpmError(f"the TPM does not answer: {error}") from error


def approved(link: Link, policy: ESYS_TR, signed: bytes, key_name: bytes, ticket: TPMT_TK_VERIFIED) -> None:
    """PolicyAuthorize: the key's name stands for the policy that it has signed from now on."""
    link.esys.policy_authorize(
        policy_session=policy,
        approved_policy=objects.digest(signed),
        key_sign=TPM2B_NAME(key_name),
        check_ticket=ticket,
    )


def signature_of(public_key: bytes, raw: bytes) -> TPMT_SIGNATURE:
    """DER of ECDSA or bytes of RSASSA, both over SHA-256, as the TPM reads them."""
    made = TPMT_SIGNATURE()
    if objects.verifier(public_key).publicArea.type == TPM2_ALG.RSA:
        made.sigAlg = TPM2_ALG.RSASSA
        made.signature.rsassa.hash = TPM2_ALG.SHA256
        made.signature.rsassa.sig = raw
        return made
    try:
        r, s = (number.to_bytes(32, "big") for number in decode_dss_signature(raw))
    except (ValueError, OverflowError) as error:
        raise RefusedError(f"not a signature: {error}") from error
    made.sigAlg = TPM2_ALG.ECDSA
    made.signature.ecdsa.hash = TPM2_ALG.SHA256
    made.signature.ecdsa.signatureR = r
    made.signature.ecdsa.signatureS = s
    return made
