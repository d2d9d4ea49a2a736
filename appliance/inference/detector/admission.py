"""Who may be known: bounded numbers of assets and channels.

An asset that has learned something is never pushed out. One that is still collecting is, when there is no room for a
newcomer and it has been silent while the box took in several messages for each asset it knows. So a flood of invented
names fills the free places once and is refused from then on; a real newcomer among it sends again and gets in.
"""

from collections import OrderedDict

from appliance.errors import EventError
from appliance.events import codec
from appliance.events.schema import Stage
from appliance.inference.detector.asset import Asset
from appliance.inference.detector.memory import Memory
from appliance.inference.detector.settings import MAX_WIDTH, DetectorSettings

SILENCE = 4  # messages for each known asset


class Admission:
    def __init__(self, settings: DetectorSettings, memory: Memory) -> None:
        self._max_assets, self._max_channels = settings.max_assets, settings.max_channels
        self._memory = memory
        self._collecting: OrderedDict[str, Asset] = OrderedDict()  # the one that was silent for longest first
        self.assets: dict[str, Asset] = {}
        self.channels = 0
        self.tick = 0  # messages, roughly

    def admit(self, name: str, channels: list[str], ring: int) -> Asset:
        """A new asset with a place in memory. EventError: too-many-assets, too-many-channels, point-name."""
        self.tick += 1
        codec.check_points(channels)
        _check_width(name, len(channels))
        if len(self.assets) >= self._max_assets and not self._evict():
            raise EventError("too-many-assets", f"{name}: {self._max_assets} assets are known (detect.max_assets)")
        self._make_room(name, len(channels))
        asset = Asset(name, self._memory.index(), channels)
        self._memory.place(asset, ring)
        self.adopt(asset)
        return asset

    def has_room(self, channels: int) -> bool:
        return len(self.assets) < self._max_assets and self.channels + channels <= self._max_channels

    def adopt(self, asset: Asset) -> None:
        """Into the table."""
        self.assets[asset.name] = asset
        self.channels += asset.width
        asset.seen_tick = self.tick
        if asset.stage is Stage.COLLECTING:
            self._collecting[asset.name] = asset

    def widen(self, asset: Asset, names: list[str]) -> None:
        """More channels for a known asset. EventError: too-many-channels, point-name."""
        self.tick += 1
        codec.check_points(names)
        _check_width(asset.name, asset.width + len(names))
        self.touch(asset)  # or it might make room for itself
        self._make_room(asset.name, len(names))
        self.channels += len(names)

    def touch(self, asset: Asset) -> None:
        """A collecting asset was heard."""
        self.tick += 1
        asset.seen_tick = self.tick
        if asset.name in self._collecting:
            self._collecting.move_to_end(asset.name)

    def establish(self, asset: Asset) -> None:
        """The asset has learned something: it stays."""
        self._collecting.pop(asset.name, None)

    def forget(self, asset: Asset) -> None:
        """Its place is free."""
        self._collecting.pop(asset.name, None)
        del self.assets[asset.name]
        self.channels -= asset.width
        self._memory.release(asset)

    def _make_room(self, name: str, channels: int) -> None:
        while self.channels + channels > self._max_channels:
            if not self._evict():
                raise EventError(
                    "too-many-channels", f"{name}: {self._max_channels} channels are known (detect.max_channels)"
                )

    def _evict(self) -> bool:
        """Forget the collecting asset that was silent for longest, if that is long enough."""
        oldest = next(iter(self._collecting.values()), None)
        if oldest is None or self.tick - oldest.seen_tick <= SILENCE * len(self.assets):
            return False
        self.forget(oldest)
        return True


def _check_width(name: str, width: int) -> None:
    if not width:
        raise EventError("empty", f"{name}: a reading without values")
    if width > MAX_WIDTH:
        raise EventError("too-many-channels", f"{name}: {width} channels ({MAX_WIDTH} an asset are allowed)")
