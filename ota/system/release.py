"""A release of the operating system: the file of a repository's target `os/<name>-<version>.image`. Pure.

It is small, and signed as every target is; what it names is signed with it. `places` are below `targets/`.

    root     the root file system: whole, packed, or a difference to a root that the box has
    kernel   the unified kernel image, in the same way
    tree     dm-verity's tree over the root, which is made on the box
"""

import re
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ota.errors import ManifestError
from ota.manifest import Hash, Name, Version
from ota.osdelta.form import Tree

FORMAT = 1
MAX_BYTES = 256 << 10
PARTS = "os/parts"  # packed files, by their SHA-256

File = Annotated[str, Meta(pattern=r"^[a-z0-9][a-zA-Z0-9._-]{0,199}$")]
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,7}")
Bytes = Annotated[int, Meta(ge=0, le=1 << 36)]


class Packed(Struct, frozen=True, forbid_unknown_fields=True):
    """One file that makes a part: by itself, or of the one that the box has. `base`: of a root its root hash, of a
    kernel the SHA-256 of its file."""

    form: Annotated[str, Meta(pattern=r"^(raw|zstd|difference)$")]
    sha256: Hash
    length: Bytes
    base: Hash | None = None

    @property
    def place(self) -> str:
        return f"{PARTS}/{self.sha256}"


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """`file`: what it is called where systemd-sysupdate looks for it. `used` of its bytes are not zero."""

    file: File
    sha256: Hash
    length: Bytes
    used: Bytes
    ways: Annotated[tuple[Packed, ...], Meta(min_length=1, max_length=64)]


class Hashes(Struct, frozen=True, forbid_unknown_fields=True):
    file: File
    sha256: Hash
    length: Bytes
    tree: Tree
    roothash: Hash


class Boot(Struct, frozen=True, forbid_unknown_fields=True):
    """What a TPM will have measured: PCR 11 after each phase of the boot that is signed, by how many phases; the key
    that signed it, and the certificates of Secure Boot, by their hashes."""

    pcr11: dict[str, Hash]
    release_key: str  # SHA-256 of its PEM; empty where there is none
    signers: tuple[Hash, ...]


class Release(Struct, frozen=True, forbid_unknown_fields=True):
    format: Annotated[int, Meta(ge=1, le=FORMAT)]
    name: Name
    version: Version
    architecture: Annotated[str, Meta(pattern=r"^[a-z0-9-]{2,32}$")]
    root: Part
    kernel: Part
    tree: Hashes
    boot: Boot


def path_of(name: str, version: str) -> str:
    return f"os/{name}-{version}.image"


def newest(name: str) -> str:
    """The target with the newest release: the same file as under its version."""
    return f"os/{name}.newest.image"


def order(version: str) -> tuple[int, ...]:
    """To compare versions; what is none is older than all. 1.2 is 1.2.0."""
    parts = [int(part) for part in version.split(".")] if _VERSION.fullmatch(version) else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def decode(data: bytes) -> Release:
    """ReleaseError where it is none, or of a later format."""
    try:
        release = msgspec.json.decode(data, type=Release)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ReleaseError(
            f"this is no release of a system that is understood here: {error}", "Publish it anew."
        ) from error
    named = {release.root.file, release.kernel.file, release.tree.file}
    if len(named) != 3 or not all(release.version in one for one in named):
        raise ReleaseError("its files are not named after its version", "Publish it anew.")
    return release


def encode(release: Release) -> bytes:
    plain = msgspec.json.encode(release)
    decode(plain)  # structs are not checked when they are made
    return msgspec.json.format(plain, indent=1)


class ReleaseError(ManifestError):
    pass
