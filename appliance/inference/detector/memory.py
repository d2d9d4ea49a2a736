"""The samples and statistics of all assets, where vectorised code finds them.

Every asset has a block of rows, all `width + 1` words long:

    HEADER rows   statistics, one word a channel (the Row enumeration)
    ring rows     samples of the last `ring` readings; the last word of a row is its time in ns, an int64

What there is once an asset lies in arrays that are indexed by `Asset.index`.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from appliance.inference.detector.arena import WORD, Arena, Floats, Integers
from appliance.inference.detector.asset import Asset, row_packer
from appliance.inference.detector.latch import NO_BRANCH
from appliance.inference.detector.spread import OCTAVES

STATISTICS = 4  # of a feature: looks.Lesson's centre, fast, slow, fading


class Row(IntEnum):
    """The header of a block."""

    CENTRE = 0  # mean of the learning period
    WEIGHT = 1  # of a deviation of the rolling mean from it
    SWITCH = 2  # weight of a channel that never moved while it learned; else 0
    ACTIVE = 3  # 1: has statistics and is there; 0: left out
    SCALE = 4  # 1 / standard deviation
    FRESH = 5  # 1: comes with the rows; 0: its last value was repeated lately
    LOW = 6  # where the rolling mean belongs: from here
    HIGH = 7  # to here
    SEEN_LOW = (
        8  # where it stayed during alarms: what may become another state; from infinity to -infinity: nowhere yet
    )
    SEEN_HIGH = 9
    SHAPE = 10  # first of the statistics of the autoencoder's residual
    SPREAD = SHAPE + STATISTICS  # first of that of the spread branch's octaves: all centres, all fast weights, ...


LOOKS = 1 + OCTAVES  # features of both branches that look
AWAY_LOW = Row.SPREAD + STATISTICS * OCTAVES  # the other state, once it is known: where the rolling mean belongs in it
AWAY_HIGH = AWAY_LOW + 1
AWAY_LOOKS = AWAY_HIGH + 1  # lows of its looks' features (shape, octaves), then highs
SEEN_LOOKS = AWAY_LOOKS + 2 * LOOKS  # the same of what may become one
HEADER = SEEN_LOOKS + 2 * LOOKS


class Branch(IntEnum):
    """In the arrays [branches, assets]. Of equal scores the first one's counts."""

    LEVEL = 0
    SPREAD = 1
    AUTOENCODER = 2


BRANCHES = len(Branch)

# What is reserved at first: room for all channels while they learn, within reason.
FEWEST_WORDS = 600  # a channel
MOST_WORDS = 1 << 24


class Memory:
    def __init__(self, max_assets: int, max_channels: int) -> None:
        self.arena = Arena(min(max_channels * FEWEST_WORDS, MOST_WORDS))
        self.base: Integers = np.zeros(max_assets, np.int64)
        self.width: Integers = np.ones(max_assets, np.int64)
        self.mask: Integers = np.zeros(max_assets, np.int64)
        # [branches, assets]: the pooled deviation that counts as 1, now and as it was learned; 0: the branch is silent
        self.unit: Floats = np.zeros((BRANCHES, max_assets))
        self.learned: Floats = np.zeros((BRANCHES, max_assets))
        # [branches, assets]: score and column of a branch that does not look at every row, held until it looks again
        self.held: Floats = np.zeros((BRANCHES, max_assets))
        self.held_cause: Integers = np.zeros((BRANCHES, max_assets), np.int64)
        self.peak: Floats = np.zeros(max_assets)  # of the level branch since the last look
        self.uneasy: NDArray[np.bool_] = np.zeros(max_assets, bool)  # an alarm stands or is about to
        self.relieved: Integers = np.full(max_assets, NO_BRANCH)  # Latch.relieved
        self.lasting: NDArray[np.bool_] = np.zeros(max_assets, bool)  # it stood for long
        self.reached: Floats = np.zeros(max_assets)  # its peak
        self.begin: Integers = np.zeros(max_assets, np.int64)  # row after which the windows start
        self.returns: Integers = np.zeros(max_assets, np.int64)  # alarms that ended by themselves
        self.follow: Floats = np.zeros(max_assets)  # share of a deviation that becomes the centre, each look
        self.two: NDArray[np.bool_] = np.zeros(max_assets, bool)  # another state is known
        self.apart: Floats = np.zeros(max_assets)  # score against the nearer state
        self.nearer: Integers = np.zeros(max_assets, np.int64)  # which that is: states.HOME or AWAY
        self.place_of: Integers = np.zeros(max_assets, np.int64)  # states.HOME, AWAY or BETWEEN, at the last look
        self.settled: Integers = np.zeros(max_assets, np.int64)  # row of the last look that was in a state
        self.moved: Integers = np.zeros(
            max_assets, np.int64
        )  # row of the last look that was not in that of the one before
        self.transit: Integers = np.zeros(max_assets, np.int64)  # rows that a way between states takes
        self.steady: NDArray[np.bool_] = np.zeros(max_assets, bool)  # the level is where it was at the last look
        self._indices = list(range(max_assets - 1, -1, -1))

    def index(self) -> int:
        """A place in the arrays, all of it new."""
        index = self._indices.pop()
        self.unit[:, index] = self.learned[:, index] = self.held[:, index] = 0.0
        self.held_cause[:, index] = 0
        self.peak[index] = self.follow[index] = 0.0
        self.returns[index] = self.begin[index] = 0
        self.two[index] = self.steady[index] = False
        for rows in (self.place_of, self.settled, self.moved, self.transit):
            rows[index] = 0
        self.apart[index] = 0.0
        self.uneasy[index], self.relieved[index] = False, NO_BRANCH
        self.unit[Branch.LEVEL, index] = self.learned[Branch.LEVEL, index] = 1.0
        return index

    def learn(self, asset: Asset, branch: Branch, unit: float) -> None:
        """What a lesson found to be this branch's unit."""
        self.unit[branch, asset.index] = self.learned[branch, asset.index] = unit
        self.held[branch, asset.index] = self.peak[asset.index] = 0.0

    def calm(self, asset: Asset) -> None:
        """New statistics: no alarm stands under them."""
        asset.latch.reset()
        self.uneasy[asset.index], self.relieved[asset.index] = False, NO_BRANCH

    def place(self, asset: Asset, ring: int) -> None:
        """A block for an asset that has none; the ring is a power of two."""
        stride = asset.width + 1
        base = self.arena.take((HEADER + ring) * stride)
        self.base[asset.index], self.width[asset.index], self.mask[asset.index] = base, asset.width, ring - 1
        asset.ring, asset.stride, asset.pack = ring, stride * WORD, row_packer(asset.width)
        asset.start = (base + HEADER * stride) * WORD
        asset.end = asset.start + ring * asset.stride
        asset.cursor = asset.start + (asset.rows & (ring - 1)) * asset.stride

    def release(self, asset: Asset) -> None:
        """The asset is gone."""
        self.drop(asset)
        self._indices.append(asset.index)

    def drop(self, asset: Asset) -> None:
        """Give the asset's block back."""
        stride = asset.stride // WORD
        self.arena.give(asset.start // WORD - HEADER * stride, (HEADER + asset.ring) * stride)

    def reshape(self, asset: Asset, ring: int) -> None:
        """Another ring, or more channels than the block has: what fits is carried over."""
        header = self.header(asset).copy()
        kept = min(asset.rows, asset.ring, ring)
        samples, times = self.samples(asset, kept), self.times(asset, kept)
        self.drop(asset)
        self.place(asset, ring)
        self.header(asset)[:, : header.shape[1]] = header
        self.fill(asset, samples, times)

    def fill(self, asset: Asset, samples: Floats, times: Integers) -> None:
        """Put the newest rows into the ring: `samples` [n, at most width], `times` [n]."""
        place = np.arange(asset.rows - len(samples), asset.rows) & (asset.ring - 1)
        self._ring(asset)[place, : samples.shape[1]] = samples
        self._ring(asset).view(np.int64)[place, asset.width] = times

    def header(self, asset: Asset) -> Floats:
        """[HEADER, width]: a view."""
        stride = asset.stride // WORD
        base = asset.start // WORD - HEADER * stride
        return self.arena.words[base : base + HEADER * stride].reshape(HEADER, stride)[:, : stride - 1]

    def samples(self, asset: Asset, rows: int) -> Floats:
        """[rows, width]: a copy of the newest rows, the oldest first."""
        return self._ring(asset)[self._newest(asset, rows), :-1]

    def times(self, asset: Asset, rows: int) -> Integers:
        """[rows], ns."""
        ring = self._ring(asset)
        times: Integers = ring.view(np.int64)[self._newest(asset, rows), ring.shape[1] - 1]
        return times

    def _newest(self, asset: Asset, rows: int) -> Integers:
        return np.arange(asset.rows - rows, asset.rows) & (asset.ring - 1)

    def _ring(self, asset: Asset) -> Floats:
        """[ring, stride]: a view of the block as it was placed."""
        return self.arena.words[asset.start // WORD : asset.end // WORD].reshape(asset.ring, asset.stride // WORD)
