"""A fleet in one process: a bad model gets no further than its first wave, and a good one reaches everybody."""

import pytest

from tools.rollout.main import DAY, Result, Scenario, simulate


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    scenario = Scenario(devices=40, canary=2500, model_bytes=16 << 10)
    return simulate(scenario, tmp_path_factory.mktemp("fleet"))


def test_a_canary_stops_a_bad_campaign_within_its_first_wave(result: Result) -> None:
    assert "devices rolled back it; 10 % are allowed" in result.stopped
    assert result.stopped_after_s < DAY  # before the second wave opens
    assert 0 < result.rolled_back <= result.took_bad <= result.canary < result.devices


def test_the_good_model_reaches_every_device_in_waves(result: Result) -> None:
    done = result.good_done_s
    assert set(done) == {"3%", "50%", "95%", "100%"}
    assert done["3%"] < DAY < done["50%"] < 2 * DAY < done["95%"] <= done["100%"] < 3 * DAY


def test_what_the_web_server_gave(result: Result) -> None:
    assert result.bad is not None
    assert result.good is not None
    assert result.troubles == 0
    assert "bundles" not in {kind for kind, count in result.good.bytes.items() if count}  # deltas from what is in use
    assert result.good.bytes["deltas"] < 0.8 * result.devices * result.whole_bytes
    assert result.bad.bytes["deltas"] * result.devices < 2 * result.good.bytes["deltas"] * result.took_bad
