"""Two models on their shares of the assets: who judges what, and what may be concluded."""

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from appliance.inference import contest
from appliance.inference.contest import Contest, Pair, permutation, report, two_proportions

PAIR = Pair("a" * 64, "b" * 64, 5000, "salt")
ASSETS = [f"line/press-{number}" for number in range(2000)]
COUNTS = st.tuples(st.integers(1, 500), st.integers(0, 500)).map(lambda pair: (min(pair), max(pair)))


def held(rate_a: float, rate_b: float, assets: int = 60, looks: int = 200, seed: int = 1) -> Contest:
    """A contest of models that go over the threshold so often; each asset has a temper of its own."""
    given, drawn = Contest(PAIR), random.Random(seed)
    for asset in ASSETS[:assets]:
        rate = (rate_b if given.arm(asset) == "b" else rate_a) * drawn.uniform(0.2, 1.8)
        for _ in range(looks):
            over = drawn.random() < rate
            given.look(asset, over, over and drawn.random() < 0.1)
    return given


# ---- shares ---------------------------------------------------------------------------------------------------------


@given(st.text(max_size=40), st.integers(0, 10_000), st.integers(0, 10_000), st.sampled_from(ASSETS))
def test_a_larger_share_of_b_holds_the_smaller_one(salt: str, one: int, other: int, asset: str) -> None:
    small, large = (Pair("a", "b", share, salt).arm(asset) for share in sorted((one, other)))
    assert large == "b" or small == "a"


@given(st.text(max_size=40), st.integers(0, 10_000))
def test_the_share_is_as_declared_within_chance(salt: str, share: int) -> None:
    pair, part, sure = Pair("a", "b", share, salt), share / 10_000, 20.0
    chosen = sum(pair.arm(asset) == "b" for asset in ASSETS)
    bound = sure / 3 + math.sqrt((sure / 3) ** 2 + 2 * sure * len(ASSETS) * part * (1 - part))  # Bernstein's
    assert abs(chosen - part * len(ASSETS)) <= bound


# ---- tests of significance, beside those of scipy -------------------------------------------------------------------


@given(COUNTS, COUNTS)
def test_two_proportions_as_scipy_has_it(one: tuple[int, int], other: tuple[int, int]) -> None:
    ours = two_proportions(one[0], one[1], other[0], other[1])
    table = np.array([[one[0], one[1] - one[0]], [other[0], other[1] - other[0]]])
    if 0 in table.sum(axis=0):
        assert ours == 1.0
        return
    assert ours == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue, abs=1e-9)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=6), st.lists(st.integers(0, 20), min_size=2, max_size=6))
def test_the_exact_permutation_as_scipy_has_it(one: list[int], other: list[int]) -> None:

    def difference(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean(x) - np.mean(y))

    theirs = stats.permutation_test((one, other), difference, n_resamples=np.inf).pvalue
    assert permutation(one, other) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.6, 1.0])
def test_the_drawn_permutation_is_near_scipys(shift: float) -> None:
    drawn = np.random.default_rng(5)
    one, other = drawn.normal(0, 1, 40), drawn.normal(shift, 1, 50)
    theirs = stats.permutation_test(
        (one, other), lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis), n_resamples=9999,
        vectorized=True, rng=np.random.default_rng(6),
    ).pvalue  # fmt: skip
    assert permutation(one.tolist(), other.tolist()) == pytest.approx(theirs, abs=0.03)


def test_equal_models_are_rarely_told_apart() -> None:
    """Of 40 contests of a model with itself some 2 are found to differ."""
    found = [any(one.differs for one in report(held(0.02, 0.02, 24, 50, seed)).measures) for seed in range(40)]
    assert sum(found) <= 8


# ---- the report -----------------------------------------------------------------------------------------------------


def test_a_model_that_goes_over_more_often_is_found() -> None:
    found = report(held(0.01, 0.04))
    assert found.measures[0].differs
    assert found.measures[0].b > found.measures[0].a
    assert "looks over the threshold, mean share of an asset: B has more" in found.verdict
    assert sum(found.assets) == 60
    assert found.a.looks + found.b.looks == 60 * 200


def test_the_word_of_people_counts() -> None:
    given = held(0.02, 0.02)
    for asset in ASSETS[:60]:
        given.said(asset, fault=given.arm(asset) == "b")
    given.said("nobody/knows", fault=True)
    measure = report(given).measures[2]
    assert (measure.a, measure.b, measure.differs) == (1.0, 0.0, True)


def test_too_little_is_no_verdict() -> None:
    assert "too few assets" in report(Contest(PAIR)).verdict
    found = report(held(0.0, 1.0, assets=6))
    assert [one.p for one in found.measures] == [None] * 3
    assert not any(one.differs for one in found.measures)
    assert "too few assets" in found.verdict


def test_it_survives_being_written_down_and_belongs_to_its_pair() -> None:
    given = held(0.02, 0.05)
    plain = msgspec.json.decode(msgspec.json.encode(given.snapshot()))
    again, other = Contest(PAIR), Contest(msgspec.structs.replace(PAIR, b="c" * 64))
    again.restore(plain)
    other.restore(plain)
    assert report(again) == report(given)
    assert other.records == {}
    with pytest.raises(msgspec.ValidationError):
        again.restore({"pair": msgspec.to_builtins(PAIR), "records": {"x": {"looks": -1}}})


def test_assets_are_bounded() -> None:
    given = Contest(PAIR, limit=3)
    for asset in ASSETS:
        given.look(asset, True, False)
    assert len(given.records) == 3
    assert contest.FEWEST > 3
