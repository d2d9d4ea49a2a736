"""The opened vault: a keyring, its file, what binds it and the counter that anchors it.

A change is made to the keyring, which is a value, and written whole; only then it takes effect. So a change that
fails changes nothing, and a reader sees all of one or nothing of it.

    file with generation n+1 and anchor c+1 written, both copies -> counter advanced to c+1 -> acknowledged

A cut before the first copy is renamed leaves n; after it, n+1 is found, completed and kept. An anchor below the
counter is an older file.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from appliance.errors import BindingError, MillwrightError, VaultError
from appliance.vault import expecting, keyring, layout, recovery, suites, unlocking
from appliance.vault.keyring import Keyring
from appliance.vault.layout import Binding, Survey
from appliance.vault.port import MAX_BLOB_BYTES, Backend, Counter, Entry, Layer, Status
from appliance.vault.recovery import Recipient, RecoveryKey
from appliance.vault.secret import Secret
from appliance.vault.strongbox import DISK, Disk, Strongbox
from appliance.vault.unlocking import Unlocked

Clock = Callable[[], int]  # UTC ns

_TRIES = 3  # of a write whose anchor another user of the counter made stale


class Chest:
    """A Custody. Thread-safe: readers never wait, writers one after the other. One process at a time has it open.

    `backends` are those at hand, the stronger first. Whoever gives them and latches them is the caller.
    """

    def __init__(
        self,
        box: Strongbox,
        found: Unlocked,
        backends: Sequence[Backend],
        counter: Counter | None,
        now: Clock,
    ) -> None:
        self._box, self._counter, self._now = box, counter, now
        self._backends = {backend.name: backend for backend in backends}
        self._by, self._promise, self._notes = found.by, found.promise, found.warnings
        self._troubles: dict[str, str] = {}  # that the next write may end
        self._ring: Keyring | None = found.ring
        self._generation = found.ring.head.generation  # tried so far: a failed write's is not used again
        self._writing = threading.RLock()
        self._hold = ExitStack()

    # ---- reading ----------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        ring = self._opened()
        head = ring.head
        recipients = (f"recipient {one.recipient.name}" for one in head.wrapped)
        return Status(
            vault=head.vault.hex(),
            suite=ring.suite.name,
            backend=self._by,
            promise=self._promise,
            generation=head.generation,
            anchored=head.anchor is not None,
            bindings=(*(binding.backend for binding in head.bindings), *recipients),
            secrets=len(ring.items),
            damaged=ring.damaged(),
            warnings=(*self._notes, *self._troubles.values()),
        )

    def get(self, name: str) -> Secret:
        return keyring.get(self._opened(), name)

    def entries(self, prefix: str = "") -> list[Entry]:
        """Sorted by name."""
        return [item.entry for name, item in sorted(self._opened().items.items()) if name.startswith(prefix)]

    def recipients(self) -> list[str]:
        """As lines of a file of recipients, the own recovery key's first."""
        return [one.recipient.line() for one in self._opened().head.wrapped]

    def backup(self) -> bytes:
        """All secrets, under a new key that is wrapped to the recipients only: see `backup`."""
        ring = keyring.as_backup(self._opened())
        ring, root = keyring.seal(ring, ring.head.generation, None, self._now())
        return layout.assemble(root, ring.records())

    # ---- changing ---------------------------------------------------------------------------------------------------

    def put(self, name: str, content: Secret) -> Entry:
        with self._writing:
            ring = self._commit(keyring.put(self._opened(), name, content, self._now()))
        return ring.items[name].entry

    def remove(self, name: str) -> None:
        with self._writing:
            self._commit(keyring.remove(self._opened(), name))

    def rotate(self, layer: Layer, name: str = "") -> None:
        """For the layer `binding`, `name` is a backend's; empty for all that are at hand."""
        with self._writing:
            ring = self._opened()
            if layer == "secret":
                self._commit(keyring.renew_secret(ring, name))
            elif layer == "namespace":
                self._commit(keyring.renew_namespace(ring, name))
            elif layer == "key":
                self._commit(self._rebound(keyring.renew_key(ring), self._bound()))
            else:
                self._rotate_bindings(ring, name)

    # ---- releases of the system ------------------------------------------------------------------------------------

    def expect(self, running: Mapping[str, str], coming: Mapping[str, str]) -> str:
        with self._writing:
            return expecting.expect(self._opener(), running, coming)

    def settled(self) -> None:
        with self._writing:
            expecting.settled(self._opener())

    def _opener(self) -> Backend | None:
        self._opened()
        return self._backends.get(self._by)

    def bind(self, backend: Backend) -> None:
        """Open with this backend, too, from now on."""
        with self._writing:
            ring = self._opened()
            binding = self._binding(backend, ring.key)
            others = tuple(one for one in ring.head.bindings if one.backend != backend.name)
            self._commit(keyring.bound(ring, (*others, binding)))
            self._backends[backend.name] = backend

    def unbind(self, backend: str) -> None:
        """No longer open with it: the key is renewed. VaultError where no other backend would be left."""
        with self._writing:
            rest = [name for name in self._bound() if name != backend]
            if not rest or len(rest) == len(self._bound()):
                raise VaultError(f"'{backend}' is not bound, or is all that is", "Bind another backend first.")
            self._commit(self._rebound(keyring.renew_key(self._opened()), rest))

    def add_recipient(self, line: str) -> None:
        """The same key is wrapped to one more: nothing has to be renewed for that."""
        added = recovery.read_recipients(line)
        with self._writing:
            ring = self._opened()
            for recipient in added:
                ring = keyring.admit(ring, recipient)
            self._commit(ring)

    def remove_recipient(self, name: str) -> None:
        """What is written from now on does not open for it; what it could read until now it may have kept."""
        with self._writing:
            self._commit(self._rebound(keyring.dismiss(self._opened(), name), self._bound()))

    def renew_recovery(self) -> Secret:
        """A new recovery key as it is printed, shown once; the old one opens nothing that is written from now on."""
        with self._writing:
            own = RecoveryKey.new()
            self._commit(self._rebound(keyring.renew_recovery(self._opened(), own), self._bound()))
        return Secret(own.printed().encode())

    def close(self) -> None:
        """Forget the keys and let another process open the vault."""
        with self._writing:
            self._ring = None
            self._hold.close()

    def __enter__(self) -> "Chest":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _opened(self) -> Keyring:
        ring = self._ring
        if ring is None:
            raise VaultError("the vault is closed", "Open it again.")
        return ring

    def _bound(self) -> list[str]:
        return [binding.backend for binding in self._opened().head.bindings]

    def _rotate_bindings(self, ring: Keyring, name: str) -> None:
        bound = self._bound()
        wanted = [one for one in bound if one == name or (not name and one in self._backends)]
        if not wanted or not set(wanted) <= set(self._backends):
            raise BindingError(
                f"no binding '{name}' can be made anew here", f"The vault is bound by: {', '.join(bound)}."
            )
        fresh = {one: self._binding(self._backends[one], ring.key) for one in wanted}
        self._commit(keyring.bound(ring, tuple(fresh.get(one.backend, one) for one in ring.head.bindings)))

    def _rebound(self, ring: Keyring, names: Sequence[str]) -> Keyring:
        """A new key, bound by the same backends. Not without one that is away: it would have to be forgotten."""
        away = [name for name in names if name not in self._backends]
        if away:
            raise BindingError(
                f"the key cannot be renewed: {', '.join(away)} is bound and not at hand",
                "Bring it back, or recover the vault with its recovery key.",
            )
        return keyring.bound(ring, tuple(self._binding(self._backends[name], ring.key) for name in names))

    def _binding(self, backend: Backend, key: Secret) -> Binding:
        blob = backend.seal(key)
        if len(blob) > MAX_BLOB_BYTES:
            raise BindingError(f"{backend.name} made {len(blob)} bytes of a key, more than {MAX_BLOB_BYTES}")
        return Binding(backend.name, blob, self._now())

    def _commit(self, ring: Keyring) -> Keyring:
        """Write it, advance the counter, and let it be the state. On an error the state is as before."""
        for _ in range(_TRIES):
            anchor = self._counter.value() + 1 if self._counter else None
            sealed, root = keyring.seal(ring, self._generation + 1, anchor, self._now())
            content = layout.assemble(root, sealed.records())
            self._generation += 1
            self._trouble("copy", self._box.write(content))
            self._ring = sealed
            if anchor is None or self._advance() == anchor:
                break
        return sealed

    def _advance(self) -> int | None:
        """The file is written: a counter that fails now is no reason to say otherwise."""
        assert self._counter is not None
        try:
            value = self._counter.advance()
        except VaultError as error:
            self._trouble("counter", f"the counter was not advanced: {error.message}")
            return self._opened().head.anchor
        self._trouble("counter", "")
        return value

    def _trouble(self, what: str, words: str) -> None:
        troubles = {key: value for key, value in self._troubles.items() if key != what}
        self._troubles = {**troubles, what: words} if words else troubles

    def _settle(self, copies: Sequence[bytes], survey: Survey, found: Unlocked) -> None:
        """After opening: mend, complete what a power cut left, bind anew. What cannot be written now can be later."""
        behind = unlocking.is_behind(found.ring, self._counter)
        try:
            self._mend(copies, survey, found)
            if behind:
                self._advance()
            if found.reseal:
                self._rotate_bindings(found.ring, found.by)
            elif self._counter and found.ring.head.anchor is None:
                self._commit(found.ring)
        except MillwrightError as error:
            self._trouble("settle", f"opened, but {error.message}")

    def _mend(self, copies: Sequence[bytes], survey: Survey, found: Unlocked) -> None:
        content = layout.assemble(found.root, found.ring.records())
        if all(copy == content for copy in copies):
            return
        if found.passed_over:
            self._box.preserve(copies)
        self._trouble("copy", self._box.write(content))
        self._notes += tuple(_mended(copies, survey, found.root.head.generation, content))


def exists(folder: Path, disk: Disk = DISK) -> bool:
    """StoreError where it cannot be seen."""
    return Strongbox(folder, layout.MAX_FILE_BYTES, disk).exists()


def bindings(folder: Path, disk: Disk = DISK) -> tuple[str, ...]:
    """The backends that the file says it is bound by, unverified; none where there is no file. StoreError."""
    roots = layout.survey(Strongbox(folder, layout.MAX_FILE_BYTES, disk).read()).roots
    return tuple(binding.backend for binding in roots[0].head.bindings) if roots else ()


def create(
    folder: Path,
    backend: Backend,
    suite: str,
    recipients: Sequence[Recipient],
    counter: Counter | None,
    now: Clock,
    *,
    box: str = "",
    disk: Disk = DISK,
) -> tuple[Chest, RecoveryKey]:
    """A new vault, and its recovery key: `key.printed()` is to be shown once. `box` names this box in backups.

    VaultError where there is one already; StoreError where it cannot be written; BindingError.
    """
    own = RecoveryKey.new()
    ring = keyring.new(suites.by_name(suite), own, tuple(recipients), box, now())
    return establish(folder, ring, backend, counter, now, disk=disk)[0], own


def establish(
    folder: Path,
    ring: Keyring,
    backend: Backend,
    counter: Counter | None,
    now: Clock,
    *,
    replacing: bool = False,
    disk: Disk = DISK,
) -> tuple[Chest, tuple[Path, ...]]:
    """A vault of this keyring, whose key is bound to `backend`; where the vault went that was there and is replaced."""
    with ExitStack() as hold:
        hold.enter_context(disk.held(folder))
        box = Strongbox(folder, layout.MAX_FILE_BYTES, disk)
        box.prepare()
        copies = box.read()
        if any(copies) and not replacing:
            raise VaultError(
                f"there is a vault in {folder} already",
                "Open it, recover it with its recovery key, or set it aside: restore --replace.",
            )
        aside = box.preserve(copies)
        _, root = keyring.seal(ring, ring.head.generation, None, now())
        chest = Chest(box, Unlocked(ring, root, backend.name, backend.promise, ()), [backend], counter, now)
        chest._commit(chest._rebound(ring, [backend.name]))
        chest._hold = hold.pop_all()
    return chest, aside


def open(  # noqa: A001  # read as chest.open
    folder: Path, backends: Sequence[Backend], counter: Counter | None, now: Clock, *, disk: Disk = DISK
) -> Chest:
    """With the first of `backends`, the stronger first, that opens it. VaultError where there is none; BindingError
    where none opens it or the file is an older one; SealError where it is damaged; StoreError."""
    with ExitStack() as hold:
        box, copies = _taken(folder, hold, disk)
        survey = layout.survey(copies)
        unlocked = unlocking.by_backends(survey, backends)
        chest = Chest(box, unlocked, backends, counter, now)
        chest._settle(copies, survey, unlocked)
        chest._hold = hold.pop_all()
    return chest


def recover(
    folder: Path,
    key: RecoveryKey,
    backend: Backend,
    counter: Counter | None,
    now: Clock,
    *,
    accept_older: bool = False,
    disk: Disk = DISK,
) -> Chest:
    """Opened with a recovery key, under a new key that is bound to `backend` alone: the TPM was cleared, the board
    replaced. `accept_older` where the file is known to be older than the counter says."""
    with ExitStack() as hold:
        box, copies = _taken(folder, hold, disk)
        survey = layout.survey(copies)
        unlocked = unlocking.by_recovery(survey, key, backend.promise)
        notes = unlocking.check_recovered(unlocked.ring, counter, accept_older=accept_older)
        chest = Chest(box, replace(unlocked, warnings=(*unlocked.warnings, *notes)), [backend], counter, now)
        if unlocked.passed_over:
            box.preserve(copies)
        chest._commit(chest._rebound(keyring.renew_key(unlocked.ring), [backend.name]))
        chest._hold = hold.pop_all()
    return chest


def _taken(folder: Path, hold: ExitStack, disk: Disk) -> tuple[Strongbox, tuple[bytes, ...]]:
    """The vault's copies, and no other process that could change them."""
    if not exists(folder, disk):
        raise VaultError(f"there is no vault in {folder}", "Make one: millwright vault init.")
    hold.enter_context(disk.held(folder))
    box = Strongbox(folder, layout.MAX_FILE_BYTES, disk)
    return box, box.read()


def _mended(copies: Sequence[bytes], survey: Survey, generation: int, content: bytes) -> Iterator[str]:
    """What was wrong with the copies. One that is a write behind is what a power cut leaves, and no damage."""
    for number, (copy, at, whole) in enumerate(zip(copies, survey.generations, survey.whole, strict=True), 1):
        if copy != content and not (whole and at < generation):
            state = "damaged" if copy else "missing"
            yield f"copy {number} of the vault's file was {state} and is mended"
