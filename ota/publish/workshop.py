"""A repository in the making: what is published, what waits for signatures, and how the one becomes the other.

    <workshop>/
        workshop.json             who may do without asking: the online key; how long each role's word holds
        staged/<role>.json        the next version of a role, until enough have signed
        repository/metadata/      static files for any web server: <version>.<role>.json, timestamp.json
        repository/targets/       <folder>/<hash>.<name>
        plain/<content hash>      bundles as they were before they were encrypted, packed; never shown to anybody

What is published is never changed. The timestamp is written last: until then nobody sees anything of the rest.
"""

import copy
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from ota import durable
from ota.errors import PublishError
from ota.trust import FIELD, OS_RELEASE, TRAINER_MODELS

SETTINGS = "workshop.json"
DAYS = {
    Root.type: 1095.0,
    Targets.type: 365.0,
    OS_RELEASE: 365.0,
    TRAINER_MODELS: 30.0,
    Snapshot.type: 7.0,
    Timestamp.type: 1.0,
}
MOVING = (Snapshot.type, Timestamp.type)  # signed by machines, again and again


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """`days` by kind of role; `sealed`: the public keys by fleet that its models are encrypted for."""

    online_key: str = ""
    days: dict[str, float] = field(default_factory=lambda: dict(DAYS))
    sealed: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Workshop:
    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self.folder, self._now = folder, now
        self.repository = folder / "repository"
        self._metadata, self._staged = self.repository / "metadata", folder / "staged"

    @property
    def settings(self) -> Settings:
        try:
            return msgspec.json.decode((self.folder / SETTINGS).read_bytes(), type=Settings)
        except FileNotFoundError as error:
            raise PublishError(f"{self.folder} is no workshop", "Make one: millwright-publish init") from error
        except msgspec.MsgspecError as error:
            raise PublishError(f"{self.folder / SETTINGS}: {error}", "Mend the file.") from error

    def configure(self, settings: Settings) -> None:
        durable.write(self.folder / SETTINGS, msgspec.json.format(msgspec.json.encode(settings), indent=1))

    @contextmanager
    def held(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Nobody else who asks so changes it meanwhile; `waiting` is called once where somebody does. Of two that stage
        a role at a time, one would be lost. The kernel lets go of it with the process."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # ---- what there is ----------------------------------------------------------------------------------------------

    def published(self, role: str) -> Metadata[Any] | None:
        """Its newest version."""
        if role == Timestamp.type:
            return _read(self._metadata / f"{role}.json")
        versions = self.versions(role)
        return _read(versions[-1]) if versions else None

    def versions(self, role: str) -> list[Path]:
        """Of published metadata, the newest last."""
        found = ((path.name.partition(".")[0], path) for path in self._metadata.glob(f"*.{role}.json"))
        # The second look tells a role from one whose name ends as its own does.
        return [
            path
            for number, path in sorted((int(number), path) for number, path in found if number.isdigit())
            if path.name == f"{number}.{role}.json"
        ]

    def roles(self) -> list[str]:
        """Of which something was published or staged."""
        published = {path.name.partition(".")[2].removesuffix(".json") for path in self._metadata.glob("[0-9]*.json")}
        return sorted(published | set(self.waiting()))

    def staged(self, role: str) -> Metadata[Any] | None:
        return _read(self._staged / f"{role}.json")

    def waiting(self) -> list[str]:
        """Roles with a version that wants signatures; the root first."""
        names = {path.name.removesuffix(".json") for path in self._staged.glob("*.json")}
        return sorted(names, key=lambda role: (role != Root.type, role != Targets.type, role))

    def newest(self, role: str) -> Metadata[Any] | None:
        return self.staged(role) or self.published(role)

    def targets(self, role: str) -> Targets:
        """To be changed and staged again."""
        found = self.newest(role)
        if found is None:
            raise PublishError(f"there is no role {role}", "Name a fleet that the repository was made for.")
        targets: Targets = copy.deepcopy(found.signed)
        return targets

    def root(self) -> Root:
        found = self.newest(Root.type)
        if found is None:
            raise PublishError(f"{self.folder} has no root", "Make one: millwright-publish init")
        root: Root = copy.deepcopy(found.signed)
        return root

    # ---- a next version ---------------------------------------------------------------------------------------------

    def stage(self, role: str, signed: Signed) -> None:
        """The next version of a role, without a signature: those that an earlier draft of it had are gone."""
        published = self.published(role)
        signed.version = published.signed.version + 1 if published else 1
        signed.expires = self._until(role)
        if isinstance(signed, Root):
            signed.unrecognized_fields[FIELD] = {"signed_s": int(self._now())}
        self._write(self._staged / f"{role}.json", Metadata(signed))

    def put(self, source: Path, path: str, custom: dict[str, Any]) -> TargetFile:
        """A file, under its name with its hash. Nobody asks for it before a role that names it is published."""
        target = TargetFile.from_file(path, str(source), ["sha256"])
        target.unrecognized_fields["custom"] = custom
        _copy(source, self.place(target))
        return target

    def put_part(self, source: Path, place: str) -> None:
        """A file that a target names by its hash, and nothing else does."""
        _copy(source, self.part(place))

    def part(self, place: str) -> Path:
        """`place` is below `targets`."""
        return self.repository / "targets" / place

    def keep_plain(self, packed: Path, digest: str) -> None:
        """A bundle that nobody can take from the repository again."""
        _copy(packed, self.plain(digest))

    def plain(self, digest: str) -> Path:
        return self.folder / "plain" / digest

    def place(self, target: TargetFile) -> Path:
        """Where the file of a target is."""
        folder, _, name = target.path.rpartition("/")
        return self.repository / "targets" / folder / f"{target.hashes['sha256']}.{name}"

    # ---- signatures -------------------------------------------------------------------------------------------------

    def sign(self, role: str, signer: Signer) -> bool:
        """Add a signature to what is staged; whether this key may sign it at all."""
        staged = self.staged(role)
        if staged is None or signer.public_key.keyid not in self._keys(role):
            return False
        staged.sign(signer, append=True)
        self._write(self._staged / f"{role}.json", staged)
        return True

    def lacking(self, role: str) -> int:
        """Signatures that are still needed."""
        staged = self.staged(role)
        if staged is None:
            return 0
        return max(
            delegator.get_verification_result(role, staged.signed_bytes, staged.signatures).missing
            for delegator in self._delegators(role)
        )

    def ready(self) -> list[str]:
        """What can be published: it has its signatures, and nothing that is published loses its own by it."""
        found = [role for role in self.waiting() if not self.lacking(role)]
        for delegator in (Targets.type, Root.type):
            if delegator in found and not all(self._stands(role, found) for role in self._under(delegator)):
                found.remove(delegator)
        return found

    def release(self, online: Iterable[Signer]) -> list[str]:
        """Publish what has its signatures, then a snapshot and a timestamp of it; the roles that are new."""
        released = self.ready()
        for role in released:
            staged = self.staged(role)
            assert staged is not None
            self._write(self._metadata / f"{staged.signed.version}.{role}.json", staged)
            (self._staged / f"{role}.json").unlink()
        self.renew(list(online))
        return released

    def renew(self, online: list[Signer], skip: int = 0) -> None:
        """A new snapshot and timestamp, `skip` versions left out. PublishError while a role was never published."""
        self.move(self._metadata, online, tuple(version + skip for version in self.following()))

    def following(self) -> tuple[int, ...]:
        """The next versions of snapshot and timestamp."""
        return tuple(self._version(role, 0) + 1 for role in MOVING)

    def move(
        self,
        folder: Path,
        signers: list[Signer],
        versions: tuple[int, ...],
        days: dict[str, float] | None = None,
        courier: bool = False,
    ) -> None:
        """Snapshot and timestamp of what is published, into `folder`; `days` other than those of the settings."""
        number, stamp = versions
        meta = {f"{role}.json": MetaFile(self._version(role)) for role in self._delegated()}
        snapshot = Snapshot(number, expires=self._until(Snapshot.type, days), meta=meta)
        data = self._signed(Metadata(snapshot), Snapshot.type, signers)
        timestamp = Timestamp(
            stamp,
            expires=self._until(Timestamp.type, days),
            snapshot_meta=MetaFile.from_data(number, data, ["sha256"]),
            unrecognized_fields={FIELD: {"signed_s": int(self._now())} | ({"courier": True} if courier else {})},
        )
        stamped = self._signed(Metadata(timestamp), Timestamp.type, signers)
        durable.write(folder / f"{number}.{Snapshot.type}.json", data)
        durable.write(folder / f"{Timestamp.type}.json", stamped)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _delegated(self) -> list[str]:
        """All roles that a snapshot speaks of."""
        published = self.published(Targets.type)
        if published is None:
            raise PublishError(
                "the targets role has not been signed yet", f"It waits for {self.lacking(Targets.type)}."
            )
        delegations = published.signed.delegations
        return [Targets.type, *(delegations.roles if delegations else ())]

    def _under(self, delegator: str) -> list[str]:
        """Roles that people sign, by a delegator that is staged."""
        if delegator == Root.type:
            return [Targets.type]
        delegations = self.targets(Targets.type).delegations
        return list(delegations.roles or ()) if delegations else []

    def _stands(self, role: str, ready: list[str]) -> bool:
        """Whether the version that would be public has its signatures under the newest delegator."""
        found = self.staged(role) if role in ready else self.published(role)
        if found is None:
            return False
        return all(
            delegator.get_verification_result(role, found.signed_bytes, found.signatures).verified
            for delegator in self._delegators(role)
        )

    def _delegators(self, role: str) -> list[Root | Targets]:
        """Who says which keys count: for a root the one before it, too."""
        if role == Root.type:
            before, staged = self.published(role), self.staged(role)
            return [one.signed for one in (before, staged) if one is not None]
        if role in (Targets.type, *MOVING):
            return [self.root()]
        return [self.targets(Targets.type)]

    def _keys(self, role: str) -> set[str]:
        return {keyid for one in self._delegators(role) for keyid in one.get_delegated_role(role).keyids}

    def _signed(self, metadata: Metadata[Any], role: str, signers: list[Signer]) -> bytes:
        published = self.published(Root.type)
        if published is None:
            raise PublishError("the root has not been signed yet", f"It waits for {self.lacking(Root.type)}.")
        keyids = published.signed.get_delegated_role(role).keyids
        for signer in signers:
            if signer.public_key.keyid in keyids:
                metadata.sign(signer, append=True)
        if not metadata.signatures:
            raise PublishError(f"no key at hand may sign the {role}", "Name the online key: --online FILE")
        return metadata.to_bytes(JSONSerializer())

    def _version(self, role: str, otherwise: int | None = None) -> int:
        published = self.published(role)
        if published is None and otherwise is None:
            raise PublishError(f"{role} has not been signed yet", f"It waits for {self.lacking(role)} signatures.")
        return int(published.signed.version) if published else int(otherwise or 0)

    def _until(self, role: str, days: dict[str, float] | None = None) -> datetime:
        kind = role.partition(".")[0]
        found = (days or {}).get(kind) or self.settings.days[kind]
        return datetime.fromtimestamp(int(self._now()), UTC) + timedelta(days=found)

    def _write(self, path: Path, metadata: Metadata[Any]) -> None:
        durable.write(path, metadata.to_bytes(JSONSerializer()))


def _copy(source: Path, place: Path) -> None:
    if place.is_file():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{place.name}")
    shutil.copyfile(source, draft)
    durable.sync_file(draft)
    durable.move(draft, place)


def _read(path: Path) -> Metadata[Any] | None:
    try:
        return Metadata.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
