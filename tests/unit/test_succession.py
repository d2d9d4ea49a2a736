"""One model after another in a detector that goes on judging: compared, taken over from, and back again."""

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.errors import DeviceError, ModelError
from appliance.events.schema import Stage
from appliance.inference import comparison
from appliance.inference.comparison import Criteria
from appliance.inference.detector.detector import Detector
from appliance.inference.detector.memory import Branch
from appliance.inference.port import Tensor
from tests.waves import SECOND, START, Waves, plant

SHAPES = int(Branch.AUTOENCODER)


def units(detector: Detector, asset: str = "line/0") -> float:
    index = detector._assets[asset].index
    return float(detector._memory.unit[SHAPES, index])


def header(detector: Detector) -> NDArray[np.float64]:
    return detector._memory.header(detector._assets["line/0"]).copy()


def test_a_candidate_changes_nothing_that_is_told() -> None:
    alone, beside = (plant(Waves("1.0.0")) for _ in range(2))
    shadow = beside.detector.succession.begin(Waves("2.0.0", 9))
    for fault in (0.0, 1.5, 0.0):
        alone.fault = beside.fault = fault
        assert alone.run(700) == beside.run(700)
    assert len(shadow.known) == 3
    assert shadow.tally.looks > 90


def test_as_good_a_candidate_has_nothing_against_it() -> None:
    made = plant(Waves("1.0.0"))
    shadow = made.detector.succession.begin(Waves("2.0.0", 9))
    made.run(3000)
    assert shadow.tally.looks > 150
    assert comparison.against(comparison.quality(shadow.tally, Criteria())) == ""


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("blind", "p95"),  # gives back whatever it is given
        ("noisy", "residual"),
        ("dead", "residual"),
        ("failing", "failures"),
    ],
)
def test_a_bad_candidate_is_told_by_what_is_wrong_with_it(what: str, wrong: str) -> None:
    class Bad(Waves):
        def __call__(self, windows: Tensor) -> Tensor:
            if what == "failing":
                raise DeviceError("it never worked")
            if what == "noisy":
                return super().__call__(windows)[:, ::-1]
            return windows if what == "blind" else np.zeros_like(windows)

    made = plant(Waves("1.0.0"))
    shadow = made.detector.succession.begin(Bad("2.0.0"))
    made.run(1500)
    made.fault = 1.5
    made.run(100)
    assert wrong in comparison.against(comparison.quality(shadow.tally, Criteria()))


def test_what_was_learned_beside_counts_at_once() -> None:
    made = plant(Waves("1.0.0"))
    successor = Waves("2.0.0", 9)
    shadow = made.detector.succession.begin(successor)
    made.run(600)
    expected = shadow.known[made.detector._assets["line/0"].index]
    assert made.detector.succession.promote(successor) == 3
    made.detector.succession.finish()
    assert units(made.detector) == expected.unit
    made.fault = 1.5
    told = [score for _, score in made.run(80) if score.alarm]
    assert {score.version for score in told} == {"2.0.0"}
    assert made.detector.describe()["model"] == "waves 2.0.0"


def test_a_model_that_was_not_beside_learns_while_the_others_go_on() -> None:
    made = plant(Waves("1.0.0"))
    assert made.detector.succession.promote(Waves("2.0.0", 9)) == 0
    assert units(made.detector) == 0.0
    scores = made.run(395)
    assert len(scores) == 3 * 395
    assert {score.branch for _, score in scores} <= {"level", "spread"}
    made.run(10)
    assert units(made.detector) > 0.0


def test_the_way_back_restores_what_was_known() -> None:
    first, second = Waves("1.0.0"), Waves("2.0.0", 9)
    made = plant(first)
    made.detector.succession.begin(second)
    made.run(600)
    before, unit = header(made.detector), units(made.detector)
    made.detector.succession.promote(second)
    assert made.detector.succession.shadow is not None
    assert made.detector.succession.shadow.trusted
    made.detector.succession.finish()
    assert not np.array_equal(header(made.detector), before, equal_nan=True)
    assert made.detector.succession.promote(first) == 3
    made.detector.succession.finish()
    assert np.array_equal(header(made.detector), before, equal_nan=True)
    assert units(made.detector) == unit
    made.detector.succession.drop()
    assert made.detector.succession.shadow is None


def test_every_row_is_judged_once_whatever_is_changed() -> None:
    models = [Waves(f"{number}.0.0", 7 + number) for number in range(4)]
    made = plant(models[0], 500)
    scores = []
    for round_, model in enumerate(models[1:]):
        if round_ != 1:
            made.detector.succession.begin(model)
        scores += made.run(433)
        made.detector.succession.promote(model)
        scores += made.run(17)
    for asset in range(3):
        times = [(score.at - START) // SECOND for name, score in scores if name == f"line/{asset}"]
        assert times == list(range(500, 500 + 3 * 450))


def test_an_alarm_of_the_model_stands_over_the_change() -> None:
    made = plant(Waves("1.0.0"))
    successor = Waves("2.0.0", 9)
    made.detector.succession.begin(successor)
    made.run(600)
    made.fault = 1.5
    made.run(80)
    assert all(score.alarm for _, score in made.run(1))
    made.detector.succession.promote(successor)
    assert all(score.alarm for _, score in made.run(200))


def test_of_an_asset_that_learns_anew_the_candidate_knows_nothing() -> None:
    made = plant(Waves("1.0.0"))
    shadow = made.detector.succession.begin(Waves("2.0.0", 9))
    made.run(600)
    made.detector.accept("line/1")
    made.run(40)
    assert len(shadow.known) == 2
    assert made.detector.succession.promote(shadow.shapes.reconstructor) == 2
    made.run(900)
    assert units(made.detector, "line/1") > 0.0


def test_a_candidate_with_longer_windows() -> None:
    made = plant(Waves("1.0.0"))
    successor = Waves("2.0.0", 12, window=96)
    shadow = made.detector.succession.begin(successor)
    made.run(900)
    assert len(shadow.known) == 3
    assert shadow.tally.looks > 0
    assert made.detector.succession.promote(successor) == 3
    scores = made.run(400)
    assert len(scores) == 3 * 400
    assert all(np.isfinite(score.score) for _, score in scores)


def test_a_candidate_with_windows_that_are_too_long_is_refused() -> None:
    made = plant(Waves("1.0.0"), 10)
    with pytest.raises(ModelError, match="too long for a learning period"):
        made.detector.succession.begin(Waves("2.0.0", window=300))


def test_rows_kept_for_a_candidate_are_given_back() -> None:
    made = plant(Waves("1.0.0"), 1200)
    ring = made.detector._assets["line/0"].ring
    made.detector.succession.begin(Waves("2.0.0", 9))
    made.run(64)
    assert made.detector._assets["line/0"].ring > ring
    made.detector.succession.drop()
    made.run(64)
    assert made.detector._assets["line/0"].ring == ring
    made.detector.succession.begin(Waves("2.0.0", 9))
    made.run(600)
    assert made.detector._assets["line/0"].ring == ring


def test_assets_that_come_and_go_meanwhile() -> None:
    made = plant(Waves("1.0.0"))
    successor = Waves("2.0.0", 9)
    shadow = made.detector.succession.begin(successor)
    made.run(200)
    made.detector.forget("line/2")
    made.assets = 5
    made.run(1300)
    assert len(shadow.known) == 5
    made.detector.forget("line/1")
    assert made.detector.succession.promote(successor) == 4
    assert {known.stage for known in made.detector.assets()} == {Stage.ALARMING}


def test_one_look_of_several_is_compared_where_the_box_is_busy() -> None:
    made = plant(Waves("1.0.0"))
    shadow = made.detector.succession.begin(Waves("2.0.0", 9))
    made.run(700)
    looks = []
    for shadow.ration in (1, 4):
        shadow.begin_tally()
        made.run(32 * 16)
        looks.append(shadow.tally.looks)
    assert looks == [48, 12]


def test_the_ration_follows_the_cost() -> None:
    assert [comparison.ration(now, share) for now, share in ((1, 0.2), (64, 0.9), (4, 0.05), (4, 0.01), (1, 0.0))] == [
        2,
        64,
        4,
        2,
        1,
    ]


def test_what_the_criteria_say() -> None:
    tally = comparison.Tally()
    scores = np.exp(np.random.default_rng(3).normal(size=1000) * 0.4) * 0.5
    tally.add(scores, scores * 1.02, 1.6)
    tally.add_residuals(np.full(1000, 0.1))
    costs = [comparison.Cost() for _ in range(3)]
    for cost, factor in zip(costs, (1.0, 1.5, 9.0), strict=True):
        for windows in (1, 100):
            for noise in (3.0, 1.0, 50.0, 2.0, 9.0, 4.0, 7.0, 5.0):
                cost.add(windows, windows * factor * noise)
    found = comparison.findings(tally, Criteria(), (costs[0], costs[1]), 1 << 20)
    assert comparison.against(found) == ""
    slow = comparison.findings(tally, Criteria(), (costs[0], costs[2]), 1 << 32)
    assert comparison.against(slow) == "memory in MB 4.1e+03, at most 512; latency, ratio 9, at most 3"
    assert comparison.Cost().ratio(costs[0]) is None
    chance = comparison.Cost()
    chance.add(100, 1e6)  # one call, while the box did something else
    assert chance.ratio(costs[0]) is None
    tally.candidate_alarms = 9
    assert comparison.against(comparison.quality(tally, Criteria())) == "alarms 9, 0 to 3"


def test_quantiles_are_right_to_a_fifth() -> None:
    scores = np.exp(np.random.default_rng(5).normal(size=4000))
    tally = comparison.Tally()
    tally.add(scores, scores, 1.6)
    for part in (0.1, 0.5, 0.95):
        assert comparison.quantile(tally.trusted, part) == pytest.approx(np.quantile(scores, part), rel=0.2)
