"""Setting points of devices: only what is declared, within limits, with a second word where wanted, all noted."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.config.schema import Settable
from appliance.errors import ConfigError, ConnectorError, MillwrightError
from appliance.events.schema import CommandState
from appliance.services import commands
from appliance.services.points import CONFIRM_NS, SECOND, Order, Points, Waiting
from appliance.services.setting import Setting

NOW = 1_790_000_000_000_000_000
PUMP = Settable("line1/pump", "on", "switch")
SPEED = Settable("line1/pump", "speed", "number", min=0, max=100, max_step=20)
VALVE = Settable("line1/valve", "open", "switch", confirmation="another")
HEAT = Settable("line1/oven", "target", "number", min=20, max=200, confirmation="anyone")


def ask(
    points: Points, one: Settable, value: object, by: str = "anna", now: int = NOW, word: str = "w"
) -> Order | Waiting:
    return points.ask(one.asset, one.point, value, by, now, word)


def test_nothing_may_be_set_that_is_not_declared() -> None:
    with pytest.raises(MillwrightError, match="may not be set"):
        ask(Points([]), PUMP, True)
    with pytest.raises(MillwrightError, match="may not be set"):
        Points([PUMP]).ask("line1/pump", "off", True, "anna", NOW, "w")


@given(st.one_of(st.booleans(), st.integers(), st.floats(), st.text(), st.none(), st.lists(st.integers())))
def test_a_value_is_of_its_type_and_within_its_limits(value: Any) -> None:
    points = Points([PUMP, HEAT])
    if isinstance(value, bool):
        assert ask(points, PUMP, value) == Order("line1/pump", "on", value, "anna")
    else:
        with pytest.raises(MillwrightError):
            ask(points, PUMP, value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 20 <= value <= 200:
        assert isinstance(ask(points, HEAT, value), Waiting)
    else:
        with pytest.raises(MillwrightError):
            ask(points, HEAT, value)


def test_pace_and_steps_are_bounded() -> None:
    points = Points([SPEED])
    order = ask(points, SPEED, 90)
    assert isinstance(order, Order)
    points.done(order, NOW)
    with pytest.raises(MillwrightError, match="just now"):
        ask(points, SPEED, 80, now=NOW + SECOND // 2)
    with pytest.raises(MillwrightError, match="at once"):
        ask(points, SPEED, 60, now=NOW + SECOND)
    assert isinstance(ask(points, SPEED, 70, now=NOW + SECOND), Order)


def test_a_second_word_is_by_whom_it_must_be_once_and_in_time() -> None:
    points = Points([VALVE, HEAT])
    assert isinstance(ask(points, VALVE, True), Waiting)
    with pytest.raises(MillwrightError, match="asked for it"):
        points.confirm("w", "anna", NOW)
    with pytest.raises(MillwrightError, match="no such order"):
        points.confirm("x", "ben", NOW)
    assert points.confirm("w", "ben", NOW + 1) == Order("line1/valve", "open", True, "anna", "ben")
    with pytest.raises(MillwrightError, match="no such order"):
        points.confirm("w", "ben", NOW + 2)
    for later in (NOW + CONFIRM_NS, NOW - 1):
        ask(points, HEAT, 30, word=f"w{later}")
        with pytest.raises(MillwrightError, match="no such order"):
            points.confirm(f"w{later}", "anna", later)


def test_declarations_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError):
        Points([Settable("a", "b", "number")])
    with pytest.raises(ConfigError):
        Points([PUMP, PUMP])


def test_orders_are_noted_before_they_are_carried_out(tmp_path: Path) -> None:
    log = tmp_path / "points.log"
    carried: list[dict[str, Any]] = []

    async def carry(verb: str, args: dict[str, Any]) -> dict[str, Any] | None:
        assert verb == "write"
        assert json.loads(log.read_text().splitlines()[-1])["outcome"] == "ordered"
        carried.append(args)
        if args["value"] == 50:
            raise ConnectorError("the slave does not answer", "Look at the line.")
        return {} if args["asset"] == "line1/pump" else None

    async def scenario() -> None:
        broker = MemoryBroker()
        async with MemoryBus(broker) as bus, MemoryBus(broker) as people:
            setting = Setting(Points([SPEED, VALVE]), log, bus, carry, time.time_ns)
            serving = asyncio.create_task(commands.serve(bus, "ingest", setting.handlers(), time.time_ns))
            speed = {"asset": "line1/pump", "point": "speed"}
            failed = await commands.ask(people, "ingest", "set", speed | {"value": 50.0}, "anna")
            assert (failed.state, "slave" in failed.reason) == (CommandState.FAILED, True)
            done = await commands.ask(people, "ingest", "set", speed | {"value": 60.0}, "anna")
            assert done.result["done"]
            refused = await commands.ask(people, "ingest", "set", speed | {"value": 600.0}, "anna")
            assert "limits" in refused.reason
            valve = {"asset": "line1/valve", "point": "open", "value": True}
            waits = await commands.ask(people, "ingest", "set", valve, "anna")
            gone = await commands.ask(people, "ingest", "confirm", {"word": waits.result["word"]}, "ben")
            assert "no connector sets" in gone.reason
            listed = await commands.ask(people, "ingest", "points", {}, "anna")
            assert [(one["point"], one["last"]) for one in listed.result["points"]] == [("speed", 60.0), ("open", None)]
            serving.cancel()
            await asyncio.wait([serving])

    asyncio.run(scenario())
    told = [json.loads(line)["outcome"] for line in log.read_text().splitlines()]
    assert told == ["ordered", "failed", "ordered", "done", "refused", "waits to be confirmed", "ordered", "failed"]
    assert len(carried) == 3


def test_what_cannot_be_noted_is_not_done(tmp_path: Path) -> None:
    async def carry(verb: str, args: dict[str, Any]) -> dict[str, Any] | None:
        raise AssertionError("it was carried out")

    (tmp_path / "file").write_text("")

    async def scenario() -> None:
        broker = MemoryBroker()
        async with MemoryBus(broker) as bus, MemoryBus(broker) as people:
            setting = Setting(Points([PUMP]), tmp_path / "file" / "points.log", bus, carry, time.time_ns)
            serving = asyncio.create_task(commands.serve(bus, "ingest", setting.handlers(), time.time_ns))
            asked = {"asset": "line1/pump", "point": "on", "value": True}
            assert "not noted" in (await commands.ask(people, "ingest", "set", asked, "anna")).reason
            serving.cancel()
            await asyncio.wait([serving])

    asyncio.run(scenario())
