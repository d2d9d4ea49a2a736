"""The allow-list: which states of the registers open a key, in an index that only its writer's key can change.

One write changes all of it (see `slots`). An index once read-locked says nothing more until the next boot.
"""

import hashlib
import struct

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPMA_NV
from tpm2_pytss.types import TPM2B_DIGEST, TPM2B_MAX_NV_BUFFER, TPM2B_NV_PUBLIC, TPML_DIGEST, TPMS_NV_PUBLIC

from hardware.tpm import indices, objects, policies, registers, slots
from hardware.tpm.errors import MissingError
from hardware.tpm.link import Link, again
from hardware.tpm.slots import Slots

_ORDER_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# Anyone may read it; only PolicySigned writes it; no lock-out touches it; it can be shut until the next boot.
LIST = TPMA_NV.POLICYWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA | TPMA_NV.READ_STCLEAR


def create(link: Link, seed: bytes, allowed: Slots) -> int:
    """A new list, written; `seed` (32 bytes) makes the key that may change it. Its handle."""
    for handle in indices.present(link, indices.LISTS):
        _drop_unwritten(link, handle)
    handle = indices.free(link, indices.LISTS)
    indices.define(link, handle, LIST, _policy(seed), slots.CONTENT_BYTES)
    write(link, handle, seed, allowed)
    return handle


def write(link: Link, handle: int, seed: bytes, allowed: Slots) -> None:
    """MissingError, or RefusedError where the seed is not the one the list was made with."""
    content = slots.encode(allowed)
    with (
        indices.at(link, handle) as index,
        objects.shown(link, _public(seed)) as key,
        link.policy() as policy,
    ):
        call = policies.call_of_write(link.name(index), content)

        def attempt() -> None:
            link.esys.policy_restart(session_handle=policy)
            _permit(link, policy, key, seed, call)
            data = TPM2B_MAX_NV_BUFFER(content)
            link.esys.nv_write(nv_index=index, data=data, session1=policy)

        again(attempt)


def read(link: Link, handle: int) -> list[dict[int, bytes]]:
    """MissingError, RefusedError where it is shut, DamagedError."""
    with indices.at(link, handle) as index:
        _check(link, index, handle)
        return slots.decode(indices.read(link, index, slots.CONTENT_BYTES))


def name(link: Link, handle: int, seed: bytes) -> bytes:
    """Of the list that this seed may change, as it is while it is not shut: being shut is a part of an index's name.

    MissingError where the index is another one: what is sealed must not be bound to somebody else's list.
    """
    with indices.at(link, handle) as index:
        found = indices.public(link, index)
    found.attributes = TPMA_NV(int(found.attributes) & ~int(TPMA_NV.READLOCKED))
    expected = TPMS_NV_PUBLIC(
        nvIndex=handle,
        nameAlg=TPM2_ALG.SHA256,
        attributes=TPMA_NV(int(LIST | TPMA_NV.WRITTEN)),
        authPolicy=_policy(seed),
        dataSize=slots.CONTENT_BYTES,
    )
    if found.marshal() != expected.marshal():
        raise _another(handle)
    return bytes(TPM2B_NV_PUBLIC(expected).get_name())


def shut(link: Link, handle: int) -> None:
    """Nothing opens by this list until the next boot."""
    with indices.at(link, handle) as index, link.reading() as session:
        again(lambda: link.esys.nv_read_lock(nv_index=index, session1=session))


def unseal(link: Link, sealed: bytes, handle: int) -> bytes:
    """What was sealed under this list, where the registers are those of one of its slots."""
    allowed = read(link, handle)
    branches = policies.pair([policies.of_registers(slot) for slot in allowed])
    digests = TPML_DIGEST([TPM2B_DIGEST(branch) for branch in branches])
    with indices.at(link, handle) as index:

        def meet(policy: ESYS_TR) -> None:
            registers.show(link, policy, allowed[0])
            link.esys.policy_or(policy_session=policy, p_hash_list=digests)
            link.esys.policy_authorize_nv(nv_index=index, policy_session=policy)

        return objects.unseal(link, sealed, meet)


def _check(link: Link, index: ESYS_TR, handle: int) -> None:
    found = indices.public(link, index)
    if found.dataSize != slots.CONTENT_BYTES or int(found.attributes) & int(LIST) != int(LIST):
        raise _another(handle)


def _another(handle: int) -> MissingError:
    return MissingError(f"the TPM's index 0x{handle:x} is another one than the vault's allow-list")


def _policy(seed: bytes) -> bytes:
    """That writes the list."""
    return policies.of_writer(objects.name_of(_public(seed)))


def _drop_unwritten(link: Link, handle: int) -> None:
    """The power went while it was made: nothing can be sealed under it."""
    with indices.at(link, handle) as index:
        if int(indices.public(link, index).attributes) & int(TPMA_NV.WRITTEN):
            return
    indices.undefine(link, handle)


def _permit(link: Link, policy: ESYS_TR, key: ESYS_TR, seed: bytes, call: bytes) -> None:
    """PolicySigned for this session and this write alone."""
    nonce = link.esys.trsess_get_nonce_tpm(session=policy)
    signature = _private(seed).sign(bytes(nonce) + struct.pack(">i", 0) + call, ec.ECDSA(hashes.SHA256()))
    link.esys.policy_signed(
        auth_object=key,
        policy_session=policy,
        auth=registers.signature_of(_public(seed), signature),
        nonce_tpm=nonce,
        cp_hash_a=TPM2B_DIGEST(call),
        expiration=0,
    )


def _private(seed: bytes) -> ec.EllipticCurvePrivateKey:
    """A scalar by 512 bits of hash: no value is likelier than another by more than 2^-256."""
    number = int.from_bytes(hashlib.sha512(b"millwright/tpm/list\0" + seed).digest(), "big")
    return ec.derive_private_key(number % (_ORDER_P256 - 1) + 1, ec.SECP256R1())


def _public(seed: bytes) -> bytes:
    key = _private(seed).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
