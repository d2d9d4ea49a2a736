"""Installing models on a box that runs: real broker, real OpenVINO models, the journal on disk, the command line."""

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from appliance.events.schema import CommandState
from ota import bundle
from tests import bundles
from tests.plants import Plant, running

if TYPE_CHECKING:
    from tests.integration.conftest import Box

SETTINGS = """\
[detect]
model = "waves"
device = "CPU"
[update]
shadow_minutes = 0
watch_minutes = 0
looks = 60
"""


def started(box: "Box", settings: str = SETTINGS) -> None:
    from appliance import computing
    from appliance.config.load import load

    with box.config.open("a") as file:
        file.write(settings)
    computing.library(load(box.config)[0]).add(bundles.waves(box.folder / "draft", "1.0.0"))


async def applied(plant: Plant, box: "Box", version: str, waves: int = 9, manner: str = "", **more: Any) -> str:
    folder = bundles.waves(box.folder / f"draft-{version}", version, waves, manner)
    answer = await plant.ask("update", "apply", source=str(folder), **more)
    assert answer.state is CommandState.SUCCESSFUL, answer.reason
    return f"update/install/{answer.result['id']}"


async def fed(plant: Plant, holds: Callable[[], bool]) -> None:
    """Readings until it holds."""
    async with asyncio.timeout(120):
        while not holds():
            await plant.run(100)


def step(plant: Plant, topic: str) -> str:
    return str(plant.installs[topic].result["step"]) if topic in plant.installs else ""


def ended(plant: Plant, topic: str) -> bool:
    return topic in plant.installs and plant.installs[topic].state is not CommandState.EXECUTING


async def said(box: "Box", *words: str) -> Any:
    code, output, errors = await box.run("update", "models", *words, "--json")
    assert code == 0, errors
    return json.loads(output)


def test_a_good_model_is_tried_promoted_and_confirmed(box: "Box") -> None:
    started(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect", "update") as plant:
            await plant.run(450)
            first = plant.choice["bundle"]
            topic = await applied(plant, box, "2.0.0")
            await fed(plant, lambda: ended(plant, topic))
            told = plant.installs[topic]
            assert (told.state, told.reason) == (CommandState.SUCCESSFUL, "")
            assert [name for name, _ in told.result["trail"]] == [
                "queued",
                "downloading",
                "verifying",
                "reconstructing",
                "compiling",
                "shadow",
                "promoted",
                "confirmed",
            ]
            assert told.result["before"] == first
            assert told.result["figures"]["shadow"]["looks"] >= 60
            assert told.result["figures"]["promoted"]["looks"] >= 60
            assert plant.choice["bundle"] == told.args["bundle"]
            assert not list((plant.config.paths.state / "update" / "arriving").iterdir())
            [entry] = (await said(box, "history"))["history"]
            assert (entry["step"], entry["version"]) == ("confirmed", "2.0.0")
            assert (await said(box, "status"))["installations"] == []

            back = await said(box, "rollback")
            assert back["returning"]
            await plant.until(lambda: plant.choice.get("bundle") == first)
            await fed(plant, lambda: plant.installs[topic].state is CommandState.FAILED)
            assert "did not want it" in plant.installs[topic].reason
            await plant.run(100)
            assert plant.versions == ["1.0.0", "2.0.0", "1.0.0"]
            assert plant.detect is not None
            assert plant.detect.dropped == {}

    asyncio.run(scenario())


def test_a_bad_model_is_caught_in_shadow_and_never_runs(box: "Box") -> None:
    started(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect", "update") as plant:
            await plant.run(450)
            first = plant.choice["bundle"]
            topic = await applied(plant, box, "2.0.0", manner="reversed")
            await fed(plant, lambda: ended(plant, topic))
            told = plant.installs[topic]
            assert (told.state, told.result["step"]) == (CommandState.FAILED, "refused")
            assert told.reason.startswith("in shadow: ")
            assert "residual" in told.reason
            assert plant.choice["bundle"] == first
            assert plant.versions == ["1.0.0"]
            answer = await plant.ask("update", "apply", source=str(box.folder / "draft-2.0.0"))
            assert "was refused before: refused: in shadow" in answer.reason
            plan = await said(box, "plan", str(box.folder / "draft-2.0.0"))
            assert plan["refused"].startswith("refused: in shadow")

    asyncio.run(scenario())


def test_one_that_degrades_after_it_took_over_is_rolled_back_by_itself(box: "Box") -> None:
    started(box, SETTINGS.replace("watch_minutes = 0", "watch_minutes = 10000"))

    async def scenario() -> None:
        async with running(box.config, box.url, "detect", "update") as plant:
            await plant.run(450)
            first = plant.choice["bundle"]
            topic = await applied(plant, box, "2.0.0", manner="brittle")
            await fed(plant, lambda: step(plant, topic) == "promoted" and plant.choice["bundle"] != first)
            await fed(plant, lambda: bool(plant.compared.get("trusted")) and plant.compared["looks"] >= 120)
            assert not ended(plant, topic)
            plant.slow = 3.0
            await fed(plant, lambda: ended(plant, topic))
            told = plant.installs[topic]
            assert told.result["step"] == "rolled-back"
            assert told.reason.startswith("after it took over: ")
            await plant.until(lambda: plant.choice["bundle"] == first and not plant.compared)
            [entry] = (await said(box, "history"))["history"]
            assert (entry["step"], entry["reason"]) == ("rolled-back", told.reason)
            answer = await plant.ask("update", "apply", source=str(box.folder / "draft-2.0.0"))
            assert "was refused before: rolled-back: after it took over" in answer.reason

    asyncio.run(scenario())


def test_a_restart_at_each_step_changes_nothing_of_what_comes_out(box: "Box") -> None:
    """Both services end and begin again; what was in the middle goes on."""
    started(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect", "update") as plant:
            await plant.run(450)
            await said(box, "pause")
            topic = await applied(plant, box, "2.0.0")
            await plant.until(lambda: step(plant, topic) == "queued")
        for wanted in ("queued", "shadow", "promoted"):
            async with running(box.config, box.url, "detect", "update", plant=plant):
                if wanted == "queued":
                    assert (await said(box, "status"))["paused"]
                    await said(box, "pause", "--resume")
                else:
                    await fed(plant, lambda wanted=wanted: step(plant, topic) == wanted)
        async with running(box.config, box.url, "detect", "update", plant=plant):
            await fed(plant, lambda: ended(plant, topic))
            assert step(plant, topic) == "confirmed"

    asyncio.run(scenario())


def test_a_packed_bundle_two_at_once_and_one_of_another_name(box: "Box") -> None:
    started(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect", "update") as plant:
            await plant.run(450)
            pack = box.folder / "waves.bundle"
            bundle.pack(bundles.waves(box.folder / "packed", "2.0.0", 9), pack)
            answer = await plant.ask("update", "apply", source=str(pack))
            topic = f"update/install/{answer.result['id']}"
            folder = bundles.classifier(box.folder / "toy")
            other = (await plant.ask("update", "apply", source=str(folder))).result
            assert other["step"] == "queued"
            await fed(plant, lambda: ended(plant, topic) and ended(plant, f"update/install/{other['id']}"))
            assert step(plant, topic) == "confirmed"
            told = plant.installs[f"update/install/{other['id']}"].result
            assert told["step"] == "confirmed"
            assert told["figures"]["shadow"] == {"compared": False}

    asyncio.run(scenario())


def test_what_cannot_be_installed_is_refused_at_once(box: "Box") -> None:
    started(box)

    async def scenario() -> None:
        async with running(box.config, box.url, "detect", "update") as plant:
            (box.folder / "junk").mkdir()
            (box.folder / "junk" / "notes.txt").write_text("nothing")
            for source, reason in {
                str(box.folder / "draft"): "in use already",
                str(box.folder / "missing"): "No such file",
                str(box.folder / "junk"): "card.toml",
                "relative": "do not fit",
            }.items():
                answer = await plant.ask("update", "apply", source=source)
                assert answer.state is CommandState.FAILED
                assert reason in answer.reason
            code, _, errors = await box.run("update", "models", "rollback")
            assert (code, "no model that was installed here runs" in errors) == (1, True)
            code, output, _ = await box.run("update", "models", "status")
            assert (code, output) == (0, "Nothing is being installed.\n")
            code, output, _ = await box.run("update", "models", "plan", str(box.folder / "draft"))
            assert code == 0
            assert "in use" in output

    asyncio.run(scenario())
