"""Installs a model; `abrupt` ends it at one of its steps.

It comes from the folder ROOT/new, or, where there is ROOT/origin, from the repository whose path that file has.
Library, journal and what fetches are the real ones; the trials are ruled by RULING: `good`, `bad` in shadow, `worse`
later.
"""

from pathlib import Path

from appliance.inference.library import Library
from appliance.services.trials import Shelf
from appliance.updating import Bases
from ota import bundle
from ota.install import Order
from ota.installer import JOURNAL, Installer, Journal, Parts, Ruling
from ota.local import Local
from ota.manifest import Host
from ota.origins import REPOSITORY, Origins
from ota.patching import in_a_process_of_its_own
from ota.sources import Repository
from ota.supply import Means, Places, Supply
from ota.times import StoredTimes
from ota.trust import Trust

MINUTE = 60_000_000_000
MOST = 200
FLEET, NOON = "plant-a", 1_795_000_000.0  # as in tests/updates.py, which whoever is killed has no time to import


class Trials:
    def __init__(self, ruling: str) -> None:
        self._ruling = ruling

    def compile(self, order: Order) -> None:
        pass

    def shadow(self, order: Order, since: int, now: int) -> Ruling | None:
        return Ruling(self._ruling != "bad", "worse in shadow", {}) if now > since else None

    def watch(self, order: Order, since: int, now: int) -> Ruling | None:
        return Ruling(self._ruling != "worse", "worse later", {}) if now > since else None

    def end(self, order: Order) -> None:
        pass


def installer(root: Path, ruling: str) -> Installer:
    trials, library = Trials(ruling), Library(root / "models")
    shelf, found = Shelf(library, lambda bundle: None), origins(root, library)
    return Installer(Journal(root / "update" / JOURNAL), Parts(found, found, shelf, trials, trials))


def origins(root: Path, library: Library) -> Origins:
    local, update = Local(root / "update" / "arriving"), root / "update"
    repository = Path((root / "origin").read_text()) if (root / "origin").exists() else root / "none"

    def supply(places: Places) -> Supply:
        times = StoredTimes(update / "floor.json", 0.0, lambda: NOON, lambda: 0.0)
        trust = Trust(update / "trust", (repository / "metadata" / "1.root.json").read_bytes(), times)
        means = Means(1 << 30, Host("1.0", 1 << 30), in_a_process_of_its_own)
        return Supply(trust, places, FLEET, Bases(library), update / "supply", means)

    return Origins([str(repository)], local, supply, lambda url, _: Repository.at(url), lambda: None)


def play(root: Path | str, ruling: str) -> Installer:
    """To the end of what was asked for, which is asked for where it is not known yet."""
    root = Path(root)
    working = installer(root, ruling)
    digest = bundle.digest(root / "new")
    if not any(one.order.bundle == digest for one in (*working.book.waiting, *working.book.history)):
        source = REPOSITORY if (root / "origin").exists() else str(root / "new")
        working.ask(Order("one", "toy", "2.0.0", digest, source), 0)
    for minute in range(1, MOST):
        if not working.book.waiting:
            return working
        working.step(minute * 100 * MINUTE)
    raise AssertionError(f"it did not end: {working.book}")
