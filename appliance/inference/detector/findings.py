"""What the rounds over the assets tell of them: conditions that begin and end, and which of them stand."""

from collections.abc import Container
from typing import NamedTuple

from appliance.events.schema import Severity
from appliance.inference.detector.places import Places
from appliance.inference.detector.quality import Bools

MISSING, FLAT, RANGE, WEAR = "missing-data", "flat-line", "out-of-range", "wear"


class Finding(NamedTuple):
    """A condition of an asset that has begun, or ended where `why` is empty."""

    asset: str
    condition: str
    why: str = ""
    cause: str = ""
    severity: Severity = Severity.WARNING
    value: float = 1.0
    limit: float = 1.0


class Standing:
    """The conditions that stand: `conditions` is asset -> condition -> why."""

    def __init__(self) -> None:
        self.conditions: dict[str, dict[str, str]] = {}

    def why(self, asset: str, condition: str) -> str:
        """Empty where it does not stand."""
        return self.conditions.get(asset, {}).get(condition, "")

    def holds(self, asset: str, condition: str) -> bool:
        return condition in self.conditions.get(asset, ())

    def of(self, condition: str) -> list[str]:
        """The assets of which it stands."""
        return [name for name, standing in self.conditions.items() if condition in standing]

    def tell(self, finding: Finding) -> Finding:
        standing = self.conditions.setdefault(finding.asset, {})
        if finding.why:
            standing[finding.condition] = finding.why
        else:
            standing.pop(finding.condition, None)
        if not standing:
            del self.conditions[finding.asset]
        return finding

    def ended(self, condition: str, told: Bools, places: Places) -> list[Finding]:
        """Of the assets of which this stands, those with no channel left of which it holds; `told` [channels]."""
        ended = []
        for name in self.of(condition):
            place = places.names.index(name)
            if not told[places.first[place] : places.first[place] + places.width[place]].any():
                ended.append(self.tell(Finding(name, condition)))
        return ended

    def accept(self, asset: str, condition: str) -> None:
        self.conditions.get(asset, {}).pop(condition, None)

    def forget(self, asset: str) -> list[Finding]:
        return [Finding(asset, condition) for condition in self.conditions.pop(asset, {})]

    def keep(self, known: Container[str]) -> None:
        """Assets that are known no more have no conditions."""
        self.conditions = {name: told for name, told in self.conditions.items() if name in known}
