"""`millwright run` as its user sees it: what is said at the start, and how it ends."""

import asyncio
from pathlib import Path
from typing import Protocol

import pytest


class Box(Protocol):
    """See conftest.py."""

    folder: Path
    config: Path

    async def run(self, *words: str) -> tuple[int, str, str]: ...


@pytest.mark.parametrize("services", [(), ("record", "detect")])
def test_a_broker_that_never_answers_is_a_failure_told_once(quiet_box: Box, services: tuple[str, ...]) -> None:
    url = f"unix:{quiet_box.folder}/none.sock"
    with quiet_box.config.open("a") as file:
        file.write(f'[bus]\nurl = "{url}"\n')
    code, _, errors = asyncio.run(quiet_box.run("run", *services, "--seconds", "1"))
    assert code == 3
    assert f"millwright: no connection to the broker at {url}: No such file or directory" in errors
    assert errors.count("trying again") == 1


def test_the_second_start_says_nothing_of_the_end_of_the_first(quiet_box: Box) -> None:
    async def scenario() -> list[str]:
        for _ in range(2):
            code, output, _ = await quiet_box.run("run", "--seconds", "3")
            assert code == 0
        return output.splitlines()

    told = asyncio.run(scenario())
    for service in ("record", "detect", "ingest"):
        said = [line.rpartition(": ")[2] for line in told if f"  {service}: o" in line]
        assert said == ["online", "offline"]


def test_recordings_that_would_share_an_asset_are_refused_at_the_start(quiet_box: Box) -> None:
    for name in ("a", "b"):
        (quiet_box.folder / name).mkdir()
        (quiet_box.folder / name / "pump.csv").write_text("time,x\n0,1\n")
        with quiet_box.config.open("a") as file:
            file.write(f'[[connectors.replay]]\nfile = "{quiet_box.folder}/{name}/pump.csv"\n')
    code, _, errors = asyncio.run(quiet_box.run("run", "--seconds", "1"))
    assert code == 2
    assert "'replay/pump' is the asset of another replay already\n  -> Set 'asset' of this replay" in errors
