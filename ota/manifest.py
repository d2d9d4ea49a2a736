"""What a target of the repository says of itself: the signed `custom` data beside its length and hash. Pure.

    {"millwright": {"kind": "bundle", "name": "pump", "version": "1.2.0", "bundle": "<content hash>", ...}}

    kind      the target's file                                    path
    bundle    a whole model, packed (`ota.bundle`)                 models/<fleet>/<name>-<version>.bundle
    delta     what makes one bundle of another (`ota.delta`)       models/<fleet>/<name>-<version>.from-<base>.delta
    campaign  who takes which version, and when (`ota.campaign`)   models/<fleet>/<name>.campaign
    image     an image of the operating system                     os/<name>-<version>.image

Fields that a newer publisher adds are ignored, and so is a kind that is not known, except under `needs`: what a target
needs and this box does not know of, it does not have.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ota.errors import ManifestError

LIMIT = 8192  # bytes of one target's custom data, as JSON
KEY = "millwright"
SEALED = "sealed"  # a feature: the box can open what is encrypted for its fleet

Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", description="SHA-256, in hexadecimal")]
Word = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_]*(-[a-z0-9_]+)*$", max_length=64)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*$", max_length=64)]
Version = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){1,3}$")]
Bytes = Annotated[int, Meta(ge=0, le=1 << 42)]
Recipient = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$", description="The first half of SHA-256 of a public key")]
Wrapped = Annotated[bytes, Meta(min_length=1, max_length=2048)]
Keys = Annotated[dict[Recipient, Wrapped], Meta(max_length=4)]

_PATH = re.compile(r"[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*){0,7}")
_MAX_PATH = 240  # characters; with a hash in front it is a file name on every filesystem


class Needs(Struct, frozen=True, forbid_unknown_fields=True):
    """What a box must have. An unknown need is one that is not met."""

    millwright: Version = "0.0"
    memory_bytes: Bytes = 0
    features: Annotated[tuple[Word, ...], Meta(max_length=32)] = ()


class Bundle(Struct, frozen=True, tag_field="kind", tag="bundle"):
    """`sealed`: its file is encrypted (`ota.sealed`); the key, wrapped for each recipient."""

    name: Name
    version: Version
    bundle: Hash
    unpacked_bytes: Bytes
    needs: Needs = Needs()
    sealed: Keys = {}


class Delta(Struct, frozen=True, tag_field="kind", tag="delta"):
    """Makes `bundle` of `base`, both content hashes; applying it takes `memory_bytes`."""

    name: Name
    version: Version
    base: Hash
    bundle: Hash
    unpacked_bytes: Bytes
    memory_bytes: Bytes = 0
    needs: Needs = Needs()
    sealed: Keys = {}


class Campaign(Struct, frozen=True, tag_field="kind", tag="campaign"):
    """For the model `name`; the file itself is read by `ota.campaign`."""

    name: Name


class Image(Struct, frozen=True, tag_field="kind", tag="image"):
    name: Name
    version: Version
    needs: Needs = Needs()


Content = Bundle | Delta | Campaign | Image
KINDS = ("bundle", "delta", "campaign", "image")


class Host(Struct, frozen=True):
    """What this box has, to be held against `Needs`."""

    millwright: Version
    memory_bytes: int
    features: frozenset[str] = frozenset()


def read(custom: Mapping[str, Any] | None) -> Content | None:
    """None where the target is not one of ours, or of a kind that came later. ManifestError: it breaks the format."""
    ours = (custom or {}).get(KEY)
    if ours is None:
        return None
    if len(msgspec.json.encode(ours)) > LIMIT:
        raise ManifestError(f"custom data of more than {LIMIT} bytes", "Publish it anew.")
    if not isinstance(ours, dict):
        raise ManifestError(f"custom data '{KEY}' is not a table", "Publish it anew.")
    if ours.get("kind") not in KINDS:
        return None
    try:
        read: Content = msgspec.convert(ours, Content)
    except msgspec.ValidationError as error:
        raise ManifestError(f"custom data: {error}", "Publish it anew.") from error
    return read


def custom(content: Content) -> dict[str, Any]:
    """The other way round, for whoever signs."""
    plain = msgspec.to_builtins(content)
    msgspec.convert(plain, Content)  # structs are not checked when they are made
    return {KEY: plain}


def missing(needs: Needs, host: Host) -> list[str]:
    """What this box lacks, in words; empty where it may."""
    lacks = []
    if order(host.millwright) < order(needs.millwright):
        lacks.append(f"Millwright {needs.millwright} (this is {host.millwright})")
    if host.memory_bytes < needs.memory_bytes:
        lacks.append(f"{needs.memory_bytes:,} bytes of memory (there are {host.memory_bytes:,})")
    lacks.extend(feature for feature in needs.features if feature not in host.features)
    return lacks


def order(version: str) -> tuple[int, ...]:
    """To compare versions: 1.10 is newer than 1.9, and 1.2 is 1.2.0."""
    parts = [int(part) for part in version.split(".")]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return tuple(parts)


def is_path(path: str) -> bool:
    """Whether it may name a target: no `..`, no empty part, nothing that a file system or a URL reads otherwise."""
    return len(path) <= _MAX_PATH and bool(_PATH.fullmatch(path)) and ".." not in path


def path_of(content: Content, fleet: str) -> str:
    """Where it stands in the repository."""
    if isinstance(content, Image):
        path = f"os/{content.name}-{content.version}.image"
    elif isinstance(content, Campaign):
        path = f"models/{fleet}/{content.name}.campaign"
    elif isinstance(content, Delta):
        path = f"models/{fleet}/{content.name}-{content.version}.from-{content.base[:16]}.delta"
    else:
        path = f"models/{fleet}/{content.name}-{content.version}.bundle"
    if not is_path(path):
        raise ManifestError(
            f"'{path}' is no name for a target", "Use lower case letters, digits, dot, dash, underscore."
        )
    return path
