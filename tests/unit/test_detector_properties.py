"""What must never matter: order, names, units and signs of channels; how readings are batched; a restart in between."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.errors import InferenceError
from appliance.events.schema import Reading, Score
from appliance.inference.detector.detector import Detector, DetectorSettings, Judged
from appliance.inference.port import Tensor

Rows = NDArray[np.float64]
START = 1_700_000_000_000_000_000
# Ordinary decisions: a score that lies within this share of a threshold by chance would be another example.
CLOSE = 1e-6


class Smoother:
    """Reconstructs each row by what it and its neighbours are; treats up and down differently."""

    window, name, version, device = 64, "smoother", "1.0.0", "CPU"

    def __call__(self, windows: Tensor) -> Tensor:
        padded = np.pad(windows, ((0, 0), (2, 2)), mode="edge")
        mean = sum(padded[:, shift : shift + self.window] for shift in range(5)) / np.float32(5.0)
        return np.asarray(np.where(mean > 0.0, mean, mean * np.float32(0.8)), np.float32)


def plant(seed: int, rows: int = 700, channels: int = 4) -> Rows:
    """Noise, slow noise, a switch and a constant, with a level fault, a noise fault and a stuck channel in them."""
    random = np.random.default_rng(seed)
    samples = random.normal(size=(rows, channels))
    samples[:, 1] = np.convolve(random.normal(size=rows + 49), np.ones(50) / 5.0, "valid")
    samples[:, 2] = np.round(samples[:, 2])
    samples[:, 3] = 7.0
    begin, column = int(random.integers(300, rows - 100)), int(random.integers(channels))
    samples[begin : begin + 80, column] += random.choice([-3.0, 2.0, 8.0])
    begin = int(random.integers(300, rows - 100))
    samples[begin : begin + 90, 0] *= 4.0
    return samples


def readings(samples: Rows, names: Sequence[str]) -> list[Reading]:
    return [Reading(START + row, dict(zip(names, values, strict=True))) for row, values in enumerate(samples.tolist())]


def detector(hop: int = 1) -> Detector:
    return Detector(DetectorSettings(hop=hop), Smoother())


def scores(subject: Detector, stream: list[Reading]) -> list[Score]:
    for reading in stream:
        subject.push("asset", reading)
    return [judged.score for judged in subject.judge()]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    order=st.permutations(range(4)),
    factors=st.lists(st.sampled_from([-1e6, -3.7, -1.0, -1e-4, 1e-3, 1.0, 2.5, 1e7]), min_size=4, max_size=4),
    offsets=st.lists(st.sampled_from([-1e5, 0.0, 0.25, 40.0]), min_size=4, max_size=4),
)
def test_names_order_units_and_signs_change_no_decision(
    seed: int, order: list[int], factors: list[float], offsets: list[float]
) -> None:
    samples = plant(seed)
    names = [f"point {column}" for column in range(4)]
    renamed = [f"{column} of another name" for column in order]
    changed = (samples * factors + np.array(offsets) * np.abs(factors))[:, order]
    one = scores(detector(), readings(samples, names))
    other = scores(detector(), readings(changed, renamed))
    assert [score.alarm for score in one] == [score.alarm for score in other]
    assert [score.score for score in other] == pytest.approx([score.score for score in one], rel=CLOSE, abs=CLOSE)
    causes = [(int(a.cause[6:]), int(b.cause.split()[0])) for a, b in zip(one, other, strict=True) if a.alarm]
    assert all(a == b for a, b in causes)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    hop=st.sampled_from([1, 3, 16, 100]),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 400), min_size=1, max_size=12),
)
def test_batching_changes_no_decision(seed: int, hop: int, widths: list[int], cuts: list[int]) -> None:
    """One reading at a time, one asset at a time, against all assets together in batches of any size."""
    plants = {f"asset {number}": plant(seed + number)[:, [c % 4 for c in range(w)]] for number, w in enumerate(widths)}
    streams = {
        name: readings(samples, [f"p{column}" for column in range(samples.shape[1])])
        for name, samples in plants.items()
    }
    alone: dict[str, list[Score]] = {}
    for name, stream in streams.items():
        subject = detector(hop)
        alone[name] = [score for reading in stream for score in _push_and_judge(subject, name, reading)]
    together: dict[str, list[Score]] = {name: [] for name in streams}
    subject, row = detector(hop), 0
    while row < 700:
        for size in cuts:
            for name, stream in streams.items():
                for reading in stream[row : row + size]:
                    subject.push(name, reading)
            row += size
            for name, score in subject.judge():
                together[name].append(score)
    assert together == alone


def _push_and_judge(subject: Detector, name: str, reading: Reading) -> list[Score]:
    subject.push(name, reading)
    return [judged.score for judged in subject.judge()]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    hop=st.sampled_from([1, 7, 16]),
    stops=st.lists(st.integers(1, 699), min_size=1, max_size=4),
    judged_before=st.booleans(),
)
def test_a_restart_changes_no_decision(seed: int, hop: int, stops: list[int], judged_before: bool) -> None:
    """At any moment: while it collects, learns or warns, in the middle of an alarm, judged or not yet."""
    stream = _with_irregularities(readings(plant(seed), ["a", "b", "c", "d"]))
    straight = scores(detector(hop), stream)
    subject, found = detector(hop), []
    for begin, end in _spans(stops, len(stream)):
        for reading in stream[begin:end]:
            subject.push("asset", reading)
        if judged_before:
            found += subject.judge()
        data = subject.snapshot()
        subject = detector(hop)
        subject.restore(data)
    found += subject.judge()
    assert [judged.score for judged in found] == straight


def _with_irregularities(stream: list[Reading]) -> list[Reading]:
    """A channel that appears, one that is away for a while, some rows in two messages."""
    changed = []
    for row, reading in enumerate(stream):
        values = dict(reading.values)
        if row < 150:
            del values["d"]
        if 420 < row < 560:
            del values["b"]
        if 600 < row < 640:
            changed.append(Reading(reading.at, {"a": values.pop("a")}))
        changed.append(Reading(reading.at, values))
    return changed


def _spans(stops: list[int], end: int) -> list[tuple[int, int]]:
    edges = [0, *sorted(set(stops)), end]
    return list(itertools.pairwise(edges))


def test_what_was_judged_and_not_handed_out_survives() -> None:
    """A full ring is judged before anybody asks."""
    stream = readings(plant(1), ["a", "b", "c", "d"])
    subject = detector()
    for reading in stream:
        subject.push("asset", reading)
    restored = detector()
    restored.restore(subject.snapshot())
    assert restored.judge() == subject.judge() != []


def test_another_model_is_measured_before_it_judges() -> None:
    class Other(Smoother):
        name = "other"
        lost = False

        def __call__(self, windows: Tensor) -> Tensor:
            return windows * 0 if self.lost else super().__call__(windows)

    stream = readings(
        np.random.default_rng(3).normal(size=(1400, 2)) + np.sin(np.arange(1400) / 9.0)[:, None] * 5, "ab"
    )
    subject, other = detector(), Other()
    scores(subject, stream[:600])
    restored = Detector(DetectorSettings(), other)
    restored.restore(subject.snapshot())
    found = scores(restored, stream[600:990])
    other.lost = True
    early = scores(restored, stream[990:999])
    other.lost = False
    found += scores(restored, stream[999:1200])
    other.lost = True
    late = scores(restored, stream[1200:])
    assert {score.model for score in found} == {"other"}
    assert not any(score.alarm for score in found + early)
    assert {score.branch for score in late if score.alarm} == {"autoencoder"}


def test_a_box_with_less_room_keeps_what_fits() -> None:
    subject = detector()
    for number in range(5):
        subject.push(f"asset {number}", Reading(START, {"a": 1.0, "b": 2.0}))
    smaller = Detector(DetectorSettings(max_channels=6))
    smaller.restore(subject.snapshot())
    assert [known.asset for known in smaller.assets()] == ["asset 0", "asset 1", "asset 2"]


def snapshot_of_a_plant() -> bytes:
    subject = detector()
    for reading in readings(plant(1)[:470], ["a", "b", "c", "d"]):
        subject.push("asset", reading)
    return subject.snapshot()


WHOLE = snapshot_of_a_plant()


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_snapshot_that_is_cut_off_is_refused(cut: int) -> None:
    subject = detector()
    with pytest.raises(InferenceError, match="cannot be read"):
        subject.restore(WHOLE[:cut])
    assert subject.assets() == []


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_a_damaged_snapshot_is_refused_or_goes_on(place: int, value: int) -> None:
    """Nothing worse than a wrong statistic comes of it: no other error, no endless work, no huge memory."""
    damaged = bytearray(WHOLE)
    damaged[place] = value
    subject = detector()
    try:
        subject.restore(bytes(damaged))
    except InferenceError:
        assert subject.assets() == []
        return
    assert len(subject.assets()) == 1
    with np.errstate(all="ignore"):
        judged: list[Judged] = subject.judge()
    assert len(judged) <= 470


def test_a_snapshot_of_other_lessons_is_refused() -> None:
    with pytest.raises(InferenceError, match="learned from 400 rows, not 500"):
        Detector(DetectorSettings(learn_rows=500)).restore(WHOLE)
