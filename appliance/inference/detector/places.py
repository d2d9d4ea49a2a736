"""Where each asset and each of its channels stands in arrays of all of them, and the rows that it had last.

Channels of an asset lie side by side. Places follow the detector's assets by name.
"""

from typing import NamedTuple

import numpy as np

from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.asset import Asset
from appliance.inference.detector.memory import HEADER, Memory


class Source(NamedTuple):
    """Where what stands at each place stood before; -1: nowhere."""

    assets: Integers
    channels: Integers


class Places:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.assets: list[Asset] = []
        self.names: list[str] = []
        self.channels: list[list[str]] = []
        self.width: Integers = np.zeros(0, np.int64)
        self.first: Integers = np.zeros(0, np.int64)  # place of an asset's first channel

    def follow(self, assets: list[Asset], rows: Integers) -> Source | None:
        """None where these are the ones that stand here. An asset with fewer rows than `rows` [assets] says it had was
        pushed out and is met again."""
        if (
            len(assets) == len(self.names)
            and assets == self.assets
            and all(asset.channels is channels for asset, channels in zip(assets, self.channels, strict=True))
        ):
            return None
        places = {name: place for place, name in enumerate(self.names)}
        source = np.array([places.get(asset.name, -1) for asset in assets], np.int64)
        again = [place for place, old in enumerate(source) if old >= 0 and assets[place].rows < rows[old]]
        source[again] = -1
        width = np.array([asset.width for asset in assets], np.int64)
        channels = self._channels(source, width)
        self.assets, self.names = assets, [asset.name for asset in assets]
        self.channels = [asset.channels for asset in assets]
        self.width, self.first = width, np.cumsum(width) - width
        return Source(source, channels)

    def forget(self, name: str) -> None:
        """Nothing of it is carried over."""
        if name in self.names:
            self.names[self.names.index(name)] = ""
            self.assets = []

    def restore(self, assets: list[tuple[str, list[str]]]) -> None:
        """As they stood when their arrays were written down."""
        self.names = [name for name, _ in assets]
        self.channels = [channels for _, channels in assets]
        self.width = np.array([len(channels) for channels in self.channels], np.int64)
        self.first = np.cumsum(self.width) - self.width
        self.assets = []

    def owner(self, channel: int) -> int:
        """The asset of a channel's place."""
        return int(np.searchsorted(self.first, channel, side="right")) - 1

    def newest(self, index: Integers, rows: Integers, count: int) -> Floats:
        """[count, channels] of the assets `index`, the oldest first."""
        memory = self._memory
        width = memory.width[index]
        row = (np.arange(-count, 0)[:, None] + rows) & memory.mask[index]
        row = (row + HEADER) * (width + 1) + memory.base[index]
        if len(width) and not np.ptp(width):
            return memory.arena.rows(row, int(width[0]))
        place = np.repeat(row, width, axis=1)
        place += np.arange(place.shape[1]) - np.repeat(np.cumsum(width) - width, width)
        return memory.arena.words.take(place)

    def times(self, index: Integers, rows: Integers, back: int) -> Floats:
        """Of the row before the newest `back - 1` ones, s."""
        memory = self._memory
        row = ((rows - back) & memory.mask[index]) + HEADER
        width = memory.width[index]
        return memory.arena.integers.take(memory.base[index] + row * (width + 1) + width) / 1e9

    def _channels(self, source: Integers, width: Integers) -> Integers:
        """Of each channel the place it had; columns are only ever added at an asset's end."""
        if not len(source):
            return np.zeros(0, np.int64)
        known = source >= 0
        before = np.where(known, self.width[source], 0) if len(self.width) else np.zeros(len(source), np.int64)
        first = np.where(known, self.first[source], 0) if len(self.first) else before
        column = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
        slots: Integers = np.where(column < np.repeat(before, width), np.repeat(first, width) + column, -1)
        return slots


def spans(first: Integers, width: Integers) -> Integers:
    """[first[0], first[0] + 1, ... width[0] of them, first[1], ...]"""
    places: Integers = np.arange(width.sum()) + np.repeat(first - (np.cumsum(width) - width), width)
    return places
