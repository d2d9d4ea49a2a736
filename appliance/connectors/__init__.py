"""Sources of readings, one file each; and from the configuration's tables to their settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from appliance import plugins
from appliance.config.document import Document
from appliance.connectors.port import Connector, Foreseeable
from appliance.errors import ConfigError, ConnectorError, PluginError


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


def rivals(sources: Sequence[tuple[str, Connector]]) -> list[tuple[int, ConfigError]]:
    """Which of the connectors, by place, brings readings of an asset that one before it brings, too: mixed, they would
    be one machine that jumps. What is not there yet is passed over."""
    owners: dict[str, str] = {}
    found = []
    for place, (name, connector) in enumerate(sources):
        if not isinstance(connector, Foreseeable):
            continue
        try:
            assets = connector.assets()
        except ConnectorError:
            continue
        taken = [asset for asset in assets if asset in owners]
        if taken:
            problem = f"'{taken[0]}' is the asset of another {owners[taken[0]]} already"
            found.append((place, ConfigError(problem, f"Set 'asset' of this {name} to another one.")))
        owners |= dict.fromkeys(assets, name)
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
