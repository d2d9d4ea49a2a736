"""The vault's file, bytes to values and back. Pure; nothing here has a key.

    file  = root, record, record, ..., root         each a frame; both roots are the same bytes
    frame = mark 4, kind 1, length 4, CRC-32 4, payload           the CRC is over kind, length and payload
    root  = CBOR [body, MAC]         body = CBOR [format, purpose, vault, suite, epoch, generation, anchor, created,
                                                  written, box, bindings, recipients, sealed index]
    record = as `envelope` makes it

What rots costs one frame: the next one is found by its mark, a root stands twice in each copy, and a record is known
by its digest in the index, whichever copy it comes from. Everything is bounded before it is read; numbers and lengths
have one encoding (`canonical`).
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import cbor2

from appliance.errors import SealError, VaultError
from appliance.vault import envelope, hpke, recovery
from appliance.vault.canonical import Reader
from appliance.vault.port import KEY_BYTES, MAX_BLOB_BYTES, MAX_SECRET_BYTES, MAX_SECRETS, Entry
from appliance.vault.recovery import Recipient
from appliance.vault.secret import Secret
from appliance.vault.suites import OVERHEAD_BYTES

FORMAT = 1  # that a new vault gets; one that is there keeps its own until it is said that there is no way back
MAX_FILE_BYTES = 64 << 20
MAX_BINDINGS = 8
MAX_BOX_BYTES = 128
MAC_BYTES = DIGEST_BYTES = 32

_MARK = b"\x9bMWV"
_HEAD = struct.Struct(">4scII")
_ROOT, _RECORD = b"R", b"S"
_MAX_NAME = 300
_MAX_INDEX = 2 << 20
_MAX_BODY = 4 << 20
_MOST = {_ROOT: _MAX_BODY + 128, _RECORD: envelope.MAX_RECORD_BYTES}
_MAX_ROOTS = 8  # that are looked at
_MAX_STUMBLES = 256  # after so many broken frames the rest is not searched
_NUMBER = envelope.MAX_NUMBER


class Purpose(IntEnum):
    VAULT = 0
    BACKUP = 1


@dataclass(frozen=True)
class Binding:
    backend: str
    blob: bytes
    at: int  # when it was sealed, UTC ns


@dataclass(frozen=True)
class Wrapped:
    """The vault's key, wrapped to a recipient."""

    recipient: Recipient
    key: bytes


@dataclass(frozen=True)
class Head:
    """What can be read without a key. Nothing of it is to be believed before the root's MAC was checked."""

    purpose: Purpose
    vault: bytes
    suite: int
    epoch: int  # of the vault's key
    generation: int
    anchor: int | None  # what the counter says once this file stands
    created: int  # UTC ns
    written: int
    box: str  # that it was written on; "" where nobody said
    bindings: tuple[Binding, ...]
    wrapped: tuple[Wrapped, ...]
    format: int = FORMAT


@dataclass(frozen=True)
class Root:
    head: Head
    index: bytes  # sealed
    body: bytes
    mac: bytes

    def payload(self) -> bytes:
        return cbor2.dumps([self.body, self.mac])


@dataclass(frozen=True)
class Namespace:
    epoch: int
    key: Secret


@dataclass(frozen=True)
class Index:
    """What is sealed under the vault's key: the namespaces' keys, and each secret with its record's digest."""

    namespaces: dict[str, Namespace]
    secrets: dict[str, tuple[Entry, bytes]]
    voucher: Secret  # shared with the holder of the recovery key: see `keyring`


@dataclass(frozen=True)
class Survey:
    """What the copies of a file hold."""

    roots: tuple[Root, ...]  # different ones, the latest first
    records: dict[bytes, bytes]  # by digest
    generations: tuple[int, ...]  # of each copy, -1 where it has no root
    whole: tuple[bool, ...]  # of each copy: nothing but frames


def survey(copies: Sequence[bytes]) -> Survey:
    """Never refuses what is damaged: it is left out. VaultError where a newer release has written one of them."""
    roots: dict[bytes, Root] = {}
    records: dict[bytes, bytes] = {}
    generations, whole = [], []
    for copy in copies:
        generation, clean = -1, bool(copy)
        for kind, payload in _frames(copy):
            if kind == _RECORD:
                records[digest(payload)] = payload
            elif kind == _ROOT and (root := _root_or_none(payload)) is not None:
                roots.setdefault(payload, root)
                generation = max(generation, root.head.generation)
            else:
                clean = False
        generations.append(generation)
        whole.append(clean)
    latest = sorted(roots.values(), key=lambda root: -root.head.generation)[:_MAX_ROOTS]
    return Survey(tuple(latest), records, tuple(generations), tuple(whole))


def assemble(root: Root, records: Iterable[bytes]) -> bytes:
    """The file. VaultError where it would be larger than MAX_FILE_BYTES."""
    frame = _frame(_ROOT, root.payload())
    content = b"".join((frame, *(_frame(_RECORD, record) for record in records), frame))
    if len(content) > MAX_FILE_BYTES:
        raise VaultError(f"the vault would have {len(content)} bytes, more than {MAX_FILE_BYTES}", "Remove secrets.")
    return content


def digest(record: bytes) -> bytes:
    return hashlib.sha256(record).digest()


def body_of(head: Head, index: bytes) -> bytes:
    bindings = [[one.backend.encode(), one.blob, one.at] for one in head.bindings]
    wrapped = [
        [one.recipient.name.encode(), one.recipient.public, one.recipient.signer, one.key] for one in head.wrapped
    ]
    numbers = [head.format, int(head.purpose), head.vault, head.suite, head.epoch, head.generation]
    anchor = [] if head.anchor is None else [head.anchor]
    rest = [anchor, head.created, head.written, head.box.encode(), bindings, wrapped, index]
    return cbor2.dumps(numbers + rest)


def pack_index(index: Index) -> bytes:
    namespaces = [[name.encode(), one.epoch, one.key.reveal()] for name, one in sorted(index.namespaces.items())]
    secrets = [
        [name.encode(), entry.version, entry.at, entry.size, of_record]
        for name, (entry, of_record) in sorted(index.secrets.items())
    ]
    return cbor2.dumps([index.voucher.reveal(), namespaces, secrets])


def read_index(packed: bytes) -> Index:
    """SealError where it is none."""
    reader = Reader(packed)
    reader.array(3)
    voucher = Secret(reader.string(KEY_BYTES, KEY_BYTES))
    namespaces = dict(_namespace(reader) for _ in range(reader.items(MAX_SECRETS)))
    secrets = dict(_secret(reader) for _ in range(reader.items(MAX_SECRETS)))
    reader.end()
    if any(name.partition("/")[0] not in namespaces for name in secrets):
        raise SealError("a secret without its namespace")
    return Index(namespaces, secrets, voucher)


# ---- frames ---------------------------------------------------------------------------------------------------------


def _frame(kind: bytes, payload: bytes) -> bytes:
    return _HEAD.pack(_MARK, kind, len(payload), _crc(kind, payload)) + payload


def _crc(kind: bytes, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(kind + len(payload).to_bytes(4, "big")))


def _frames(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of each; an empty kind where something is that is none."""
    at, stumbles = 0, 0
    while at < len(data) and stumbles < _MAX_STUMBLES:
        payload = _payload_at(data, at)
        if payload is not None:
            yield data[at + 4 : at + 5], payload
            at += _HEAD.size + len(payload)
            continue
        yield b"", b""
        stumbles += 1
        at = data.find(_MARK, at + 1)
        if at < 0:
            return


def _payload_at(data: bytes, at: int) -> bytes | None:
    if len(data) - at < _HEAD.size:
        return None
    mark, kind, length, crc = _HEAD.unpack_from(data, at)
    start = at + _HEAD.size
    if mark != _MARK or length > _MOST.get(kind, 0) or length > len(data) - start:
        return None
    payload = memoryview(data)[start : start + length]
    return bytes(payload) if _crc(kind, payload) == crc else None


# ---- the root -------------------------------------------------------------------------------------------------------


def _root_or_none(payload: bytes) -> Root | None:
    try:
        return read_root(payload)
    except SealError:
        return None


def read_root(payload: bytes) -> Root:
    """SealError where it is none; VaultError where a newer release has written it."""
    reader = Reader(payload)
    reader.array(2)
    body = reader.string(1, _MAX_BODY)
    mac = reader.string(MAC_BYTES, MAC_BYTES)
    reader.end()
    head, index = _read_body(Reader(body))
    return Root(head, index, body, mac)


def _read_body(reader: Reader) -> tuple[Head, bytes]:
    fields = reader.items(255)
    number = reader.number(_NUMBER)
    if number > FORMAT:
        raise VaultError(
            f"the vault's file has format {number}; this release knows {FORMAT}",
            "Start the newer release again, or restore a backup. The file was left as it is.",
        )
    if number != FORMAT or fields != 13:
        raise SealError(f"format {number} of {fields} fields")
    head = Head(
        format=number,
        purpose=Purpose(reader.number(len(Purpose) - 1)),
        vault=reader.string(envelope.VAULT_BYTES, envelope.VAULT_BYTES),
        suite=reader.number(255),
        epoch=reader.number(_NUMBER),
        generation=reader.number(_NUMBER),
        anchor=reader.number(_NUMBER) if reader.items(1) else None,
        created=reader.number(_NUMBER),
        written=reader.number(_NUMBER),
        box=reader.text(0, MAX_BOX_BYTES),
        bindings=tuple(_binding(reader) for _ in range(reader.items(MAX_BINDINGS))),
        wrapped=tuple(_wrapped(reader) for _ in range(reader.items(recovery.MAX_RECIPIENTS))),
    )
    index = reader.string(OVERHEAD_BYTES, _MAX_INDEX + OVERHEAD_BYTES)
    reader.end()
    return head, index


def _binding(reader: Reader) -> Binding:
    reader.array(3)
    return Binding(reader.text(1, 64), reader.string(0, MAX_BLOB_BYTES), reader.number(_NUMBER))


def _wrapped(reader: Reader) -> Wrapped:
    reader.array(4)
    recipient = Recipient(
        name=reader.text(1, 64),
        public=reader.string(1, recovery.MAX_PUBLIC_BYTES),
        signer=reader.string(recovery.SIGNER_BYTES, recovery.SIGNER_BYTES),
    )
    return Wrapped(recipient, reader.string(1, hpke.MAX_WRAPPED_BYTES + OVERHEAD_BYTES))


def _namespace(reader: Reader) -> tuple[str, Namespace]:
    reader.array(3)
    name = reader.text(1, _MAX_NAME)
    return name, Namespace(reader.number(_NUMBER), Secret(reader.string(KEY_BYTES, KEY_BYTES)))


def _secret(reader: Reader) -> tuple[str, tuple[Entry, bytes]]:
    reader.array(5)
    name = reader.text(1, _MAX_NAME)
    entry = Entry(name, reader.number(_NUMBER), reader.number(_NUMBER), reader.number(MAX_SECRET_BYTES))
    return name, (entry, reader.string(DIGEST_BYTES, DIGEST_BYTES))
