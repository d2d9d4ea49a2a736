"""What binds a key to this box, what counts without ever going back, and what keeps secrets.

One file a backend under `backends/`; the file's name is its name in the configuration and in the vault's file. It has
one `Settings` struct, whose defaults run, and one `create(settings, machine) -> Backend`, where `machine` is what
`hardware` gives: see each backend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from appliance.vault.secret import Secret

KEY_BYTES = 32
MAX_BLOB_BYTES = 64 << 10  # of what a backend makes of one key
MAX_SECRET_BYTES = 64 << 10
MAX_SECRETS = 4096
NAME = r"[a-z0-9_.-]{1,64}(/[a-z0-9_.-]{1,64}){1,3}"  # namespace/name: mqtt/plant, tls/broker/key

Layer = Literal["binding", "key", "namespace", "secret"]
"""What a rotation renews. binding: the backend's blobs of the same key; key: the key-encryption key; namespace: one
namespace's key and all its records; secret: one record's encryption."""


@dataclass(frozen=True)
class Promise:
    """What a backend protects from, in words for `vault status`; strength orders backends, the stronger first."""

    strength: int  # tpm 30, fingerprint 20, plain 0
    protects: tuple[str, ...]
    does_not: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    key: Secret
    warnings: tuple[str, ...] = ()  # for a person: a part was replaced, a register moved
    reseal: bool = False  # it opened, but the blob should be made anew for the box as it is now


class Backend(Protocol):
    """Ties a key of KEY_BYTES to this box. `open` gives back what `seal` was given: here, and nowhere else."""

    name: str
    promise: Promise

    def seal(self, key: Secret) -> bytes:
        """At most MAX_BLOB_BYTES. BindingError where this box cannot bind a key now, and why."""

    def open(self, blob: bytes) -> Opened:
        """BindingError names what moved and what usually moves it; SealError where the blob is damaged or hostile."""

    def latch(self) -> None:
        """From now on nothing opens until the next boot, not even for root. Does nothing where that is not possible:
        the promise says so."""


@runtime_checkable
class Measured(Protocol):
    """A backend that opens for registered states of the machine alone: told of the next one before it is started."""

    def state(self) -> Mapping[int, bytes]:
        """Registers (PCR) of the machine when the vault opened."""
        ...

    def allow(self, old: Mapping[int, bytes], new: Mapping[int, bytes]) -> None:
        """From now on both states open."""
        ...

    def commit(self, new: Mapping[int, bytes]) -> None:
        """From now on this one alone, which is the one that runs."""
        ...


class Counter(Protocol):
    """A number that never goes back, kept off the disk: an older copy of a file is known by it."""

    def value(self) -> int:
        """BindingError where it cannot be read."""

    def advance(self) -> int:
        """One more; survives a power cut. The new value."""


@dataclass(frozen=True)
class Entry:
    """A secret, without what it holds."""

    name: str
    version: int  # 1, 2, ... : one more each time it is put
    at: int  # when, UTC ns
    size: int  # bytes


@dataclass(frozen=True)
class Status:
    vault: str  # the vault's id, hex
    suite: str
    backend: str  # that opened it; "recovery" where a recovery key did
    promise: Promise
    generation: int  # writes of the file so far
    anchored: bool  # the generation is compared with a counter off the disk
    bindings: tuple[str, ...]  # backends and recipients that could open it
    secrets: int
    damaged: tuple[str, ...] = ()  # names whose record does not open
    warnings: tuple[str, ...] = ()


class Keeper(Protocol):
    """Keeps secrets: the opened vault itself, or a client of the service that has opened it.

    VaultError names the secret. `by` of a call is known to the vault by other means (peer credentials), never told.
    """

    def status(self) -> Status: ...

    def get(self, name: str) -> Secret:
        """VaultError where there is none; SealError where its record is damaged; RefusedError."""

    def put(self, name: str, content: Secret) -> Entry:
        """On return it survives a power cut."""

    def remove(self, name: str) -> None: ...

    def entries(self, prefix: str = "") -> Sequence[Entry]: ...

    def rotate(self, layer: Layer, name: str = "") -> None:
        """Renew a layer's keys; `name` is a namespace's or secret's. Always openable between any two writes."""


class Custody(Keeper, Protocol):
    """A keeper whose owner looks after it: what the vault's service offers to who may manage it."""

    def backup(self) -> bytes:
        """Readable with a recovery key only."""

    def renew_recovery(self) -> Secret:
        """A new recovery key as it is printed; the old one opens nothing that is written from now on."""

    def recipients(self) -> Sequence[str]:
        """Lines of text, as a file of recipients has them."""

    def add_recipient(self, line: str) -> None: ...

    def remove_recipient(self, name: str) -> None: ...

    def expect(self, running: Mapping[str, str], coming: Mapping[str, str]) -> str:
        """Before a restart into another release: values of PCR 11, hex, by how many phases of the boot have passed, of
        the release that runs and of the one that comes. The phases at which this vault opens, empty where it does not
        ask for PCR 11. An empty `coming` changes nothing. VaultError where it would not open afterwards."""

    def settled(self) -> None:
        """The release that runs is sound: no other opens the vault any more."""

    def close(self) -> None:
        """Forget the keys. Nothing else is called afterwards."""


class AuditSink(Protocol):
    """Where sensitive operations are written down. Never given a secret. It may write to a disk; it does not raise."""

    def note(self, actor: str, action: str, subject: str, outcome: str, detail: dict[str, Any] | None = None) -> None:
        """`actor` asked; `action` is a word such as get, put, rotate; `subject` the secret's name or what it was about;
        `outcome` is `done`, `refused` or `failed`, `detail` says why."""

    def tick(self) -> None:
        """Called every now and then: write what was held back."""
