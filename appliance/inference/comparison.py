"""Is a candidate as good as the model that is trusted? By what both said of the same looks. Pure.

What is compared is the score of the autoencoder branch alone, each model in units of what it learned of each asset:

    agreement   share of the looks at which both are on the same side of the threshold
    median, p95 of the scores: neither model's may be more than so many times the other's
    alarms      that the branch alone would have raised: as many, within a factor and a few more or less
    residual    what the model does not reconstruct, as a ratio of amplitudes
    latency     of the fastest calls with as many windows, as a ratio
    memory      that loading the candidate took
    failures    calls that no device computed
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

FIRST, LAST, PER_OCTAVE = -6, 10, 4  # octaves of scores that are told apart: 0.016 to 1024
BINS = (LAST - FIRST) * PER_OCTAVE + 1
FEW = 3  # alarms more or less that say nothing
SMALL_S = 0.0005  # of a call: what is shorter is the machine's noise as much as the model's
QUIET = 2.0**FIRST  # scores below it are none
BUDGET = 0.10  # of a processor, for what judges beside
RARE = 64  # at most, one look of so many is compared
ENOUGH_CALLS = 8  # before the fastest of them says how fast a model is

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class Criteria(Struct, frozen=True, forbid_unknown_fields=True):
    """What a candidate must keep to. Ratios are at least 1."""

    looks: Annotated[int, Meta(ge=1, le=10_000_000, description="Looks that are compared before anything is said.")] = (
        300
    )
    agreement: Annotated[float, Meta(ge=0.0, le=1.0, description="Share of looks that both judge alike, at least.")] = (
        0.97
    )
    scores: Annotated[float, Meta(ge=1.0, le=1000.0, description="Ratio of the scores' medians and 95th of 100.")] = 2.5
    alarms: Annotated[float, Meta(ge=1.0, le=1000.0, description="Ratio of the alarms that each would raise.")] = 1.5
    residual: Annotated[
        float, Meta(ge=1.0, le=1000.0, description="Ratio of what the candidate cannot reconstruct to what it could.")
    ] = 1.25
    latency: Annotated[float, Meta(ge=1.0, le=1000.0, description="Ratio of the times that a window takes.")] = 3.0
    memory_mb: Annotated[int, Meta(ge=1, le=1_000_000, description="Memory that the candidate may take.")] = 512
    failures: Annotated[int, Meta(ge=0, le=1_000_000, description="Calls that may fail.")] = 0


class Cost:
    """The fastest of a model's calls, by the power of two of their windows: what else goes on in the box slows single
    calls down, and compiles come with the first of each size."""

    def __init__(self) -> None:
        self._fastest: dict[int, float] = {}  # seconds
        self._calls: Counter[int] = Counter()

    def add(self, windows: int, seconds: float) -> None:
        size = windows.bit_length()
        self._fastest[size] = min(seconds, self._fastest.get(size, math.inf))
        self._calls[size] += 1

    def fastest(self) -> dict[int, float]:
        """Seconds, of the sizes that were called often enough."""
        return {size: self._fastest[size] for size, calls in self._calls.items() if calls >= ENOUGH_CALLS}

    def ratio(self, other: "Cost") -> float | None:
        """How much slower this one is than the other; None where too few calls are alike."""
        mine, theirs = self.fastest(), other.fastest()
        ratios = [mine[size] / max(theirs[size], 1e-9) for size in mine.keys() & theirs.keys()]
        return float(np.median(ratios)) if ratios else None


class Finding(NamedTuple):
    criterion: str
    value: float
    limit: str  # in words
    holds: bool

    def __str__(self) -> str:
        return f"{self.criterion} {self.value:.3g}, {self.limit}"


class Tally:
    """What both models said of the same looks, added up."""

    def __init__(self) -> None:
        self.looks = self.alike = self.failures = self.slots = 0
        self.trusted_alarms = self.candidate_alarms = 0
        self.residual = 0.0  # sum of the logarithms of the residuals' ratio
        self.trusted = np.zeros(BINS, np.int64)
        self.candidate = np.zeros(BINS, np.int64)

    def add(self, trusted: Floats, candidate: Floats, threshold: float) -> None:
        """Scores [looks] of each."""
        self.looks += len(trusted)
        self.alike += int(np.count_nonzero((trusted > threshold) == (candidate > threshold)))
        self.trusted += np.bincount(_bins(trusted), minlength=BINS)
        self.candidate += np.bincount(_bins(candidate), minlength=BINS)

    def add_residuals(self, ratios: Floats) -> None:
        """Logarithms of the candidate's residual over the trusted one's, one a channel."""
        self.slots += len(ratios)
        self.residual += float(ratios.sum())

    def describe(self) -> dict[str, Any]:
        return {
            "looks": self.looks,
            "alike": self.alike,
            "alarms": [self.trusted_alarms, self.candidate_alarms],
            "failures": self.failures,
        }


def findings(tally: Tally, criteria: Criteria, costs: tuple[Cost, Cost], memory_bytes: int) -> list[Finding]:
    """All of them. `costs`: the trusted one's, the candidate's."""
    return [*quality(tally, criteria), *burden(criteria, costs, memory_bytes)]


def quality(tally: Tally, criteria: Criteria) -> list[Finding]:
    """What the judgements say."""
    found = [Finding("failures", tally.failures, f"at most {criteria.failures}", tally.failures <= criteria.failures)]
    if not tally.looks:
        return found
    share = tally.alike / tally.looks
    found.append(Finding("agreement", share, f"at least {criteria.agreement:g}", share >= criteria.agreement))
    for name, part in (("median", 0.5), ("p95", 0.95)):
        ratio = quantile(tally.candidate, part) / quantile(tally.trusted, part)
        found.append(_within(f"scores' {name}, ratio", ratio, criteria.scores))
    found.append(_alarms(tally.trusted_alarms, tally.candidate_alarms, criteria.alarms))
    if tally.slots:
        worse = math.exp(min(tally.residual / tally.slots, 50.0))
        found.append(Finding("residual, ratio", worse, f"at most {criteria.residual:g}", worse <= criteria.residual))
    return found


def burden(criteria: Criteria, costs: tuple[Cost, Cost], memory_bytes: int) -> list[Finding]:
    """What the candidate takes of the box."""
    memory = memory_bytes / (1 << 20)
    found = [Finding("memory in MB", memory, f"at most {criteria.memory_mb}", memory <= criteria.memory_mb)]
    trusted, candidate = costs
    if (ratio := candidate.ratio(trusted)) is not None:
        found.append(Finding("latency, ratio", ratio, f"at most {criteria.latency:g}", ratio <= criteria.latency))
    return found


def against(found: Iterable[Finding]) -> str:
    """What speaks against the candidate, in words; empty where nothing does."""
    return "; ".join(str(finding) for finding in found if not finding.holds)


def quantile(bins: Integers, part: float) -> float:
    """The score below which that part of the looks is, to a fifth of it."""
    total = np.cumsum(bins)
    place = int(np.searchsorted(total, part * total[-1]))
    return float(2.0 ** (FIRST + place / PER_OCTAVE))


def ration(now: int, share: float) -> int:
    """One look of so many is compared from now on, where comparing one of `now` took this share of a processor."""
    if share > BUDGET:
        return min(2 * now, RARE)
    return now // 2 if now > 1 and share < BUDGET / 4 else now


def _bins(scores: Floats) -> Integers:
    octaves = np.log2(np.clip(scores, QUIET, 2.0**LAST))
    bins: Integers = np.rint((octaves - FIRST) * PER_OCTAVE).astype(np.int64)
    return bins


def _within(name: str, ratio: float, limit: float) -> Finding:
    return Finding(name, ratio, f"{1 / limit:.3g} to {limit:g}", 1 / limit <= ratio <= limit)


def _alarms(trusted: int, candidate: int, factor: float) -> Finding:
    least, most = max(trusted / factor - FEW, 0), trusted * factor + FEW
    return Finding("alarms", candidate, f"{least:.3g} to {most:.3g}", least <= candidate <= most)
