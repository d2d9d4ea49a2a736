"""Parts for tests of the vault: boxes that bind keys, counters that never go back, a clock, and a disk that loses
whatever was not synced."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.errors import BindingError
from appliance.vault import chest
from appliance.vault.chest import Chest
from appliance.vault.layout import MAX_FILE_BYTES
from appliance.vault.port import Opened, Promise
from appliance.vault.recovery import Recipient, RecoveryKey
from appliance.vault.secret import Secret
from appliance.vault.strongbox import COPIES, Disk

START = 1_790_000_000_000_000_000  # UTC ns


class Box:
    """A backend: seals under a key that only this object, or one made of the same root, has."""

    def __init__(self, name: str = "board", strength: int = 10, root: bytes = b"") -> None:
        self.name = name
        self.promise = Promise(strength, ("nothing, it is a test",), ("everything",))
        self.root = root or os.urandom(32)
        self.trouble = ""  # why it opens nothing
        self.reseal = False
        self.asked = 0

    def seal(self, key: Secret) -> bytes:
        if self.trouble:
            raise BindingError(self.trouble)
        nonce = os.urandom(12)
        return nonce + AESGCM(self.root).encrypt(nonce, key.reveal(), self.name.encode())

    def open(self, blob: bytes) -> Opened:
        self.asked += 1
        if self.trouble:
            raise BindingError(self.trouble)
        try:
            key = AESGCM(self.root).decrypt(blob[:12], blob[12:], self.name.encode())
        except (InvalidTag, ValueError):
            raise BindingError(f"this is another {self.name}") from None
        return Opened(Secret(key), ("a part was replaced",) if self.reseal else (), self.reseal)

    def latch(self) -> None:
        self.trouble = "latched until the next boot"


class Tally:
    """A counter."""

    def __init__(self, value: int = 0, disk: "MemoryDisk | None" = None) -> None:
        self.count = value
        self.trouble = ""
        self._disk = disk  # with which it loses power

    def value(self) -> int:
        if self.trouble:
            raise BindingError(self.trouble)
        return self.count

    def advance(self) -> int:
        if self.trouble:
            raise BindingError(self.trouble)
        if self._disk:
            self._disk.step(self._advance)
        else:
            self._advance()
        return self.count

    def _advance(self) -> None:
        self.count += 1


class Clock:
    """A second later each time it is asked."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> int:
        self.at += 1_000_000_000
        return self.at


class PowerCut(BaseException):
    """No `except Exception` may hold it up."""


class MemoryDisk(Disk):
    """What a file system with a write-back cache does. What is not synced is lost, kept, or kept in part when the
    power goes; the power goes in the `cut`-th step, which is then done or not.
    """

    def __init__(self, dice: random.Random | None = None) -> None:
        self.dice = dice or random.Random(1)
        self.steps, self.cut, self.full = 0, 0, False
        self.failing: set[str] = set()  # steps that give an I/O error
        self._now: dict[Path, bytearray] = {}  # what a reader sees
        self._safe: dict[int, bytes] = {}  # content that is on the disk, by the identity of what is in `_now`
        self._names: dict[Path, bytearray] = {}  # the folder that is on the disk
        self._pending: list[tuple[Path, bytearray | None]] = []  # changes to the folder that are not
        self._alive: list[bytearray] = []  # identities stay unique

    def read(self, path: Path, limit: int) -> bytes | None:
        content = self._now.get(path)
        return None if content is None else bytes(content[: limit + 1])

    def write(self, path: Path, data: bytes) -> None:
        self._fail("write")
        if self.full:
            raise OSError(28, "No space left on device")
        self.step(lambda: self._write(path, data))

    def sync(self, path: Path) -> None:
        self._fail("sync")
        self.step(lambda: self._sync(path))

    def rename(self, path: Path, target: Path) -> None:
        self._fail("rename")
        self.step(lambda: self._rename(path, target))

    def remove(self, path: Path) -> None:
        self._now.pop(path, None)
        self._pending.append((path, None))

    def sync_folder(self, folder: Path) -> None:
        self._fail("sync_folder")
        self.step(self._sync_folder)

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        yield

    def power_back(self) -> None:
        """The next boot: of what was not safe some is there, in order."""
        kept = self._pending[: self.dice.randint(0, len(self._pending))]
        for path, content in kept:
            self._set(self._names, path, content)
        self._now = {path: self._torn(content) for path, content in self._names.items()}
        self._names = dict(self._now)
        self._safe = {id(content): bytes(content) for content in self._now.values()}
        self._alive += self._now.values()
        self._pending, self.cut, self.steps = [], 0, 0

    def step(self, action: Callable[[], object]) -> None:
        self.steps += 1
        if self.steps == self.cut:
            if self.dice.random() < 0.5:
                action()
            raise PowerCut
        action()

    def _fail(self, what: str) -> None:
        if what in self.failing:
            raise OSError(5, f"Input/output error in {what}")

    def _write(self, path: Path, data: bytes) -> None:
        content = bytearray(data)
        self._alive.append(content)
        self._now[path] = content
        self._pending.append((path, content))

    def _sync(self, path: Path) -> None:
        content = self._now[path]
        self._safe[id(content)] = bytes(content)

    def _rename(self, path: Path, target: Path) -> None:
        content = self._now.pop(path)
        self._now[target] = content
        self._pending += [(target, content), (path, None)]

    def _sync_folder(self) -> None:
        for path, content in self._pending:
            self._set(self._names, path, content)
        self._pending = []

    def _torn(self, content: bytearray) -> bytearray:
        if id(content) in self._safe:
            return bytearray(self._safe[id(content)])
        length = self.dice.randint(0, len(content))
        hole = bytes(len(content) - length) if self.dice.random() < 0.5 else b""
        return bytearray(content[:length] + hole)

    @staticmethod
    def _set(names: dict[Path, bytearray], path: Path, content: bytearray | None) -> None:
        if content is None:
            names.pop(path, None)
        else:
            names[path] = content


class Place:
    """A box with a vault on it: `make`, `open`, `recover`, all on a disk that may lose power."""

    def __init__(self, dice: random.Random | None = None, *, counting: bool = True) -> None:
        self.folder = Path("/vault")
        self.disk = MemoryDisk(dice)
        self.box = Box()
        self.tally = Tally(7, self.disk) if counting else None
        self.now = Clock()

    def make(self, content: dict[str, bytes] | None = None, suite: str = "aes-256-gcm", *others: Recipient) -> Chest:
        vault, self.key = chest.create(
            self.folder, self.box, suite, others, self.tally, self.now, box="here", disk=self.disk
        )
        for name, secret in (content or {}).items():
            vault.put(name, Secret(secret))
        return vault

    def open(self, *backends: Box) -> Chest:
        return chest.open(self.folder, backends or (self.box,), self.tally, self.now, disk=self.disk)

    def recover(self, box: Box, key: RecoveryKey | None = None, *, accept_older: bool = False) -> Chest:
        return chest.recover(
            self.folder, key or self.key, box, self.tally, self.now, accept_older=accept_older, disk=self.disk
        )

    def copies(self) -> list[bytes | None]:
        return [self.disk.read(self.folder / name, MAX_FILE_BYTES) for name in COPIES]

    def lay(self, *copies: bytes | None) -> None:
        """Put these where the copies are, as somebody with the disk in hand could."""
        for name, content in zip(COPIES, copies, strict=True):
            self.disk.remove(self.folder / name)
            if content is not None:
                self.disk.write(self.folder / name, content)
                self.disk.sync(self.folder / name)
        self.disk.sync_folder(self.folder)


def held(vault: Chest) -> dict[str, bytes]:
    """All it holds, but for what is damaged."""
    damaged = vault.status().damaged
    return {one.name: vault.get(one.name).reveal() for one in vault.entries() if one.name not in damaged}
