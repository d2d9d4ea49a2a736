"""One connection to a TPM: its storage key, sessions that nobody on the bus can read, and patience.

The storage key is the same each time it is made, until the TPM is cleared, and no failed guess of anybody's can lock it
(noDA). Sessions are salted with it: parameters are encrypted with AES-CFB under a key that never is on the wire.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hardware.tpm.errors import DamagedError, MissingError, RefusedError, TpmError

os.environ.setdefault("TSS2_LOG", "all+none")  # the library prints every refusal, even those we ask for

from tpm2_pytss import ESAPI, TSS2_Exception  # (reads TSS2_LOG once)
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_RC, TPM2_SE, TPMA_OBJECT, TPMA_SESSION
from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMT_SYM_DEF

Result = TypeVar("Result")

PATIENCE_S = 30.0
_AT_ONCE = 20  # tries before the first pause
_PAUSE_S = 0.02  # at most
_FMT1 = 0x080
# Others at work, or the TPM itself: it is asked again. Registers are extended while the machine runs, too.
_PASSING = {
    int(TPM2_RC.PCR_CHANGED),
    int(TPM2_RC.RETRY),
    int(TPM2_RC.YIELDED),
    int(TPM2_RC.TESTING),
    int(TPM2_RC.CANCELED),
    int(TPM2_RC.NV_RATE),
    int(TPM2_RC.LOCKOUT),
    int(TPM2_RC.MEMORY),
    int(TPM2_RC.OBJECT_MEMORY),
    int(TPM2_RC.OBJECT_HANDLES),
    int(TPM2_RC.SESSION_MEMORY),
    int(TPM2_RC.SESSION_HANDLES),
}
_REFUSALS = {
    int(TPM2_RC.POLICY_FAIL),
    int(TPM2_RC.POLICY_CC),
    int(TPM2_RC.NV_LOCKED),
    int(TPM2_RC.NV_UNINITIALIZED),
    int(TPM2_RC.NV_AUTHORIZATION),
    int(TPM2_RC.VALUE),  # of PolicyOR, PolicyAuthorize and PolicyAuthorizeNV
    int(TPM2_RC.SIGNATURE),
    int(TPM2_RC.HASH),
}
STORAGE = (
    TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.DECRYPT
    | TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
)


class Link:
    """`esys` is the library's own interface, for what is not here."""

    def __init__(self, esys: ESAPI) -> None:
        self.esys = esys
        self._parent: ESYS_TR | None = None

    @property
    def parent(self) -> ESYS_TR:
        """The storage key, made at its first use."""
        if self._parent is None:
            template = TPM2B_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=STORAGE)
            with translated("the TPM's storage key"):
                made = again(lambda: self.esys.create_primary(in_sensitive=_EMPTY, in_public=template))
            self._parent = made[0]
        return self._parent

    def name(self, handle: ESYS_TR) -> bytes:
        return bytes(self.esys.tr_get_name(handle=handle))

    @contextmanager
    def salted(self) -> Iterator[ESYS_TR]:
        """An HMAC session that encrypts the first parameter of commands and responses."""
        with self._session(TPM2_SE.HMAC) as session:
            both = TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.ENCRYPT | TPMA_SESSION.DECRYPT
            self.esys.trsess_set_attributes(session=session, attributes=both)
            yield session

    @contextmanager
    def reading(self) -> Iterator[ESYS_TR]:
        """As `salted`, for commands whose parameters cannot be encrypted, but responses can."""
        with self._session(TPM2_SE.HMAC) as session:
            answers = TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.ENCRYPT
            self.esys.trsess_set_attributes(session=session, attributes=answers)
            yield session

    @contextmanager
    def policy(self) -> Iterator[ESYS_TR]:
        with self._session(TPM2_SE.POLICY) as session:
            self.esys.trsess_set_attributes(session=session, attributes=TPMA_SESSION.CONTINUESESSION)
            yield session

    @contextmanager
    def _session(self, kind: TPM2_SE) -> Iterator[ESYS_TR]:
        parent = self.parent
        cipher = TPMT_SYM_DEF.parse("aes128cfb")
        session = again(
            lambda: self.esys.start_auth_session(
                tpm_key=parent,
                bind=ESYS_TR.NONE,
                session_type=kind,
                symmetric=cipher,
                auth_hash=TPM2_ALG.SHA256,
            )
        )
        with self.flushed(session):
            yield session

    @contextmanager
    def flushed(self, handle: ESYS_TR) -> Iterator[ESYS_TR]:
        """Whatever happens, the TPM's few places are free again."""
        try:
            yield handle
        finally:
            self._flush(handle)

    def close(self) -> None:
        if self._parent is not None:
            self._flush(self._parent)
            self._parent = None
        self.esys.close()

    def _flush(self, handle: ESYS_TR) -> None:
        try:
            self.esys.flush_context(flush_handle=handle)
        except TSS2_Exception:
            return  # gone already, or the TPM is: who uses it hears of that


_EMPTY = TPM2B_SENSITIVE_CREATE()


def connect(tcti: Any) -> Link:
    """`tcti` as tpm2-tools spell it, `device:/dev/tpmrm0`, or the library's own kind. TpmError."""
    with translated("the TPM"):
        return Link(ESAPI(tcti=tcti))


def again(action: Callable[[], Result], patience_s: float = PATIENCE_S) -> Result:
    """The action's result, tried anew while what refuses it passes. TSS2_Exception, the last one."""
    deadline = time.monotonic() + patience_s
    tries = 0
    while True:
        try:
            return action()
        except TSS2_Exception as error:
            if code(error) not in _PASSING or time.monotonic() > deadline:
                raise
        tries += 1
        if tries > _AT_ONCE:
            time.sleep(random.uniform(0, _PAUSE_S))


@contextmanager
def translated(what: str) -> Iterator[None]:
    """The library's errors become ours; `what` begins the sentence."""
    try:
        yield
    except TSS2_Exception as error:
        raise _ours(what, error) from error


@contextmanager
def judged(what: str) -> Iterator[None]:
    """As `translated`, where the TPM judges bytes that came from a file: what it does not know is damaged."""
    try:
        yield
    except TSS2_Exception as error:
        if error.rc & _FMT1 and not error.rc >> 16:
            raise DamagedError(f"{what}: not what this TPM made ({_said(error)})") from error
        raise _ours(what, error) from error


def code(error: TSS2_Exception) -> int:
    """The TPM's own code, without the number of handle, session or parameter."""
    number = int(error.rc)
    return number & 0xBF if number & _FMT1 else number & 0xFFFF


def _ours(what: str, error: TSS2_Exception) -> TpmError:
    if int(error.rc) >> 16 and int(error.rc) >> 16 != 11:  # 11: the kernel's resource manager answers for the TPM
        return TpmError(f"{what} does not answer: {_said(error)}")
    number = code(error)
    if number == int(TPM2_RC.HANDLE):
        return MissingError(f"{what}: not in this TPM")
    if number == int(TPM2_RC.BAD_AUTH) or number == int(TPM2_RC.AUTH_FAIL):
        return TpmError(f"{what}: the TPM's owner has set a password ({_said(error)})")
    kind = RefusedError if number in _REFUSALS or number == int(TPM2_RC.PCR_CHANGED) else TpmError
    return kind(f"{what}: {_said(error)}")


def _said(error: TSS2_Exception) -> str:
    return f"{error}, 0x{int(error.rc):x}"
