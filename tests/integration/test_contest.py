"""A contest of two models in a detector that runs: over a real broker, with OpenVINO models made small for it."""

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from appliance.__main__ import main
from appliance.cli.contest import lines
from appliance.events.schema import CommandState
from appliance.inference.contest import Pair
from tests import bundles
from tests.plants import Plant, running

if TYPE_CHECKING:
    from tests.integration.conftest import Box


def begun(box: "Box", second: str = "waves@2.0.0", salt: str = "1", share: float = 50) -> list[str]:
    """A library with two versions of a model; their hashes."""
    from appliance import computing
    from appliance.config.load import load

    with box.config.open("a") as file:
        file.write('[detect]\nmodel = "waves@1.0.0"\ndevice = "CPU"\n')
        file.write(f'[contest]\nmodel = "{second}"\nsalt = "{salt}"\nshare_percent = {share}\n')
    library = computing.library(load(box.config)[0])
    folders = [
        bundles.waves(box.folder / f"draft-{version}", version, waves, "")
        for version, waves in (("1.0.0", 8), ("2.0.0", 9))
    ]
    return [library.add(folder)[0].digest for folder in folders]


def salt_for(assets: list[str], first: str, second: str) -> str:
    """One that gives each model some of these assets."""
    draws = {str(number): {Pair(first, second, 5000, str(number)).arm(one) for one in assets} for number in range(64)}
    return next(salt for salt, arms in draws.items() if len(arms) == 2)


ASSETS = [f"line/{number}" for number in range(4)]


async def told(plant: Plant) -> dict[str, Any]:
    answer = await plant.ask("detect", "contest")
    assert answer.state is CommandState.SUCCESSFUL, answer.reason
    return answer.result


async def contended(plant: Plant) -> None:
    """Until the second model has learned every asset."""
    while plant.choice.get("contest", {}).get("known") != len(ASSETS):
        await plant.run(100)


def test_two_models_judge_their_shares_and_are_reported_side_by_side(box: "Box") -> None:
    salt = salt_for(ASSETS, "", "")
    first, second = begun(box, salt=salt)

    async def scenario() -> dict[str, Any]:
        async with running(box.config, box.url, "detect") as plant:
            await contended(plant)
            assert plant.choice["bundle"] == first
            assert plant.choice["contest"]["bundle"] == second
            assert 0 < plant.choice["contest"]["deciding"] < len(ASSETS)
            before = await told(plant)
            while min(before[arm]["looks"] for arm in "ab") <= 20:
                await plant.run(100)
                before = await told(plant)
            assert set(plant.versions) == {"1.0.0", "2.0.0"}
        async with running(box.config, box.url, "detect", plant=plant):  # what was counted survives
            await plant.until(lambda: "bundle" in plant.choice.get("contest", {}))
            after = await told(plant)
            assert after["a"]["looks"] >= before["a"]["looks"]
            await contended(plant)
            return after

    report = asyncio.run(scenario())
    assert sum(report["assets"]) == len(ASSETS)
    assert report["pair"] == {"a": first, "b": second, "basis_points": 5000, "salt": salt}
    assert "too few assets" in report["verdict"]
    text = "\n".join(lines(report))
    assert "B is waves@2.0.0" in text
    assert "too little was seen" in text


def test_an_installation_comes_first_and_the_contest_goes_on_afterwards(box: "Box") -> None:
    _, second = begun(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect") as plant:
            third = plant.library.add(bundles.waves(box.folder / "third", "3.0.0", 10, ""))[0].digest
            await contended(plant)
            await plant.ask("detect", "compare", bundle=third, criteria={"looks": 50})
            await plant.until(lambda: "bundle" not in plant.choice["contest"])
            assert plant.compared["bundle"] == third
            looks = (await told(plant))["a"]["looks"]
            await plant.ask("detect", "drop")
            await plant.until(lambda: plant.choice["contest"].get("bundle") == second)
            assert (await told(plant))["a"]["looks"] >= looks
            await contended(plant)

    asyncio.run(scenario())


@pytest.mark.parametrize(("second", "why"), [("waves@9.9.9", "waves"), ("waves@1.0.0", "judges all assets already")])
def test_a_contest_that_cannot_be_says_why(box: "Box", second: str, why: str) -> None:
    begun(box, second)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect") as plant:
            await plant.until(lambda: bool(plant.choice.get("contest", {}).get("trouble")))
            assert why in plant.choice["contest"]["trouble"]
            answer = await plant.ask("detect", "contest")
            assert why in answer.reason
            await plant.run(100)  # the first model judges

    asyncio.run(scenario())


def test_without_a_contest_the_command_says_how_to_begin_one(box: "Box", capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> int:
        async with running(box.config, box.url, "detect"):
            return await asyncio.to_thread(main, ["--config", str(box.config), "contest"])

    assert asyncio.run(scenario()) == 1
    assert "[contest]" in capsys.readouterr().err
