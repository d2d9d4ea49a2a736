"""Devices on a broker elsewhere: every dialect is looked for there, as on the box's own.

    [connectors.mqtt]
    url = "mqtts://broker.plant.example:8883"
    ca_file = "/etc/millwright/plant-ca.pem"
    username = "millwright"
    password = {vault = "mqtt/plant"}
    dialects = ["sparkplug", "mapping"]

It listens, and publishes only what makes devices introduce themselves. What devices of two brokers have in common is
their identity: one that is found on both is one asset.
"""

from typing import Annotated

from msgspec import Meta, Struct, field

from appliance.config.secrets import VaultName
from appliance.connectors import dialects as every
from appliance.connectors._listening import Listening, Open
from appliance.connectors._pace import REAL, Time


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices on a broker elsewhere. [devices] has the bounds, [dialects.NAME] the settings of dialects."""

    url: Annotated[str, Meta(min_length=1, description="`unix:/path`, `mqtt://host:port` or `mqtts://host:port`.")]
    ca_file: Annotated[str, Meta(description="Certificates that sign the broker's, for mqtts.")] = ""
    cert_file: Annotated[str, Meta(description="This box's certificate, for mqtts.")] = ""
    key_file: Annotated[str, Meta(description="The key of `cert_file`.")] = ""
    username: Annotated[str, Meta(description="Who the box is there; empty: it does not say.")] = ""
    password: Annotated[VaultName | None, Meta(description="The secret that goes with `username`.")] = None
    dialects: Annotated[list[str], Meta(description="Only these; empty: as in [devices].")] = field(
        default_factory=list
    )


def create(settings: Settings, open_line: Open, time: Time = REAL) -> Listening:
    """`open_line` makes a session with the broker: this room knows none."""
    names = settings.dialects or list(every.declared())
    return Listening([every.make(name) for name in names], open_line, time=time)
