"""The main job, as a user starts it: one process with a broker of its own, from readings to alarms."""

import asyncio
import contextlib
import csv
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.bus.mqtt import MqttBus
from appliance.connectors._pump import SHOWS
from appliance.events import codec, topics
from appliance.events.schema import Kind, Severity, State
from appliance.store import alarms, history, reader

FAULT_AFTER_S = 75.0
DEMO_S = 110
PATIENCE_S = 60.0
RECORDINGS = ("valve1/0.csv", "valve2/0.csv", "other/9.csv")  # three in which nothing odd happens before the fault


@pytest.fixture
def home() -> Iterator[Path]:
    """Nobody's folder but this test's; a socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="mw-"))
    yield folder
    shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def started(
    home: Path, repository: Path, *words: str, stderr: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    own = {"XDG_RUNTIME_DIR": str(home), "XDG_STATE_HOME": str(home), "PYTHONWARNINGS": "error"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appliance", "run", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        cwd=repository,
        env={**os.environ, **own},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        async for line in process.stdout:
            if text in line.decode():
                return line.decode()
    raise AssertionError(f"it ended without '{text}'")


async def interrupted(process: asyncio.subprocess.Process) -> None:
    """Ctrl-C ends it, with exit code 0."""
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(PATIENCE_S):
        await process.communicate()
    assert process.returncode == 0


def test_it_starts_again_and_control_c_is_heard(home: Path, repository: Path) -> None:
    async def scenario() -> None:
        async with started(home, repository, "--demo") as process:
            await line_with(process, "demo/pump: first heard of")
            await interrupted(process)

    asyncio.run(scenario())
    asyncio.run(scenario())


@pytest.mark.parametrize("second", [("--demo",), ("record",)])
def test_a_second_one_is_refused_and_spoils_nothing(home: Path, repository: Path, second: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with started(home, repository, "--demo") as process:
            await line_with(process, "demo/pump: first heard of")
            kept = {path.name: path.stat().st_ino for path in home.rglob("*.sqlite")}
            async with started(home, repository, *second) as other:
                async with asyncio.timeout(PATIENCE_S):
                    await other.communicate()
                assert other.returncode == 1
            assert {path.name: path.stat().st_ino for path in home.rglob("*.sqlite")} == kept != {}
            assert list(home.rglob("instance.json"))
            await interrupted(process)

    asyncio.run(scenario())


@pytest.mark.parametrize("shared", ["state", "run"])
def test_a_second_broker_on_a_folder_of_the_first_is_refused(home: Path, repository: Path, shared: str) -> None:
    folders = {name: home / "millwright" if name == shared else home / "other" for name in ("state", "run")}
    (home / "second.toml").write_text("".join(["[paths]\n", *(f'{name} = "{at}"\n' for name, at in folders.items())]))

    async def scenario() -> bytes:
        async with started(home, repository, "broker") as process:
            await accepting(home / "millwright" / "mqtt.sock")
            second = ("--config", str(home / "second.toml"), "broker")
            async with started(home, repository, *second, stderr=asyncio.subprocess.PIPE) as other:
                async with asyncio.timeout(PATIENCE_S):
                    _, errors = await other.communicate()
                assert other.returncode == 1
            await interrupted(process)
            return errors

    said = asyncio.run(scenario()).decode()
    assert f"another Millwright runs 'broker' on {home / 'millwright'}" in said
    assert "paths.state" in said


async def accepting(path: Path) -> None:
    """Until a broker listens there."""
    async with MqttBus(f"unix:{path}") as bus:
        await bus.wait_connected(PATIENCE_S)


@pytest.mark.timeout(DEMO_S + 70)
def test_the_demo_shows_its_fault_and_nothing_else(home: Path, repository: Path) -> None:
    async def scenario() -> None:
        words = ("--demo", "--seconds", str(DEMO_S), "--report", str(home / "report.json"))
        async with started(home, repository, *words) as process, asyncio.timeout(DEMO_S + 30):
            await process.communicate()
            assert process.returncode == 0

    began = time.time_ns()
    asyncio.run(scenario())
    report = json.loads((home / "report.json").read_bytes())
    print(f"{report['readings']} readings, latency {report['latency_ms']}, alarms {report['alarms']}")
    (alarm,) = report["alarms"]
    assert alarm["asset"] == "demo/pump"
    assert alarm["cause"] in SHOWS["bearing-wear"]
    assert alarm["raised"] - began > FAULT_AFTER_S * 1e9
    assert report["standing"] == [alarm]
    assert report["assets"]["demo/pump"]["stage"] == "alarming"
    (host,) = (asset for path, asset in report["assets"].items() if path != "demo/pump")
    assert host["stage"] == "learning"
    check_services(report["services"])


def check_services(services: dict[str, Any]) -> None:
    """Their last words."""
    assert not services.pop("update")["online"]  # nothing was asked of it
    assert set(services) == {"record", "detect", "ingest"}
    for name, service in services.items():
        assert not service["online"]
        assert service["balanced"]
        assert service["dropped"] == {}
        assert service["received"] > 0
        # An alarm's last state may come when record is about to stop: the broker keeps it for the next start.
        assert service["queued"] == 0 or name == "record"


def test_real_faults_alarm(home: Path, repository: Path, shared_data: Path) -> None:
    folder = shared_data / "skab"
    tables = "".join(
        f'[[connectors.replay]]\nfile = "{folder / name}"\nasset = "skab/{name[:-4]}"\nrows_per_second = 200\n'
        for name in RECORDINGS
    )
    (home / "site.toml").write_text(tables)

    async def scenario() -> None:
        report = str(home / "report.json")
        async with started(home, repository, "--config", str(home / "site.toml"), "--report", report) as process:
            await line_with(process, "first heard of")
            await played(home)
            await interrupted(process)

    asyncio.run(scenario())
    check_services(json.loads((home / "report.json").read_bytes())["services"])
    for name in RECORDINGS:
        check_recording(home / "millwright", f"skab/{name[:-4]}", labels(folder / name))


async def played(home: Path) -> None:
    """Until the last row of all recordings was published."""
    async with (
        asyncio.timeout(PATIENCE_S),
        MqttBus(f"unix:{home}/millwright/mqtt.sock") as bus,
        bus.subscribe(topics.state("ingest"), qos=1) as batches,
    ):
        async for batch in batches:
            state = codec.decode(Kind.STATE, batch[-1].payload, 0)
            assert isinstance(state, State)
            sources = state.detail["connectors"]
            if all(sources[name]["standing"] == "ended" for name in sources if name.startswith("replay")):
                return


def labels(path: Path) -> list[bool]:
    """Of each row: the machine was faulty."""
    with path.open(newline="") as file:
        return [float(row["anomaly"]) == 1 for row in csv.DictReader(file, delimiter=";")]


def check_recording(state: Path, asset: str, faulty: list[bool]) -> None:
    with reader.reading(state / history.FILE) as recorded:
        times = [reading.at for reading in recorded.readings(asset)]
    with closing(alarms.Alarms(state / alarms.FILE)) as record:
        changes = [change.alarm for change in record.changes() if change.asset == asset]
    assert len(times) == len(faulty)  # not a row is lost
    raised = sorted({bisect_left(times, alarm.raised) for alarm in changes})
    print(f"{asset}: faulty from row {faulty.index(True)}, alarms at {raised}")
    assert raised
    assert all(faulty[row] for row in raised), f"{asset}: alarms at rows {raised}"
    assert {alarm.severity for alarm in changes} == {Severity.ALARM}
