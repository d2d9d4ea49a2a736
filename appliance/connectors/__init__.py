"""Sources of readings, one file each; and from the configuration's tables to their settings."""

from collections.abc import Mapping
from typing import Any

import msgspec

from appliance import plugins
from appliance.config.document import Document
from appliance.errors import PluginError


def configured(document: Document, tables: Mapping[str, Any]) -> list[tuple[str, msgspec.Struct]]:
    """Name and settings of each connector of a configuration: one of `[connectors.NAME]`, several of
    `[[connectors.NAME]]`. ConfigError names the line where a connector or one of its keys does not exist."""
    found: list[tuple[str, msgspec.Struct]] = []
    for name, table in tables.items():
        kind = _settings_of(document, name)
        if isinstance(table, list):
            several = enumerate(table)
            found += [(name, document.into(kind, one, ("connectors", name, str(index)))) for index, one in several]
        else:
            found.append((name, document.into(kind, table, ("connectors", name))))
    return found


def declared() -> dict[str, type[msgspec.Struct]]:
    """The settings of every connector there is, by name."""
    return {name: plugins.load(__name__, name).Settings for name in plugins.names(__name__)}


def _settings_of(document: Document, name: str) -> type[msgspec.Struct]:
    try:
        kind: type[msgspec.Struct] = plugins.load(__name__, name).Settings
    except PluginError as error:
        raise document.error(("connectors", name), error.message, error.remedy) from None
    return kind
