"""Which files may be believed: The Update Framework, by python-tuf's client, under rules of our own.

    trust = Trust(folder, root, times)        `root` comes with the image, never from the network
    with trust.view(source) as view:          the newest state of the repository, verified
        view.offers("plant-a")                what it has for this fleet
        view.find("os/box-1.2.image")         one target, or None

What python-tuf sees to: thresholds of signatures, versions that never go back, expiry, one consistent snapshot, lengths
and hashes, delegations. What is added here:

- Time is `Times`, not the clock. A signed time in the timestamp raises the floor, and the rest of the same state is
  judged by it already.
- Each path has its role: `os/*` comes from `os-release` and `models/<fleet>/*` from that fleet's `trainer-models`, each
  signed by two people at least and never with a key in common. So whoever trains models cannot ship a system.
- What was signed for a stick, and therefore for long, counts only where it comes from a stick.
- Metadata is written so that a power cut cannot take the rollback state away.
"""

import fcntl
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from tuf.api import exceptions as tuf
from tuf.api.metadata import Role, Root, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from ota import durable, fetch, manifest
from ota.errors import (
    ExpiredError,
    FetchError,
    ManifestError,
    MissingError,
    OlderError,
    OtaError,
    StorageError,
    TrustError,
)
from ota.fetch import Wanted
from ota.manifest import Content
from ota.sources import Answer, Source
from ota.times import Times

OS_RELEASE = "os-release"
TRAINER_MODELS = "trainer-models"
FIELD = "millwright"  # in a role's metadata: {"signed_s": seconds since 1970, "courier": true where it is for a stick}
MAX_OFFERS = 10_000
_YEAR_9999 = 253_370_764_800  # the last that metadata can be judged by
_HASHES = {"sha256": 64, "sha512": 128}  # digits
_HEX = re.compile(r"[0-9a-f]+")
_FLEET = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def models_role(fleet: str) -> str:
    return f"{TRAINER_MODELS}.{fleet}"


def role_of(path: str) -> str:
    """The only role that a target with this path may come from."""
    room, _, rest = path.partition("/")
    if room == "os":
        return OS_RELEASE
    return models_role(rest.partition("/")[0]) if room == "models" else Targets.type


@dataclass(frozen=True)
class Rules:
    """`thresholds` are the fewest signatures by kind of role; `rooms`: whether each path has its role."""

    thresholds: Mapping[str, int] = field(
        default_factory=lambda: {Root.type: 3, Targets.type: 2, OS_RELEASE: 2, TRAINER_MODELS: 2}
    )
    rooms: bool = True


@dataclass(frozen=True)
class Target:
    """A file of the repository that may be believed. `place` is its path there, below `targets/`."""

    path: str
    place: str
    wanted: Wanted
    role: str


@dataclass(frozen=True)
class Offer:
    target: Target
    content: Content


@dataclass(frozen=True)
class Standing:
    """What a view rests on. Times are seconds since 1970."""

    root: int
    timestamp: int
    snapshot: int
    judged_at_s: float
    expires_s: float


class Trust:
    """`folder` keeps the newest metadata seen: the rollback state. Losing it is safe only together with the models."""

    def __init__(self, folder: Path, root: bytes, times: Times, rules: Rules = Rules()) -> None:
        self._folder, self._root, self._times, self._rules = folder, root, times, rules

    @contextmanager
    def view(self, source: Source) -> Iterator["View"]:
        """The newest state that `source` has. ExpiredError, OlderError, TrustError, FetchError, StorageError."""
        with self._alone(), _translated(source):
            client = _Client(self._folder, self._root, self._times, self._rules, source)
            client.refresh()
            yield View(client, source)

    @contextmanager
    def remembered(self) -> Iterator["View"]:
        """The state that this box has already, if it is not out of date: for files from a stick that is older."""
        with self.view(_Memory(self._folder)) as view:
            yield view

    @contextmanager
    def best(self, source: Source) -> Iterator["View"]:
        """The newest state there is: the source's, or for a stick that is older or out of date, this box's own."""
        with ExitStack() as stack:
            try:
                view = stack.enter_context(self.view(source))
            except (OlderError, ExpiredError, MissingError) as error:
                if not source.courier:
                    raise
                view = stack.enter_context(self._remembered_or(error))
            yield view

    @contextmanager
    def _remembered_or(self, error: TrustError | MissingError) -> Iterator["View"]:
        with ExitStack() as stack:
            try:
                view = stack.enter_context(self.remembered())
            except OtaError:
                raise error from None  # what is wrong with the stick says more
            yield view

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._folder / "lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield
        except BlockingIOError as error:
            raise StorageError(f"{self._folder}: another update is at work", "Wait until it has ended.") from error


class View:
    """A verified state. It can be asked for as long as the block lasts."""

    def __init__(self, client: "_Client", source: Source) -> None:
        self._client, self._source = client, source

    @property
    def standing(self) -> Standing:
        return self._client.standing()

    def find(self, path: str) -> Target | None:
        """TrustError where it stands in a role that has no business with it."""
        with _translated(self._source):
            return self._client.find(path)

    def offers(self, fleet: str) -> tuple[list[Offer], list[OtaError]]:
        """What there is for this fleet, and what is wrong with the rest."""
        if not _FLEET.fullmatch(fleet):
            raise TrustError(f"'{fleet}' is no name of a fleet", "Lower case letters, digits, dash and underscore.")
        offers: list[Offer] = []
        problems: list[OtaError] = []
        with _translated(self._source):
            for path, listed in self._client.listed(fleet):
                try:
                    content = manifest.read(listed.custom)
                    target = self._client.find(path) if content is not None else None
                    if target is not None and content is not None:
                        offers.append(Offer(target, _in_place(content, path, fleet)))
                except (ManifestError, TrustError) as error:
                    problems.append(type(error)(f"{path}: {error.message}", error.remedy))
        return offers, problems


def _in_place(content: Content, path: str, fleet: str) -> Content:
    if manifest.path_of(content, fleet) != path:
        raise ManifestError("what it says of itself is not what it is called", "Publish it anew.")
    return content


class _Client(Updater):
    """python-tuf's client. What it keeps to itself is touched in this class alone."""

    def __init__(self, folder: Path, root: bytes, times: Times, rules: Rules, source: Source) -> None:
        self._times, self._rules, self._courier = times, rules, source.courier
        config = UpdaterConfig(max_root_rotations=1024)
        super().__init__(str(folder), "", fetcher=_Fetcher(source), config=config, bootstrap=root)

    # ---- the rules, between python-tuf's own steps ------------------------------------------------------------------

    def _load_root(self) -> None:
        super()._load_root()
        root = self._trusted_set.root
        self._judge_at(max(self._times.now(_witness(root)), _signed_s(root)))
        self._demand(Root.type, root.roles[Root.type])
        self._demand(Targets.type, root.roles[Targets.type])

    def _load_timestamp(self) -> None:
        super()._load_timestamp()
        timestamp = self._trusted_set.timestamp
        self._learn(timestamp)
        if _field(timestamp).get("courier") and not self._courier:
            raise tuf.ExpiredMetadataError("all there is was signed for a stick")

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        targets = super()._load_targets(role, parent_role)
        if role == Targets.type and self._rules.rooms:
            self._inspect(targets)
        return targets

    def _inspect(self, targets: Targets) -> None:
        """The delegations to those who make systems and those who make models."""
        delegated = (targets.delegations.roles if targets.delegations else None) or {}
        release = delegated.get(OS_RELEASE)
        for name, role in delegated.items():
            kind = name.partition(".")[0]
            self._demand(kind, role)
            if release is not None and kind == TRAINER_MODELS and set(role.keyids) & set(release.keyids):
                raise tuf.RepositoryError(f"a key of {name} is also one of {OS_RELEASE}")

    def _demand(self, kind: str, role: Role) -> None:
        fewest = self._rules.thresholds.get(kind, 1)
        if role.threshold < fewest:
            raise tuf.RepositoryError(f"{kind} asks for {role.threshold} signatures; this box asks for {fewest}")

    def _learn(self, timestamp: Timestamp) -> None:
        signed_s = _signed_s(timestamp)
        if signed_s > timestamp.expires.timestamp():
            raise tuf.RepositoryError("the timestamp was signed after its own end")
        if signed_s:
            witness = _witness(self._trusted_set.root)
            self._times.learn(signed_s, witness)
            self._judge_at(max(self._trusted_set.reference_time.timestamp(), self._times.now(witness)))

    def _judge_at(self, at_s: float) -> None:
        self._trusted_set.reference_time = datetime.fromtimestamp(min(at_s, _YEAR_9999), UTC)

    # ---- what a view asks for ---------------------------------------------------------------------------------------

    def find(self, path: str) -> Target | None:
        if self._rules.rooms and not manifest.is_path(path):
            raise TrustError(f"'{path}' is no name for a target", "Ask for one that `offers` gives.")
        found = self.get_targetinfo(path)
        if found is None:
            return None
        role = self._giver(found, path)
        if self._rules.rooms and role != role_of(path):
            raise TrustError(f"{path} comes from {role}", f"It may come from {role_of(path)} alone.")
        return Target(path, self._place(found), _wanted(found), role)

    def listed(self, fleet: str) -> list[tuple[str, TargetFile]]:
        """The targets of the fleet's own role; which of them count is for `find` to say."""
        self.get_targetinfo(f"models/{fleet}/-")  # no such target: on the way there the role is loaded and verified
        role = self._trusted_set.get(models_role(fleet))
        if not isinstance(role, Targets):
            return []
        if len(role.targets) > MAX_OFFERS:
            raise tuf.RepositoryError(f"{models_role(fleet)} has more than {MAX_OFFERS} targets")
        return sorted(role.targets.items())

    def standing(self) -> Standing:
        known = self._trusted_set
        signed = (known.root, known.timestamp, known.snapshot, known.targets)
        versions = known.root.version, known.timestamp.version, known.snapshot.version
        ends = min(one.expires.timestamp() for one in signed)
        return Standing(*versions, known.reference_time.timestamp(), ends)

    def _giver(self, found: TargetFile, path: str) -> str:
        """The role whose very entry this is."""
        for name in self._trusted_set._trusted_set:
            role = self._trusted_set[name]
            if isinstance(role, Targets) and role.targets.get(path) is found:
                return name
        raise AssertionError(path)

    def _place(self, found: TargetFile) -> str:
        if not self._trusted_set.root.consistent_snapshot:
            return found.path
        folder, slash, name = found.path.rpartition("/")
        return f"{folder}{slash}{next(iter(found.hashes.values()))}.{name}"

    # ---- how metadata is kept ---------------------------------------------------------------------------------------

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not path.is_file() or path.read_bytes() != data:  # flash is not worn by what is there already
            durable.write(path, data)


class _Fetcher(FetcherInterface):
    """Metadata from a source of ours: in memory, bounded, tried again where a connection breaks."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError  # files are not fetched through here

    def download_bytes(self, url: str, max_length: int) -> bytes:
        name = url.lstrip("/")
        try:
            return fetch.read(self._source, name, max_length)
        except MissingError as error:
            raise tuf.DownloadHTTPError(error.message, 404) from error
        except FetchError as error:
            raise tuf.DownloadError(error.message) from error


class _Memory:
    """The metadata of this box as if it were a repository that never changes."""

    courier = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return "what this box knows"

    @contextmanager
    def open(self, name: str, offset: int = 0) -> Iterator[Answer]:
        if name != "timestamp.json":  # everything else is either there already or cannot be had
            raise MissingError(f"this box has no {unquote(name)}", "It needs a newer stick, or the network.")
        try:
            yield Answer(0, iter([(self._folder / name).read_bytes()]))
        except OSError as error:
            raise MissingError(
                "this box has seen no repository yet", "It needs a newer stick, or the network."
            ) from error


def _witness(root: Root) -> str:
    """A name for the keys that sign timestamps."""
    return hashlib.sha256(" ".join(sorted(root.roles[Timestamp.type].keyids)).encode()).hexdigest()


def _field(signed: Root | Timestamp) -> Mapping[str, object]:
    ours = signed.unrecognized_fields.get(FIELD)
    return ours if isinstance(ours, dict) else {}


def _signed_s(signed: Root | Timestamp) -> float:
    at = _field(signed).get("signed_s")
    return float(at) if isinstance(at, int) and 0 < at < _YEAR_9999 else 0.0


def _wanted(found: TargetFile) -> Wanted:
    for algorithm, digits in _HASHES.items():
        digest = found.hashes.get(algorithm, "")
        if len(digest) == digits and _HEX.fullmatch(digest):
            return Wanted(digest, found.length, algorithm)
    raise TrustError(f"{found.path} has neither SHA-256 nor SHA-512", "Publish it anew.")


@contextmanager
def _translated(source: Source) -> Iterator[None]:
    """python-tuf's errors as ours, once."""
    try:
        yield
    except tuf.ExpiredMetadataError as error:
        raise ExpiredError(f"{source}: {error}", "Somebody holds newer ones back, or nobody signs any more.") from error
    except tuf.BadVersionNumberError as error:
        raise OlderError(f"{source}: {error}", "It is older than what this box knows; nothing was taken.") from error
    except tuf.DownloadHTTPError as error:
        raise MissingError(str(error), "Publish it whole.") from error
    except tuf.DownloadError as error:
        raise FetchError(str(error), "It is tried again later.") from error
    except tuf.RepositoryError as error:
        raise TrustError(f"{source}: {error}", "Nothing was taken. Ask whoever signs this repository.") from error
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}", "Make room or give the right to write.") from error
