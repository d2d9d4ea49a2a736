"""An encrypted model, from the publisher to the detector that runs: the vault that runs opens it."""

import asyncio
import json
import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from appliance import computing
from appliance.config.load import load
from appliance.events.schema import CommandState
from ota import sealed
from ota.publish import goods, sealing
from tests import bundles
from tests.plants import running
from tests.updates import FLEET, Publisher, serving

if TYPE_CHECKING:
    from tests.integration.conftest import Box

PATIENCE_S = 120


def configured(box: "Box", publisher: Publisher, url: str) -> None:
    root = box.folder / "root.json"
    root.write_bytes(publisher.root)
    settings = {"sources": [url], "fleet": FLEET, "root": str(root), "device": "box-1", "poll_minutes": 0.005,
                "shadow_minutes": 0, "watch_minutes": 0, "looks": 60}  # fmt: skip
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    with box.config.open("a") as file:
        file.write(f'[vault]\nbackend = "plain"\n[detect]\nmodel = "waves"\ndevice = "CPU"\n[update]\n{text}')


async def put(box: "Box", name: str, content: bytes) -> None:
    process = await asyncio.create_subprocess_exec(
        *box.command("vault", "put", name), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        env=box.environment,
    )  # fmt: skip
    await process.communicate(content)
    assert process.returncode == 0


def published(box: "Box", publisher: Publisher) -> str:
    """Version 2.0.0, encrypted, with a campaign for everybody; its hash."""
    made = publisher.add(bundles.waves(box.folder / "made-2.0.0", "2.0.0", 9))
    given = {"id": "c", "salt": "s", "model": made.name, "version": made.version, "bundle": made.bundle,
             "waves": [{"name": "all", "opens": "2026-01-01T00:00:00Z"}]}  # fmt: skip
    goods.set_campaign(publisher.workshop, FLEET, json.dumps(given).encode())
    publisher.publish()
    return made.bundle


def test_a_fleets_model_is_opened_by_the_vault_and_installed(box: "Box") -> None:
    publisher = Publisher(box.folder / "workshop", time.time())
    sealing.create(box.folder / "fleet")
    line = sealing.read_public(box.folder / "fleet.pub")
    publisher.workshop.configure(replace(publisher.workshop.settings, sealed={FLEET: (line,)}))

    async def scenario() -> None:
        assert (await box.run("vault", "init", "--recovery-file", f"{box.folder}/key"))[0] == 0
        async with running(box.config, box.url, "vault", "detect", "update") as plant:
            await plant.run(450)
            wanted = published(box, publisher)
            [file] = (publisher.workshop.repository / "targets").rglob("*2.0.0.bundle")
            assert file.read_bytes().startswith(sealed.MAGIC)
            await plant.until(lambda: any("no key here opens it" in one.reason for one in plant.installs.values()))
            await put(box, "fleet/plant-a", (box.folder / "fleet").read_bytes())
            async with asyncio.timeout(PATIENCE_S):
                while not any(one.state is CommandState.SUCCESSFUL for one in plant.installs.values()):
                    await plant.run(100)
            await plant.until(lambda: plant.choice["bundle"] == wanted)
            assert plant.versions[0] == "1.0.0"

    with serving(publisher.workshop.repository) as server:
        configured(box, publisher, server.url)
        computing.library(load(box.config)[0]).add(bundles.waves(box.folder / "made-1.0.0", "1.0.0"))
        asyncio.run(scenario())
