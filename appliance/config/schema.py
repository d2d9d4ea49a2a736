"""Every setting, declared once: its type, default, bounds and meaning. The reference is generated from this file, and
from `places` and `updating`, which have sections of it.

Numbers carry their unit in the key's name. Connectors declare their own settings in their own files, the same way.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from appliance.config.places import Paths
from appliance.config.secrets import VaultName
from appliance.config.updating import Contest, Update

Device = Literal["auto", "CPU", "GPU", "GPU.0", "GPU.1", "GPU.2", "GPU.3", "NPU"]


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
    identity: Annotated[
        VaultName | None,
        Meta(
            description="In place of both, a secret with key and certificate in PEM, such as `identity/device`: see "
            "`millwright identity`."
        ),
    ] = None
    username: Annotated[str, Meta(description="Who the services are to the broker; empty: they do not say.")] = ""
    password: Annotated[
        VaultName | None, Meta(description="The secret that goes with `username`, by its name in the vault.")
    ] = None


class Broker(Struct, frozen=True, forbid_unknown_fields=True):
    """The mosquitto that Millwright starts where `bus.url` is empty."""

    executable: Annotated[str, Meta(description="mosquitto's program, a name or a path.")] = "mosquitto"
    listen_port: Annotated[
        int, Meta(ge=0, le=65535, description="TCP port on 127.0.0.1 for publishers of this machine; 0: socket only.")
    ] = 0
    tls_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="TCP port for devices that have a certificate of this box (`millwright devices certify`); 8883 "
            "is usual. 0: none. Needs a vault.",
        ),
    ] = 0
    tls_address: Annotated[str, Meta(description="Address to listen at for them; empty: all of this machine's.")] = ""
    tls_names: Annotated[
        list[str],
        Meta(
            description="Names and addresses under which they reach this box; empty: its host name, alone and with "
            "`.local`."
        ),
    ] = field(default_factory=list)
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
        Device | Annotated[list[Device], Meta(min_length=1, max_length=8)],
        Meta(
            description="Where the model runs: a device, several in their order of preference, or `auto`: as `policy` "
            "says. The CPU is the last resort."
        ),
    ] = "auto"
    policy: Annotated[
        Literal["latency", "throughput", "low-power"],
        Meta(
            description="What `auto` looks for: the soonest answer, the most windows a second (both are measured), or "
            "NPU, then GPU, then one thread of the CPU."
        ),
    ] = "latency"
    isolate: Annotated[
        bool,
        Meta(description="The CPU, too, computes in a process of its own, as GPU and NPU always do; costs 90 MB."),
    ] = False
    deadline_ms: Annotated[
        int,
        Meta(
            ge=10,
            le=600_000,
            description="A process that computes and is silent for so long is killed; another device does its work.",
        ),
    ] = 2000
    compiled_mb: Annotated[
        int, Meta(ge=1, le=100_000, description="Disk space for compiled models; those not used for longest make room.")
    ] = 256
    backend: Annotated[str, Meta(description="The inference backend: a file of `appliance/inference/backends`.")] = (
        "openvino"
    )
    model: Annotated[
        str,
        Meta(
            description="Path of a model bundle, or a name of `millwright models list`, whose version in use is "
            "followed; empty: the name of the one that is shipped."
        ),
    ] = ""
    hop: Annotated[int, Meta(ge=1, le=1024, description="Judge an asset once every so many readings.")] = 1
    accept_periods: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="An alarm that has stood for so many learning periods, of 400 readings each, ends: what it "
            "stood for is taken to be normal from then on. 0: never.",
        ),
    ] = 6
    accept_hours: Annotated[
        float,
        Meta(ge=0, le=87_600, description="And no sooner than this: somebody shall have had the time to look."),
    ] = 24.0
    max_assets: Annotated[int, Meta(ge=1, le=100_000, description="Assets judged at once; more are counted.")] = 2000
    max_channels: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Channels of all assets together; more are counted.")
    ] = 20_000
    checkpoint_s: Annotated[
        int, Meta(ge=1, le=3600, description="How often what was learned is written to disk (and at each alarm).")
    ] = 30


class Limit(Struct, frozen=True, forbid_unknown_fields=True):
    """A range that a point must not leave: beyond it an alarm is raised, whatever the detector has learned. Write one
    `[[limits]]` for each."""

    asset: Annotated[str, Meta(min_length=1, description="`line1/pump`, `line1/#` for all below it, `#` for all.")]
    point: Annotated[str, Meta(min_length=1, description="The point's name.")]
    min: Annotated[float | None, Meta(description="The smallest value; left out: none.")] = None
    max: Annotated[float | None, Meta(description="The largest value; left out: none.")] = None


class Settable(Struct, frozen=True, forbid_unknown_fields=True):
    """A point of a device that people may set, with `millwright points`. Without any nothing can be set. Write one
    `[[points]]` for each."""

    asset: Annotated[str, Meta(min_length=1, description="The device's asset.")]
    point: Annotated[str, Meta(min_length=1, description="The point's name.")]
    type: Annotated[Literal["switch", "number"], Meta(description="What it is set to: on and off, or a number.")]
    min: Annotated[float, Meta(description="The smallest number.")] = 0.0
    max: Annotated[float, Meta(description="The largest number.")] = 0.0
    max_step: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="How far from what it was set to before; left out: as far as the limits."),
    ] = None
    min_interval_s: Annotated[
        float, Meta(ge=0, le=86_400, description="Between two times that it is set, at least.")
    ] = 1.0
    confirmation: Annotated[
        Literal["none", "anyone", "another"],
        Meta(description="Whether it waits for a second word within a minute, and whether by somebody else."),
    ] = "none"


class Infer(Struct, frozen=True, forbid_unknown_fields=True):
    """Models served to other programs. Runs where `port` or `models` is set, or as `millwright run infer`. Devices are
    chosen as in [detect]."""

    port: Annotated[
        int, Meta(ge=0, le=65535, description="TCP port of the KServe v2 REST endpoint on loopback; 0: the bus alone.")
    ] = 0
    models: Annotated[
        list[str], Meta(description="Models to serve: `name` or `name@version`; empty: every one of the library.")
    ] = field(default_factory=list)
    max_loaded: Annotated[int, Meta(ge=1, le=100, description="Models in memory at once.")] = 8
    folders: Annotated[
        list[str], Meta(description="Folders below which a command may name a file with an input; empty: none.")
    ] = field(default_factory=list)
    inline_kb: Annotated[
        int, Meta(ge=1, le=512, description="Tensors in a command or its answer; larger ones go by memory or file.")
    ] = 64
    max_body_mb: Annotated[int, Meta(ge=1, le=1024, description="A request over HTTP, or a tensor in a file.")] = 64
    max_connections: Annotated[int, Meta(ge=1, le=1000, description="HTTP connections at once.")] = 64
    max_waiting: Annotated[int, Meta(ge=1, le=10_000, description="Requests that wait; more are refused.")] = 64
    threads: Annotated[int, Meta(ge=1, le=64, description="Requests read, computed and answered at once.")] = 8
    join_rows: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Rows of requests at the same time that are computed together; 1: none. More is faster where "
            "weights are large, and costs memory: each power of two up to it is compiled when it is first needed, and "
            "kept.",
        ),
    ] = 1
    timeout_s: Annotated[float, Meta(ge=0.1, le=3600, description="A request that takes longer is refused.")] = 30.0


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


class Metrics(Struct, frozen=True, forbid_unknown_fields=True):
    """Prometheus's `/metrics`: services, readings, scores, alarms, what is forwarded."""

    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port on loopback; 9464 is usual. 0: none.")] = 0


class Vault(Struct, frozen=True, forbid_unknown_fields=True):
    """Where secrets are kept: see `millwright vault`. A vault that has been made runs with the other services."""

    backend: Annotated[
        Literal["auto", "tpm", "fingerprint", "plain"],
        Meta(
            description="What binds the vault's key to this box. `auto`: the TPM, else the box's fingerprint; a weaker "
            "one only where it is named here. `plain` is for development."
        ),
    ] = "auto"
    suite: Annotated[
        Literal["aes-256-gcm", "sm4-gcm"],
        Meta(description="The cipher of a vault that is made, not of one that is there."),
    ] = "aes-256-gcm"
    policy: Annotated[
        str,
        Meta(
            description="A file of rules that says who may read what: see `millwright vault policy`. Empty: only root "
            "and the user that the vault runs as."
        ),
    ] = ""
    socket: Annotated[
        str,
        Meta(
            description="Path of the socket it serves. Empty: `vault.sock` in `paths.run`, whose folder is closed to "
            "other users than root."
        ),
    ] = ""
    latch: Annotated[
        bool,
        Meta(
            description="With a TPM: once it is open, nothing opens it again until the next boot, not even a restart "
            "of this service."
        ),
    ] = False
    tpm: Annotated[dict[str, Any], Meta(description="Settings of this backend: a table of its own.")] = field(
        default_factory=dict
    )
    fingerprint: Annotated[dict[str, Any], Meta(description="As `tpm`.")] = field(default_factory=dict)
    plain: Annotated[dict[str, Any], Meta(description="As `tpm`.")] = field(default_factory=dict)


class Devices(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices that speak a known dialect (Zigbee2MQTT, Tasmota, Shelly, ESPHome, Sparkplug B, ...) on the bus's broker
    are found by themselves: see `millwright devices`. Those on another broker: [connectors.mqtt]."""

    discover: Annotated[bool, Meta(description="Look for them.")] = True
    dialects: Annotated[list[str], Meta(description="Only these dialects; empty: all there are.")] = field(
        default_factory=list
    )
    max_devices: Annotated[int, Meta(ge=1, le=20_000, description="Of each dialect; more are counted.")] = 5000
    max_rate_hz: Annotated[
        float,
        Meta(ge=0.01, le=10_000, description="Messages a second taken of a device over time; it may send in bursts."),
    ] = 50.0


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to standard error (the journal, on an appliance)."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least important line that is written.")
    ] = "info"


Section = dict[str, Any]


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """One TOML file. Every section and every key may be left out."""

    base: Annotated[
        str,
        Meta(
            description="A TOML file that this one is laid over, key by key, absolute or from this file's folder; its "
            "connectors are taken where this one has none."
        ),
    ] = ""
    paths: Paths = field(default_factory=Paths)
    bus: Bus = field(default_factory=Bus)
    broker: Broker = field(default_factory=Broker)
    detect: Detect = field(default_factory=Detect)
    contest: Contest = field(default_factory=Contest)
    limits: Annotated[list[Limit], Meta(description="Declared ranges of points.")] = field(default_factory=list)
    points: Annotated[list[Settable], Meta(description="Points of devices that may be set.")] = field(
        default_factory=list
    )
    infer: Infer = field(default_factory=Infer)
    update: Update = field(default_factory=Update)
    record: Record = field(default_factory=Record)
    metrics: Metrics = field(default_factory=Metrics)
    vault: Vault = field(default_factory=Vault)
    devices: Devices = field(default_factory=Devices)
    log: Log = field(default_factory=Log)
    dialects: Annotated[
        dict[str, Any], Meta(description="What devices speak over MQTT: `[dialects.NAME]`. None needs a setting.")
    ] = field(default_factory=dict)
    connectors: Annotated[
        dict[str, Any],
        Meta(description="Sources of readings: `[connectors.NAME]`, or `[[connectors.NAME]]` for several of one kind."),
    ] = field(default_factory=lambda: {"host": {}})
    forward: Annotated[
        dict[str, Any],
        Meta(
            description="Where what happens on this box is sent: `[forward.NAME]`, or `[[forward.NAME]]` for several "
            "of one kind. Each has an outbox of its own: nothing is lost while its line is down."
        ),
    ] = field(default_factory=dict)
