"""Builds wired services from a Config. The only module that names adapters.

Adapters are imported by the service that needs them, so that a process which only brings readings in does not carry
an inference engine.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import computing, connecting
from appliance.bus.port import Message
from appliance.config import secrets
from appliance.config.document import Document
from appliance.config.schema import Config
from appliance.config.secrets import Reveal, VaultName
from appliance.errors import BusError, ConfigError, StoreError, VaultError
from appliance.runtime.service import Service
from appliance.services.status import will

if TYPE_CHECKING:
    from appliance.bus.mqtt import MqttBus
    from appliance.bus.port import Credentials, Papers
    from appliance.connectors._listening import Known
    from appliance.inference.models import Bundle
    from appliance.services.admission import Admission
    from appliance.services.observe import Observer
    from appliance.services.picture import Change, Picture
    from appliance.vault.certificates.identity import Attestor, Identities, Secrets

SERVICES = (
    "vault",
    "broker",
    "record",
    "forward",
    "metrics",
    "detect",
    "infer",
    "update",
    "ingest",
)  # in the order of their start
DETECTED = "detected.state"
DAY = 86_400_000_000_000  # ns
UPKEEP_ANSWER_S = 5.0  # a vault that ends does not hold up what asks it from within


def choose(wanted: Sequence[str], config: Config) -> list[str]:
    """The services to run, in the order of their start. Without names: all, the vault only where one was made, the
    broker only where the bus is ours, infer, forward and metrics only where they are told what to serve and whereto."""
    for name in wanted:
        if name not in SERVICES:
            raise ConfigError(f"there is no service '{name}'", f"There are: {', '.join(SERVICES)}.")
    if wanted:
        return [name for name in SERVICES if name in wanted]
    left_out = {
        "vault": not has_vault(config),
        "broker": bool(config.bus.url),
        "infer": not (config.infer.port or config.infer.models),
        "forward": not config.forward,
        "metrics": not config.metrics.port,
    }
    return [name for name in SERVICES if not left_out.get(name)]


def build(config: Config, document: Document, names: Sequence[str]) -> list[Service]:
    check_secrets(config, document, names)
    builders: dict[str, Callable[[Config, Document], Service]] = {
        "vault": _vault,
        "broker": _broker,
        "record": _record,
        "detect": _detect,
        "infer": _infer,
        "update": _update,
        "forward": _forward,
        "metrics": _metrics,
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
        credentials=_credentials(config),
        papers=_papers(config),
    )


def _credentials(config: Config) -> "Credentials | None":
    """Asked of the vault at each connection: it may start later than we do, and passwords change."""
    username, password = config.bus.username, config.bus.password

    async def told() -> tuple[str, bytes]:
        try:
            return username, await reveal(config)(password) if password else b""
        except VaultError as error:
            raise BusError(f"no password for '{username}': {error.message}", error.remedy) from None

    return told if username else None


def _papers(config: Config) -> "Papers | None":
    """As credentials: a renewed certificate is used from the next connection on."""
    name = config.bus.identity
    if name is None:
        return None

    async def told() -> bytes:
        try:
            return await reveal(config)(name)
        except VaultError as error:
            raise BusError(f"no certificate to show: {error.message}", error.remedy) from None

    return told


def reveal(config: Config) -> Reveal:
    """What the name of a secret stands for, asked of the vault that runs. VaultError."""
    from appliance.vault import client

    path = vault_socket(config)

    async def told(name: VaultName) -> bytes:
        return (await client.fetch(path, name.vault)).reveal()

    return told


def _session_of(config: Config, service: str) -> "MqttBus":
    return session(config, f"mw-{service}", will(service))


def has_vault(config: Config) -> bool:
    """One was made. Where this user may not look, there is one."""
    from appliance.vault import chest, opening

    try:
        return chest.exists(config.paths.state / opening.FOLDER)
    except StoreError:
        return True


def vault_socket(config: Config) -> Path:
    from appliance.vault import protocol

    return Path(config.vault.socket) if config.vault.socket else config.paths.run / protocol.SOCKET


def check_secrets(config: Config, document: Document, names: Sequence[str]) -> None:
    """ConfigError where secrets are named that no vault could hold: not this state's, nor one that runs elsewhere."""
    for path, name in secrets.named(config):
        if "vault" not in names and not has_vault(config) and not vault_socket(config).exists():
            problem = f"'{name.vault}' is a secret's name, and there is no vault"
            raise document.error(path, problem, f"millwright vault init, then millwright vault put {name.vault}")
    if config.broker.tls_port and "broker" in names and not (has_vault(config) or vault_socket(config).exists()):
        problem = "the certificates of broker.tls_port are kept in a vault, and there is none"
        raise document.error(("broker", "tls_port"), problem, "millwright vault init, or tls_port = 0")


def _vault(config: Config, document: Document) -> Service:
    from appliance import binding
    from appliance.services.enrolling import Renewal
    from appliance.services.vault import Vault
    from appliance.vault.rules import Rules

    owner, folder = os.geteuid(), binding.Box(config, document).folder
    rules = Rules(Path(config.vault.policy) if config.vault.policy else None, owner)

    def stamp() -> list[tuple[str, int, int]]:
        return [(one.name, (facts := one.stat()).st_mtime_ns, facts.st_ino) for one in sorted(folder.glob("vault.?"))]

    return Vault(
        _session_of(config, "vault"),
        lambda: binding.unlock(config, document, latch=config.vault.latch),
        stamp,
        vault_socket(config),
        rules,
        owner,
        time.time_ns,
        Renewal(lambda: identities(config), believed_time),
    )


def _broker(config: Config, _: Document) -> Service:
    from appliance.bus.broker import MosquittoBroker

    return MosquittoBroker(config.paths, config.broker, admission(config).door if config.broker.tls_port else None)


def admission(config: Config) -> "Admission":
    """Who may come in from outside; its keys are asked of the vault that runs."""
    from appliance.services.admission import Admission
    from appliance.vault import client

    return Admission(client.by_socket(vault_socket(config)), config.paths.state, config.broker, time.time_ns)


def identities(config: Config, kept: "Secrets | None" = None) -> "Identities":
    """This box towards an outside authority; kept in the vault that runs, or the one that is named."""
    from appliance.vault import client
    from appliance.vault.certificates.identity import Identities

    vault = kept or client.by_socket(vault_socket(config), UPKEEP_ANSWER_S)
    return Identities(vault, believed_time, _attestor)


def believed_time() -> int:
    """UTC ns, never before what this software and this machine have certainly seen."""
    from hardware import clock

    now = time.time_ns()
    return max(now, int(clock.find(now / 1e9).floor_s * 1e9))


def _attestor() -> "Attestor | None":
    from hardware import attestation, tpm

    found = tpm.find()
    return attestation.Attestor(tpm.Tpm(found.tcti)) if found.usable else None


def _record(config: Config, _: Document) -> Service:
    from appliance.services.record import Record
    from appliance.store import alarms, history

    state, settings = config.paths.state, config.record
    readings = history.History(state / history.FILE, settings.budget_mb << 20, settings.retention_days * DAY)
    kept = alarms.Alarms(state / alarms.FILE)
    return Record(_session_of(config, "record"), readings, kept, settings, time.time_ns)


def _detect(config: Config, document: Document) -> Service:
    from appliance.inference.detector.detector import Detector
    from appliance.inference.detector.quality import Limit
    from appliance.inference.detector.settings import DetectorSettings
    from appliance.services.detect import Detect
    from appliance.services.roster import Roster

    settings = config.detect
    choice = computing.detector_choice(config)
    runner, trouble = choice.open_first()
    roster = Roster(choice, runner, trouble, config.contest)
    limits = DetectorSettings(
        settings.hop,
        settings.max_assets,
        settings.max_channels,
        accept_periods=settings.accept_periods,
        accept_hours=settings.accept_hours,
    )
    return Detect(
        _session_of(config, "detect"),
        Detector(limits, runner),
        roster,
        config.paths.state / DETECTED,
        settings.checkpoint_s,
        time.time_ns,
        [Limit(one.asset, one.point, *_range(one.min, one.max)) for one in config.limits],
        roster,
    )


def _range(low: float | None, high: float | None) -> tuple[float, float]:
    return -math.inf if low is None else low, math.inf if high is None else high


def _infer(config: Config, _: Document) -> Service:
    from appliance.inference import engine
    from appliance.inference.serving import Repertoire
    from appliance.services.infer import Infer

    def opened(bundle: "Bundle") -> "engine.Engine":
        backend = computing.inference_backend(config, bundle.card.backend)
        return engine.start(bundle, backend, computing.inference_terms(config), computing.devices_for(backend))

    # That policy computes several requests at once instead.
    join = 1 if config.detect.policy == "throughput" else config.infer.join_rows
    repertoire = Repertoire(computing.library(config), opened, config.infer.models, config.infer.max_loaded, join)
    return Infer(_session_of(config, "infer"), repertoire, config.infer, time.time_ns)


def _update(config: Config, document: Document) -> Service:
    from appliance import updating
    from appliance.inference import inspection

    def check(bundle: "Bundle") -> None:
        inspection.check(bundle, computing.inference_backend(config, bundle.card.backend))

    bus, follows = _session_of(config, "update"), computing.detector_choice(config).name
    return updating.service(config, document, bus, computing.library(config), follows, check)


def _metrics(config: Config, _: Document) -> Service:
    from appliance.services.metrics import Metrics

    return Metrics(_session_of(config, "metrics"), session(config), config.metrics, time.time_ns)


def _forward(config: Config, document: Document) -> Service:
    from appliance import forwarding

    return forwarding.build(config, document, lambda name: _session_of(config, name), reveal(config))


def _ingest(config: Config, document: Document) -> Service:
    from appliance.services import devices, setting
    from appliance.services.ingest import Ingest
    from appliance.services.points import Points
    from appliance.services.strays import Strays

    found = devices.Devices(config.paths.state / devices.FILE, time.time_ns)
    return Ingest(
        _session_of(config, "ingest"),
        connecting.sources(means(config, document, found.known)),
        time.time_ns,
        strays=Strays(session(config)),
        devices=found,
        points=Points(config.points),
        log_file=config.paths.state / setting.FILE,
    )


def means(config: Config, document: Document, known: "Known") -> connecting.Means:
    return connecting.Means(config, document, lambda will: session(config, last_will=will), reveal(config), known)
