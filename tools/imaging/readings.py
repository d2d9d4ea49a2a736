"""Readings over TLS with a device's certificate, from outside the machine, and the scores that come back."""

import json
import math
import random
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from tools.imaging.machine import MachineError, Running

ASSET = "line1/pump"
TAUGHT = 460  # rows; the box judges from the 400th on
PERIOD_S = 0.1  # between two rows
FEW_MINUTES = 600.0
PATIENCE_S = 3.0  # for one try to be let in
_PAPERS = {"--cafile": "ca.pem", "--cert": "certificate.pem", "--key": "key.pem"}
_DICE = random.Random(7)


def certify(running: Running, folder: Path, heard: str = f"mw/v1/score/{ASSET}") -> None:
    """A device that sends the asset's readings and hears `heard`, its scores; its papers, fetched into `folder`."""
    grants = f"--asset {ASSET} --subscribe '{heard}'"
    running.check(f"rm -rf /run/pump; millwright devices certify pump {grants} --out /run/pump", FEW_MINUTES)
    for name in _PAPERS.values():
        (folder / name).write_text(running.check(f"cat /run/pump/{name}"))


def teach(running: Running, papers: Path) -> None:
    """Until the box has judged as many rows as it learns from. MachineError."""
    began = time.time() - TAUGHT * PERIOD_S
    rows = "".join(_row(began + number * PERIOD_S) for number in range(TAUGHT))
    with _listener(running, papers, TAUGHT - 100) as scores:
        sent = client("mosquitto_pub", running, papers, "-q", "1", "-t", f"mw/v1/reading/{ASSET}", "-l")
        subprocess.run(sent, input=rows, text=True, check=True, timeout=FEW_MINUTES)
        if scores.wait(2 * FEW_MINUTES) != 0:
            raise MachineError("the box heard readings and told no scores")


def first_score(running: Running, papers: Path, began: float, seconds: float) -> tuple[float, float]:
    """Seconds from `began` (monotonic) until the device was let in, and until the first score. MachineError."""
    end = time.monotonic() + seconds
    while not _let_in(running.port, papers):
        if time.monotonic() > end or running.process.poll() is not None:
            raise MachineError("MQTT over TLS did not open")
    let_in = time.monotonic() - began
    while time.monotonic() < end:
        with _listener(running, papers, 1) as scores, _device(running, papers) as device:
            if _heard(scores, device, end):
                return let_in, time.monotonic() - began
    raise MachineError("the box heard readings and told no score")


def _heard(scores: "subprocess.Popen[bytes]", device: "subprocess.Popen[bytes]", end: float) -> bool:
    """Whether a score came, while the device tells reading after reading; False also where one of them was cut off."""
    assert device.stdin is not None
    while scores.poll() is None and device.poll() is None and time.monotonic() < end:
        with suppress(BrokenPipeError):
            device.stdin.write(_row(time.time()).encode())
        time.sleep(PERIOD_S)
    return scores.poll() == 0


def _let_in(port: int, papers: Path) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is the time that is asked for
    context.load_cert_chain(papers / _PAPERS["--cert"], papers / _PAPERS["--key"])
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as line, context.wrap_socket(line):
            return True
    except OSError:
        time.sleep(PERIOD_S)
        return False


@contextmanager
def _listener(running: Running, papers: Path, scores: int) -> "Iterator[subprocess.Popen[bytes]]":
    """It ends with 0 when it has heard so many."""
    options = ["-t", f"mw/v1/score/{ASSET}", "-C", str(scores), "-W", str(int(2 * FEW_MINUTES))]
    with subprocess.Popen(client("mosquitto_sub", running, papers, *options), stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def _device(running: Running, papers: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Sends each line of its input."""
    command = client("mosquitto_pub", running, papers, "-t", f"mw/v1/reading/{ASSET}", "-l")
    with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def client(program: str, running: Running, papers: Path, *options: str) -> list[str]:
    """One of mosquitto's programs as this device."""
    files = [word for option, name in _PAPERS.items() for word in (option, str(papers / name))]
    return [program, "-h", "127.0.0.1", "-p", str(running.port), "--insecure", *files, *options]


def _row(at: float) -> str:
    """A line: two channels of a pump that is well. `at`: UTC seconds."""
    wave = math.sin(at / 0.7)
    values = {"vibration": 2 + 0.2 * wave + _DICE.gauss(0, 0.05), "temperature": 60 + wave}
    return json.dumps({"at": datetime.fromtimestamp(at, UTC).isoformat(), "values": values}) + "\n"
