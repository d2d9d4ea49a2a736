"""Models changed in a detector that runs: over a real broker, with OpenVINO models made small for it."""

import asyncio
from typing import TYPE_CHECKING

from tests import bundles
from tests.plants import SILENT, Plant, running

if TYPE_CHECKING:
    from tests.integration.conftest import Box


def prepared(box: "Box") -> None:
    with box.config.open("a") as file:
        file.write('[detect]\nmodel = "waves"\ndevice = "CPU"\n')


def add(plant: Plant, box: "Box", version: str, waves: int = 8, manner: str = "") -> str:
    folder = bundles.waves(box.folder / f"draft-{version}", version, waves, manner)
    return plant.library.add(folder)[0].digest


def started(box: "Box") -> None:
    prepared(box)
    from appliance import computing
    from appliance.config.load import load

    folder = bundles.waves(box.folder / "draft", "1.0.0")
    computing.library(load(box.config)[0]).add(folder)


async def balanced(plant: Plant) -> None:
    sent = plant.row * plant.assets
    await plant.until(lambda: plant.detect is not None and plant.detect.processed == sent)
    assert plant.detect is not None
    assert (plant.detect.dropped, plant.detect.received) == ({}, sent)


def test_use_takes_effect_between_two_batches_and_back_again(box: "Box") -> None:
    started(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect") as plant:
            await plant.run(450)
            first = plant.choice["bundle"]
            second = add(plant, box, "2.0.0", 9)
            for bundle, other in ((second, first), (first, second)):
                plant.library.use(plant.library.find(bundle))
                changes = plant.choice["changes"]
                while plant.choice["changes"] == changes:
                    await plant.run(10)  # the change comes in the midst of readings
                assert (plant.choice["bundle"], plant.choice["previous"]) == (bundle, other)
                assert plant.detect is not None
                assert plant.detect.detail["model"] == f"waves {'2.0.0' if bundle == second else '1.0.0'}"
            await plant.run(450)
            await plant.until(lambda: plant.scores >= plant.assets * (plant.row - SILENT))
            assert plant.scores == plant.assets * (plant.row - SILENT)  # each row that is judged at all, once
            assert plant.versions == ["1.0.0", "2.0.0", "1.0.0"]
            await balanced(plant)

    asyncio.run(scenario())


def test_what_cannot_compute_is_told_and_the_model_stays(box: "Box") -> None:
    started(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect") as plant:
            await plant.run(100)
            bad = add(plant, box, "2.0.0", 9)
            entry = plant.library.find(bad)
            (entry.folder / "model.bin").write_bytes(b"\0" * (entry.folder / "model.bin").stat().st_size)
            plant.library.use(entry)
            await plant.until(lambda: "choice_trouble" in plant.choice)
            assert "not what the card promises; waves 1.0.0 stays" in plant.choice["choice_trouble"]
            assert plant.choice["bundle"] != bad
            plant.library.use(plant.library.previous("waves"))
            await plant.until(lambda: "choice_trouble" not in plant.choice)
            await plant.run(100)
            await balanced(plant)
        async with running(box.config, box.url, "detect", plant=plant):  # it starts with what it can
            plant.library.use(plant.library.find(bad))
        async with running(box.config, box.url, "detect", plant=plant):
            assert "the model before it computes" in plant.choice["choice_trouble"]
            assert plant.choice["bundle"] != bad

    asyncio.run(scenario())


def test_a_candidate_is_compared_beside_and_takes_over_with_what_it_learned(box: "Box") -> None:
    started(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect") as plant:
            await plant.run(450)
            second = add(plant, box, "2.0.0", 9)
            answer = await plant.ask("detect", "prepare", bundle=second)
            assert answer.result["device"] == "CPU"
            for _ in range(2):
                assert (await plant.ask("detect", "compare", bundle=second, criteria={"looks": 50})).result == {
                    "bundle": second
                }
            while not plant.compared.get("findings"):
                await plant.run(100)
            assert plant.compared["against"] == ""
            assert plant.compared["known"] == 4
            plant.library.use(plant.library.find(second))
            await plant.until(lambda: plant.choice["bundle"] == second)
            assert plant.compared["trusted"]
            before = plant.compared["looks"]
            while plant.compared["looks"] < before + 100:
                await plant.run(100)
            assert plant.compared["against"] == ""
            await plant.ask("detect", "drop")
            await plant.until(lambda: not plant.compared)
            assert plant.versions == ["1.0.0", "2.0.0"]
            await balanced(plant)

    asyncio.run(scenario())


def test_what_cannot_be_compared_is_refused(box: "Box") -> None:
    started(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect") as plant:
            for bundle, reason in {
                plant.choice["bundle"]: "runs already",
                "0" * 64: "there is no model",
                plant.library.add(bundles.classifier(box.folder / "toy"))[0].digest: "not one that reconstructs",
            }.items():
                answer = await plant.ask("detect", "compare", bundle=bundle)
                assert reason in answer.reason
            assert not plant.compared

    asyncio.run(scenario())
