"""Readings that wait for the next commit: packed as they come, bounded in bytes, repeats refused. Pure."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from appliance.errors import EventError
from appliance.events.codec import check_points
from appliance.events.schema import Block, Reading
from appliance.store.blocks import samples
from appliance.store.frame import Points, Run
from appliance.store.history import Commit

REASONS = {
    "duplicate": "a second reading of the same asset, time and points; the first one stands",
    "expired": "older than readings are kept",
    "too-many-assets": "an asset more than are recorded",
    "overrun": "readings come faster than the disk takes them",
    "store-unavailable": "the database has refused to be written for longer than readings can wait",
}

MAX_BYTES = 16 << 20

_RUN_VALUES = 1 << 14
_RUN_BYTES = 512  # what a run weighs before it holds anything
_NAME_BYTES = 64  # what a point's name weighs besides its characters
_LAYOUT_BYTES = 4 << 20  # of the points whose names were checked

_T = TypeVar("_T")


class Load(NamedTuple):
    """What goes into one commit, and what it weighs while it waits."""

    commit: Commit
    weight: int  # bytes


class _Asset:
    __slots__ = ("newest", "points", "run")

    def __init__(self) -> None:
        self.newest = 0  # time of the reading that came last
        self.points: Points = ()  # that it had
        self.run: Run | None = None


class Pending:
    """`retention` in ns. What is taken out weighs on the limit until it is settled."""

    def __init__(self, max_assets: int, retention: int) -> None:
        self.unavailable = False  # said by whoever commits: the reason under which the limit is felt
        self.rows = 0  # readings and blocks, taken ones included
        self._weight = 0
        self._max_assets, self._retention = max_assets, retention
        self._assets: dict[str, _Asset] = {}
        self._layouts: dict[Points, Points] = {}
        self._layout_bytes = 0
        self._runs: list[tuple[str, Run]] = []
        self._blocks: list[tuple[str, Block]] = []

    @property
    def waiting(self) -> bool:
        return bool(self._runs or self._blocks)

    @property
    def assets(self) -> int:
        return len(self._assets)

    def know(self, assets: list[str]) -> None:
        """Those that the database has already."""
        for path in assets[: self._max_assets]:
            self._assets.setdefault(path, _Asset())

    def forget(self, assets: list[str]) -> None:
        for path in assets:
            asset = self._assets.get(path)
            if asset is not None and asset.run is None:
                del self._assets[path]

    def add(self, path: str, reading: Reading, now: int) -> None:
        """EventError, under one of REASONS or `point-name`, where it is not taken."""
        at, values = reading.at, reading.values
        if at < now - self._retention:
            raise EventError("expired", f"{path} at {at}")
        asset = self._assets.get(path) or self._meet(path, values)
        points = tuple(values)
        if points == asset.points:
            if at == asset.newest:
                raise EventError("duplicate", f"{path} at {at}")
            points = asset.points
        run = asset.run
        if run is None or points is not run.points or len(run.values) > _RUN_VALUES:
            run = self._begin_run(path, asset, points, values)
        else:
            self._grow(8 + 8 * len(values))
        run.times.append(at)
        run.values.extend(values.values())
        asset.newest, asset.points = at, run.points

    def add_block(self, path: str, block: Block) -> None:
        """EventError, under one of REASONS or `point-name`, where it is not taken."""
        if path not in self._assets:
            self._meet(path, block.values)
        check_points(list(block.values))
        self._grow(_block_weight(block))
        self._blocks.append((path, block))

    def take(self, size: int) -> list[Load]:
        """All that waits, in commits of about `size` bytes."""
        parts = [
            (run.weight + 8 * len(run.times) + 8 * len(run.values), (path, run.part())) for path, run in self._runs
        ]
        for path, _ in self._runs:
            self._assets[path].run = None
        waves = [(_block_weight(block), (path, block)) for path, block in self._blocks]
        self._runs, self._blocks = [], []
        loads = [Load(Commit(some, []), weight) for weight, some in _portions(parts, size)]
        return loads + [Load(Commit([], some), weight) for weight, some in _portions(waves, size)]

    def settle(self, load: Load) -> None:
        """It is in the database, or given up."""
        self.rows -= load.commit.rows
        self._weight -= load.weight

    def _meet(self, path: str, points: Iterable[str]) -> _Asset:
        check_points(list(points))  # or nonsense would take the places of those to come
        if len(self._assets) >= self._max_assets:
            raise EventError("too-many-assets", f"{path}: {self._max_assets} assets are recorded already")
        asset = self._assets[path] = _Asset()
        return asset

    def _begin_run(self, path: str, asset: _Asset, points: Points, values: dict[str, float]) -> Run:
        known = self._layouts.get(points)
        names = 0 if known is not None else self._check_names(points)
        self._grow(8 + 8 * len(values) + _RUN_BYTES + names)
        run = asset.run = Run(known or points, _RUN_BYTES + names)
        self._runs.append((path, run))
        return run

    def _check_names(self, points: Points) -> int:
        """What they weigh. A layout is remembered, so that this is done once."""
        check_points(list(points))
        weight = sum(_NAME_BYTES + len(name) for name in points)
        if self._layout_bytes + weight > _LAYOUT_BYTES:
            self._layouts.clear()
            self._layout_bytes = 0
        self._layouts[points] = points
        self._layout_bytes += weight
        return weight

    def _grow(self, weight: int) -> None:
        """By one reading or block."""
        if self._weight + weight > MAX_BYTES:
            raise EventError("store-unavailable" if self.unavailable else "overrun", f"{self.rows} readings wait")
        self._weight += weight
        self.rows += 1


def _run_weight(run: Run) -> int:
    return run.weight + 8 * len(run.times) + 8 * len(run.values)


def _block_weight(block: Block) -> int:
    return 4 * samples(block) * len(block.values)


def _portions(weighed: Iterable[tuple[int, _T]], size: int) -> Iterator[tuple[int, list[_T]]]:
    """Runs of about `size` bytes, with their weight."""
    total, some = 0, list[_T]()
    for weight, one in weighed:
        total += weight
        some.append(one)
        if total >= size:
            yield total, some
            total, some = 0, []
    if some:
        yield total, some
