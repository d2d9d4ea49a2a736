"""The allow-list: which states of the registers open a key, in an index that only its writer's key can change.

    content = 000b, digest of PolicyOR of the slots                      as PolicyAuthorizeNV reads it
              01, number of registers, which, number of slots, then each slot's values; zeros to the end

One write changes all of it. An index once read-locked says nothing more until the next boot.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss.constants import ESYS_TR, TPMA_NV
from tpm2_pytss.types import TPM2B_DIGEST, TPM2B_MAX_NV_BUFFER, TPM2B_NV_PUBLIC, TPML_DIGEST

from hardware.tpm import indices, objects, policies, registers
from hardware.tpm.errors import DamagedError, MissingError
from hardware.tpm.link import Link, again

Slots = Sequence[Mapping[int, bytes]]  # register -> value, the same registers in each

MOST_SLOTS = 4
MOST_REGISTERS = 2
CONTENT_BYTES = 34 + 3 + MOST_REGISTERS + MOST_SLOTS * MOST_REGISTERS * 32
_ORDER_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# Anyone may read it; only PolicySigned writes it; no lock-out touches it; it can be shut until the next boot.
LIST = TPMA_NV.POLICYWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA | TPMA_NV.READ_STCLEAR


# ---- content: pure ----------------------------------------------------------------------------------------------


def content_of(slots: Slots) -> bytes:
    numbers = sorted(slots[0])
    if not 1 <= len(slots) <= MOST_SLOTS or not 1 <= len(numbers) <= MOST_REGISTERS:
        raise ValueError(f"an allow-list has 1 to {MOST_SLOTS} slots of 1 to {MOST_REGISTERS} registers")
    if any(sorted(slot) != numbers for slot in slots):
        raise ValueError("all slots of an allow-list have the same registers")
    rest = bytes([1, len(numbers), *numbers, len(slots)]) + b"".join(policies.joined(slot) for slot in slots)
    digest = policies.of_any([policies.of_registers(slot) for slot in slots])
    return (struct.pack(">H", 0x000B) + digest + rest).ljust(CONTENT_BYTES, b"\0")


def slots_of(content: bytes) -> list[dict[int, bytes]]:
    """DamagedError where `content_of` has not made it."""
    try:
        rest = content[34:]
        version, count = rest[0], rest[1]
        numbers, many, values = list(rest[2 : 2 + count]), rest[2 + count], rest[3 + count :]
        width = 32 * count
        slots = [
            {number: values[at + 32 * rank : at + 32 * rank + 32] for rank, number in enumerate(numbers)}
            for at in range(0, many * width, width)
        ]
        if version == 1 and content_of(slots) == content:
            return slots
    except (IndexError, ValueError):
        pass
    raise DamagedError("the TPM's allow-list is not in order")


# ---- in the TPM -------------------------------------------------------------------------------------------------


def create(link: Link, seed: bytes, slots: Slots) -> int:
    """A new list, written; `seed` (32 bytes) makes the key that may change it. Its handle."""
    for handle in indices.present(link, indices.LISTS):
        _drop_unwritten(link, handle)
    handle = indices.free(link, indices.LISTS)
    indices.define(link, handle, LIST, policies.of_writer(objects.name_of(_public(seed))), CONTENT_BYTES)
    write(link, handle, seed, slots)
    return handle


def write(link: Link, handle: int, seed: bytes, slots: Slots) -> None:
    """MissingError, or RefusedError where the seed is not the one the list was made with."""
    content = content_of(slots)
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
        return slots_of(indices.read(link, index, CONTENT_BYTES))


def name(link: Link, handle: int) -> bytes:
    """As it is while the list is not shut: being shut is a part of an index's name. MissingError."""
    with indices.at(link, handle) as index:
        public = indices.public(link, index)
        public.attributes = TPMA_NV(int(public.attributes) & ~int(TPMA_NV.READLOCKED))
        return bytes(TPM2B_NV_PUBLIC(public).get_name())


def shut(link: Link, handle: int) -> None:
    """Nothing opens by this list until the next boot."""
    with indices.at(link, handle) as index, link.reading() as session:
        again(lambda: link.esys.nv_read_lock(nv_index=index, session1=session))


def unseal(link: Link, sealed: bytes, handle: int) -> bytes:
    """What was sealed under this list, where the registers are those of one of its slots."""
    slots = read(link, handle)
    branches = policies.pair([policies.of_registers(slot) for slot in slots])
    digests = TPML_DIGEST([TPM2B_DIGEST(branch) for branch in branches])
    with indices.at(link, handle) as index:

        def meet(policy: ESYS_TR) -> None:
            registers.show(link, policy, slots[0])
            link.esys.policy_or(policy_session=policy, p_hash_list=digests)
            link.esys.policy_authorize_nv(nv_index=index, policy_session=policy)

        return objects.unseal(link, sealed, meet)


def _check(link: Link, index: ESYS_TR, handle: int) -> None:
    found = indices.public(link, index)
    if found.dataSize != CONTENT_BYTES or int(found.attributes) & int(LIST) != int(LIST):
        raise MissingError(f"the TPM's index 0x{handle:x} is another one than the vault's allow-list")


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
