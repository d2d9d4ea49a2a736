"""From an offer of the repository to a verified bundle on this box: the route, its files, and what they make.

    <folder>/files/            what is fetched (`ota.fetch`)
    <folder>/made/<hash>       bundles on the way, complete as soon as they have their name
    <folder>/made/open-<hash>  a file that was encrypted for this fleet, opened
    <folder>/<hash>.route      the route that was decided on, to go on without the network

Each step may be begun again at any time and goes on where it was.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ota import bundle, durable, fetch, plan, sealed
from ota.errors import (
    DamagedError,
    FetchError,
    ManifestError,
    MissingError,
    OtaError,
    SealedError,
    SpaceError,
    StorageError,
    TrustError,
)
from ota.fetch import Course
from ota.manifest import SEALED, Bundle, Delta, Host, missing
from ota.patching import Apply, WrongDeltaError
from ota.patching import in_a_process_of_its_own as in_a_process_of_its_own
from ota.plan import Leg, Route
from ota.route import Plan, Sealed, Stop, recall, record
from ota.sealed import Unwrapper
from ota.sources import Repository, Several, Source
from ota.trust import Offer, Standing, View

_CHUNK = 1 << 20
_UNWATCHED = Course()


class Asked(Protocol):
    """What shall be brought: a bundle, by its content hash."""

    @property
    def bundle(self) -> str: ...


class Store(Protocol):
    """The bundles that this box has, by their content hash: what deltas may start from."""

    def at_hand(self) -> set[str]: ...

    def folder(self, digest: str) -> Path | None: ...


class Believing(Protocol):
    """What of a repository may be believed: `ota.trust.Trust`."""

    def best(self, source: Source) -> AbstractContextManager[View]: ...


Places = Callable[[], Sequence[Repository]]  # at this moment, the first one first: sticks come and go


@dataclass(frozen=True)
class Survey:
    """What one place has, what is wrong with the rest of it, and what that rests on."""

    place: str
    offers: list[Offer]
    problems: list[OtaError]
    standing: Standing


@dataclass(frozen=True)
class Means:
    """What may be used. `budget_bytes` bounds everything that is written on the way, of one update; without `unwrapper`
    no file that is encrypted is taken."""

    budget_bytes: int
    host: Host
    apply: Apply
    unwrapper: Unwrapper | None = None

    @property
    def able(self) -> Host:
        """What the box has, to be held against the needs of an offer."""
        if self.unwrapper is None:
            return self.host
        return Host(self.host.millwright, self.host.memory_bytes, self.host.features | {SEALED})


class Supply:
    """Of one fleet, from one repository, or from the first of several places that can be believed; a file that this one
    does not have comes from another. FetchError and its kin where it is to be tried again."""

    def __init__(
        self, trust: Believing, repository: Repository | Places, fleet: str, store: Store, folder: Path, means: Means
    ) -> None:
        self._trust, self._fleet = trust, fleet
        self._places: Places = (lambda: [repository]) if isinstance(repository, Repository) else repository
        self._store, self._folder, self._means = store, folder, means

    def offers(self) -> tuple[list[Offer], list[OtaError]]:
        """What the repository has at this moment, and what is wrong with the rest."""
        survey = self.survey()
        return survey.offers, survey.problems

    def survey(self) -> Survey:
        """Of the first place that can be believed; what is wrong with those before it is among its problems."""
        problems: list[OtaError] = []
        for place in self._places():
            try:
                with self._trust.best(place.metadata) as view:
                    offers, others = view.offers(self._fleet)
                    return Survey(str(place), offers, [*problems, *others], view.standing)
            except (FetchError, TrustError) as error:
                problems.append(error)
        raise _foremost(problems)

    def read(self, offer: Offer, limit: int) -> bytes:
        """A small target, verified: a campaign."""
        if offer.target.wanted.length > limit:
            raise ManifestError(f"{offer.target.path} is larger than {limit:,} bytes", "Publish it anew.")
        wanted = offer.target.wanted
        data = fetch.read(self._sources(), offer.target.place, wanted.length)
        if len(data) != wanted.length or hashlib.new(wanted.algorithm, data).hexdigest() != wanted.digest:
            raise DamagedError(f"{offer.target.path}: its bytes are not the signed ones", "It is fetched again.")
        return data

    def route(self, digest: str, offers: list[Offer]) -> Route:
        """The cheapest one. MissingError where no way leads there from what is at hand."""
        return self._cheapest(digest, self._legs(offers))[0]

    def whole_bytes(self, digest: str, offers: list[Offer]) -> int | None:
        """What it would take without deltas, where this box may take it whole."""
        return min((leg.bytes for leg in self._legs(offers) if leg.bundle == digest and leg.base is None), default=None)

    def lacking(self, offer: Offer) -> list[str]:
        """Why this box cannot take it, in words; empty where it can."""
        content = offer.content
        if not isinstance(content, Bundle | Delta):
            return []
        lacks = missing(content.needs, self._means.able)
        if content.sealed and self._means.unwrapper is None:
            lacks.append("the key of this fleet")
        return lacks

    # ---- the steps of an update -------------------------------------------------------------------------------------

    def bring(self, asked: Asked, course: Course = _UNWATCHED) -> None:
        """Decide on a route and fetch its files. Without a network, what was decided before may be complete already."""
        for stop in self._planned(asked.bundle, decided=self._complete(asked.bundle)).stops:
            fetch.download(self._sources(), stop.place, stop.wanted, self._files, course)

    def verify(self, asked: Asked) -> None:
        """Read all that arrived once more from the disk. DamagedError: it is fetched again."""
        for stop in self._decided(asked.bundle).stops:
            path = self._files / stop.digest
            if not path.is_file() or _digest(path, stop.algorithm) != stop.digest:
                path.unlink(missing_ok=True)
                raise DamagedError(f"{stop.place}: what arrived is damaged", "It is fetched again.")

    def make(self, asked: Asked, course: Course = _UNWATCHED) -> Path:
        """The bundle's folder, verified and synced, ready for the store. A delta that does not work is gone around."""
        while True:
            try:
                return self._made(asked.bundle)
            except WrongDeltaError as error:
                decided = self._decided(asked.bundle)
                self._write(asked.bundle, Plan(decided.stops, (*decided.avoid, error.message)))
                self._planned(asked.bundle, decided=False)
                self.bring(asked, course)

    def clear(self, asked: Asked) -> None:
        """Nothing of it is needed any more."""
        for stop in self._decided(asked.bundle).stops:
            self._forget(stop)
        leaving = self._folder / "leaving"
        if self._made_in.is_dir():
            shutil.rmtree(leaving, ignore_errors=True)
            durable.move(self._made_in, leaving)  # first: what is half removed must not have the name of what is whole
        shutil.rmtree(leaving, ignore_errors=True)
        for file in (*self._folder.glob(f"{asked.bundle}.route"), *self._folder.glob(f".{asked.bundle}.route.*")):
            file.unlink(missing_ok=True)

    def arrived(self, asked: Asked) -> tuple[int, int]:
        """Bytes of its files that are here, of all that the route takes."""
        stops = self._decided(asked.bundle).stops
        here = (min(fetch.arriving(self._files, stop.wanted), stop.length) for stop in stops)
        return sum(here), sum(stop.length for stop in stops)

    def made(self, asked: Asked) -> tuple[int, int]:
        """Bytes that have been made of them, of all that they make."""
        total = sum(stop.unpacked_bytes for stop in self._decided(asked.bundle).stops)
        return min(_size(self._made_in), total), total

    # ---- the route --------------------------------------------------------------------------------------------------

    def _planned(self, digest: str, decided: bool) -> Plan:
        if decided:
            return self._decided(digest)
        offers, _ = self.offers()
        avoid = self._decided(digest).avoid
        route, stops = self._cheapest(digest, self._legs(offers, avoid))
        if route.disk_bytes > self._means.budget_bytes:
            raise SpaceError(
                f"the update takes {route.disk_bytes:,} bytes; {self._means.budget_bytes:,} may be used",
                "Raise the budget of updates: budget_mb in [update].",
            )
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fetch.room(self._folder, route.disk_bytes)
        found = Plan(tuple(stops[leg] for leg in route.legs), avoid)
        for stop in self._decided(digest).stops:
            if stop not in found.stops:
                self._forget(stop)  # a better way has been published since
        self._write(digest, found)
        return found

    def _forget(self, stop: Stop) -> None:
        """Whatever has arrived of its file."""
        (self._files / stop.digest).unlink(missing_ok=True)
        for rest in (*self._files.glob(f"{stop.digest}.part*"), *self._files.glob(f".{stop.digest}.*")):
            rest.unlink()

    def _cheapest(self, digest: str, stops: dict[Leg, Stop]) -> tuple[Route, dict[Leg, Stop]]:
        found = plan.cheapest(
            digest,
            stops,
            self._store.at_hand() | self._at_hand(),
            lambda leg: fetch.arrived(self._files, stops[leg].wanted),
            self._means.host.memory_bytes,
        )
        if found is None:
            raise MissingError(f"no way leads to {digest[:12]} from what is here", "Publish it whole.")
        return found, stops

    def _legs(self, offers: list[Offer], avoid: tuple[str, ...] = ()) -> dict[Leg, Stop]:
        found = {}
        for offer in offers:
            content, target = offer.content, offer.target
            if not isinstance(content, Bundle | Delta) or target.wanted.digest in avoid:
                continue
            if self.lacking(offer):
                continue
            base, memory = (content.base, content.memory_bytes) if isinstance(content, Delta) else (None, 0)
            wanted, unpacked = target.wanted, content.unpacked_bytes
            opened = sealed.unsealed_bytes(wanted.length) if content.sealed else 0
            leg = Leg(content.bundle, wanted.digest, wanted.length, unpacked + opened, base, memory)
            found[leg] = Stop(
                content.bundle, target.place, wanted.digest, wanted.length, wanted.algorithm, unpacked, base,
                self._sealed(offer),
            )  # fmt: skip
        return found

    def _sealed(self, offer: Offer) -> Sealed | None:
        content = offer.content
        if not isinstance(content, Bundle | Delta) or not content.sealed:
            return None
        return Sealed(content.sealed, sealed.context(self._fleet, offer.target.path, content.version))

    def _complete(self, digest: str) -> bool:
        """Whether a route was decided on that does not need the repository any more."""
        stops = self._decided(digest).stops
        return bool(stops) and all((self._files / stop.digest).is_file() for stop in stops)

    def _decided(self, digest: str) -> Plan:
        return recall(self._route_file(digest))

    def _write(self, digest: str, decided: Plan) -> None:
        record(self._route_file(digest), decided)

    def _sources(self) -> Several:
        return Several([place.files for place in self._places()])

    # ---- what the files make ----------------------------------------------------------------------------------------

    def _made(self, digest: str) -> Path:
        self._made_in.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stop in self._decided(digest).stops:
            target = self._made_in / stop.bundle
            if not target.is_dir():
                self._build(stop, target)
        found = self._at(digest)
        if found is None:
            raise StorageError(f"{digest[:12]} was not made", "It is fetched again.")
        return found

    def _build(self, stop: Stop, target: Path) -> None:
        draft = self._made_in / f"draft-{stop.digest[:32]}"
        try:
            file = self._opened(stop)
            if stop.base is None:
                shutil.rmtree(draft, ignore_errors=True)
                bundle.unpack(file, draft, stop.unpacked_bytes)
            elif not draft.is_dir():  # a delta that was cut off goes on by itself, and names the folder at its end
                base = self._at(stop.base)
                if base is None:
                    raise WrongDeltaError(stop.digest, "what it starts from is not here")
                self._means.apply(base, file, draft)
            if bundle.digest(draft) != stop.bundle:
                shutil.rmtree(draft)
                raise _wrong(stop, "it makes something else than it says")
        except WrongDeltaError as error:
            raise _wrong(stop, error.remedy) from error
        durable.move(draft, target)
        self._opened_name(stop).unlink(missing_ok=True)

    def _opened(self, stop: Stop) -> Path:
        """The file of a stop, for everybody to read: as it came, or decrypted beside it."""
        if stop.sealed is None:
            return self._files / stop.digest
        opened = self._opened_name(stop)
        if not opened.is_file():
            try:
                sealed.unseal(self._files / stop.digest, opened, self._key(stop.sealed), stop.sealed.context)
            except SealedError as error:
                raise _wrong(stop, error.message) from error
        return opened

    def _key(self, of: Sealed) -> bytes:
        unwrapper = self._means.unwrapper
        for recipient, wrapped in of.keys.items():
            if unwrapper is not None and (key := unwrapper.unwrap(recipient, wrapped, of.context)) is not None:
                return key
        raise StorageError(
            f"no key here opens it; it is for {', '.join(of.keys)}", "Put the fleet's key into this box's vault."
        )

    def _opened_name(self, stop: Stop) -> Path:
        return self._made_in / f"open-{stop.digest[:32]}"

    def _at(self, digest: str) -> Path | None:
        made = self._made_in / digest
        return made if made.is_dir() else self._store.folder(digest)

    def _at_hand(self) -> set[str]:
        return {path.name for path in self._made_in.glob("[0-9a-f]" * 64)} if self._made_in.is_dir() else set()

    @property
    def _files(self) -> Path:
        return self._folder / "files"

    @property
    def _made_in(self) -> Path:
        return self._folder / "made"

    def _route_file(self, digest: str) -> Path:
        return self._folder / f"{digest}.route"


def _foremost(problems: Iterable[OtaError]) -> OtaError:
    """Of several places the first one's: it is the one that was meant to serve."""
    found = next(iter(problems), None)
    return found or MissingError("no repository is at hand", "Name one as a source in [update], or plug a stick in.")


def _size(folder: Path) -> int:
    """Bytes of all files below it that have been written so far."""
    found = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            found += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # it has just been renamed
    return found


def _wrong(stop: Stop, why: str) -> OtaError:
    """A delta has a way around it; a whole bundle that is wrong has none."""
    if stop.base is None:
        return ManifestError(f"{stop.place}: {why}", "Publish it anew.")
    return WrongDeltaError(stop.digest, why)


def _digest(path: Path, algorithm: str) -> str:
    found = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
