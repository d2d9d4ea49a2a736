"""Languages that devices speak over MQTT, one file each, pure. See README.md."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from appliance import plugins
from appliance.config.document import Document
from appliance.connectors.dialects._devices import REMEDIES
from appliance.connectors.dialects.port import Dialect

__all__ = ["REMEDIES", "declared", "make", "spoken"]


def declared() -> dict[str, type[msgspec.Struct]]:
    """The settings of every dialect there is, by name."""
    return {name: plugins.load(__name__, name).Settings for name in plugins.names(__name__)}


def spoken(document: Document, names: Sequence[str], tables: Mapping[str, Any]) -> list[Dialect]:
    """Those that are named (none: all), each with its table `[dialects.NAME]`. ConfigError names the line."""
    known = plugins.names(__name__)
    for name, place in (
        *((name, ("devices", "dialects")) for name in names),
        *((name, ("dialects",)) for name in tables),
    ):
        if name not in known:
            raise document.error(place, f"there is no dialect '{name}'", f"There are: {', '.join(known)}.")
    return [
        make(name, document.into(plugins.load(__name__, name).Settings, tables.get(name, {}), ("dialects", name)))
        for name in (names or known)
    ]


def make(name: str, settings: msgspec.Struct | None = None) -> Dialect:
    plugin = plugins.load(__name__, name)
    made: Dialect = plugin.create(settings or plugin.Settings())
    return made
