"""A device of the fleet: the client that a box has, from the trust to the journal of installations. Simulated are the
clock, and how a model does: what the box's own trials would say of it."""

import os
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ota import campaign, courier, wanted
from ota.campaign import Campaign, Choice, Device
from ota.courier import Receipt
from ota.delta import applying
from ota.errors import OtaError
from ota.install import ENDS, Installation, Order, Step
from ota.installer import Installer, Journal, Parts, Ruling
from ota.manifest import Bundle, Host
from ota.manifest import Campaign as Announced
from ota.sources import Repository
from ota.store import Store
from ota.supply import Means, Supply
from ota.times import StoredTimes
from ota.trust import Offer, Trust
from ota.wanted import Habits

BUDGET = 1 << 30  # bytes
NS = 1_000_000_000
SHADOW_S, WATCH_S = 3600.0, 4 * 3600.0
OUTCOMES: dict[Step, Literal["confirmed", "rolled-back", "refused"]] = {
    Step.CONFIRMED: "confirmed",
    Step.ROLLED_BACK: "rolled-back",
    Step.REFUSED: "refused",
}

Fate = Callable[[str, str], str]  # device, bundle -> what is wrong with it there, once it runs; empty: nothing


class SimulatedDevice:
    """`factory`: the model that it was delivered with. `outbox`: where its receipts are taken from."""

    def __init__(
        self, folder: Path, name: str, root: bytes, repository: Repository, fleet: str, factory: Path, outbox: Path,
        fate: Fate, began_s: float,
    ) -> None:  # fmt: skip
        self.name, self.now, self.troubles = name, began_s, 0
        self._outbox, self._sent = outbox, 0
        self._store = Store(folder / "models")
        _deliver(self._store, factory)
        times = StoredTimes(folder / "floor", began_s, lambda: self.now, lambda: self.now)
        means = Means(BUDGET, Host("1.0", 1 << 30), _apply)
        trust = Trust(folder / "trust", root, times)
        self._supply = Supply(trust, repository, fleet, self._store, folder / "updates", means)
        shelf, trial = _Shelf(self._store), _Trial(name, fate)
        parts = Parts(self._supply, self._supply, shelf, trial, trial)
        self._installer = Installer(Journal(folder / "installations.json"), parts)
        self._habits = Habits(Device(name, {}))
        self._read: dict[str, Campaign] = {}  # by the hash of the file: it is fetched when it changes

    @property
    def bundle(self) -> str:
        """That it uses."""
        return self._store.target(_model_of(self._store)) or ""

    def poll(self, now_s: float) -> None:
        """What a box does every few hours: look, decide, and go on with what is under way."""
        self.now = now_s
        try:
            offers, _ = self._supply.offers()
            self._follow(offers)
        except OtaError:
            self.troubles += 1
        self._go_on()
        self._report()

    def _follow(self, offers: list[Offer]) -> None:
        campaigns = [self._campaign(offer) for offer in offers if isinstance(offer.content, Announced)]
        now = datetime.fromtimestamp(self.now, UTC)
        for one in self._installer.book.waiting:
            about = [given for given in campaigns if given.bundle == one.order.bundle]
            if about and campaign.decide(about[0], self._habits.device, now).choice is Choice.LEAVE:
                self._installer.withdraw(one.order, "the campaign is over", self._ns)
        bundles = [offer.content for offer in offers if isinstance(offer.content, Bundle)]
        book = self._installer.book
        for wish in wanted.wishes(bundles, self._running(), campaigns, self._habits, now):
            known = wish.bundle.bundle in book.refused or any(
                one.order.bundle == wish.bundle.bundle for one in book.waiting
            )
            if wish.decision.choice is Choice.TAKE and not known:
                self._ask(wish.bundle, wish.campaign)

    def _ask(self, bundle: Bundle, of: str) -> None:
        number = f"o-{len(self._installer.book.history)}"
        self._installer.ask(Order(number, bundle.name, bundle.version, bundle.bundle, campaign=of), self._ns)

    def _campaign(self, offer: Offer) -> Campaign:
        digest = offer.target.wanted.digest
        if digest not in self._read:
            self._read = {digest: campaign.read(self._supply.read(offer, campaign.LIMIT))}
        return self._read[digest]

    def _go_on(self) -> None:
        before = None
        while self._installer.book.active is not None and self._installer.book != before:
            before = self._installer.book
            self._installer.step(self._ns)

    def _report(self) -> None:
        history = self._installer.book.history
        for one in history[self._sent :]:
            if one.step in ENDS:
                courier.leave(self._outbox, self._receipt(one))
        self._sent = len(history)

    def _receipt(self, one: Installation) -> Receipt:
        order, outcome = one.order, OUTCOMES[one.step]
        return Receipt(
            self.name, self.now, order.name, order.version, order.bundle, outcome, one.reason, order.campaign
        )

    def _running(self) -> dict[str, str]:
        name = _model_of(self._store)
        folder = self._store.folder(self.bundle)
        return {name: str(_card(folder)["version"])} if folder is not None else {}

    @property
    def _ns(self) -> int:
        return int(self.now * NS)


class _Shelf:
    """Store of `ota.installer`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, order: Order, folder: Path) -> None:
        self._store.add(folder, order.bundle)

    def current(self, name: str) -> str:
        return self._store.target(name) or ""

    def use(self, order: Order, bundle: str) -> None:
        self._store.use(order.name, bundle)


class _Trial:
    """Compile and Trial of `ota.installer`: what is wrong with a model shows when it runs."""

    def __init__(self, device: str, fate: Fate) -> None:
        self._device, self._fate = device, fate

    def compile(self, order: Order) -> None:
        pass

    def shadow(self, order: Order, since: int, now: int) -> Ruling | None:
        return Ruling(True, "", {}) if now - since >= SHADOW_S * NS else None

    def watch(self, order: Order, since: int, now: int) -> Ruling | None:
        if now - since < WATCH_S * NS:
            return None
        wrong = self._fate(self._device, order.bundle)
        return Ruling(not wrong, wrong, {})

    def end(self, order: Order) -> None:
        pass


def _deliver(store: Store, factory: Path) -> None:
    """What is in every device's image takes room on the disk once."""
    name = str(_card(factory)["name"])
    place = store.root / factory.name
    place.mkdir(parents=True)
    for file in factory.iterdir():
        os.link(file, place / file.name)
    store.use(name, factory.name)


def _model_of(store: Store) -> str:
    return next(path.name for path in (store.root / "names").iterdir())


def _card(folder: Path) -> dict[str, object]:
    return tomllib.loads((folder / "card.toml").read_text())


def _apply(old: Path, patch: Path, new: Path) -> None:
    applying.apply(old, patch, new)  # in this process: a thousand of their own would be measured, not updates
