"""Builds wired services from a Config. The only module that names adapters.

Adapters are imported by the service that needs them, so that a process which only brings readings in does not carry
an inference engine.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import plugins
from appliance.bus.port import Message
from appliance.config.document import Document
from appliance.config.schema import Config
from appliance.errors import ConfigError
from appliance.runtime.service import Service
from appliance.services.status import will

if TYPE_CHECKING:
    from appliance.bus.mqtt import MqttBus
    from appliance.services.observe import Observer
    from appliance.services.picture import Change, Picture

SERVICES = ("broker", "record", "detect", "ingest")  # in the order of their start
DETECTED = "detected.state"
HISTORY = "history.sqlite"
ALARMS = "alarms.sqlite"
DAY = 86_400_000_000_000  # ns


def choose(wanted: Sequence[str], config: Config) -> list[str]:
    """The services to run, in the order of their start. Without names: all, the broker only where the bus is ours."""
    for name in wanted:
        if name not in SERVICES:
            raise ConfigError(f"there is no service '{name}'", f"There are: {', '.join(SERVICES)}.")
    if wanted:
        return [name for name in SERVICES if name in wanted]
    return [name for name in SERVICES if name != "broker" or not config.bus.url]


def build(config: Config, document: Document, names: Sequence[str]) -> list[Service]:
    builders: dict[str, Callable[[Config, Document], Service]] = {
        "broker": _broker,
        "record": _record,
        "detect": _detect,
        "ingest": _ingest,
    }
    return [builders[name](config, document) for name in names]


def bus_url(config: Config) -> str:
    """Where the bus is: as configured, else the socket of the broker that Millwright starts."""
    from appliance.bus import broker

    return config.bus.url or broker.url(config.paths)


def observer(config: Config, picture: "Picture", tell: "Callable[[Change], None]") -> "Observer":
    from appliance.services.observe import Observer

    return Observer(session(config), picture, time.time_ns, tell)


def session(config: Config, client_id: str = "", last_will: Message | None = None) -> "MqttBus":
    """A session with the bus; one with a name is kept by the broker while its service is away."""
    from appliance.bus.mqtt import MqttBus

    bus = config.bus
    return MqttBus(
        bus_url(config),
        client_id=client_id,
        will=last_will,
        ca_file=bus.ca_file,
        cert_file=bus.cert_file,
        key_file=bus.key_file,
    )


def _session_of(config: Config, service: str) -> "MqttBus":
    return session(config, f"mw-{service}", will(service))


def _broker(config: Config, _: Document) -> Service:
    from appliance.bus.broker import MosquittoBroker

    return MosquittoBroker(config.paths, config.broker)


def _record(config: Config, _: Document) -> Service:
    from appliance.services.record import Record
    from appliance.store.alarms import Alarms
    from appliance.store.history import History

    state, settings = config.paths.state, config.record
    history = History(state / HISTORY, settings.budget_mb << 20, settings.retention_days * DAY)
    return Record(_session_of(config, "record"), history, Alarms(state / ALARMS), settings, time.time_ns)


def _detect(config: Config, document: Document) -> Service:
    from appliance.inference import engine, models
    from appliance.inference.detector.detector import Detector
    from appliance.inference.detector.settings import DetectorSettings
    from appliance.services.detect import Detect
    from hardware import accelerators

    settings = config.detect
    plugin = plugins.load("appliance.inference.backends", settings.backend)
    backend = plugin.create(plugin.Settings())
    bundle = models.load(Path(settings.model) if settings.model else models.shipped())
    computer = engine.start(bundle, backend, settings.device, accelerators.find(backend.ask))
    limits = DetectorSettings(settings.hop, settings.max_assets, settings.max_channels)
    return Detect(
        _session_of(config, "detect"),
        Detector(limits, computer),
        computer,
        config.paths.state / DETECTED,
        settings.checkpoint_s,
        time.time_ns,
    )


def _ingest(config: Config, document: Document) -> Service:
    from appliance.connectors import configured
    from appliance.services.ingest import Ingest

    sources = [
        (name, plugins.load("appliance.connectors", name).create(settings))
        for name, settings in configured(document, config.connectors)
    ]
    return Ingest(_session_of(config, "ingest"), sources, time.time_ns)
