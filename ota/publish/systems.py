"""Releases of the operating system in a repository: a small signed file for each, and the parts that it names.

No metadata names the parts, the signed file alone does: whoever copies a repository, or clears it, asks `parts`.
"""

import hashlib
from pathlib import Path

from tuf.api.metadata import TargetFile

from ota import manifest
from ota.errors import PublishError
from ota.manifest import Image
from ota.publish.workshop import Workshop
from ota.system import release as releases
from ota.system.release import Packed, Release, ReleaseError
from ota.trust import OS_RELEASE, role_of


def add(workshop: Workshop, file: Path) -> Release:
    """Stage what `python -m ota.system make` wrote: `file`, with its parts in `parts` beside it. It is the newest, too,
    where none is newer. PublishError where a part is missing or damaged, or the version is there with other content."""
    release = _read(file)
    role = workshop.targets(OS_RELEASE)
    content = Image(release.name, release.version)
    path, newest = manifest.path_of(content, ""), releases.newest(release.name)
    for way in _ways(release):
        _check(file.parent / "parts" / way.sha256, way)
    target = TargetFile.from_file(path, str(file), ["sha256"])
    if path in role.targets and role.targets[path].hashes != target.hashes:
        raise PublishError(f"there is another {release.name} {release.version}", "Raise the version.")
    for way in _ways(release):
        workshop.put_part(file.parent / "parts" / way.sha256, way.place)
    role.targets[path] = workshop.put(file, path, manifest.custom(content))
    if _is_newest(workshop, release, role.targets.get(newest)):
        role.targets[newest] = workshop.put(file, newest, {})
    workshop.stage(OS_RELEASE, role)
    return release


def parts(workshop: Workshop, target: TargetFile) -> list[Path]:
    """The files in the repository that this target names; none where it is no release."""
    file = workshop.place(target)
    if role_of(target.path) != OS_RELEASE or not file.is_file() or target.length > releases.MAX_BYTES:
        return []
    try:
        release = releases.decode(file.read_bytes())
    except ReleaseError:
        return []
    return [workshop.part(way.place) for way in _ways(release)]


def _read(file: Path) -> Release:
    try:
        if file.stat().st_size > releases.MAX_BYTES:
            raise PublishError(f"{file} is too large for a release", "Name the .image of a release.")
        return releases.decode(file.read_bytes())
    except OSError as error:
        raise PublishError(f"{file} cannot be read: {error.strerror}", "Name the .image of a release.") from error


def _ways(release: Release) -> list[Packed]:
    return [*release.root.ways, *release.kernel.ways]


def _check(file: Path, way: Packed) -> None:
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise PublishError(f"{file} cannot be read: {error.strerror}", "Make the release anew.") from error
    if found != way.sha256 or file.stat().st_size != way.length:
        raise PublishError(f"{file} is not what the release names", "Make the release anew.")


def _is_newest(workshop: Workshop, release: Release, newest: TargetFile | None) -> bool:
    if newest is None:
        return True
    standing = releases.decode(workshop.place(newest).read_bytes())
    return releases.order(release.version) >= releases.order(standing.version)
