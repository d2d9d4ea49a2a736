"""What the doctor looks at. One small function a subject; a new check is a new function in CHECKS.

A check takes the scene and yields findings: `ok`, `warn` (it works, but will not for ever, or not as well as it could)
or `fail` (it does not work). Each that is not ok has a remedy.
"""

import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from appliance import __version__
from appliance.cli import config as configuration
from appliance.cli import forwardcheck, instance
from appliance.config.document import Document
from appliance.config.schema import Config
from appliance.connectors.dialects import REMEDIES as DEVICE_REMEDIES
from appliance.errors import MillwrightError
from appliance.events import codec, strays
from appliance.events.schema import State
from appliance.services.picture import Picture
from appliance.services.words import balanced, counted, example_of, printable, span
from appliance.store import outbox
from hardware import accelerators, clock, storage

# As pyproject.toml says; a test compares.
REQUIRED = (
    "cbor2>=6.2",
    "cryptography>=50",
    "h11>=0.16",
    "msgspec>=0.20",
    "numpy>=2.1",
    "openvino>=2026.1",
    "paho-mqtt==2.2.0",
    "psutil>=7",
    "pymodbus>=3.16",
    "pyserial>=3.5",
    "rich>=14",
    "sqlite-utils>=4.2",
    "tuf>=7.0.1",
    "uvloop>=0.22",
    "wsproto>=1.2",
    "zstandard>=0.25",
)
OLDEST_PYTHON = (3, 11)
SERVICES = ("ingest", "detect", "record")
MB = 1_000_000

_PUBLISHER = "Look at what the publisher sends; the newest example is shown."
REMEDIES = {
    "topic": "Publish to mw/v1/reading/<asset>, an asset being 1 to 8 levels of a-z 0-9 _ . -",
    "no-such-kind": "Publish readings to mw/v1/reading/<asset>, waveforms to mw/v1/block/<asset>.",
    "no-such-version": "Publish to mw/v1/reading/<asset>.",
    "no-such-root": "Publish to mw/v1/reading/<asset>, without a slash in front.",
    "malformed": 'Send JSON or CBOR, such as {"temperature": 61.2}',
    "shape": 'Send a map of points to numbers, or {"at": ..., "values": {...}}.',
    "not-a-number": 'Send numbers, not text or truth values: 61.2, not "61.2".',
    "not-finite": "Leave a point out where the sensor has no value; NaN cannot be judged.",
    "empty": "Send at least one point in a message.",
    "too-many-points": "Split the message: a large asset is better seen as several.",
    "point-name": "Name points with 1 to 128 printable characters.",
    "time-past": "Send 'at' in nanoseconds since 1970, or leave it out.",
    "time-future": "Set the publisher's clock (or this box's), or leave 'at' out.",
    "columns": "Mend the recording: each line needs as many columns as its head.",
    "time": "Mend the recording's times, or name their column: connectors.replay.time_column.",
    "too-long": "Mend the recording: one of its lines has no end.",
    "duplicate": "The publisher sends a reading twice with one time; harmless unless it grows.",
    "time-backwards": "Give the publisher a steady clock, or leave 'at' out.",
    "expired": "Older than record.retention_days: raise it, or replay recordings with times of today.",
    "store-unavailable": "Make room on the disk, and see the log of the record service.",
    "too-large": "Send smaller messages; a message may have 1 MiB.",
    "overrun": "More arrives than this box can take: publish more rarely, or raise detect.hop.",
    "offline": "The broker was away; see its log.",
    "stalled": "The broker did not read; see its log.",
    "unclaimed": "It came for a subscription that had just ended; nothing to do unless it grows.",
    "too-many-assets": "Raise max_assets of [detect] or [record], or look who invents so many assets.",
    "too-many-channels": "Raise detect.max_channels, or look who invents so many points.",
    "ignored": "Readings of devices that somebody left out: see 'millwright devices list'.",
    "no-answer": "A Modbus slave is silent: 'millwright connector test modbus' shows the wire.",
    "refused": "A Modbus slave refuses its registers: look at its map.",
    "no-frame": "Look at the line's speed and framing: 'millwright connector test serial' shows the bytes.",
    "no-table": "The file has no head with columns of numbers below: set 'pattern' of [connectors.files].",
    "checksum": "The line is disturbed: look at its cable, its speed and its end.",
    "unauthorised": "Somebody sends by HTTP without the right token.",
    "forbidden": "Somebody sends by HTTP for assets that the token does not name: see 'assets' of [connectors.http].",
    "no-such-path": "Send by HTTP to /readings/<asset>.",
    "stopped": "It was heard while the service stopped; nothing to do.",
}
REMEDIES = DEVICE_REMEDIES | forwardcheck.REMEDIES | REMEDIES

_MEANINGS = codec.REASONS | strays.REASONS | outbox.REASONS

Status = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    name: str
    status: Status
    detail: str
    remedy: str = ""


class Scene(NamedTuple):
    """What the doctor has before them."""

    config: Config
    document: Document
    broken: MillwrightError | None  # the configuration's error; `config` then are defaults
    picture: Picture | None  # none: nothing answered
    silence: MillwrightError | None  # why
    now: int  # UTC ns


Check = Callable[[Scene], Iterator[Finding]]


def versions(_: Scene) -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("python", "fail", f"version {python} is too old", "Install Python 3.11 or newer.")
    wrong = [problem for requirement in REQUIRED if (problem := _unmet(requirement))]
    if wrong:
        yield Finding("packages", "fail", "; ".join(wrong), "Run tools/run, which installs what is missing.")
    else:
        yield Finding("software", "ok", f"millwright {__version__}, Python {python}, {len(REQUIRED)} packages")


def _unmet(requirement: str) -> str:
    name, sign, wanted = re.split(r"(>=|==)", requirement)
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    met = found == wanted if sign == "==" else _numbers(found) >= _numbers(wanted)
    return "" if met else f"{name} is {found}, not {sign}{wanted}"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])]


def settings(scene: Scene) -> Iterator[Finding]:
    if scene.broken:
        yield Finding("configuration", "fail", scene.broken.message, scene.broken.remedy)
        return
    found = configuration.problems(scene.config, scene.document)
    for problem in found:
        yield Finding("configuration", "fail", problem.message, problem.remedy)
    if not found:
        yield Finding("configuration", "ok", f"in order: {scene.document.source}")


def disks(scene: Scene) -> Iterator[Finding]:
    for name, folder in (("state", scene.config.paths.state), ("run", scene.config.paths.run)):
        disk = storage.find(folder)
        free = f"{folder}: {disk.free_bytes / MB:,.0f} MB free of {disk.total_bytes / MB:,.0f} MB"
        title = f"{name} folder"
        if trouble := configuration.folder_trouble(folder):
            yield Finding(title, "fail", *trouble)
        elif not disk.total_bytes:
            problem = f"{folder} is on {disk.filesystem or 'a file system'}, which keeps no files"
            yield Finding(title, "fail", problem, f"Set paths.{name} to another folder.")
        elif disk.read_only:
            yield Finding(title, "fail", f"{folder} is on a read-only file system", "Mount it writable.")
        elif disk.free_bytes < 20 * MB or (disk.free_inodes is not None and disk.free_inodes < 100):
            yield Finding(title, "fail", f"the disk is full. {free}", "Make room on it.")
        elif name == "state" and disk.free_bytes < 500 * MB:
            yield Finding(title, "warn", f"the disk is nearly full. {free}", "Make room on it, or lower the budget.")
        else:
            yield Finding(title, "ok", f"{free} ({disk.filesystem})" if disk.filesystem else free)


def budget(scene: Scene) -> Iterator[Finding]:
    folder, wanted = scene.config.paths.state, scene.config.record.budget_mb
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    room = (used + storage.find(folder).free_bytes) / MB
    detail = f"history may take {wanted:,} MB; {used / MB:,.0f} MB are used"
    if wanted > room:
        remedy = f"Set record.budget_mb to at most {int(room * 0.9)}."
        yield Finding("history", "warn", f"{detail}, and only {room:,.0f} MB are there", remedy)
    else:
        yield Finding("history", "ok", detail)


def wear(scene: Scene) -> Iterator[Finding]:
    disk = storage.find(scene.config.paths.state)
    if disk.wear_percent is None:
        return  # most disks tell it to root's tools only
    reserve = f", spare blocks {disk.reserve}" if disk.reserve else ""
    detail = f"{disk.disk}: {disk.wear_percent} % of its life time is used{reserve}"
    worn = disk.wear_percent >= 80 or disk.reserve not in ("", "normal")
    yield Finding("flash", "warn", detail, "Plan to replace it.") if worn else Finding("flash", "ok", detail)


def broker(scene: Scene) -> Iterator[Finding]:
    """The program that Millwright would start."""
    if scene.config.bus.url:
        return
    name = scene.config.broker.executable
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        yield Finding("broker", "fail", f"'{name}' is not installed", "Install it: apt install mosquitto")
        return
    told = subprocess.run([path, "-h"], capture_output=True, text=True, timeout=5, check=False).stdout
    yield Finding("broker", "ok", f"{path}, {(told.splitlines() or ['version unknown'])[0]}")


def bus(scene: Scene) -> Iterator[Finding]:
    url = instance.bus_url(scene.config)
    if scene.silence:
        yield Finding("bus", "fail", scene.silence.message, scene.silence.remedy)
        return
    running = instance.find()
    who = f", process {running.pid}" if running else ""
    open_text = url.startswith("mqtt://") and not re.match(r"mqtt://(127\.|localhost|\[::1\])", url)
    if open_text:
        remedy = "Use mqtts:// with bus.ca_file, or the broker of this machine."
        yield Finding("bus", "warn", f"{url} answers, but anybody on the way can read and write along", remedy)
    else:
        yield Finding("bus", "ok", f"{url} answers{who}")


def sockets(scene: Scene) -> Iterator[Finding]:
    """Whoever can open the socket may publish readings and acknowledge alarms."""
    url = instance.bus_url(scene.config)
    path = Path(url.removeprefix("unix:"))
    if not url.startswith("unix:") or not path.exists():
        return
    modes = [path.stat().st_mode, path.parent.stat().st_mode]
    shown = f"{path} {stat.filemode(modes[0])} in {stat.filemode(modes[1])}"
    if modes[0] & stat.S_IWOTH and modes[1] & stat.S_IXOTH:
        remedy = f"chmod o-rwx {path.parent}"
        yield Finding("socket", "warn", f"every user of this machine may speak on the bus: {shown}", remedy)
    else:
        yield Finding("socket", "ok", shown)


def listeners(_: Scene) -> Iterator[Finding]:
    """TCP ports of mosquitto, of those processes that this user may look at."""
    import psutil

    found: set[tuple[str, int]] = set()
    for process in psutil.process_iter(["name"]):
        if process.info["name"] != "mosquitto":
            continue
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        found |= {(one.laddr.ip, one.laddr.port) for one in connections if one.status == psutil.CONN_LISTEN}
    outside = sorted(f"{host}:{port}" for host, port in found if not host.startswith("127.") and host != "::1")
    if outside:
        remedy = "Bind it to 127.0.0.1, or give it TLS and passwords in mosquitto's own configuration."
        yield Finding("listeners", "warn", f"a broker is reachable from the network at {', '.join(outside)}", remedy)
    elif found:
        inside = ", ".join(sorted(f"{host}:{port}" for host, port in found))
        yield Finding("listeners", "ok", f"brokers listen on this machine only: {inside}")


def services(scene: Scene) -> Iterator[Finding]:
    if scene.picture is None:
        return
    known = scene.picture.services
    for name in sorted({*SERVICES, *known}):
        state = known.get(name)
        if state is None:
            yield Finding(name, "fail", "has not said a word", f"Start it: millwright run {name}")
        elif not state.online:
            yield Finding(name, "fail", "is not running", f"See its log, then start it: millwright run {name}")
        else:
            yield from _service(name, state, scene.now)


def _service(name: str, state: State, now: int) -> Iterator[Finding]:
    books = (
        f"received {state.received:,} = processed {state.processed:,} + queued {state.queued:,}"
        f" + dropped {sum(state.dropped.values()):,}"
    )
    age = f"last word {span((now - state.at) / 1e9)} ago"
    if not balanced(state):
        remedy = "Messages were lost and not counted: this is a defect, please report it."
        yield Finding(name, "fail", f"its books do not balance: {books}", remedy)
    else:
        yield Finding(name, "ok", f"online, version {printable(state.version)}, {age}; {books}")
    grave: dict[str, Status] = {"trouble": "fail", "fallback": "warn"}  # words that services use in their detail
    for key, status in grave.items():
        if trouble := state.detail.get(key):
            yield Finding(f"{name} {key}", status, printable(str(trouble))[:400], "See the log of the service.")


def drops(scene: Scene) -> Iterator[Finding]:
    known = scene.picture.services if scene.picture else {}
    for name, state in sorted(known.items()):
        for reason, count in state.dropped.items():
            example = example_of(state, reason)
            meaning = f" ({meant})" if (meant := _MEANINGS.get(reason)) else ""
            such = f"; newest: {example}" if example else ""
            detail = f"dropped {counted(count, 'message')}: {printable(reason)}{meaning}{such}"
            yield Finding(f"{name} drops", "warn", detail, REMEDIES.get(reason, _PUBLISHER))


def time_of_day(scene: Scene) -> Iterator[Finding]:
    facts = clock.find(scene.now / 1e9)
    if not facts.plausible:
        yield Finding("clock", "fail", facts.reason, facts.remedy)
    elif not facts.synchronised:
        yield Finding("clock", "warn", "plausible, but nothing keeps it right", facts.remedy)
    else:
        yield Finding("clock", "ok", f"plausible, synchronised ({facts.source})")


def vault(scene: Scene) -> Iterator[Finding]:
    from appliance.cli import vaultcheck

    yield from vaultcheck.found(scene)


def devices(scene: Scene) -> Iterator[Finding]:
    """What may compute. A device that this machine does not have is no fault unless the configuration wants it."""
    device = scene.config.detect.device
    wanted = [device] if isinstance(device, str) else device
    for found in accelerators.find():
        facts = ", ".join(part for part in (found.name, found.driver, found.firmware, found.node) if part)
        if found.usable:
            yield Finding(found.device, "ok", facts or "usable")
        elif found.device in wanted:
            remedy = found.remedy or "Set detect.device to auto."
            yield Finding(found.device, "fail", f"detect.device wants it, but {found.reason}", remedy)
        elif found.present:
            yield Finding(found.device, "warn", f"{facts}: {found.reason}", found.remedy)
        else:
            yield Finding(found.device, "ok", found.reason)


def temperature(_: Scene) -> Iterator[Finding]:
    import psutil

    read = psutil.sensors_temperatures()
    hot = [
        f"{chip} {sensor.label or 'sensor'} {sensor.current:.0f} °C (limit {sensor.high:.0f})"
        for chip, sensors in read.items()
        for sensor in sensors
        if sensor.high and sensor.current >= sensor.high
    ]
    warmest = max((sensor.current for sensors in read.values() for sensor in sensors), default=None)
    if hot:
        yield Finding("temperature", "warn", "; ".join(hot), "Give the box air: clean its fins, check its fan.")
    elif warmest is not None:
        yield Finding("temperature", "ok", f"{warmest:.0f} °C at the warmest sensor")


CHECKS: tuple[Check, ...] = (
    versions,
    settings,
    disks,
    budget,
    wear,
    broker,
    bus,
    sockets,
    listeners,
    services,
    drops,
    forwardcheck.found,
    time_of_day,
    vault,
    devices,
    temperature,
)


def examine(scene: Scene, checks: tuple[Check, ...] = CHECKS) -> list[Finding]:
    """All findings, in the order of the checks. A check that the machine does not let look says so itself."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(scene)
        except (OSError, subprocess.SubprocessError) as error:
            name = check.__name__.replace("_", " ")
            found.append(Finding(name, "warn", f"cannot be looked at: {error}", "Try again as root."))
    return found


def scene(config: Config, document: Document, broken: MillwrightError | None) -> Scene:
    """Ask the bus, if it answers."""
    try:
        picture, silence = instance.play(_look(config)), None
    except MillwrightError as error:
        picture, silence = None, error
    return Scene(config, document, broken, picture, silence, time.time_ns())


async def _look(config: Config) -> Picture:
    async with instance.session(config) as session:
        return await instance.look(session)
