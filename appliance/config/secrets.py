"""Secrets are named in the configuration and never written there: `password = {vault = "mqtt/plant"}`.

What a name stands for is asked of the vault when it is needed, and again after each failure: a service that starts
before the vault, or a password that was changed, needs nobody's attention.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta, Struct


class VaultName(Struct, frozen=True, forbid_unknown_fields=True):
    """A secret of the vault."""

    vault: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9_.-]{1,64}(/[a-z0-9_.-]{1,64}){1,3}$",
            description="Its name there, like `mqtt/plant`: see `millwright vault put`.",
        ),
    ]


Reveal = Callable[[VaultName], Awaitable[bytes]]
"""What a name stands for. Whoever gets one raises the errors of its own port where the vault does not answer."""


def named(settings: object) -> Iterator[tuple[tuple[str, ...], VaultName]]:
    """Every secret that a configuration names, with the path of its key. Tables that no struct describes are searched
    by their form."""
    yield from _named(settings, ())


def is_secret(kind: object) -> bool:
    """Whether a field's type takes the name of a secret, and no text in its place."""
    return VaultName in (found := list(_flat(kind))) and str not in found


def remedy(key: str) -> str:
    """For who wrote a secret itself into the configuration."""
    name = f"plant/{key}"
    return f'Write {key} = {{vault = "{name}"}} and put the secret there: millwright vault put {name}'


def _flat(kind: object) -> Iterator[object]:
    inner = get_args(kind)
    if inner and not isinstance(kind, type):
        for one in inner:
            yield from _flat(one)
    else:
        yield kind


def _named(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], VaultName]]:
    if isinstance(value, VaultName):
        yield path, value
    elif isinstance(value, Struct):
        for field in msgspec.structs.fields(value):
            yield from _named(getattr(value, field.name), (*path, field.encode_name))
    elif isinstance(value, dict) and set(value) == {"vault"} and isinstance(value["vault"], str):
        yield path, VaultName(value["vault"])
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _named(one, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from _named(one, (*path, str(index)))
