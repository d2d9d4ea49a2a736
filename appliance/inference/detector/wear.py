"""Slow wear: which channels move towards their limits, and when they will be there."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from appliance.inference.detector.arena import Integers
from appliance.inference.detector.findings import WEAR, Finding, Standing
from appliance.inference.detector.latch import THRESHOLD
from appliance.inference.detector.memory import Branch, Memory, Row
from appliance.inference.detector.places import Places, spans
from appliance.inference.detector.quality import Range
from appliance.inference.detector.trend import BLOCK, Batch, Goal, Trend, Trends, medians, wear_text

RENEW = 1.5  # an estimate that changes by so much is told anew
NAMED = 8  # in `describe`
_PHASE = 29  # so that the blocks of assets that began together do not end together


class Wear:
    """Judges assets that have `learn_rows` rows. `limits` are declared ones; what is found is told to `standing`."""

    def __init__(self, places: Places, standing: Standing, memory: Memory, limits: Range, learn_rows: int) -> None:
        self._places, self._standing, self._memory = places, standing, memory
        self._limits, self._learn_rows = limits, learn_rows
        self.trends = Trends()
        self.estimates: dict[str, float] = {}  # asset -> moment (s) at which wear was last said to reach its limit
        self._trending: dict[str, tuple[str, Trend]] = {}

    def find(self, rows: Integers, gained: Integers) -> Iterable[Finding]:
        """Told again where the estimate has changed."""
        phase = np.arange(len(rows)) * _PHASE % BLOCK
        whole = (rows + phase) // BLOCK > (rows - gained + phase) // BLOCK
        chosen = np.flatnonzero(whole & (rows >= max(BLOCK, self._learn_rows)))
        if not chosen.size:
            return
        assets = [self._places.assets[place] for place in chosen.tolist()]
        index = np.array([asset.index for asset in assets], np.int64)
        width = self._places.width[chosen]
        channels = spans(self._places.first[chosen], width)
        owner = np.repeat(np.arange(len(chosen)), width)
        middle = medians(self._places.newest(index, rows[chosen], BLOCK))
        goal = self._goal(index, width, channels)
        standing = np.array([asset.latch.standing for asset in assets])
        self.trends.add(
            Batch(chosen, self._places.times(index, rows[chosen], BLOCK // 2), channels, owner, middle, goal), standing
        )
        trending = np.logical_or.reduceat(self.trends.standing()[channels], np.cumsum(width) - width)
        known = self._trending.keys() | set(self._standing.of(WEAR))
        for number, (place, asset) in enumerate(zip(chosen.tolist(), assets, strict=True)):
            if trending[number] or asset.name in known:
                mine = owner == number
                yield from self._tell_wear(place, channels[mine], Goal(*(side[mine] for side in goal)))

    def _tell_wear(self, place: int, channels: Integers, goal: Goal) -> Iterable[Finding]:
        """Of one asset: its channel that is the first to reach its limit."""
        asset = self._places.assets[place]
        found = [
            (trend.left_s, asset.channels[column], trend)
            for column, channel in enumerate(channels.tolist())
            if (trend := self.trends.trend(place, channel, Goal(*(side[column : column + 1] for side in goal))))
        ]
        if not found:
            self._trending.pop(asset.name, None)
            if self._standing.holds(asset.name, WEAR):
                self.estimates.pop(asset.name, None)
                yield self._standing.tell(Finding(asset.name, WEAR))
            return
        left_s, channel, trend = min(found)
        self._trending[asset.name] = channel, trend
        told_s = max(self.estimates.get(asset.name, 0.0) - asset.at / 1e9, 0.0)
        if self._standing.holds(asset.name, WEAR) and left_s / RENEW <= told_s <= left_s * RENEW:
            return
        self.estimates[asset.name] = asset.at / 1e9 + left_s
        why = wear_text(channel, trend)
        yield self._standing.tell(Finding(asset.name, WEAR, why, channel, value=trend.value, limit=trend.limit))

    def _goal(self, index: Integers, width: Integers, channels: Integers) -> Goal:
        """Declared limits, else where the level branch would raise an alarm for this channel alone."""
        memory = self._memory
        base, stride = np.repeat(memory.base[index], width), np.repeat(width + 1, width)
        column = np.arange(len(channels)) - np.repeat(np.cumsum(width) - width, width)
        centre = memory.arena.words.take(base + Row.CENTRE * stride + column)
        weight = memory.arena.words.take(base + Row.WEIGHT * stride + column)
        unit = np.repeat(memory.unit[Branch.LEVEL, index], width)
        away = np.where(weight > 0.0, THRESHOLD * unit / np.where(weight > 0.0, weight, 1.0), np.nan)
        low, high = self._limits.low[channels], self._limits.high[channels]
        return Goal(
            centre, np.where(np.isfinite(low), low, centre - away), np.where(np.isfinite(high), high, centre + away)
        )

    def accept(self, asset: str, channels: Integers) -> None:
        """As far as they have gone is normal."""
        self.trends.accept(channels)
        self._trending.pop(asset, None)
        self.estimates.pop(asset, None)

    def forget(self, asset: str) -> None:
        self._trending.pop(asset, None)

    def describe(self) -> list[dict[str, Any]]:
        """Plain values, bounded; those first that reach their limit first."""
        worst = sorted(self._trending.items(), key=lambda item: item[1][1].left_s)[:NAMED]
        return [
            {
                "asset": asset,
                "channel": channel,
                "value": trend.value,
                "per_day": trend.per_day,
                "limit": trend.limit,
                "days_left": round(trend.left_s / 86_400, 3),
            }
            for asset, (channel, trend) in worst
        ]
