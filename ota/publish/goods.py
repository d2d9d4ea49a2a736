"""What goes into a repository: bundles, deltas between them, campaigns; and what goes on a stick."""

import shutil
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from securesystemslib.signer import Signer
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp

from ota import bundle, campaign, courier, durable, manifest
from ota.campaign import Campaign, Progress
from ota.courier import Receipt
from ota.errors import PublishError
from ota.manifest import Bundle, Content, Delta, Needs
from ota.publish import sealing, systems
from ota.publish.workshop import Workshop
from ota.trust import OS_RELEASE, models_role, role_of

WORTH = 0.8  # of the whole; a delta above that is dropped
STICK_DAYS = 90.0
_CARD = "card.toml"

Make = Callable[[Path, Path, Path], object]  # old folder, new folder, patch


@dataclass(frozen=True)
class Made:
    """A delta that was tried; `kept` is whether it is worth it."""

    base: Bundle
    patch_bytes: int
    whole_bytes: int
    kept: bool


# ---- bundles --------------------------------------------------------------------------------------------------------


def add_bundle(workshop: Workshop, fleet: str, folder: Path, needs: Needs) -> Bundle:
    """Pack a model and stage it. PublishError where the same version is there with another content."""
    name, version = _title(folder)
    content = Bundle(name, version, bundle.digest(folder), bundle.size(folder), needs)
    role, path = models_role(fleet), manifest.path_of(content, fleet)
    targets = workshop.targets(role)
    there = targets.targets.get(path)
    published = manifest.read(there.custom) if there is not None else None
    if there is not None and (not isinstance(published, Bundle) or sealing.bare(published) != content):
        raise PublishError(f"there is another {name} {version}", "Raise the version.")
    lines = workshop.settings.sealed.get(fleet, ())
    if there is None or not isinstance(published, Bundle) or not sealing.is_for(published.sealed, lines):
        with tempfile.TemporaryDirectory() as temporary:
            packed = Path(temporary) / "packed"
            bundle.pack(folder, packed)
            there = _put(workshop, fleet, content, packed)
            if lines:
                workshop.keep_plain(packed, content.bundle)
    _stage(workshop, role, targets, there)
    return content


def _put(workshop: Workshop, fleet: str, content: Bundle | Delta, file: Path) -> TargetFile:
    """Into the repository: as it is, or encrypted where the fleet has a key for that."""
    path, lines = manifest.path_of(content, fleet), workshop.settings.sealed.get(fleet, ())
    if lines:
        target = file.with_name(f"{file.name}.sealed")
        content, file = sealing.seal(content, fleet, lines, file, target), target
    return workshop.put(file, path, manifest.custom(content))


def _stage(workshop: Workshop, role: str, targets: Targets, target: TargetFile) -> None:
    if role_of(target.path) != role:
        raise PublishError(f"{role} may not give {target.path}", f"It may come from {role_of(target.path)} alone.")
    targets.targets[target.path] = target
    workshop.stage(role, targets)


def _title(folder: Path) -> tuple[str, str]:
    try:
        card = tomllib.loads((folder / _CARD).read_text())
        return str(card["name"]), str(card["version"])
    except (OSError, tomllib.TOMLDecodeError, KeyError, UnicodeDecodeError) as error:
        raise PublishError(f"{folder / _CARD} does not name a model and its version", "Name a bundle.") from error


# ---- deltas ---------------------------------------------------------------------------------------------------------


def bundles(workshop: Workshop, fleet: str, name: str) -> list[tuple[Bundle, TargetFile]]:
    """Of one model, the newest last."""
    found = []
    for target in workshop.targets(models_role(fleet)).targets.values():
        content = manifest.read(target.custom)
        if isinstance(content, Bundle) and content.name == name:
            found.append((content, target))
    return sorted(found, key=lambda pair: manifest.order(pair[0].version))


def in_use(receipts: Iterable[Receipt], name: str) -> Counter[str]:
    """How many devices run which bundle, by the last receipt of each that tells."""
    last: dict[str, str] = {}
    for receipt in sorted(receipts, key=lambda one: one.at_s):
        running = receipt.runs or (receipt.bundle if receipt.outcome == "confirmed" else "")
        if receipt.model == name and running:
            last[receipt.device] = running
    return Counter(last.values())


def add_deltas(
    workshop: Workshop, fleet: str, name: str, last: int, make: Make, used: Counter[str] | None = None
) -> list[Made]:
    """From the last versions to the newest: those in use where that is known.

    Deltas between the last versions stay, so that a box that missed one goes by a chain; older ones are dropped.
    """
    from ota.delta.memory import needed  # the codec is slow to import

    known = bundles(workshop, fleet, name)
    if not known:
        raise PublishError(f"there is no bundle of '{name}' for {fleet}", "First: millwright-publish add")
    newest, whole = known[-1]
    bases = [(old, target) for old, target in known[:-1] if used is None or used[old.bundle]][-last:]
    role = models_role(fleet)
    targets = workshop.targets(role)
    _drop_deltas(targets, name, {content.bundle for content, _ in known[-last - 1 : -1]})
    made = []
    with tempfile.TemporaryDirectory() as temporary:
        new = _unpacked(workshop, newest, whole, Path(temporary) / "new")
        for number, (old, target) in enumerate(bases):
            patch = Path(temporary) / f"{number}.delta"
            make(_unpacked(workshop, old, target, Path(temporary) / f"{number}"), new, patch)
            size = patch.stat().st_size
            kept = size <= WORTH * whole.length
            made.append(Made(old, size, whole.length, kept))
            if kept:
                needs = sealing.bare(newest).needs
                content = Delta(
                    name, newest.version, old.bundle, newest.bundle, newest.unpacked_bytes, needed(patch), needs
                )
                targets.targets[manifest.path_of(content, fleet)] = _put(workshop, fleet, content, patch)
    workshop.stage(role, targets)
    return made


def _drop_deltas(targets: Targets, name: str, kept: set[str]) -> None:
    for path, target in list(targets.targets.items()):
        content = manifest.read(target.custom)
        if isinstance(content, Delta) and content.name == name and content.bundle not in kept:
            del targets.targets[path]


def _unpacked(workshop: Workshop, content: Bundle, target: TargetFile, folder: Path) -> Path:
    packed = workshop.plain(content.bundle) if content.sealed else workshop.place(target)
    try:
        bundle.unpack(packed, folder, content.unpacked_bytes)
    except FileNotFoundError as error:
        raise PublishError(f"{packed} is not here", "Make deltas where the bundle was added.") from error
    if bundle.digest(folder) != content.bundle:
        raise PublishError(f"{packed} is damaged", "Bring it back from a copy of the repository.")
    return folder


# ---- campaigns ------------------------------------------------------------------------------------------------------


def set_campaign(
    workshop: Workshop, fleet: str, data: bytes, receipts: Iterable[Receipt] | None = None, resume: bool = False
) -> Campaign:
    """Stage a campaign, its progress summed up from receipts where they are given. The bundle must be published.

    One that has met a criterion to stop is stopped for good: what comes back later, from devices that still had it,
    does not begin it again. `resume` does, where no criterion is met any more.
    """
    given = campaign.read(data)
    if receipts is not None:
        given = msgspec.structs.replace(given, progress=progress(given, receipts))
    if given.bundle not in {content.bundle for content, _ in bundles(workshop, fleet, given.model)}:
        raise PublishError(f"no bundle of {given.model} has the hash {given.bundle[:12]}", "Add it first.")
    given = _stopped(given, None if resume else campaign_of(workshop, fleet, given.model))
    content: Content = manifest.Campaign(given.model)
    path = manifest.path_of(content, fleet)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(campaign.written(given))
        target = workshop.put(Path(file.name), path, manifest.custom(content))
    _stage(workshop, models_role(fleet), workshop.targets(models_role(fleet)), target)
    return given


def campaign_of(workshop: Workshop, fleet: str, model: str) -> Campaign | None:
    """The newest that was staged or published of a model."""
    path = manifest.path_of(manifest.Campaign(model), fleet)
    target = workshop.targets(models_role(fleet)).targets.get(path)
    return campaign.read(workshop.place(target).read_bytes()) if target is not None else None


def _stopped(given: Campaign, before: Campaign | None) -> Campaign:
    reason = campaign.broken_criterion(given.stop, given.progress)
    if not reason and before is not None and before.id == given.id and before.stopped:
        reason = before.reason or "it was stopped before"
    return msgspec.structs.replace(given, stopped=True, reason=reason) if reason else given


def progress(given: Campaign, receipts: Iterable[Receipt]) -> Progress:
    """The last word of each device about the campaign's bundle."""
    last: dict[str, str] = {}
    for receipt in sorted(receipts, key=lambda one: one.at_s):
        if receipt.bundle == given.bundle and receipt.outcome != "brought":
            last[receipt.device] = receipt.outcome
    counted = Counter(last.values())
    return Progress(counted["confirmed"], counted["rolled-back"], counted["refused"])


# ---- sticks ---------------------------------------------------------------------------------------------------------


def prepare_stick(
    workshop: Workshop, stick: Path, fleets: Iterable[str] | None, signer: Signer, online: list[Signer],
    days: float = STICK_DAYS,
) -> int:  # fmt: skip
    """Copy the repository on a stick, its snapshot and timestamp signed for longer; bytes of targets on it.

    The web gets the next version of both: a box that has seen the stick would else take the web's for older.
    """
    folder = stick / courier.FOLDER
    metadata, targets = folder / "metadata", folder / "targets"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "timestamp.json").unlink(missing_ok=True)  # what is half written is no repository
    for path in (workshop.repository / "metadata").glob("*.json"):
        if path.name != "timestamp.json" and not path.name.endswith(".snapshot.json"):
            shutil.copyfile(path, metadata / path.name)
    copied, places = 0, set[Path]()
    for file in _files(workshop, fleets):
        place = targets / file.relative_to(workshop.repository / "targets")
        places.add(place)
        if not place.is_file() or place.stat().st_size != file.stat().st_size:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
            durable.sync_file(place)
        copied += place.stat().st_size
    for path in targets.rglob("*"):
        if path.is_file() and path not in places:  # of an earlier time: a stick is small
            path.unlink()
    versions = workshop.following()
    workshop.renew(online, skip=1)
    long = {Snapshot.type: days, Timestamp.type: days}
    workshop.move(metadata, [signer], versions, long, courier=True)
    return copied


def _files(workshop: Workshop, fleets: Iterable[str] | None) -> list[Path]:
    """Of the published targets, and the parts that they name: each once."""
    found: dict[Path, None] = {}
    for target in _goods(workshop, fleets):
        found |= dict.fromkeys((workshop.place(target), *systems.parts(workshop, target)))
    return list(found)


def _goods(workshop: Workshop, fleets: Iterable[str] | None) -> list[TargetFile]:
    """The published targets, all or of some fleets; of the system always."""
    published = workshop.published(Targets.type)
    if published is None or workshop.published(Root.type) is None:
        raise PublishError("nothing is published yet", "Sign what waits first.")
    names = list(published.signed.delegations.roles)
    wanted = names if fleets is None else [OS_RELEASE, *map(models_role, fleets)]
    found: list[TargetFile] = []
    for name in wanted:
        role = workshop.published(name)
        if role is None:
            raise PublishError(f"there is no role {name}", f"There are: {', '.join(names)}.")
        found.extend(role.signed.targets.values())
    return found
