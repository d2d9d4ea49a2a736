"""How devices come to this box: what to do where none was found. For `millwright devices list` and `run --hear`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from appliance.errors import BusError

if TYPE_CHECKING:
    from appliance.config.schema import Config

USUAL = "mqtt://127.0.0.1:1883"  # where the broker of a gateway on this machine is, Debian's own mosquitto among them
USUAL_TLS = 8883
ANSWER_S = 1.0


def hearing(config: "Config", urls: Sequence[str]) -> "Config":
    """The same, with devices looked for on these brokers, too."""
    if not urls:
        return config
    known = _elsewhere(config)
    fresh = [{"url": url} for url in urls if url not in [one.get("url") for one in known]]
    return msgspec.structs.replace(config, connectors={**config.connectors, "mqtt": [*known, *fresh]})


async def advice(config: "Config", source: str) -> list[str]:
    """Lines for a person whose devices are not here. `source`: the configuration's file, empty for the defaults."""
    heard = [one.get("url", "") for one in _elsewhere(config)]
    lines = ["No device was found yet. They are looked for on " + ", ".join([_own(config), *heard]) + "."]
    place = source or "millwright.toml (tools/run --config millwright.toml)"
    if USUAL not in [*heard, config.bus.url] and await _answers(USUAL):
        lines += [
            f"A broker answers at {USUAL}, where Zigbee2MQTT and others on this machine usually speak. To hear it:",
            f"  tools/run --hear {USUAL}",
            f'  for good, in {place}:  [connectors.mqtt]  url = "{USUAL}"',
        ]
    else:
        lines += ["Where the devices have a broker already:", "  tools/run --hear mqtt://HOST:1883"]
        lines += [f'  for good, in {place}:  [connectors.mqtt]  url = "mqtt://HOST:1883", with username and password']
    return lines if config.bus.url else [*lines, *_invitation(config, place)]


def _invitation(config: "Config", place: str) -> list[str]:
    """How they come to the box's own broker."""
    port, tls = config.broker.listen_port, config.broker.tls_port
    lines = ["Where they are to speak to the box itself, from this machine:"]
    if port:
        lines += [f"  their server is mqtt://127.0.0.1:{port}"]
    else:
        lines += [f"  in {place}:  [broker]  listen_port = 1884   then their server is mqtt://127.0.0.1:1884"]
    lines += ["From the network, with TLS and a certificate, and nobody without one:"]
    if not tls:
        lines += [f"  millwright vault init, and in {place}:  [broker]  tls_port = {USUAL_TLS}"]
    words = "--publish 'zigbee2mqtt/#' --subscribe 'zigbee2mqtt/#'"
    return [*lines, f"  millwright devices certify z2m {words} --out z2m/"]


def _own(config: "Config") -> str:
    from appliance.cli import instance

    port = config.broker.listen_port
    return instance.bus_url(config) + (f" (mqtt://127.0.0.1:{port})" if port and not config.bus.url else "")


def _elsewhere(config: "Config") -> list[dict[str, Any]]:
    found = config.connectors.get("mqtt", [])
    return list(found) if isinstance(found, list) else [found]


async def _answers(url: str) -> bool:
    from appliance.bus.mqtt import MqttBus

    try:
        async with MqttBus(url) as bus:
            await bus.wait_connected(ANSWER_S)
    except BusError:
        return False
    return True
