"""mosquitto as our child: it comes up, is ours alone, is restarted, and ends with us."""

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from appliance.bus import broker as module
from appliance.bus.broker import MosquittoBroker, configuration, find_program
from appliance.bus.mqtt import MqttBus
from appliance.config.places import Paths
from appliance.config.schema import Broker
from appliance.errors import BusError

PATIENCE_S = 20.0


class Pulse:
    def __init__(self) -> None:
        self.is_ready = asyncio.Event()
        self.beats = 0

    def ready(self) -> None:
        self.is_ready.set()

    def beat(self) -> None:
        self.beats += 1


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state", run=tmp_path / "run")


@asynccontextmanager
async def running(broker: MosquittoBroker) -> AsyncIterator[Pulse]:
    pulse = Pulse()
    task = asyncio.create_task(broker.run(pulse))
    ready = asyncio.create_task(pulse.is_ready.wait())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield pulse
    finally:
        ready.cancel()
        task.cancel()
        await asyncio.wait([task, ready])


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * PATIENCE_S):
            await scenario()

    uvloop.run(bounded())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def await_end(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        os.sched_yield()


def test_the_configuration_bounds_every_queue(paths: Paths) -> None:
    text = configuration(paths, Broker(max_queued_messages=12_345, max_payload_kb=128, save_interval_s=7), as_root=True)
    lines = text.splitlines()
    assert "user root" in lines
    assert f"listener 0 {paths.run}/mqtt.sock" in lines
    assert {"max_queued_messages 12345", "autosave_interval 7", "message_size_limit 131072"} <= set(lines)
    assert f"persistence_location {paths.state}/broker/" in lines
    bounds = {"max_queued_bytes", "max_inflight_messages", "max_inflight_bytes", "max_packet_size"}
    assert all(int(line.split()[1]) > 0 for line in lines if line.split()[0] in bounds)
    assert bounds <= {line.split()[0] for line in lines}


def test_anonymous_clients_only_from_this_machine(paths: Paths) -> None:
    listeners = [
        line
        for port in (0, 18_830)
        for line in configuration(paths, Broker(listen_port=port), as_root=False).splitlines()
        if line.startswith("listener")
    ]
    assert listeners == [
        f"listener 0 {paths.run}/mqtt.sock",
        f"listener 0 {paths.run}/mqtt.sock",
        "listener 18830 127.0.0.1",
    ]


def test_root_is_kept_only_where_we_are_root(paths: Paths) -> None:
    assert "user" not in configuration(paths, Broker(), as_root=False)


def test_folders_that_would_break_the_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="cannot be written into"):
        configuration(Paths(state=tmp_path / "a\nallow_anonymous true", run=tmp_path), Broker(), as_root=False)


def test_ready_means_that_sessions_open(paths: Paths) -> None:
    async def scenario() -> None:
        async with running(MosquittoBroker(paths, Broker())) as pulse:
            assert pulse.is_ready.is_set()
            async with MqttBus(module.url(paths)) as bus:
                await bus.wait_connected(PATIENCE_S)

    play(scenario)
    assert stat.S_IMODE(paths.run.stat().st_mode) == 0o700
    assert stat.S_IMODE((paths.state / "broker").stat().st_mode) == 0o700
    assert (paths.state / "broker" / "mosquitto.db").exists()


def test_blanks_in_the_folder_of_the_state_work(tmp_path: Path) -> None:
    paths = Paths(state=tmp_path / "my state", run=tmp_path / "run")

    async def scenario() -> None:
        async with running(MosquittoBroker(paths, Broker())), MqttBus(module.url(paths)) as bus:
            await bus.wait_connected(PATIENCE_S)

    play(scenario)
    assert (paths.state / "broker" / "mosquitto.db").exists()


def test_blanks_in_the_folder_of_the_socket_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="with a blank in its name"):
        configuration(Paths(state=tmp_path, run=tmp_path / "my run"), Broker(), as_root=False)


def test_the_port_listens_on_the_loopback_when_asked_for(paths: Paths) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def scenario() -> None:
        async with running(MosquittoBroker(paths, Broker(listen_port=port))):
            async with MqttBus(f"mqtt://127.0.0.1:{port}") as bus:
                await bus.wait_connected(PATIENCE_S)
            tables = "".join(Path("/proc/net", name).read_text() for name in ("tcp", "tcp6"))
            local = re.findall(rf"^ *\d+: (\w+):{port:04X} \w+:0000 0A", tables, re.MULTILINE)
            assert local == ["0100007F"]

    play(scenario)


def test_a_broker_that_dies_is_started_again(paths: Paths) -> None:
    async def scenario() -> None:
        broker = MosquittoBroker(paths, Broker())
        async with running(broker), MqttBus(module.url(paths)) as bus:
            connected = asyncio.Event()
            bus.on_connected(connected.set)
            await connected.wait()
            assert broker.child is not None
            first = broker.child.pid
            connected.clear()
            os.kill(first, signal.SIGKILL)
            await connected.wait()
            assert broker.child.pid != first

    play(scenario)


def test_a_stale_socket_is_removed(paths: Paths) -> None:
    paths.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(module.socket_path(paths)))

    async def scenario() -> None:
        async with running(MosquittoBroker(paths, Broker())) as pulse:
            assert pulse.is_ready.is_set()

    play(scenario)


def test_a_live_socket_of_somebody_else_is_left_alone(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ORPHAN_S", 0.2)
    paths.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(module.socket_path(paths)))
        other.listen()

        async def scenario() -> None:
            with pytest.raises(BusError, match="another broker listens"):
                await MosquittoBroker(paths, Broker()).run(Pulse())

        play(scenario)
    assert module.socket_path(paths).exists()


def test_a_port_that_is_taken_is_told(paths: Paths) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        async def scenario() -> None:
            with pytest.raises(BusError, match="Address already in use") as caught:
                await MosquittoBroker(paths, Broker(listen_port=taken.getsockname()[1])).run(Pulse())
            assert "broker.listen_port" in caught.value.remedy

        play(scenario)


def test_a_missing_program_is_told_with_the_remedy() -> None:
    with pytest.raises(BusError, match="'no-such-broker' is not installed") as caught:
        find_program("no-such-broker")
    assert "apt install mosquitto" in caught.value.remedy


def test_a_socket_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    paths = Paths(state=tmp_path / "state", run=tmp_path / ("x" * 120))

    async def scenario() -> None:
        with pytest.raises(BusError, match="longer than 107 bytes"):
            await MosquittoBroker(paths, Broker()).run(Pulse())

    play(scenario)


def test_a_clean_stop_ends_the_child(paths: Paths) -> None:
    async def scenario() -> None:
        broker = MosquittoBroker(paths, Broker())
        async with running(broker):
            child = broker.child
        assert child is not None
        assert child.returncode == 0
        assert not is_alive(child.pid)

    play(scenario)


def test_a_broker_that_hangs_is_killed(paths: Paths) -> None:
    async def scenario() -> None:
        broker = MosquittoBroker(paths, Broker())
        async with running(broker):
            child = broker.child
            assert child is not None
            os.kill(child.pid, signal.SIGSTOP)
        assert child.returncode == -signal.SIGKILL

    play(scenario)


PARENT = """
import asyncio, sys, uvloop
from pathlib import Path
from appliance.bus.broker import MosquittoBroker
from appliance.config.places import Paths
from appliance.config.schema import Broker

class Pulse:
    def ready(self): print(broker.child.pid, flush=True)
    def beat(self): pass

broker = MosquittoBroker(Paths(state=Path(sys.argv[1]), run=Path(sys.argv[2])), Broker())
uvloop.run(broker.run(Pulse()))
"""


@pytest.fixture
def parent(paths: Paths) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", PARENT, str(paths.state), str(paths.run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_the_child_ends_when_we_are_killed(parent: "subprocess.Popen[str]") -> None:
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    await_end(pid)


def test_it_waits_for_one_that_is_about_to_end(paths: Paths) -> None:
    """The child of a process that was killed saves what it keeps before it lets the socket go."""
    paths.run.mkdir(parents=True)

    async def scenario() -> None:
        pulse = Pulse()
        with socket.socket(socket.AF_UNIX) as other:
            other.setblocking(False)
            other.bind(str(module.socket_path(paths)))
            other.listen()
            running = asyncio.create_task(MosquittoBroker(paths, Broker()).run(pulse))
            for _ in range(2):
                asked, _ = await asyncio.get_running_loop().sock_accept(other)
                asked.close()
            assert not pulse.is_ready.is_set()
        await pulse.is_ready.wait()
        running.cancel()
        await asyncio.wait([running])

    play(scenario)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_a_folder_that_root_gave_to_a_group_lets_the_group_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "run"
    given.mkdir()
    given.chmod(0o3770)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)  # a service's user; the folder stays root's
    (given / module.SOCKET).touch(0o700)
    module._own_folder(given)
    module._let_group_in(given / module.SOCKET)
    assert stat.S_IMODE(given.stat().st_mode) == 0o3770
    assert stat.S_IMODE((given / module.SOCKET).stat().st_mode) == module.GROUP
    given.chmod(0o3777)
    with pytest.raises(BusError, match="another user"):
        module._own_folder(given)
