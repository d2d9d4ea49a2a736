"""Two models in one detector, each deciding for its own share of the assets."""

import pytest

from appliance.errors import DeviceError
from appliance.events.schema import Score
from appliance.inference.contest import Contest, Pair, report
from appliance.inference.detector.contender import Contender
from appliance.inference.detector.memory import Branch
from appliance.inference.port import Tensor
from tests.waves import Plant, Waves, plant

SHAPES = int(Branch.AUTOENCODER)


def contest(basis_points: int, salt: str = "s") -> Contest:
    return Contest(Pair("a" * 64, "b" * 64, basis_points, salt))


def halves(names: list[str]) -> Contest:
    """With both models on some of these assets."""
    for number in range(100):
        given = contest(5000, str(number))
        if 0 < sum(given.arm(name) == "b" for name in names) < len(names):
            return given
    raise AssertionError


def contend(made: Plant, given: Contest, second: Waves | None = None) -> Contender:
    return made.detector.succession.contend(second or Waves("2.0.0", 9), given)


def of_arm(told: list[tuple[str, Score]], given: Contest, arm: str) -> list[tuple[str, Score]]:
    return [(asset, score) for asset, score in told if given.arm(asset) == arm]


def test_where_the_second_one_has_no_share_nothing_changes() -> None:
    alone, both = (plant(Waves("1.0.0")) for _ in range(2))
    given = contest(0)
    contend(both, given)
    for fault in (0.0, 1.5, 0.0):
        alone.fault = both.fault = fault
        assert alone.run(600) == both.run(600)
    assert {record.looks > 20 for record in given.records.values()} == {True}
    assert len(given.records) == 3


def test_each_decides_for_its_share_and_says_so() -> None:
    alone, both = (plant(Waves("1.0.0")) for _ in range(2))
    given = halves(["line/0", "line/1", "line/2"])
    contend(both, given)
    for fault in (0.0, 1.5):
        alone.fault = both.fault = fault
        expected, told = alone.run(700), both.run(700)
        assert of_arm(told, given, "a") == of_arm(expected, given, "a")  # as if there were no second model
    assert {score.version for _, score in of_arm(told, given, "a")} == {"1.0.0"}
    assert {score.version for _, score in of_arm(told, given, "b")} == {"2.0.0"}
    alarmed = [{asset for asset, score in judged if score.alarm} for judged in (expected, told)]
    assert alarmed[0] == alarmed[1] == {"line/0", "line/1", "line/2"}


def test_a_model_that_sees_nothing_raises_no_alarms_on_its_share() -> None:
    class Blind(Waves):
        def __call__(self, windows: Tensor) -> Tensor:
            return windows

    made = plant(Waves("1.0.0"), 900)
    given = halves(["line/0", "line/1", "line/2"])
    contend(made, given, Blind("2.0.0"))
    made.run(1000)
    made.fault = 1.5
    made.run(300)
    found = report(given)
    assert found.a.over > 0
    assert found.b.over == 0
    assert found.alarming[1] == 0 < found.alarming[0]


def test_where_the_second_one_fails_the_first_one_decides_and_nothing_is_counted() -> None:
    class Failing(Waves):
        fails = False

        def __call__(self, windows: Tensor) -> Tensor:
            if self.fails:
                raise DeviceError("it never worked")
            return super().__call__(windows)

    made = plant(Waves("1.0.0"))
    given, second = contest(10_000), Failing("2.0.0", 9)
    contender = contend(made, given, second)
    made.run(800)
    looks = report(given).b.looks
    assert looks > 0
    second.fails, made.fault = True, 1.5
    told = made.run(200)
    assert any(score.alarm for _, score in told)
    assert report(given).b.looks == looks
    assert contender.tally.failures > 0


def test_what_an_asset_shows_widens_both_units_alike() -> None:
    made = plant(Waves("1.0.0"))
    contender = contend(made, contest(10_000))
    made.run(800)
    memory, asset = made.detector._memory, made.detector._assets["line/0"]
    known = contender.known[asset.index]
    looked = []
    for factor in (1.0, 2.0):  # an alarm that ended by itself does it, by less
        memory.unit[SHAPES, asset.index] *= factor
        wider = memory.unit[SHAPES, asset.index] / memory.learned[SHAPES, asset.index]
        points = made.detector._judge._points([asset], [made.row])
        assert contender._units(points, [known]) == pytest.approx(known.learned * wider)
        made.fault = 1.5
        made.run(60)
        looked.append(float(memory.held[SHAPES, asset.index]))
        made.fault = 0.0
        made.run(400)
    assert contender.known[asset.index] is known
    assert 0.0 < looked[1] < 0.75 * looked[0]


def test_the_winner_can_take_over_at_once() -> None:
    made = plant(Waves("1.0.0"))
    second = Waves("2.0.0", 9)
    contend(made, contest(5000), second)
    made.run(800)
    assert made.detector.succession.promote(second) == 3
    made.detector.succession.finish()
    assert {score.version for _, score in made.run(60)} == {"2.0.0"}


def test_the_end_of_a_contest_leaves_the_first_one_alone() -> None:
    made = plant(Waves("1.0.0"))
    contend(made, contest(10_000))
    made.run(700)
    made.detector.succession.drop()
    assert {score.version for _, score in made.run(60)} == {"1.0.0"}


def test_a_detector_in_a_contest_is_written_down_like_any_other() -> None:
    made = plant(Waves("1.0.0"))
    contend(made, contest(5000))
    made.run(700)
    again = Plant(type(made.detector)(made.detector._settings, Waves("1.0.0")))
    again.detector.restore(made.detector.snapshot())
    again.row = made.row
    assert {score.version for _, score in again.run(60)} == {"1.0.0"}
