"""Makes the files of a release, on the machine that builds images: packed parts, differences, and what is to be signed.

OUT/<name>-<version>.image     what `millwright-publish add --system` adds to a repository
OUT/parts/<sha256>             what it names
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import zstandard

from ota.osdelta import making as differences
from ota.osdelta import verity
from ota.osdelta.form import BLOCK
from ota.osdelta.reading import blocks_of, digest
from ota.system import kernel as kernels
from ota.system import release as releases
from ota.system.kernel import Kernel
from ota.system.release import Boot, Hashes, Packed, Part, Release, ReleaseError

LEVEL = 19
_EMPTY = bytes(BLOCK)


@dataclass(frozen=True)
class Split:
    """The parts of one image, as the builder splits it."""

    root: Path
    tree: Path
    kernel: Path


def make(
    name: str, architecture: str, new: Split, out: Path, olds: tuple[Split, ...] = (), level: int = LEVEL
) -> Release:
    """The release of the version that the kernel names, with differences to `olds`. ReleaseError, OSError."""
    (out / "parts").mkdir(parents=True, exist_ok=True)
    kernel = kernels.parse(new.kernel.read_bytes())
    if not kernel.version or not kernel.roothash:
        raise ReleaseError("the kernel names no version or no root", "Build the image with IMAGE_VERSION and verity.")
    release = Release(
        releases.FORMAT,
        name,
        kernel.version,
        architecture,
        _part(new.root, [(one.root, _roothash(one)) for one in olds], out, level),
        _part(new.kernel, [(one.kernel, _sha256(one.kernel)) for one in olds], out, level, _kernel_name(new, kernel)),
        _hashes(new, kernel),
        _boot(kernel),
    )
    (out / f"{name}-{kernel.version}.image").write_bytes(releases.encode(release))
    return release


def _kernel_name(new: Split, kernel: Kernel) -> str:
    """Under which systemd-sysupdate takes it: beside the root, `millwright_1.2.root-...`."""
    return f"{new.root.name.partition('_')[0]}_{kernel.version}.efi"


def _part(path: Path, olds: list[tuple[Path, str]], out: Path, level: int, file: str = "") -> Part:
    ways = [_whole(path, out, level), *(_difference(old, base, path, out) for old, base in olds)]
    with path.open("rb") as opened:
        length = opened.seek(0, os.SEEK_END)
        used = sum(BLOCK for block in blocks_of(opened, length) if block != _EMPTY)
    return Part(file or path.name, _sha256(path), length, min(used, length), tuple(ways))


def _whole(path: Path, out: Path, level: int) -> Packed:
    draft = out / "parts" / ".draft"
    with path.open("rb") as source, draft.open("wb") as packed:
        zstandard.ZstdCompressor(level=level, write_checksum=False).copy_stream(source, packed)
    return _kept(draft, "zstd")


def _difference(old: Path, base: str, new: Path, out: Path) -> Packed:
    draft = out / "parts" / ".draft"
    differences.make(old, new, draft)
    return _kept(draft, "difference", base)


def _kept(draft: Path, form: str, base: str | None = None) -> Packed:
    sha256, length = _sha256(draft), draft.stat().st_size
    draft.replace(draft.with_name(sha256))
    return Packed(form, sha256, length, base)


def _hashes(new: Split, kernel: Kernel) -> Hashes:
    raw = new.tree.read_bytes()
    tree = verity.read(raw[:BLOCK])
    found = verity.root_hash(verity.levels_over(new.root, tree), tree)
    if found != kernel.roothash:
        raise ReleaseError("the kernel names another root than this", "Take the parts of one build.")
    return Hashes(new.tree.name, hashlib.sha256(raw).hexdigest(), len(raw), tree, found)


def _boot(kernel: Kernel) -> Boot:
    measured = {str(phases): kernels.predicted(kernel, phases).hex() for phases in kernels.signed_phases(kernel)}
    key = hashlib.sha256(kernel.release_key).hexdigest() if kernel.release_key else ""
    return Boot(measured, key, tuple(sorted(kernel.signers)))


def _roothash(old: Split) -> str:
    with old.tree.open("rb") as file:
        tree = verity.read(file.read(BLOCK))
    return verity.root_hash(verity.levels_over(old.root, tree), tree)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return digest(file, path.stat().st_size)
