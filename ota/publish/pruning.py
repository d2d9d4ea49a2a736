"""What no version names any more goes from the web server: old bundles, deltas, campaigns, and old metadata.

A box reads metadata at one moment and the files that it names at another. So a version counts until it has been
replaced for a while (`grace_s`), and so do its files. Roots stay for ever: a box that was away for years walks over all
of them.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Root, Targets, Timestamp

from ota import durable, manifest
from ota.manifest import Bundle
from ota.publish import systems
from ota.publish.workshop import Workshop

GRACE_DAYS = 7.0


@dataclass(frozen=True)
class Pruned:
    """Paths below the workshop."""

    files: list[Path]
    bytes: int


def prune(workshop: Workshop, grace_s: float, now_s: float | None = None, rehearse: bool = False) -> Pruned:
    """Remove it; or only say what would go. Metadata is as old as its file: copy a workshop with its times."""
    since = (time.time() if now_s is None else now_s) - grace_s
    metadata = [path for versions in _replaced(workshop, since).values() for path in versions]
    kept, plain = set[Path](), set[Path]()
    for signed in _counting(workshop, set(metadata)):
        for target in signed.targets.values():
            kept.update((workshop.place(target), *systems.parts(workshop, target)))
            content = manifest.read(target.custom)
            if isinstance(content, Bundle):
                plain.add(workshop.plain(content.bundle))
    going = [*metadata, *_files(workshop.repository / "targets", kept), *_files(workshop.folder / "plain", plain)]
    size = sum(path.stat().st_size for path in going)
    for path in () if rehearse else going:
        path.unlink()
    for folder in () if rehearse else {path.parent for path in going}:
        durable.sync_folder(folder)
    return Pruned([path.relative_to(workshop.folder) for path in going], size)


def _replaced(workshop: Workshop, since: float) -> dict[str, list[Path]]:
    """Metadata by role whose successor has been there since then."""
    found: dict[str, list[Path]] = {}
    for role in workshop.roles():
        for path, successor in pairwise(workshop.versions(role)):
            if role not in (Root.type, Timestamp.type) and successor.stat().st_mtime <= since:
                found.setdefault(role, []).append(path)
    return found


def _counting(workshop: Workshop, going: Iterable[Path]) -> Iterator[Targets]:
    """Every targets role whose word counts or is about to."""
    for role in workshop.roles():
        read: list[Metadata[Any] | None] = [workshop.staged(role)]
        read += [Metadata.from_file(str(path)) for path in workshop.versions(role) if path not in going]
        for one in read:
            if one is not None and isinstance(one.signed, Targets):
                yield one.signed


def _files(folder: Path, kept: set[Path]) -> list[Path]:
    """Those that nobody names; drafts that were cut off are among them."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in kept)
