"""Destinations of what leaves the box, one file each; and from the configuration's tables to their settings."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from appliance import plugins
from appliance.channels.leaving.terms import Terms, labelled
from appliance.config.document import Document
from appliance.errors import PluginError


class Configured(NamedTuple):
    """One destination: the channel's kind, the name it goes by, its settings, and where they stand."""

    kind: str
    name: str
    settings: Terms
    place: tuple[str, ...]


def names() -> list[str]:
    return plugins.names(__name__)


def configured(document: Document, tables: Mapping[str, Any]) -> list[Configured]:
    """ConfigError names the line where a channel or one of its keys does not exist, or a name stands twice."""
    found: list[Configured] = []
    for kind, table in tables.items():
        struct = _settings_of(document, kind)
        several = isinstance(table, list)
        for index, one in enumerate(table if several else [table]):
            place = ("forward", kind, str(index)) if several else ("forward", kind)
            settings = document.into(struct, one, place)
            found.append(Configured(kind, labelled(kind, settings), settings, place))
    twice = [name for name, count in Counter(one.name for one in found).items() if count > 1]
    for one in found[::-1]:
        if one.name in twice:
            raise document.error(one.place, f"two destinations are called '{one.name}'", "Give each a `name`.")
    return found


def declared() -> dict[str, type[msgspec.Struct]]:
    """The settings of every channel there is, by name."""
    return {name: plugins.load(__name__, name).Settings for name in names()}


def _settings_of(document: Document, kind: str) -> type[Terms]:
    try:
        struct: type[Terms] = plugins.load(__name__, kind).Settings
    except PluginError as error:
        raise document.error(("forward", kind), error.message, error.remedy) from None
    return struct
