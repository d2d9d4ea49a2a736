"""Counters in the TPM's own memory, that never go back: not by a power cut, and not by taking one away.

A counter laid out anew begins above every value that any counter of this TPM ever had, so who takes it away and makes
another is found out by the leap. An index of another kind with a value of somebody's choice is not taken for a counter:
its attributes and its label are compared. Whoever may speak to the TPM can advance it, which is noticed, and hurts as
clearing the TPM does, which they can do, too.
"""

import hashlib

from tpm2_pytss.constants import TPM2_NT, TPMA_NV

from hardware.tpm import indices
from hardware.tpm.errors import MissingError
from hardware.tpm.link import Link, again

COUNTER = TPMA_NV(
    int(TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE | TPMA_NV.NO_DA) | int(TPM2_NT.COUNTER) << int(TPMA_NV.TPM2_NT_SHIFT)
)
_BYTES = 8


def label(purpose: str, owner: str) -> bytes:
    """Of a counter: `purpose` of `owner`, who may be one of several on this machine."""
    return hashlib.sha256(f"millwright/counter\0{purpose}\0{owner}".encode()).digest()


def value(link: Link, of: bytes) -> int:
    """0 where there is none, or none that has counted."""
    handle = _find(link, of)
    return 0 if handle is None else _read(link, handle)


def advance(link: Link, of: bytes) -> int:
    """Made where there is none yet. A cut before the count is a count that was not; one after it, one that was."""
    handle = _find(link, of)
    if handle is None:
        handle = indices.free(link, indices.COUNTERS)
        indices.define(link, handle, COUNTER, of, _BYTES)
    with indices.at(link, handle) as index, link.reading() as session:
        again(lambda: link.esys.nv_increment(nv_index=index, session1=session))
    return _read(link, handle)


def remove(link: Link, of: bytes) -> None:
    handle = _find(link, of)
    if handle is not None:
        indices.undefine(link, handle)


def _find(link: Link, of: bytes) -> int | None:
    for handle in indices.present(link, indices.COUNTERS):
        try:
            with indices.at(link, handle) as index:
                found = indices.public(link, index)
        except MissingError:
            continue
        written = int(found.attributes) & ~int(TPMA_NV.WRITTEN)
        if bytes(found.authPolicy) == of and written == int(COUNTER) and found.dataSize == _BYTES:
            return handle
    return None


def _read(link: Link, handle: int) -> int:
    with indices.at(link, handle) as index:
        if not int(indices.public(link, index).attributes) & int(TPMA_NV.WRITTEN):
            return 0
        return int.from_bytes(indices.read(link, index, _BYTES), "big")
