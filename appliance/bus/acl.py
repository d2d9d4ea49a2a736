"""mosquitto's access lists: who may publish and subscribe what. Pure.

Nobody may do anything that is not written here. Each name has its own lines: patterns with `%u` would save them, but
mosquitto 2.0 does not fill it in everywhere, and a name with a slash in it would reach beyond its place.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from appliance.errors import BusError


class Grantee(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def publish(self) -> Sequence[str]: ...

    @property
    def subscribe(self) -> Sequence[str]: ...


def text(grantees: Iterable[Grantee]) -> str:
    """BusError for a name or filter that would say something else in the file."""
    lines = ["# Written by millwright: see 'millwright devices'. Nobody else may do anything."]
    for grantee in grantees:
        if not (grantee.publish or grantee.subscribe):
            continue
        lines.append(f"user {safe(grantee.name)}")
        lines += [f"topic write {safe(filter_)}" for filter_ in grantee.publish]
        lines += [f"topic read {safe(filter_)}" for filter_ in grantee.subscribe]
    return "\n".join(lines) + "\n"


def safe(word: str) -> str:
    """The word itself, or BusError."""
    if not word or not word.isprintable() or word != word.strip():
        raise BusError(f"{word!r} cannot stand in an access list", "Use printable characters, no blanks at the ends.")
    return word
