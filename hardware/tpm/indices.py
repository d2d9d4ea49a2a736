"""Indices in a TPM's own memory: finding, defining, reading. A range of handles is ours; a label says what each is for.

Whoever may speak to the TPM as its owner can take an index away, and lay out another one under its number. Its name is
a hash of all that it is, so that the other is known by it, unless it is just the same; then only who holds its writing
key can fill it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPMA_NV
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC

from hardware.tpm.errors import TpmError
from hardware.tpm.link import Link, again, translated

LISTS = range(0x0180_4D57, 0x0180_4D57 + 16)
COUNTERS = range(0x0180_4D77, 0x0180_4D77 + 16)


def present(link: Link, handles: range) -> list[int]:
    with translated("the TPM's indices"):
        _, found = again(
            lambda: link.esys.get_capability(
                capability=TPM2_CAP.HANDLES, prop=handles.start, property_count=len(handles)
            )
        )
    return sorted(int(handle) for handle in found.data.handles if int(handle) in handles)


def free(link: Link, handles: range) -> int:
    taken = set(present(link, handles))
    for handle in handles:
        if handle not in taken:
            return handle
    raise TpmError(
        f"all {len(handles)} indices of 0x{handles.start:x} and on are taken; remove those of vaults that are no more "
        f"with tpm2_nvundefine"
    )


def define(link: Link, handle: int, attributes: TPMA_NV, label: bytes, size: int) -> None:
    """`label` stands where a policy would: it is one where the attributes say so."""
    public = TPM2B_NV_PUBLIC(
        TPMS_NV_PUBLIC(nvIndex=handle, nameAlg=TPM2_ALG.SHA256, attributes=attributes, authPolicy=label, dataSize=size)
    )
    with translated(f"the TPM's index 0x{handle:x}"), link.salted() as session:
        made = again(lambda: link.esys.nv_define_space(auth=None, public_info=public, session1=session))
        link.esys.tr_close(made)


def undefine(link: Link, handle: int) -> None:
    with at(link, handle) as index, link.reading() as session:
        again(lambda: link.esys.nv_undefine_space(nv_index=index, session1=session))


@contextmanager
def at(link: Link, handle: int) -> Iterator[ESYS_TR]:
    """MissingError where there is none. The library reads what it is, and its name, at this moment."""
    with translated(f"the TPM's index 0x{handle:x}"):
        yield again(lambda: link.esys.tr_from_tpmpublic(handle=handle))


def public(link: Link, index: ESYS_TR) -> TPMS_NV_PUBLIC:
    found, _ = again(lambda: link.esys.nv_read_public(nv_index=index))
    return found.nvPublic


def read(link: Link, index: ESYS_TR, size: int) -> bytes:
    """By a session that the TPM answers with a MAC: nobody between can say other than it."""
    with link.reading() as session:
        return bytes(again(lambda: link.esys.nv_read(nv_index=index, size=size, session1=session)))
