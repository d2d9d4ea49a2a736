"""Makes the connectors of a configuration, each with its settings, its secrets and its lines. For `assembly`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from appliance import plugins
from appliance.config import secrets
from appliance.config.document import Document
from appliance.config.schema import Config
from appliance.config.secrets import Reveal, VaultName
from appliance.errors import BusError, ConfigError, ConnectorError, VaultError

if TYPE_CHECKING:
    from appliance.bus.mqtt import MqttBus
    from appliance.bus.port import Message
    from appliance.connectors._listening import Known, Open
    from appliance.connectors.dialects.port import Request
    from appliance.connectors.port import Connector

DISCOVERY = "discovery"  # the connector that needs no configuration


class Means(NamedTuple):
    """What connectors are made from."""

    config: Config
    document: Document
    session: "Callable[[Message | None], MqttBus]"  # with the bus of this box, and a last will
    reveal: Reveal
    known: "Known"  # what is remembered of a device, by its asset


def sources(means: Means) -> "list[tuple[str, Connector]]":
    """All of them, with the names of their kinds. ConfigError names the line of what cannot be."""
    from appliance.connectors import configured, rivals

    config, document = means.config, means.document
    found = [(name, connector(name, settings, means)) for name, settings in configured(document, config.connectors)]
    for _, error in rivals(found):
        raise document.error(("connectors",), error.message, error.remedy)
    return [(DISCOVERY, discovery(means)), *found] if config.devices.discover else found


def connector(name: str, settings: Any, means: Means) -> "Connector":
    """One that declares a secret among its settings is given the way to it: `create(settings, reveal)`. It asks when it
    opens; where the vault does not answer, that is a ConnectorError, and it is opened again later."""
    if name == "mqtt":
        return _elsewhere(settings, means)
    plugin = plugins.load("appliance.connectors", name)
    asks = any(secrets.is_secret(field.type) for field in msgspec.structs.fields(plugin.Settings))
    made: Connector = plugin.create(settings, _telling(means.reveal)) if asks else plugin.create(settings)
    return made


def discovery(means: Means) -> "Connector":
    """Devices on the bus's own broker."""
    return _listening(means, lambda will: means.session(_message(will)))


def _elsewhere(settings: Any, means: Means) -> "Connector":
    """A broker elsewhere, with devices of its own."""
    from appliance.bus.mqtt import MqttBus

    async def credentials() -> tuple[str, bytes]:
        try:
            return settings.username, await means.reveal(settings.password) if settings.password else b""
        except VaultError as error:
            raise BusError(f"no password for '{settings.username}': {error.message}", error.remedy) from None

    def opened(will: "Request | None" = None) -> MqttBus:
        return MqttBus(
            settings.url,
            will=_message(will),
            ca_file=settings.ca_file,
            cert_file=settings.cert_file,
            key_file=settings.key_file,
            credentials=credentials if settings.username else None,
        )

    try:
        opened()  # an address that is none is told before anything runs
    except BusError as error:
        raise ConfigError(error.message, error.remedy) from None
    return _listening(means, opened, settings.dialects)


def _listening(means: Means, open_line: "Open", names: Sequence[str] = ()) -> "Connector":
    """Dialects at a broker: those of [devices], or the named ones."""
    from appliance.connectors import dialects
    from appliance.connectors._listening import Listening
    from appliance.connectors.dialects._devices import Limits

    settings = means.config.devices
    spoken = dialects.spoken(means.document, names or settings.dialects, means.config.dialects)
    return Listening(spoken, open_line, Limits(settings.max_devices, settings.max_rate_hz), means.known)


def _message(will: "Request | None") -> "Message | None":
    from appliance.bus.port import Message

    return Message(will.topic, will.payload, 1, will.stands) if will else None


def _telling(reveal: Reveal) -> Reveal:
    async def told(name: VaultName) -> bytes:
        try:
            return await reveal(name)
        except VaultError as error:
            raise ConnectorError(error.message, error.remedy) from None

    return told
