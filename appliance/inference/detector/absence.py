"""Who has not been heard: assets that fell silent, alone or together, and channels that stay away from their rows."""

from collections.abc import Iterable, KeysView

import numpy as np

from appliance.inference.detector.arena import Integers
from appliance.inference.detector.findings import MISSING, Finding, Standing
from appliance.inference.detector.flood import TOGETHER, Flood
from appliance.inference.detector.places import Places
from appliance.inference.detector.quality import Silence
from appliance.inference.detector.trend import span_text


class Absence:
    """Nobody is missed before `collect_rows` rows. What is found is told to `standing`."""

    def __init__(self, places: Places, standing: Standing, known: KeysView[str], collect_rows: int) -> None:
        self._places, self._standing, self._known, self._collect_rows = places, standing, known, collect_rows
        self.silence = Silence()
        self.absence = Silence()  # of channels, while their assets are heard
        self.flood = Flood()

    def rearrange(self, assets: Integers, channels: Integers) -> None:
        self.silence.rearrange(assets)
        self.absence.rearrange(channels)
        self.flood.members &= self._known

    def find(self, rows: Integers, gained: Integers, step_s: float) -> Iterable[Finding]:
        """`rows` and `gained` [assets] since the last walk, `step_s` ago."""
        silence, absence = self.silence, self.absence
        heard_after_s = np.where(gained > 0, silence.silent_s + step_s, 0.0)
        changed = silence.step(gained, step_s, rows >= self._collect_rows).tolist()
        known = absence.rows >= self._collect_rows
        slots = absence.step(self._came(gained), np.repeat(heard_after_s, self._places.width), known).tolist()
        heard = [place for place in np.flatnonzero(gained).tolist() if self._standing.conditions or self.flood.asset]
        yield from self._fold(changed, heard)
        alone = [place for place in changed if self._places.names[place] not in self.flood.members]
        told = [place for place in heard if self._standing.holds(self._places.names[place], MISSING)]
        back = [place for place in told if not self._missing(place).why]
        for place in dict.fromkeys([*alone, *back, *(self._places.owner(slot) for slot in slots)]):
            found = self._missing(place)
            if found.why != self._standing.why(found.asset, MISSING):
                yield self._standing.tell(found)

    def _fold(self, changed: list[int], heard: list[int]) -> Iterable[Finding]:
        """Those that fell silent together, and that came back from it, as one."""
        flood, names, before = self.flood, self._places.names, self.flood.asset
        silent = [names[place] for place in changed if self.silence.told[place]]
        size = len(flood.members)
        flood.take(silent, self._known)
        asset, left = flood.asset, flood.release(names[place] for place in heard)
        if asset and not flood.asset:
            yield Finding(asset, MISSING)
            for name in left:
                yield self._standing.tell(self._missing(names.index(name)))
        elif asset and (asset != before or len(flood.members) != size):
            yield Finding(asset, MISSING, flood.why(), value=float(len(flood.members)), limit=float(TOGETHER))

    def _came(self, gained: Integers) -> Integers:
        """[channels] Of each asset's new rows those up to the last one that had the channel."""
        came: Integers = np.repeat(gained, self._places.width)
        for place, asset in enumerate(self._places.assets):
            if asset.missing or asset.away:
                first = self._places.first[place]
                for name, rows in asset.missing.items():
                    came[first + asset.columns[name]] = max(gained[place] - rows, 0)
                for name in asset.away:
                    came[first + asset.columns[name]] = 0
        return came

    def _missing(self, place: int) -> Finding:
        """What is missing of an asset: all of it, or some channels, or nothing."""
        name, table, worst = self._places.names[place], self.silence, place
        if self.silence.told[place]:
            what, cause = "no reading", ""
        else:
            first, table = int(self._places.first[place]), self.absence
            gone = np.flatnonzero(table.told[first : first + int(self._places.width[place])])
            if not gone.size:
                return Finding(name, MISSING)
            worst, channels = first + int(gone[0]), self._places.channels[place]
            cause = channels[gone[0]]
            what = f"no {cause}" if gone.size == 1 else f"no {cause} and {gone.size - 1} other channels"
        for_s, usual_s = float(table.silent_s[worst]), float(table.period_s[worst])
        why = f"{what} for {span_text(for_s)}; usually one every {span_text(usual_s)}"
        return Finding(name, MISSING, why, cause, value=for_s, limit=float(table.limit_s()[worst]))

    def accept(self, place: int) -> None:
        """That this asset, or channels of it, say nothing is normal."""
        self.silence.accept(place)
        channels = np.arange(self._places.first[place], self._places.first[place] + self._places.width[place])
        gone = channels[self.absence.told[channels]]
        self.absence.told[gone], self.absence.rows[gone] = False, 0  # strangers until they are heard again

    def accept_flood(self) -> None:
        for name in self.flood.members:
            self.silence.accept(self._places.names.index(name))
        self.flood = Flood()
