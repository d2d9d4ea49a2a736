"""Models from a repository: a real web server or a stick, real signatures, real deltas, a detector that runs."""

import asyncio
import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from appliance import assembly, computing
from appliance.bus.mqtt import MqttBus
from appliance.config.load import load
from appliance.errors import ConfigError
from appliance.events import codec, topics
from appliance.events.schema import Command, CommandState, Kind
from ota import courier
from ota.delta.making import make
from ota.manifest import Bundle
from ota.publish import goods
from tests import bundles
from tests.plants import PATIENCE_S, Plant, running
from tests.updates import FLEET, OTHER, Handler, Publisher, Server, serving

if TYPE_CHECKING:
    from tests.integration.conftest import Box

BEGAN = "2026-01-01T00:00:00Z"


class Site:
    """A repository, who signs it, and a box whose first model comes from it."""

    def __init__(self, box: "Box", server: Server, publisher: Publisher) -> None:
        self.box, self.server, self.publisher = box, server, publisher
        self.root = box.folder / "root.json"
        self.root.write_bytes(publisher.root)

    def configure(self, more: str = "", **settings: Any) -> None:
        values = {
            "sources": [self.server.url],
            "fleet": FLEET,
            "root": str(self.root),
            "device": "box-1",
            "poll_minutes": 0.005,
            "shadow_minutes": 0,
            "watch_minutes": 0,
            "looks": 60,
        } | settings
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        with self.box.config.open("a") as file:
            file.write(f'[detect]\nmodel = "waves"\ndevice = "CPU"\n[update]\n{text}{more}')

    def start(self, more: str = "", **settings: Any) -> str:
        """The box runs the first version; its hash."""
        self.configure(more, **settings)
        folder = self.box.folder / "made-1.0.0"
        return computing.library(load(self.box.config)[0]).add(folder)[0].digest

    def publish(self, version: str, waves: int = 9, manner: str = "") -> Bundle:
        """With deltas from what was published before."""
        made = self.publisher.add(bundles.waves(self.box.folder / f"made-{version}", version, waves, manner))
        goods.add_deltas(self.publisher.workshop, FLEET, "waves", 3, make)
        self.publisher.publish()
        return made

    def speak(self, bundle: Bundle, name: str = "spring", **more: Any) -> None:
        """A campaign for everybody, whose only wave is open."""
        given = {
            "id": name,
            "salt": "7f3a",
            "model": bundle.name,
            "version": bundle.version,
            "bundle": bundle.bundle,
            "waves": [{"name": "all", "opens": BEGAN}],
        } | more
        goods.set_campaign(self.publisher.workshop, FLEET, json.dumps(given).encode())
        self.publisher.publish()

    def stick(self) -> Path:
        stick = self.box.folder / "media" / "stick"
        stick.mkdir(parents=True, exist_ok=True)
        keys = self.publisher.keys
        goods.prepare_stick(self.publisher.workshop, stick, [FLEET], keys.courier, [keys.online])
        return stick

    def asked(self, kind: str) -> list[str]:
        return [path for path, _ in self.server.asked if path.endswith(kind)]

    async def said(self, *words: str) -> Any:
        code, output, errors = await self.box.run("update", "models", *words, "--json")
        assert code == 0, errors
        return json.loads(output)


@pytest.fixture
def site(box: "Box") -> Iterator[Site]:
    publisher = Publisher(box.folder / "workshop", time.time())
    first = bundles.waves(box.folder / "made-1.0.0", "1.0.0")
    publisher.add(first)
    with serving(publisher.workshop.repository) as server:
        yield Site(box, server, publisher)


async def fed(plant: Plant, holds: Callable[[], bool]) -> None:
    """Readings until it holds."""
    async with asyncio.timeout(120):
        while not holds():
            await plant.run(100)


def of(plant: Plant, bundle: Bundle) -> Command | None:
    """The newest that is told of its installation."""
    told = [one for one in plant.installs.values() if one.args.get("bundle") == bundle.bundle]
    return max(told, key=lambda one: one.at, default=None)


def step(plant: Plant, bundle: Bundle) -> str:
    found = of(plant, bundle)
    return str(found.result["step"]) if found is not None else ""


def ended(plant: Plant, bundle: Bundle) -> Command | None:
    found = of(plant, bundle)
    return found if found is not None and found.state is not CommandState.EXECUTING else None


def repository(plant: Plant) -> dict[str, Any]:
    state = plant.states.get("update")
    found: dict[str, Any] = state.detail.get("repository", {}) if state is not None and state.online else {}
    return found


async def retained(url: str, filters: str) -> dict[str, Command]:
    """What the broker has for somebody who comes now."""
    found = {}
    async with MqttBus(url) as bus, asyncio.timeout(PATIENCE_S):
        await bus.wait_connected()
        async with bus.subscribe(filters, qos=1) as batches:
            async for batch in batches:
                found |= {one.topic: codec.decode(Kind.COMMAND, one.payload, 0) for one in batch if one.retain}
                if found:
                    return found
    raise AssertionError


def test_a_new_model_comes_as_a_delta_is_tried_promoted_and_confirmed(site: Site) -> None:
    first = site.start()

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            await plant.until(lambda: "looked_at" in repository(plant))
            assert repository(plant)["offers"] == []
            wanted = site.publish("2.0.0")
            site.server.asked.clear()
            await plant.until(lambda: repository(plant)["offers"] != [])
            [offer] = repository(plant)["offers"]
            assert (offer["choice"], offer["reason"]) == ("leave", "no campaign speaks of it")
            assert not plant.installs
            site.speak(wanted)
            await fed(plant, lambda: ended(plant, wanted) is not None)
            told = ended(plant, wanted)
            assert told is not None
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
            assert (told.result["before"], told.result["campaign"], told.by) == (first, "spring", "")
            assert len(site.asked(".delta")) == 1
            assert site.asked(".bundle") == []
            receipt = told.result["receipt"]
            assert (receipt["outcome"], receipt["device"]) == ("confirmed", "box-1")
            assert receipt["bundle"] == wanted.bundle
            assert receipt["seen"] >= 4
            await plant.until(lambda: plant.choice["bundle"] == wanted.bundle)
            await plant.run(100)
            assert plant.versions == ["1.0.0", "2.0.0"]
            assert plant.detect is not None
            assert plant.detect.dropped == {}
            [kept] = (await retained(site.box.url, topics.commands_of("update/install"))).values()
            assert kept == told
            await plant.until(lambda: repository(plant)["offers"] == [])
            supply = plant.config.paths.state / "update" / "supply"
            assert [path.name for path in supply.rglob("*") if path.is_file()] == []

    asyncio.run(scenario())


def test_bad_models_are_caught_in_shadow_or_rolled_back_and_not_taken_again(site: Site) -> None:
    first = site.start(watch_minutes=10000)

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            bad = site.publish("2.0.0", manner="reversed")
            site.speak(bad)
            await fed(plant, lambda: ended(plant, bad) is not None)
            told = ended(plant, bad)
            assert told is not None
            assert (told.state, told.result["step"]) == (CommandState.FAILED, "refused")
            assert told.reason.startswith("in shadow: ")
            assert told.result["receipt"]["outcome"] == "refused"
            assert plant.choice["bundle"] == first

            worse = site.publish("3.0.0", manner="brittle")
            site.speak(worse, "summer")
            await fed(plant, lambda: step(plant, worse) == "promoted" and plant.choice["bundle"] == worse.bundle)
            await fed(plant, lambda: bool(plant.compared.get("trusted")) and plant.compared["looks"] >= 120)
            plant.slow = 3.0
            await fed(plant, lambda: ended(plant, worse) is not None)
            told = ended(plant, worse)
            assert told is not None
            assert told.result["step"] == "rolled-back"
            assert told.reason.startswith("after it took over: ")
            assert told.result["receipt"]["outcome"] == "rolled-back"
            await plant.until(lambda: plant.choice["bundle"] == first)

            looked_at = repository(plant)["looked_at"]
            await plant.until(lambda: repository(plant)["looked_at"] > looked_at)
            history = (await site.said("history"))["history"]
            assert [(one["version"], one["step"]) for one in history] == [
                ("2.0.0", "refused"),
                ("3.0.0", "rolled-back"),
            ]
            assert all(one["reason"] for one in history)
            assert (await site.said("status"))["installations"] == []

    asyncio.run(scenario())


def test_a_stick_that_is_plugged_in_is_found_and_takes_receipts_back(site: Site) -> None:
    """No network, and nobody at a keyboard."""
    media = site.box.folder / "media"
    site.start(sources=[f"{media}/*"], poll_minutes=0, automatic="newest")
    wanted = site.publish("2.0.0")

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            assert repository(plant)["sticks"] == []
            stick = site.stick()
            await fed(plant, lambda: ended(plant, wanted) is not None)
            told = ended(plant, wanted)
            assert told is not None
            assert told.result["step"] == "confirmed"
            await plant.until(lambda: repository(plant)["sticks"] == [str(stick)])
            receipts = stick / "millwright" / "receipts"
            await fed(plant, lambda: list(courier.receipts(receipts)) != [])
            [receipt] = courier.receipts(receipts)
            assert (receipt.outcome, receipt.bundle, receipt.device) == ("confirmed", wanted.bundle, "box-1")
            shutil.rmtree(media / "stick")
            await plant.until(lambda: repository(plant)["sticks"] == [])
            assert repository(plant)["owed"] == 0
            assert site.server.asked == []

    asyncio.run(scenario())


def test_what_a_person_asks_for_comes_from_where_they_say(site: Site) -> None:
    site.start(automatic="never", poll_minutes=0)
    second, third = site.publish("2.0.0"), site.publish("3.0.0", 10)
    site.speak(third, never=[{"from": "00:00", "to": "24:00"}])
    stick = site.stick()

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            plan = await site.said("plan", "waves")
            assert (plan["version"], plan["route"], plan["by_itself"]["choice"]) == ("3.0.0", "delta", "leave")
            assert plan["bytes"] < plan["whole_bytes"] < plan["disk_bytes"]
            assert plan["way_back"] == "waves@1.0.0"
            assert plan["compared"]
            plan = await site.said("plan", "waves@2.0.0", "--from", str(stick))
            assert (plan["place"], plan["version"]) == (f"{stick}", "2.0.0")
            code, output, _ = await site.box.run("update", "models", "plan", "waves@2.0.0", "--from", str(stick))
            assert code == 0
            for part in ("delta", "bytes", "applying the difference takes", "compiling", "way back"):
                assert part in output
            site.server.asked.clear()
            answer = await plant.ask("update", "apply", model="waves@2.0.0", place=str(stick))
            assert answer.state is CommandState.SUCCESSFUL, answer.reason
            await fed(plant, lambda: ended(plant, second) is not None)
            assert step(plant, second) == "confirmed"
            assert [path for path, _ in site.server.asked if path.startswith("targets/")] == []
            receipts = stick / "millwright" / "receipts"
            await fed(plant, lambda: list(courier.receipts(receipts)) != [])  # also on a stick that no source names
            [receipt] = courier.receipts(receipts)
            assert (receipt.outcome, receipt.bundle) == ("confirmed", second.bundle)

    asyncio.run(scenario())


def test_a_campaign_that_is_stopped_takes_back_what_does_not_run_yet(site: Site) -> None:
    first = site.start(shadow_minutes=10000)

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            wanted = site.publish("2.0.0")
            site.speak(wanted)
            await fed(plant, lambda: step(plant, wanted) == "shadow")
            stop = {"reports": 1, "rolled_back_basis_points": 1000}
            site.speak(wanted, stop=stop, progress={"confirmed": 3, "rolled_back": 2})
            await fed(plant, lambda: ended(plant, wanted) is not None)
            told = ended(plant, wanted)
            assert told is not None
            assert told.reason.startswith("the campaign spring ")
            assert "stopped" in told.reason
            assert plant.choice["bundle"] == first
            assert (await site.said("status"))["refused"] == 0

    asyncio.run(scenario())


def test_hours_of_this_box_hold_back_what_nobody_asked_for(site: Site) -> None:
    site.start(never=["00:00-24:00"])

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            wanted = site.publish("2.0.0")
            site.speak(wanted)
            await plant.until(lambda: repository(plant).get("offers", []) != [])
            await plant.until(lambda: repository(plant)["offers"][0]["choice"] == "wait")
            assert repository(plant)["offers"][0]["reason"] == "by this box's own hours: not at this time of day"
            assert not plant.installs
            answer = await plant.ask("update", "apply", model="waves")  # a person may, at any time
            assert answer.state is CommandState.SUCCESSFUL
            await fed(plant, lambda: ended(plant, wanted) is not None)
            assert step(plant, wanted) == "confirmed"

    asyncio.run(scenario())


# ---- what goes wrong ------------------------------------------------------------------------------------------------


async def refusal(plant: Plant, verb: str = "plan", **asked: Any) -> str:
    answer = await plant.ask("update", verb, **asked)
    assert answer.state is CommandState.FAILED
    return answer.reason


def test_each_thing_that_is_wrong_with_a_repository_is_a_sentence_with_a_remedy(site: Site) -> None:
    site.start(poll_minutes=0, fleet=OTHER)
    site.publish("2.0.0")
    empty = site.box.folder / "empty"
    empty.mkdir()

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            reason = await refusal(plant, model="waves")
            assert "has nothing for the fleet 'plant-b'\n  -> Check `fleet` in [update]" in reason
            reason = await refusal(plant, model="waves", place=str(empty))
            assert "there is no repository on it\n  -> Prepare it: millwright-publish usb" in reason
            assert "One of both" in await refusal(plant, model="waves", source="/x")

            site.server.fault = lambda handler, path, data, begin: handler.send_error(404) or True
            reason = await refusal(plant, "look")
            assert "the server does not have it" in reason or "not found" in reason.lower()
            await plant.until(lambda: repository(plant).get("trouble", "") != "")
            site.server.fault = lambda handler, path, data, begin: handler.reset() or True
            assert "\n  -> It is tried again later" in await refusal(plant, "look")

            site.root.write_bytes(Publisher(site.box.folder / "stranger", time.time()).root)
            site.server.fault = lambda handler, path, data, begin: False
            assert "Ask whoever signs this repository" in await refusal(plant, "look")
            site.root.unlink()
            assert "Copy metadata/1.root.json of the repository there" in await refusal(plant, "look")

    asyncio.run(scenario())


def test_a_repository_that_nobody_signs_any_more_is_told_and_harms_nothing(box: "Box") -> None:
    publisher = Publisher(box.folder / "workshop", time.time() - 3 * 86_400)
    publisher.add(bundles.waves(box.folder / "made", "2.0.0"))
    with serving(publisher.workshop.repository) as server:
        site = Site(box, server, publisher)
        bundles.waves(box.folder / "made-1.0.0", "1.0.0")
        site.start()

        async def scenario() -> None:
            async with running(box.config, box.url, "detect", "update") as plant:
                await plant.until(lambda: "trouble" in repository(plant))
                assert "Somebody holds newer ones back, or nobody signs any more." in repository(plant)["trouble"]
                await plant.run(100)
                publisher.now = time.time()
                publisher.renew()
                await plant.ask("update", "look")
                await plant.until(lambda: "trouble" not in repository(plant) and repository(plant)["snapshot"] > 0)

        asyncio.run(scenario())


def test_a_stick_that_is_pulled_out_loses_nothing(site: Site) -> None:
    """It goes on with the same stick, as soon as it is plugged in again."""
    media = site.box.folder / "media"
    site.start(sources=[f"{media}/*"], poll_minutes=0)
    wanted = site.publish("2.0.0")
    stick = site.stick()

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            await site.said("pause")
            answer = await plant.ask("update", "apply", model="waves")
            assert answer.state is CommandState.SUCCESSFUL, answer.reason
            away = stick.rename(site.box.folder / "away")
            await site.said("pause", "--resume")
            await plant.until(lambda: "no repository is at hand" in str(getattr(of(plant, wanted), "reason", "")))
            assert step(plant, wanted) == "downloading"
            away.rename(stick)
            await fed(plant, lambda: ended(plant, wanted) is not None)
            assert step(plant, wanted) == "confirmed"

    asyncio.run(scenario())


def test_what_takes_more_room_than_there_may_be_is_not_begun(site: Site) -> None:
    site.start(poll_minutes=0, budget_mb=1)
    folder = bundles.waves(site.box.folder / "large", "2.0.0", 200, window=1024)
    site.publisher.add(folder)

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            answer = await plant.ask("update", "apply", model="waves")
            assert answer.state is CommandState.SUCCESSFUL
            topic = f"update/install/{answer.result['id']}"
            await plant.until(lambda: "may be used" in plant.installs[topic].reason)
            assert "1,048,576" in plant.installs[topic].reason
            back = await site.said("rollback")
            assert back["step"] == "refused"

    asyncio.run(scenario())


def test_a_pause_and_a_word_of_a_person_wait_for_no_server(site: Site) -> None:
    """In the midst of a download from a server that says nothing more; it goes on where it was."""
    site.start(poll_minutes=0)
    folder = bundles.waves(site.box.folder / "large", "2.0.0", 63, window=64)
    wanted = site.publisher.add(folder)
    half = threading.Event()
    given: list[int] = []

    def silent(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if not path.endswith(".bundle"):
            return False
        given.append(begin)
        if begin:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.wfile.flush()
        half.set()
        handler.server.ended.wait(PATIENCE_S)
        return True

    async def scenario() -> None:
        site.server.fault = silent
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            answer = await plant.ask("update", "apply", model="waves")
            assert answer.state is CommandState.SUCCESSFUL, answer.reason
            await asyncio.to_thread(half.wait, PATIENCE_S)
            await plant.until(lambda: plant.states["update"].detail.get("progress", {}).get("bytes", 0) > 0)
            progress = plant.states["update"].detail["progress"]
            assert 0 < progress["bytes"] < progress["of"]
            assert (await site.said("pause")) == {"paused": True}
            assert (await site.said("status"))["paused"]
            assert step(plant, wanted) == "downloading"
            assert (await site.said("pause", "--resume")) == {"paused": False}
            await fed(plant, lambda: ended(plant, wanted) is not None or step(plant, wanted) == "shadow")
            assert given[0] == 0
            assert given[1] > 0
            back = await site.said("rollback")
            assert back["step"] == "refused"

    asyncio.run(scenario())


def test_apply_shows_how_it_goes_until_it_runs_and_leaves_it_going_when_interrupted(site: Site) -> None:
    site.start(poll_minutes=0, automatic="never", looks=300)
    second = site.publish("2.0.0")

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            process = await site.box.start("update", "models", "apply", "waves")
            assert process.stdout is not None
            while b"shadow" not in (line := await process.stdout.readline()):
                assert line, "it ended too soon"
            process.send_signal(signal.SIGINT)
            output, _ = await process.communicate()
            assert (process.returncode, b"It goes on by itself" in output) == (130, True)

            process = await site.box.start("update", "models", "apply", "waves", "--json", "--wait")
            telling = asyncio.create_task(process.communicate())
            await fed(plant, telling.done)
            output, errors = telling.result()
            told = [json.loads(line) for line in output.splitlines()]
            assert (process.returncode, errors) == (0, b"")
            assert [one["step"] for one in told if "trail" in one][-1] == "confirmed"
            measured = [one for one in told if one.get("unit") == "looks"]
            assert measured
            assert all(one["done"] <= one["of"] == 300 for one in measured)
            assert step(plant, second) == "confirmed"
            code, _, errors = await site.box.run("update", "models", "apply", "waves")
            assert (code, "in use already" in errors) == (1, True)

    asyncio.run(scenario())


def test_apply_says_why_a_model_was_refused(site: Site) -> None:
    site.start(poll_minutes=0, automatic="never")
    site.publish("2.0.0", manner="reversed")

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            process = await site.box.start("update", "models", "apply", "waves@2.0.0")
            telling = asyncio.create_task(process.communicate())
            await fed(plant, telling.done)
            output = telling.result()[0].decode()
            assert process.returncode == 1
            for part in ("downloading", "compiling", "shadow", "waves@2.0.0 was refused: in shadow: "):
                assert part in output

    asyncio.run(scenario())


def test_a_box_whose_root_is_gone_works_on_and_installs_what_is_at_hand(site: Site) -> None:
    site.start(poll_minutes=0.01)
    folder = bundles.waves(site.box.folder / "by-hand", "2.0.0", 9)

    async def scenario() -> None:
        async with running(site.box.config, site.box.url, "detect", "update") as plant:
            await plant.run(450)
            second = await plant.ask("update", "apply", model="waves@1.0.0")
            assert "in use already" in second.reason
            await plant.until(lambda: "looked_at" in repository(plant))
        site.root.unlink()
        async with running(site.box.config, site.box.url, "detect", "update", plant=plant):
            await plant.until(lambda: "no repository can be believed" in repository(plant).get("trouble", ""))
            answer = await plant.ask("update", "apply", source=str(folder))
            assert answer.state is CommandState.SUCCESSFUL, answer.reason
            topic = f"update/install/{answer.result['id']}"
            await fed(plant, lambda: plant.installs[topic].state is not CommandState.EXECUTING)
            assert plant.installs[topic].result["step"] == "confirmed"
            assert "receipt" not in plant.installs[topic].result

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"fleet": ""}, "update.fleet: there are sources and no fleet"),
        ({"sources": ["ftp://updates"]}, "'ftp://updates/metadata' is not an address of the web"),
        ({"sources": ["https://updates"], "ca_file": "/none.pem"}, "/none.pem: No such file or directory"),
    ],
)
def test_what_cannot_be_configured_is_said_at_once(site: Site, settings: dict[str, Any], problem: str) -> None:
    site.start(**settings)
    config, document = load(site.box.config)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        assembly.build(config, document, ["update"])
