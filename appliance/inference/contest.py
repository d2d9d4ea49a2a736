"""Two models, each judging its own share of the assets: which of them does better here? Pure.

An asset belongs to B where SHA-256(salt, 00, asset) mod 10000 is below B's basis points: the same asset to the same
model after every restart, another share under another salt. What is counted, for each asset from when both models know
it:

    looks      at which its model computed, and of those the ones over the threshold
    alarms     that its model raised, were it alone
    verdicts   of people on the asset's alarms: normal (a false alarm) or fault

Looks of one asset resemble each other, so an asset counts as one observation, however often it was looked at. Shares
over the threshold are compared by a permutation test of the assets, shares of assets by the two-proportion test; what
is found must hold at 5 % over all tests together (Bonferroni).
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

WHOLE = 10_000  # basis points
LEVEL = 0.05  # of all tests together
FEWEST = 5  # assets in each arm: fewer tell nothing
EXACT = 20_000  # ways to deal the assets: up to there all of them are tried
ROUNDS, SHARES = 9_999, 20_000_000  # else so many drawn at random, or fewer where there are many assets
_SEED = 20_261_121

Arm = Literal["a", "b"]
ARMS: tuple[Arm, ...] = ("a", "b")
Count = Annotated[int, Meta(ge=0)]
Floats = NDArray[np.float64]


class Pair(Struct, frozen=True):
    """What a contest is of: models by the hash of their bundles. Another pair is another contest."""

    a: str
    b: str
    basis_points: Annotated[int, Meta(ge=0, le=WHOLE)]  # of the assets, that B judges
    salt: str

    def arm(self, asset: str) -> Arm:
        drawn = int.from_bytes(hashlib.sha256(self.salt.encode() + b"\0" + asset.encode()).digest(), "big")
        return "b" if drawn % WHOLE < self.basis_points else "a"


class Record(Struct):
    """Of one asset."""

    looks: Count = 0
    over: Count = 0
    alarms: Count = 0
    normal: Count = 0
    fault: Count = 0


class Arms(Struct, frozen=True):
    """One measure, side by side. `p`: how often chance alone gives a difference as large; None: too little was seen."""

    measure: str
    test: str
    a: float
    b: float
    p: float | None
    differs: bool


class Report(Struct, frozen=True):
    pair: Pair
    a: Record
    b: Record
    assets: tuple[int, int]  # that were looked at
    alarming: tuple[int, int]  # of those, with an alarm
    measures: tuple[Arms, ...]
    verdict: str


class Contest:
    """The counts. `limit`: assets that are kept; more are not counted."""

    def __init__(self, pair: Pair, limit: int = 100_000) -> None:
        self.pair, self._limit = pair, limit
        self.records: dict[str, Record] = {}

    def arm(self, asset: str) -> Arm:
        return self.pair.arm(asset)

    def look(self, asset: str, over: bool, alarm: bool) -> None:
        if (record := self._record(asset)) is not None:
            record.looks += 1
            record.over += over
            record.alarms += alarm

    def said(self, asset: str, fault: bool) -> None:
        """By a person. Of assets that were not looked at nothing is counted."""
        record = self.records.get(asset)
        if record is not None:
            record.fault += fault
            record.normal += not fault

    def copy(self) -> "Contest":
        """For who looks at it while the models go on."""
        copied = Contest(self.pair, self._limit)
        copied.records = {asset: msgspec.structs.replace(record) for asset, record in self.records.items()}
        return copied

    def snapshot(self) -> dict[str, Any]:
        return {"pair": msgspec.to_builtins(self.pair), "records": msgspec.to_builtins(self.records)}

    def restore(self, data: dict[str, Any]) -> None:
        """What another one's `snapshot` gave, if it was of the same pair. msgspec.ValidationError."""
        if msgspec.convert(data.get("pair"), Pair) == self.pair:
            self.records = msgspec.convert(data.get("records"), dict[str, Record])

    def _record(self, asset: str) -> Record | None:
        record = self.records.get(asset)
        if record is None and len(self.records) < self._limit:
            record = self.records[asset] = Record()
        return record


# ---- what is concluded ----------------------------------------------------------------------------------------------


def report(contest: Contest) -> Report:
    """Takes up to some seconds where there are many assets."""
    shares: dict[Arm, list[Record]] = {"a": [], "b": []}
    for asset, record in sorted(contest.records.items()):
        if record.looks:
            shares[contest.arm(asset)].append(record)
    a, b = (_total(shares[arm]) for arm in ARMS)
    assets = len(shares["a"]), len(shares["b"])
    alarming = _alarming(shares["a"]), _alarming(shares["b"])
    measures = _measures(shares["a"], shares["b"], (a, b), assets, alarming)
    return Report(contest.pair, a, b, assets, alarming, measures, _verdict(measures, assets))


def two_proportions(one: int, of_one: int, other: int, of_other: int) -> float:
    """p of the two-sided z test with the pooled share; 1 where all or none did."""
    pooled = (one + other) / (of_one + of_other)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / of_one + 1 / of_other))
    if not spread:
        return 1.0
    return math.erfc(abs(one / of_one - other / of_other) / spread / math.sqrt(2))


def permutation(one: Sequence[float], other: Sequence[float]) -> float:
    """p of the two-sided permutation test of the difference of means: exact where that is quick, else by draws."""
    values = np.array([*one, *other], np.float64)
    count = len(one)
    exact = math.comb(len(values), count) <= EXACT
    sums = _all_sums(values, count) if exact else _drawn_sums(values, count)
    seen, leeway = values[:count].sum(), 1e-9 * float(np.abs(values).sum())  # what is equal is rounded differently
    extra = 0 if exact else 1  # what was seen is one of the ways, too
    less = (np.count_nonzero(sums <= seen + leeway) + extra) / (len(sums) + extra)
    more = (np.count_nonzero(sums >= seen - leeway) + extra) / (len(sums) + extra)
    return min(1.0, 2 * float(min(less, more)))


def _all_sums(values: Floats, count: int) -> Floats:
    return np.array([sum(chosen) for chosen in itertools.combinations(values.tolist(), count)])


def _drawn_sums(values: Floats, count: int) -> Floats:
    drawn = np.random.default_rng(_SEED)
    rounds = min(ROUNDS, max(SHARES // len(values), 999))
    return np.array([drawn.permutation(values)[:count].sum() for _ in range(rounds)])


def _measures(
    a: list[Record], b: list[Record], totals: tuple[Record, Record], assets: tuple[int, int], alarming: tuple[int, int]
) -> tuple[Arms, ...]:
    shares = [[one.over / one.looks for one in records] for records in (a, b)]
    judged = totals[0].normal + totals[0].fault, totals[1].normal + totals[1].fault
    enough = min(assets) >= FEWEST
    tests = [
        (
            "looks over the threshold, mean share of an asset",
            "permutation",
            (_mean(shares[0]), _mean(shares[1])),
            permutation(*shares) if enough else None,
        ),
        (
            "assets with an alarm",
            "two proportions",
            (_share(alarming[0], assets[0]), _share(alarming[1], assets[1])),
            two_proportions(alarming[0], assets[0], alarming[1], assets[1]) if enough else None,
        ),
        (
            "alarms that people called normal",
            "two proportions",
            (_share(totals[0].normal, judged[0]), _share(totals[1].normal, judged[1])),
            two_proportions(totals[0].normal, judged[0], totals[1].normal, judged[1])
            if min(judged) >= FEWEST
            else None,
        ),
    ]
    level = LEVEL / max(sum(p is not None for *_, p in tests), 1)
    return tuple(Arms(measure, test, *means, p, p is not None and p < level) for measure, test, means, p in tests)


def _verdict(measures: Sequence[Arms], assets: tuple[int, int]) -> str:
    if min(assets) < FEWEST:
        return f"too few assets to tell: {assets[0]} and {assets[1]}, {FEWEST} each are wanted"
    found = [one for one in measures if one.differs]
    if not found:
        return "no difference that chance alone would not give"
    return "; ".join(f"{one.measure}: {'B' if one.b > one.a else 'A'} has more" for one in found)


def _total(records: Sequence[Record]) -> Record:
    fields = Record.__struct_fields__
    return Record(*(sum(getattr(record, field) for record in records) for field in fields))


def _alarming(records: Sequence[Record]) -> int:
    return sum(record.alarms > 0 for record in records)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
