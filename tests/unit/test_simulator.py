"""The simulated pump: believable, stationary, the same for the same seed; each fault shows where it is said to."""

import asyncio
from itertools import islice
from statistics import fmean, pstdev
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.connectors import simulator
from appliance.connectors._pace import Leaping
from appliance.connectors._pump import SENSORS, SHOWS, Pump
from appliance.connectors.port import Arrival
from appliance.errors import ConfigError, ConnectorError
from appliance.events.schema import Reading

DT_S = 3.0  # of the pump's life at 10 Hz and the default time scale
ROWS = 400  # what a detector learns from
WINDOW = 20

Row = dict[str, float]


def run(pump: Pump, rows: int, fault: str = "", ramp: int = 100) -> list[Row]:
    """`rows` readings; the fault grows over `ramp` of them."""
    return [pump.step(DT_S, {fault: min(1.0, index / ramp)} if fault else {}) for index in range(rows)]


def means(rows: list[Row], channel: str) -> list[float]:
    return [fmean(row[channel] for row in rows[i : i + WINDOW]) for i in range(len(rows) - WINDOW + 1)]


def read(connector: simulator.Simulator, rows: int) -> list[Arrival]:
    async def main() -> list[Arrival]:
        found: list[Arrival] = []
        async with connector:
            async for arrivals in connector:
                found += arrivals
                if len(found) >= rows:
                    break
        return found

    return asyncio.run(main())


def values(arrival: Arrival) -> Row:
    assert isinstance(arrival.event, Reading)
    return arrival.event.values


def test_the_settings_offer_exactly_the_faults_there_are() -> None:
    offered = get_args(simulator.Settings.__annotations__["fault"])[0]
    assert set(get_args(offered)) == {"", *SHOWS}
    assert all(channel in SENSORS for channels in SHOWS.values() for channel in channels)


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_same_seed_same_readings(seed: int) -> None:
    assert run(Pump(seed), 50, "leak") == run(Pump(seed), 50, "leak")
    assert run(Pump(seed), 50) != run(Pump(seed + 1), 50)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_stationary_from_the_first_reading(seed: int) -> None:
    rows = run(Pump(seed), 10 * ROWS)
    for channel in SENSORS:
        learned = means(rows[:ROWS], channel)
        for start in range(ROWS, len(rows), ROWS):
            later = means(rows[start : start + ROWS], channel)
            assert abs(fmean(later) - fmean(learned)) < 0.5 * pstdev(learned), channel
            assert max(later) < max(learned) + pstdev(learned), channel
            assert min(later) > min(learned) - pstdev(learned), channel


def test_readings_are_those_of_a_small_pump() -> None:
    for row in run(Pump(3), ROWS):
        assert 2750 < row["speed_rpm"] < 2950
        assert 170 < row["flow_lpm"] < 230
        assert 2.2 < row["pressure_bar"] < 2.5
        assert 2.4 < row["current_a"] < 3.3
        assert 390 < row["voltage_v"] < 410
        assert 45 < row["bearing_temperature_c"] < 52
        assert 58 < row["motor_temperature_c"] < 68
        assert 1.2 < row["vibration_mm_s"] < 1.7


def test_sensors_have_steps() -> None:
    for row in run(Pump(1), 50):
        for channel, (_, step) in SENSORS.items():
            assert row[channel] / step == pytest.approx(round(row[channel] / step), abs=1e-6)


@pytest.mark.parametrize("fault", SHOWS)
def test_a_fault_shows_first_where_it_is_said_to(fault: str) -> None:
    """Each channel's 20-row mean, in units of how much it wanders in health."""
    pump = Pump(7)
    healthy = run(pump, ROWS)
    middle = {channel: fmean(row[channel] for row in healthy) for channel in SENSORS}
    wander = {channel: pstdev(means(healthy, channel)) for channel in SENSORS}
    ill = run(pump, 200, fault)
    for start in range(len(ill) - WINDOW):
        moved = {
            channel: abs(fmean(row[channel] for row in ill[start : start + WINDOW]) - middle[channel]) / wander[channel]
            for channel in SENSORS
        }
        if max(moved.values()) > 5:
            assert max(moved, key=moved.__getitem__) in SHOWS[fault]
            return
    pytest.fail(f"{fault} moved nothing")


def test_faults_act_as_physics_says() -> None:
    def after(fault: str) -> Row:
        rows = run(Pump(2), ROWS, fault)[-120:]
        return {channel: fmean(row[channel] for row in rows) for channel in SENSORS}

    health, leak, blocked = after(""), after("leak"), after("blocked-outlet")
    assert leak["pressure_bar"] < health["pressure_bar"]
    assert leak["flow_lpm"] < health["flow_lpm"]
    assert leak["current_a"] > health["current_a"], "the pump moves more, past the meter or not"
    assert blocked["pressure_bar"] > health["pressure_bar"]
    assert blocked["flow_lpm"] < 0.6 * health["flow_lpm"]
    assert blocked["current_a"] < health["current_a"]
    assert after("bearing-wear")["bearing_temperature_c"] > health["bearing_temperature_c"] + 10
    assert after("cavitation")["pressure_bar"] < health["pressure_bar"]
    assert after("imbalance")["flow_lpm"] == pytest.approx(health["flow_lpm"], rel=0.01)
    drifted = after("sensor-drift")
    assert drifted["pressure_bar"] > health["pressure_bar"] + 0.5
    assert drifted["flow_lpm"] == pytest.approx(health["flow_lpm"], rel=0.01)


def test_the_fault_comes_goes_and_comes_at_its_time() -> None:
    leap = Leaping()
    plan = simulator.Settings(fault="sensor-drift", fault_after_s=10, fault_duration_s=20, ramp_s=1)
    pressures = [values(arrival)["pressure_bar"] for arrival in read(simulator.create(plan, leap.time()), 500)]
    assert max(pressures[:98]) < 2.6
    assert min(pressures[112:298]) > 2.7
    assert max(pressures[314:]) < 2.6


def test_readings_are_evenly_spaced_and_stamped() -> None:
    leap = Leaping()
    found = read(simulator.create(simulator.Settings(rate_hz=4, asset="hall/pump2"), leap.time()), 9)
    assert {arrival.asset for arrival in found} == {"hall/pump2"}
    assert [arrival.event.at - leap.start for arrival in found] == [n * 250_000_000 for n in range(9)]


def test_time_that_was_slept_through_is_not_made_up_for() -> None:
    async def main() -> list[int]:
        leap = Leaping()
        connector = simulator.create(simulator.Settings(rate_hz=10), leap.time())
        at = []
        async with connector:
            async for arrivals in connector:
                at += [arrival.event.at - leap.start for arrival in arrivals]
                if len(at) == 2:
                    leap.passed_s += 3600
                if len(at) == 4:
                    return at
        raise AssertionError("a simulator does not end")

    at = asyncio.run(main())
    assert [round(moment / 1e9, 3) for moment in at] == [0.0, 0.1, 3600.1, 3600.2]


def test_a_fault_on_request() -> None:
    connector = simulator.create(simulator.Settings(ramp_s=1), Leaping().time())

    async def pressures(rows: int) -> float:
        found = []
        async for arrivals in connector:
            found += [values(arrival)["pressure_bar"] for arrival in arrivals]
            if len(found) == rows:
                break
        return fmean(islice(reversed(found), 20))

    async def main() -> tuple[float, float, float]:
        async with connector:
            before = await pressures(30)
            assert connector.command("inject", {"fault": "sensor-drift", "asset": "other/pump"}) is None
            assert connector.command("explode", {"asset": "demo/pump"}) is None
            result = connector.command("inject", {"fault": "sensor-drift", "asset": "demo/pump"})
            assert result == {"asset": "demo/pump", "fault": "sensor-drift", "shows": ["pressure_bar"]}
            during = await pressures(40)
            connector.command("inject", {"fault": "none", "asset": "demo/pump"})
            return before, during, await pressures(30)

    before, during, after = asyncio.run(main())
    assert during > before + 0.5
    assert after == pytest.approx(before, abs=0.1)
    with pytest.raises(ConnectorError) as raised:
        connector.command("inject", {"fault": "rust", "asset": "demo/pump"})
    assert "bearing-wear" in raised.value.remedy


def test_an_asset_that_breaks_the_grammar_is_refused() -> None:
    with pytest.raises(ConfigError, match="Demo Pump"):
        simulator.create(simulator.Settings(asset="Demo Pump"))


def test_a_fault_that_does_not_exist_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="rust"):
        msgspec.convert({"fault": "rust"}, simulator.Settings)
