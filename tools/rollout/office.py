"""Those who sign, all in one room: new models, deltas from what is in use, campaigns, and what the receipts say."""

import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from ota import campaign, courier
from ota.campaign import Campaign, Stop, Wave
from ota.delta.making import make
from ota.manifest import Bundle, Needs
from ota.publish import founding, goods
from ota.publish.founding import People
from ota.publish.workshop import Settings, Workshop

FLEET, MODEL = "plant-a", "pump"
_CHANGED = 0.15  # of the weights, by a nightly tuning: each by one step of its eight bits


class Office:
    """`receipts`: the folder in which they come back, whichever way they take."""

    def __init__(self, folder: Path, receipts: Path, now: Callable[[], float]) -> None:
        self._now, self._receipts = now, receipts
        self.workshop = Workshop(folder, now)
        self.workshop.configure(Settings())
        self._online, courier_key = _key(), _key()
        self._people = [_key() for _ in range(13)]
        root, targets, release, makers = (
            tuple(key.public_key for key in self._people[begin:end])
            for begin, end in ((0, 5), (5, 8), (8, 11), (11, 13))
        )
        online, stick = self._online.public_key, courier_key.public_key
        founding.found(self.workshop, People(root, targets, release, online, stick, {FLEET: makers}))
        self._publish()
        self.root = (self.workshop.repository / "metadata" / "1.root.json").read_bytes()
        self.campaign: Campaign | None = None

    def add(self, folder: Path) -> Bundle:
        added = goods.add_bundle(self.workshop, FLEET, folder, Needs())
        used = goods.in_use(courier.receipts(self._receipts), MODEL) if self.campaign else None
        goods.add_deltas(self.workshop, FLEET, MODEL, 3, make, used)
        self._publish()
        return added

    def announce(self, bundle: Bundle, waves: tuple[Wave, ...], stop: Stop) -> None:
        """A campaign of a bundle that was added."""
        name = f"{bundle.name}-{bundle.version}"
        self._set(
            Campaign(name, f"salt-{bundle.version}", bundle.name, bundle.version, bundle.bundle, waves, stop=stop)
        )

    def sum_up(self) -> str:
        """At the desk: what came back goes into the campaign, and everything is signed anew. Which criterion to stop is
        met, in words."""
        if self.campaign is None:
            self.workshop.renew([self._online])
            return ""
        self._set(self.campaign)
        return campaign.broken_criterion(self.campaign.stop, self.campaign.progress)

    def whole_bytes(self, bundle: Bundle) -> int:
        """Of its file, as it would travel without deltas."""
        [(_, target)] = [one for one in goods.bundles(self.workshop, FLEET, MODEL) if one[0] == bundle]
        return int(target.length)

    def _set(self, given: Campaign) -> None:
        came_back = courier.receipts(self._receipts)
        summed = goods.set_campaign(self.workshop, FLEET, campaign.written(given), came_back)
        self.campaign = summed
        self._publish()

    def _publish(self) -> None:
        for role in self.workshop.waiting():
            for signer in self._people:
                self.workshop.sign(role, signer)
        self.workshop.release([self._online])


def waves(opens_s: float, canary: int, confirmed: int, half: int) -> tuple[Wave, ...]:
    """A canary of `canary` basis points; after a day, and `confirmed` devices, half of the fleet; then, after another
    day and `half` devices, the rest, spread over six hours."""
    opens = datetime.fromtimestamp(opens_s, UTC)
    return (
        Wave("canary", opens, canary),
        Wave("half", opens + timedelta(days=1), 5000, after_confirmed=confirmed),
        Wave("rest", opens + timedelta(days=2), after_confirmed=half, spread_s=6 * 3600),
    )


def model(folder: Path, version: str, weights: bytes) -> Path:
    made = folder / f"{MODEL}-{version}"
    made.mkdir(parents=True)
    (made / "card.toml").write_text(f'name = "{MODEL}"\nversion = "{version}"\n')
    (made / "weights.bin").write_bytes(weights)
    return made


def weights(size: int, seed: int) -> bytes:
    """Eight bits each, bell-shaped as weights are."""
    drawn = random.Random(seed)
    return bytes(min(max(round(drawn.gauss(128, 24)), 0), 255) for _ in range(size))


def tuned(before: bytes, seed: int) -> bytes:
    drawn = random.Random(seed)
    return bytes(_step(value, drawn) if drawn.random() < _CHANGED else value for value in before)


def _step(value: int, drawn: random.Random) -> int:
    return min(max(value + drawn.choice((-1, 1)), 0), 255)


def _key() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


def outcomes(receipts: Iterable[courier.Receipt], bundle: str) -> dict[str, set[str]]:
    """Devices by what became of a bundle on them."""
    found: dict[str, set[str]] = {}
    for receipt in receipts:
        if receipt.bundle == bundle:
            found.setdefault(receipt.outcome, set()).add(receipt.device)
    return found
