"""The runtime with services of all characters, and systemd's protocol over a real socket."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.runtime import files, group
from appliance.runtime.notify import Notifier
from appliance.runtime.service import Pulse, Service

PATIENCE_S = 10


class Steady:
    def __init__(self, name: str, diary: list[str]) -> None:
        self.name, self.diary = name, diary
        self.started = asyncio.Event()

    async def run(self, pulse: Pulse) -> None:
        pulse.ready()
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.diary.append(self.name)


class Failing:
    name = "failing"

    async def run(self, pulse: Pulse) -> None:
        raise StoreError("the disk is gone", "Put it back.")


def test_services_stop_in_reverse_order() -> None:
    assert asyncio.run(stopped_services("broker", "record", "ingest")) == ["ingest", "record", "broker"]


async def stopped_services(*names: str) -> list[str]:
    diary: list[str] = []
    services = [Steady(name, diary) for name in names]
    stop = asyncio.Event()
    running = asyncio.create_task(group.run(services, stop))
    async with asyncio.timeout(PATIENCE_S):
        for service in services:
            await service.started.wait()
        stop.set()
        await running
    return diary


class Slow(Steady):
    """Ready when it is told to be."""

    def __init__(self, name: str, diary: list[str]) -> None:
        super().__init__(name, diary)
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def run(self, pulse: Pulse) -> None:
        self.diary.append(f"{self.name} begins")
        self.begun.set()
        await self.go.wait()
        await super().run(pulse)


def test_each_starts_when_the_one_before_it_is_ready() -> None:
    async def scenario() -> list[str]:
        diary: list[str] = []
        slow, next_one, stop = Slow("detect", diary), Slow("ingest", diary), asyncio.Event()
        next_one.go.set()
        running = asyncio.create_task(group.run([slow, next_one], stop))
        async with asyncio.timeout(PATIENCE_S):
            await slow.begun.wait()
            for _ in range(20):
                await asyncio.sleep(0)
            assert diary == ["detect begins"]
            slow.go.set()
            await next_one.started.wait()
            stop.set()
            await running
        return diary

    assert asyncio.run(scenario()) == ["detect begins", "ingest begins", "ingest", "detect"]


def test_one_that_is_not_ready_can_be_stopped() -> None:
    async def scenario() -> list[str]:
        diary: list[str] = []
        slow, stop = Slow("detect", diary), asyncio.Event()
        running = asyncio.create_task(group.run([slow, Slow("ingest", diary)], stop))
        async with asyncio.timeout(PATIENCE_S):
            await slow.begun.wait()
            stop.set()
            await running
        return diary

    assert asyncio.run(scenario()) == ["detect begins"]


def test_one_that_fails_ends_all_with_its_error() -> None:
    diary: list[str] = []
    with pytest.raises(StoreError, match="the disk is gone"):
        asyncio.run(run_for_ever([Steady("broker", diary), Failing()]))
    assert diary == ["broker"]


async def run_for_ever(services: list[Service]) -> None:
    await group.run(services, asyncio.Event())


def test_ready_and_watchdog_reach_systemd(tmp_path: Path) -> None:
    asyncio.run(hear_ready_and_watchdog(tmp_path))


async def hear_ready_and_watchdog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"})
        assert notifier.watchdog_s == 0.3
        stop = asyncio.Event()
        running = asyncio.create_task(group.run([Steady("detect", [])], stop, notifier))
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            assert (await loop.sock_recv(systemd, 1000)).startswith(b"READY=1")
            assert await loop.sock_recv(systemd, 1000) == b"WATCHDOG=1"
            # The service never beats again: systemd hears a reason instead of a ping, and restarts the process.
            while (word := await loop.sock_recv(systemd, 1000)) == b"WATCHDOG=1":
                pass
            assert word == b"STATUS=no sign of life from detect"
            stop.set()
            await running


def test_without_systemd_nothing_is_sent() -> None:
    notifier = Notifier({})
    notifier.send("READY=1")
    assert notifier.watchdog_s == 0


def test_a_watchdog_meant_for_another_process_is_not_ours() -> None:
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s == 0


STUBBORN = """
import asyncio
from appliance.runtime import group
group.STOP_S = 0.2

class Stubborn:
    name = "stubborn"
    async def run(self, pulse):
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    await group.run([Stubborn()], stop)

asyncio.run(main())
"""


def test_a_service_that_will_not_stop_is_ended_with_its_process() -> None:
    command = [sys.executable, "-c", STUBBORN]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 1
    assert "stubborn did not stop" in ended.stderr


def test_a_lock_keeps_the_second_out_until_the_first_is_done(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.lock"
    said = f"another Millwright runs 'record' on {path.parent}"
    first, second = files.held(path, "runs 'record'"), files.held(path, "runs 'record'")
    with first, pytest.raises(StoreError, match=said), second:
        raise AssertionError("both have it")
    with files.held(path, "runs 'record'"):
        assert path.is_file()
    with pytest.raises(StoreError, match="cannot be written"), files.held(path / "below" / "a.lock", ""):
        raise AssertionError("a folder below a file")
