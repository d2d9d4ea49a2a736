"""A private mosquitto for a benchmark: a unix socket and a port of its own on the loopback, and no silent loss."""

import getpass
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.benchmarks import process

# Slow readers are the point of a benchmark: without a large explicit queue mosquitto drops their QoS 0 messages.
CONFIGURATION = """\
user {user}
per_listener_settings false
allow_anonymous true
listener 0 {socket}
listener {port} 127.0.0.1
persistence false
max_queued_messages 10000000
max_inflight_messages 1000
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
log_type subscribe
"""
START_S = 10.0


@dataclass(frozen=True)
class Broker:
    pid: int
    socket: Path
    port: int
    log: Path

    def wait_for_subscription(self, topic: str, timeout_s: float, child: subprocess.Popen[bytes]) -> None:
        """Until somebody has subscribed to a filter that holds `topic`; a subscriber that ended is an error."""
        _until(lambda: topic in self.log.read_text(), timeout_s, child, f"no subscription to {topic}")


@contextmanager
def running(folder: Path) -> Iterator[Broker]:
    """`folder` exists and is short: a unix socket's path has about 100 bytes."""
    executable = shutil.which("mosquitto")
    if executable is None:
        sys.exit("mosquitto is not installed (apt install mosquitto)")
    path, log, port = folder / "mqtt.sock", folder / "mosquitto.log", _free_port()
    configuration = folder / "mosquitto.conf"
    configuration.write_text(CONFIGURATION.format(user=getpass.getuser(), socket=path, port=port))
    with process.running([executable, "-c", configuration], log) as child:
        _until(lambda: _accepts(port) and path.exists(), START_S, child, f"mosquitto does not answer, see {log}")
        yield Broker(child.pid, path, port, log)


def _until(condition: Callable[[], bool], timeout_s: float, child: subprocess.Popen[bytes], complaint: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if child.poll() is not None:
            raise RuntimeError(f"{complaint}: the process ended with code {child.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} within {timeout_s:.0f} s")
        time.sleep(0.02)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
