"""Every setting, declared once: its type, default, bounds and meaning. The reference is generated from this file.

Numbers carry their unit in the key's name. Connectors declare their own settings in their own files, the same way.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

INSTALLED = Path("/etc/millwright/millwright.toml")


def default_state() -> Path:
    """/var/lib/millwright on an appliance, the XDG state folder on a laptop."""
    if INSTALLED.exists():
        return Path("/var/lib/millwright")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "millwright"


def default_run() -> Path:
    """/run/millwright on an appliance, the XDG runtime folder (or a private temporary one) on a laptop."""
    if INSTALLED.exists():
        return Path("/run/millwright")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "millwright" if base else Path(tempfile.gettempdir()) / f"millwright-{os.getuid()}"


class Paths(Struct, frozen=True, forbid_unknown_fields=True):
    """Where things are kept."""

    state: Annotated[Path, Meta(description="What must survive: history, alarms, what the detector learned.")] = field(
        default_factory=default_state
    )
    run: Annotated[Path, Meta(description="Sockets and process files; may vanish at a reboot.")] = field(
        default_factory=default_run
    )


class Bus(Struct, frozen=True, forbid_unknown_fields=True):
    """The MQTT broker that all services speak through."""

    url: Annotated[
        str,
        Meta(
            description="`unix:/path`, `mqtt://host:port` or `mqtts://host:port`. Empty: the socket of the broker that "
            "Millwright starts."
        ),
    ] = ""
    ca_file: Annotated[str, Meta(description="Certificates that sign the broker's, for mqtts.")] = ""
    cert_file: Annotated[str, Meta(description="This box's certificate, for mqtts.")] = ""
    key_file: Annotated[str, Meta(description="The key of `cert_file`.")] = ""


class Broker(Struct, frozen=True, forbid_unknown_fields=True):
    """The mosquitto that Millwright starts where `bus.url` is empty."""

    executable: Annotated[str, Meta(description="mosquitto's program, a name or a path.")] = "mosquitto"
    listen_port: Annotated[
        int, Meta(ge=0, le=65535, description="TCP port on 127.0.0.1 for publishers of this machine; 0: socket only.")
    ] = 0
    max_queued_messages: Annotated[
        int, Meta(ge=1000, le=10_000_000, description="QoS 1 messages the broker keeps for a service that is away.")
    ] = 1_000_000
    max_payload_kb: Annotated[
        int, Meta(ge=64, le=262_144, description="Larger messages are refused by the broker.")
    ] = 16_384
    save_interval_s: Annotated[
        int, Meta(ge=1, le=3600, description="How often the broker writes its queues and retained messages to disk.")
    ] = 5


class Detect(Struct, frozen=True, forbid_unknown_fields=True):
    """How readings are judged."""

    device: Annotated[
        Literal["auto", "CPU", "GPU", "NPU"],
        Meta(description="Where the model runs; `auto` takes the strongest device that passes its probe."),
    ] = "auto"
    backend: Annotated[str, Meta(description="The inference backend: a file of `appliance/inference/backends`.")] = (
        "openvino"
    )
    model: Annotated[str, Meta(description="Folder of a model bundle; empty: the one that is shipped.")] = ""
    hop: Annotated[int, Meta(ge=1, le=1024, description="Judge an asset once every so many readings.")] = 1
    max_assets: Annotated[int, Meta(ge=1, le=100_000, description="Assets judged at once; more are counted.")] = 2000
    max_channels: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Channels of all assets together; more are counted.")
    ] = 20_000
    checkpoint_s: Annotated[
        int, Meta(ge=1, le=3600, description="How often what was learned is written to disk (and at each alarm).")
    ] = 30


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of readings and alarms."""

    budget_mb: Annotated[
        int, Meta(ge=8, le=10_000_000, description="Disk space for history; the oldest readings make room.")
    ] = 2048
    retention_days: Annotated[int, Meta(ge=1, le=36_500, description="Readings older than this are deleted.")] = 365
    commit_ms: Annotated[
        int,
        Meta(
            ge=10,
            le=5000,
            description="Readings are committed in groups: a crash loses at most this much, a power cut a second more.",
        ),
    ] = 100
    max_assets: Annotated[int, Meta(ge=1, le=1_000_000, description="Assets recorded; more are counted.")] = 10_000


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to standard error (the journal, on an appliance)."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least important line that is written.")
    ] = "info"


Section = dict[str, Any]


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """One TOML file. Every section and every key may be left out."""

    paths: Paths = field(default_factory=Paths)
    bus: Bus = field(default_factory=Bus)
    broker: Broker = field(default_factory=Broker)
    detect: Detect = field(default_factory=Detect)
    record: Record = field(default_factory=Record)
    log: Log = field(default_factory=Log)
    connectors: Annotated[
        dict[str, Any],
        Meta(description="Sources of readings: `[connectors.NAME]`, or `[[connectors.NAME]]` for several of one kind."),
    ] = field(default_factory=lambda: {"host": {}})
