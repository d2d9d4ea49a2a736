"""One model after another, without a reading lost: a successor learns the assets beside the model that runs, takes over
between two judgements, and the one before it stays beside it.

    begin     a candidate: asset by asset it watches a learning period, learns, and is compared from then on
    contend   a second model: the same, and of its share of the assets it decides from then on
    promote   it runs; of assets that it learned its statistics count at once, the others learn it while the branches
              that need no model go on
    drop      nothing is beside the model that runs

What there is to do is done in small portions, one a judgement: an asset's lesson takes about a millisecond.
"""

from collections import deque
from typing import Any

import numpy as np

from appliance.errors import ModelError
from appliance.events.schema import Stage
from appliance.inference.contest import Contest
from appliance.inference.detector import states
from appliance.inference.detector.arena import Floats
from appliance.inference.detector.asset import Asset
from appliance.inference.detector.autoencoder import Reconstructor, Shapes
from appliance.inference.detector.contender import Contender
from appliance.inference.detector.judging import Judge
from appliance.inference.detector.learning import Learning
from appliance.inference.detector.memory import AWAY_LOOKS, LOOKS, STATISTICS, Branch, Memory, Row
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.detector.shadow import Known, Shadow

AT_ONCE = 4096  # channels that a candidate learns at a time: each keeps a learning period of samples meanwhile
FEW = 8  # assets that begin or are looked at in one portion
MANY = 64  # assets that are taken over in one portion, of some 50 us each
PATIENCE = 3  # learning periods for which one is waited for that suits; then the asset is not compared


class Succession:
    def __init__(
        self,
        settings: DetectorSettings,
        memory: Memory,
        shapes: Shapes,
        judge: Judge,
        learning: Learning,
        assets: dict[str, Asset],
    ) -> None:
        self._settings, self._memory, self._shapes = settings, memory, shapes
        self._judge, self._learning, self._assets = judge, learning, assets
        self._waiting: deque[str] = deque()  # that the candidate has yet to learn
        self._collecting: dict[str, tuple[Asset, int]] = {}  # and the row from which on it can be learned
        self._queued: set[str] = set()
        self._changing: deque[Asset] = deque()  # that the change of models has not come to yet
        self._leaving: deque[str] = deque()  # that keep more rows than they need to

    @property
    def changing(self) -> bool:
        """Not all assets have been taken over yet."""
        return bool(self._changing)

    @property
    def shadow(self) -> Shadow | None:
        return self._judge.shadow

    def begin(self, candidate: Reconstructor, trusted: bool = False) -> Shadow:
        """It learns, and is compared; where it is the one that is `trusted`, what runs is held against it. ModelError
        where it cannot take over here."""
        self.check(candidate)
        self.drop()
        self._deepen(candidate)
        self._judge.shadow = shadow = Shadow(self._memory, Shapes(candidate), self._judge.look, trusted)
        return shadow

    def contend(self, second: Reconstructor, contest: Contest) -> Contender:
        """It decides, too: of its share of the assets, as soon as it has learned them. ModelError as of `begin`."""
        self.check(second)
        self.drop()
        self._deepen(second)
        self._judge.shadow = contender = Contender(self._memory, Shapes(second), self._judge.look, contest)
        return contender

    def drop(self) -> None:
        """What was beside the model that runs is forgotten."""
        self._judge.shadow = None
        self._leaving.extend(self._collecting)  # what is due to be judged must be judged before they shrink
        self._learning.watched.clear()
        self._collecting.clear()
        self._waiting.clear()
        self._queued.clear()

    def check(self, candidate: Reconstructor) -> None:
        """ModelError where its windows are too long to be learned from."""
        if not Shapes(candidate).enough(self._settings.learn_rows):
            raise ModelError(
                f"{candidate.name} {candidate.version}: windows of {candidate.window} rows are too long for a learning "
                f"period of {self._settings.learn_rows}",
                "Use a model with shorter windows.",
            )

    def promote(self, successor: Reconstructor) -> int:
        """It judges from now on. Where it was beside, the one before it is beside now. The number of assets that it
        knows already. ModelError as of `begin`."""
        self.check(successor)
        beside = self.shadow if self.shadow is not None and self.shadow.shapes.reconstructor is successor else None
        trusted = beside is None or not beside.trusted
        self.finish()
        change = _Change(beside, Shadow(self._memory, Shapes(self._shapes.reconstructor), self._judge.look, trusted))
        self.drop()
        self._deepen(successor)
        self._shapes.become(successor)
        self._judge.shadow = change.former if beside is not None else None
        memory = self._memory
        change.units = np.stack([memory.unit[Branch.AUTOENCODER], memory.learned[Branch.AUTOENCODER]])
        memory.unit[Branch.AUTOENCODER] = 0.0  # no look is judged by what belongs to the other model
        self._change, self._changing = change, deque(self._assets.values())
        known = beside.known if beside is not None else {}
        return sum(asset.index in known and self._holds(known[asset.index], asset) for asset in self._changing)

    def finish(self) -> None:
        """Take all assets over now."""
        while self._changing:
            self._take_over()

    def tend(self, due: list[Asset]) -> None:
        """After a judgement: assets whose turn has come begin, and one that has been watched for long enough is
        learned."""
        shadow = self.shadow
        self._take_over()
        self._shrink()
        if shadow is None:
            return
        for asset in due:
            known = shadow.known.get(asset.index)
            if known is not None and not self._holds(known, asset):
                shadow.forget(asset.index)
                known = None
            if known is None and asset.stage is Stage.ALARMING and asset.name not in self._queued:
                self._queued.add(asset.name)
                self._waiting.append(asset.name)
        self._collect()
        self._teach(shadow)

    def describe(self) -> dict[str, Any]:
        """Plain values: how far the candidate is."""
        shadow = self.shadow
        if shadow is None:
            return {}
        return {"known": len(shadow.known), "learning": len(self._collecting), "waiting": len(self._waiting)}

    def _deepen(self, candidate: Reconstructor) -> None:
        """Judgements look back as far as the longer windows."""
        if candidate.window > self._judge.depth:
            self._judge.depth = candidate.window
            self._learning.fit(candidate.window)
            for asset in self._assets.values():
                self._learning.resize(asset)

    def _holds(self, known: Known, asset: Asset) -> bool:
        """Neither its channels nor its normal state are others than when it was learned."""
        return known.channels is asset.channels and known.mark == self._memory.learned[Branch.LEVEL, asset.index]

    def _collect(self) -> None:
        channels = sum(asset.width for asset, _ in self._collecting.values())
        for _ in range(min(FEW, len(self._waiting))):
            if self._collecting and channels >= AT_ONCE:
                return
            name = self._waiting.popleft()
            asset = self._assets.get(name)
            if asset is None:
                self._queued.discard(name)
                continue
            self._collecting[name] = asset, asset.rows + self._settings.learn_rows
            self._learning.watched.add(asset.index)
            self._learning.resize(asset)
            channels += asset.width

    def _teach(self, shadow: Shadow) -> None:
        """The first of a few that are ready; those that are not go to the end."""
        for name in list(self._collecting)[:FEW]:
            asset, row = self._collecting.pop(name)
            ready = asset.rows >= row and self._ordinary(asset)
            late = asset.rows >= row + PATIENCE * self._settings.learn_rows
            if ready:
                self._learn(asset, shadow)
            if ready or late or self._assets.get(name) is not asset:  # it may have been forgotten, and be another one
                self._learning.watched.discard(asset.index)
                self._leaving.append(name)
                if not late:
                    self._queued.discard(name)
                return
            self._collecting[name] = asset, row

    def _ordinary(self, asset: Asset) -> bool:
        """The last learning period is one to learn from, and the first model has learned."""
        memory, index, rows = self._memory, asset.index, self._settings.learn_rows
        if asset.latch.uneasy or memory.unit[Branch.AUTOENCODER, index] <= 0.0:
            return False
        within = memory.place_of[index] != states.BETWEEN and asset.rows - memory.moved[index] >= rows
        return not memory.two[index] or bool(within)

    def _learn(self, asset: Asset, shadow: Shadow) -> None:
        memory, index = self._memory, asset.index
        header = memory.header(asset)
        columns = [column for column, channel in enumerate(asset.channels) if channel not in asset.late]
        samples = memory.samples(asset, self._settings.learn_rows)[:, columns]
        failures = shadow.shapes.failures
        with np.errstate(all="ignore"):  # values near the end of the range
            found = shadow.shapes.learn(samples, asset.rows, header[Row.CENTRE, columns], header[Row.SCALE, columns])
        shadow.tally.failures += shadow.shapes.failures - failures
        if not found.level:
            return
        statistics = np.zeros((STATISTICS, asset.width))
        statistics[:, columns] = np.concatenate([found.centre, found.fast, found.slow, found.fading])
        if memory.two[index] and memory.place_of[index] == states.AWAY:  # home is as far from there as it ever was
            away = 0.5 * (header[AWAY_LOOKS] + header[AWAY_LOOKS + LOOKS]) - header[Row.SHAPE]
            statistics[0] -= np.where(np.isfinite(away), away, 0.0)
        unit, learned = memory.unit[Branch.AUTOENCODER, index], memory.learned[Branch.AUTOENCODER, index]
        mark = float(memory.learned[Branch.LEVEL, index])
        wider = float(unit / learned) if learned > 0.0 else 1.0  # what the asset showed since it learned
        shadow.learn(index, Known(asset.channels, statistics, found.level * wider, found.level, mark, asset.name))

    def _shrink(self) -> None:
        for _ in range(min(FEW, len(self._leaving))):
            asset = self._assets.get(self._leaving.popleft())
            if asset is not None:
                self._learning.resize(asset)

    def _take_over(self) -> None:
        """Some of the assets that the change of models has not come to yet."""
        for _ in range(min(MANY, len(self._changing))):
            asset = self._changing.popleft()
            learned = self._memory.unit[Branch.AUTOENCODER, asset.index] > 0.0  # since: it had a lesson
            if self._assets.get(asset.name) is asset and not learned:
                self._pass_on(asset, self._change)

    def _pass_on(self, asset: Asset, change: "_Change") -> None:
        unit, learned = change.units[:, asset.index].tolist()
        if change.beside is not None and unit > 0.0:
            statistics = self._memory.header(asset)[Row.SHAPE : Row.SHAPE + STATISTICS].copy()
            mark = float(self._memory.learned[Branch.LEVEL, asset.index])
            change.former.learn(asset.index, Known(asset.channels, statistics, unit, learned, mark))
        known = change.beside.known.get(asset.index) if change.beside is not None else None
        if known is not None and self._holds(known, asset):
            self._learning.carry(asset, known.statistics, known.unit, known.learned)
        else:
            self._learning.adapt(asset)


class _Change:
    """Of models, while assets are taken over. `beside`: what the one that runs now knew."""

    def __init__(self, beside: Shadow | None, former: Shadow) -> None:
        self.beside, self.former = beside, former
        self.units: Floats = np.zeros((2, 0))
