"""Boards that start by U-Boot: what an image must know of them. One TOML file each; its name is the board's.

    compatible = "bananapi,bpi-r3"      the first word of the device tree, by which a running board is known
    soc = "MediaTek MT7986A"
    console = "ttyS0,115200"
    boot = "efi"                        U-Boot's own EFI starts systemd-boot and the kernel image
    boot_counting = false               whether this U-Boot can rename a file on FAT, as systemd-boot counts
    tpm = false

Boards with EFI firmware of their own need no file.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

FOLDER = Path(__file__).parent
COMPATIBLE = "proc/device-tree/compatible"
MAX_BYTES = 64 << 10


class BoardError(ValueError):
    """A file that is none; the message names it and the key."""


class Board(Struct, frozen=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(min_length=1, max_length=128)]
    compatible: Annotated[str, Meta(pattern=r"^[a-z0-9-]+,[a-z0-9.-]+$")]
    soc: Annotated[str, Meta(min_length=1, max_length=128)]
    console: Annotated[str, Meta(pattern=r"^tty[A-Za-z]+[0-9]+,[0-9]{4,7}$")]
    architecture: Literal["arm64"] = "arm64"
    boot: Literal["efi", "u-boot"] = "efi"
    boot_counting: bool = False
    tpm: bool = False
    tried: bool = False  # whether anybody has started an image of ours on one


def load(path: Path) -> Board:
    """BoardError, OSError."""
    raw = path.read_bytes()
    try:
        return msgspec.convert(tomllib.loads(raw[:MAX_BYTES].decode()), Board)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BoardError(f"{path.name}: {error}") from error


def known(folder: Path = FOLDER) -> dict[str, Board]:
    """By their names."""
    return {path.stem: load(path) for path in sorted(folder.glob("*.toml"))}


def find(root: Path = Path("/"), folder: Path = FOLDER) -> Board | None:
    """The board that this is; None for one without a device tree, or that no file describes."""
    try:
        words = (root / COMPATIBLE).read_bytes()[:MAX_BYTES].decode("utf-8", "replace").split("\0")
    except OSError:
        return None
    boards = {board.compatible: board for board in known(folder).values()}
    return next((boards[word] for word in words if word in boards), None)
