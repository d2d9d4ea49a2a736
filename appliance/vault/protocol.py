"""What is said over the vault's socket: pure, bounded, and refused at the first byte that is not in order.

A frame is four bytes of length (big-endian), then canonical CBOR:

    request   [VERSION, verb, name, detail, content]
    answer    [VERSION, code, body]

`name` and `detail` are printable UTF-8 in byte strings; `detail` is a layer's name for ROTATE, a prefix for ENTRIES,
and for DISMISS a recipient's name; `content` of EXPECT is JSON. `body` is what GET, BACKUP, RENEW and EXPECT ask for,
CBOR for STATUS, PUT, ENTRIES and RECIPIENTS, [message, remedy] for an error, else empty. PART says that more of the
body follows in the next answer. A request is read without a general decoder: there is nothing in it but numbers and
byte strings.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import cbor2
import msgspec

from appliance.errors import BindingError, MillwrightError, RefusedError, SealError, VaultError
from appliance.vault.canonical import Reader
from appliance.vault.port import MAX_SECRET_BYTES
from appliance.vault.secret import Secret

VERSION = 1
SOCKET = "vault.sock"
MAX_NAME = 4 * 64 + 3  # bytes of a name, and of a detail
MAX_REQUEST = MAX_SECRET_BYTES + 2 * MAX_NAME + 64  # bytes of a frame's content
MAX_ANSWER = 2 << 20  # 4096 entries with the longest names take 1.4 MiB
MAX_BODY = 512 << 20  # of all parts together: a backup of the fullest vault
PART_BYTES = 1 << 20
MAX_TEXT = 1000  # characters of an error's message, and of its remedy

_HEAD = struct.Struct(">I")
_T = TypeVar("_T")


class Verb(IntEnum):
    STATUS = 1
    GET = 2
    PUT = 3
    REMOVE = 4
    ENTRIES = 5
    ROTATE = 6
    BACKUP = 7
    RENEW = 8  # the recovery key
    RECIPIENTS = 9
    ADMIT = 10  # a recipient
    DISMISS = 11
    EXPECT = 12  # another release after the next restart
    SETTLED = 13


class Code(IntEnum):
    DONE = 0
    PART = 1
    FAILED = 16
    DAMAGED = 17
    BINDING = 18
    REFUSED = 19


_ERRORS: Mapping[Code, type[VaultError]] = {
    Code.DAMAGED: SealError,
    Code.BINDING: BindingError,
    Code.REFUSED: RefusedError,
    Code.FAILED: VaultError,
}


class ProtocolError(Exception):
    """These bytes are no frame of ours: the connection is of no further use."""


class Request(NamedTuple):
    verb: Verb
    name: str = ""
    detail: str = ""
    content: Secret = Secret(b"")  # never changed, so it may be shared


class Answer(NamedTuple):
    code: Code
    body: bytes  # of a GET: the secret. It is not put into any message


class Frames:
    """Cuts a stream into frames' contents. One that would be longer than `limit` is refused by its head."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """ProtocolError for an empty frame and one over the limit."""
        self._held += data
        while len(self._held) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._held)
            if not 1 <= length <= self._limit:
                raise ProtocolError(f"a frame of {length} bytes; 1 to {self._limit} are allowed")
            end = _HEAD.size + length
            if len(self._held) < end:
                return
            content = bytes(memoryview(self._held)[_HEAD.size : end])
            self._held[:end] = bytes(end)  # it may have been a secret: no copy stays behind in what was freed
            del self._held[:end]
            yield content

    @property
    def begun(self) -> bool:
        """A frame has begun and is not complete."""
        return bool(self._held)


def encode_request(request: Request) -> bytes:
    name, detail = request.name.encode(), request.detail.encode()
    return _frame((VERSION, request.verb.value, name, detail, request.content.reveal()))


def decode_request(content: bytes) -> Request:
    """ProtocolError for anything that `encode_request` would not have made; a name's grammar is the desk's matter."""
    try:
        reader = Reader(content)
        reader.array(5)
        _check_version(reader)
        verb = Verb(reader.number(255))
        name, detail = reader.text(0, MAX_NAME), reader.text(0, MAX_NAME)  # they end in journals and on terminals
        secret = Secret(reader.string(0, MAX_SECRET_BYTES))
        reader.end()
    except (SealError, ValueError) as error:
        # Neither the cause nor its text goes on: it may carry the bytes it was given.
        raise ProtocolError(f"not a request ({type(error).__name__})") from None
    return Request(verb, name, detail, secret)


def encode_answer(body: bytes = b"") -> Iterator[bytes]:
    """The frames of an answer that succeeded."""
    parts = [body[start : start + PART_BYTES] for start in range(0, len(body), PART_BYTES)] or [b""]
    for part in parts[:-1]:
        yield _frame((VERSION, Code.PART.value, part))
    yield _frame((VERSION, Code.DONE.value, parts[-1]))


def encode_error(error: MillwrightError) -> bytes:
    code = next((code for code, kind in _ERRORS.items() if isinstance(error, kind)), Code.FAILED)
    return _frame((VERSION, code.value, cbor2.dumps([error.message[:MAX_TEXT], error.remedy[:MAX_TEXT]])))


def decode_answer(content: bytes) -> Answer:
    """ProtocolError. An answer that says FAILED and the like is still an answer: `result` raises what it says."""
    try:
        reader = Reader(content)
        reader.array(3)
        _check_version(reader)
        code = Code(reader.number(255))
        body = reader.string(0, MAX_ANSWER)
        reader.end()
    except (SealError, ValueError) as error:
        raise ProtocolError(f"not an answer ({type(error).__name__})") from None
    return Answer(code, body)


def result(answer: Answer) -> bytes:
    """The body, or the error that the vault answered with."""
    if answer.code in (Code.DONE, Code.PART):
        return answer.body
    message, remedy = from_body(answer.body, tuple[str, str])
    raise _ERRORS[answer.code](message, remedy)


def to_body(value: Sequence[Any] | object) -> bytes:
    return cbor2.dumps(msgspec.to_builtins(value))


def from_body(body: bytes, kind: type[_T]) -> _T:
    """ProtocolError where it does not fit. For what a vault says, which the client trusts as it trusts its secrets."""
    try:
        return msgspec.convert(cbor2.loads(body), kind)
    except (cbor2.CBORError, msgspec.ValidationError) as error:
        raise ProtocolError(f"not what a vault answers: {error}") from error


def _frame(content: tuple[int | bytes, ...]) -> bytes:
    encoded = cbor2.dumps(content)
    return _HEAD.pack(len(encoded)) + encoded


def _check_version(reader: Reader) -> None:
    if reader.number(255) != VERSION:
        raise ValueError("another version")
