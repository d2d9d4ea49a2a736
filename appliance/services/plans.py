"""What an update would mean: the way to a bundle, what it takes of the box, what it is compared with, the way back."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import msgspec

from appliance.config.updating import Update as Settings
from appliance.errors import MillwrightError, ModelError
from appliance.inference import models
from appliance.inference.library import Library
from appliance.inference.models import Card
from appliance.services.offers import Offers, in_words
from appliance.services.trials import Trials
from ota.install import Book
from ota.local import Local


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """A path, or a model of a repository."""

    source: Annotated[str, msgspec.Meta(max_length=4096, pattern="^(/.*)?$")] = ""
    model: Annotated[str, msgspec.Meta(max_length=200)] = ""
    place: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    again: bool = False


class Plans:
    """Reads, and asks the network: for a thread. MillwrightError where there is no such bundle, or no way to it."""

    def __init__(self, local: Local, offers: Offers, trials: Trials, library: Library, settings: Settings) -> None:
        self._local, self._offers, self._trials = local, offers, trials
        self._library, self._settings = library, settings

    def way(self, asked: Wanted) -> dict[str, Any]:
        """Name, version and hash of what is wanted, and the way to it."""
        if bool(asked.source) == bool(asked.model):
            raise MillwrightError("name a bundle on this box, or a model of a repository", "One of both.")
        if asked.source:
            bundle, card = self._look_at(Path(asked.source))
            size = sum(file.bytes for file in card.files.values())
            way = {"route": "local", "place": asked.source, "bytes": size}
            return {"name": card.name, "version": card.version, "bundle": bundle, **way}
        if not self._offers.known:
            raise no_repository()
        seen, found = self._offers.find(asked.model, asked.place)
        way = self._offers.plan(seen, found, asked.place)
        return {"name": found.name, "version": found.version, "bundle": found.bundle, **way}

    def plan(self, asked: Wanted, book: Book) -> dict[str, Any]:
        way, settings = self.way(asked), self._settings
        name, bundle = way["name"], way["bundle"]
        current = self._library.current(name)
        runs = models.read_card(current) if current is not None else None
        running = self._trials.running() if self._trials.compares(name) else {}
        return {
            **way,
            "free_bytes": shutil.disk_usage(self._library.root.parent).free,
            "memory_mb": settings.memory_mb,
            "running_memory_mb": running.get("memory_mb"),
            "running_opening_s": running.get("opening_s"),
            "compared": self._trials.compares(name),
            "shadow_minutes": settings.shadow_minutes,
            "watch_minutes": settings.watch_minutes,
            "looks": settings.looks,
            "way_back": f"{runs.name}@{runs.version}" if runs is not None else "",
            "in_use": current is not None and current.name == bundle,
            "refused": book.refused.get(bundle, ""),
            "waits_for": [one.title for one in book.waiting],
        }

    def _look_at(self, path: Path) -> tuple[str, Card]:
        """A bundle's hash and its card."""
        with in_words():
            bundle, unpacked = self._local.identify(path)
        try:
            return bundle, models.read_card(unpacked / "bundle" if unpacked is not None else path)
        finally:
            if unpacked is not None:
                shutil.rmtree(unpacked, ignore_errors=True)


def no_repository() -> ModelError:
    return ModelError("this box belongs to no fleet", "Name it, and its repository: fleet and sources in [update].")
