"""A model bundle on disk: a folder named by its content, which is checked to the last byte before anything reads it.

    <content hash>/
        model.xml, model.bin    OpenVINO IR; or one file: model.tflite, model.onnx
        card.toml               what the model is, takes and gives, what it was trained on, how well it did

The content hash is the SHA-256 of the list that `LC_ALL=C sha256sum *` prints in the folder: for every file, ordered by
the bytes of its name, `<sha256 of its content>  <name>` and a line feed. So a person can check a bundle by hand:

    (cd FOLDER && LC_ALL=C sha256sum *) | sha256sum

ModelError names the file and what is wrong with it. What lies in the folder is never trusted before the hash agrees.
"""

import hashlib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct, field

from appliance.config.document import Document
from appliance.errors import ConfigError, ModelError
from appliance.inference.port import DTYPES

CARD = "card.toml"
MODEL_FILES = ("model.xml", "model.tflite", "model.onnx")  # what a backend is given; exactly one of them
COMPANIONS = {"model.xml": ("model.bin",)}

# Bounds on what is read, in bytes. A device model of 2 GiB is beyond every accelerator this appliance knows.
LIMITS: Mapping[str, int] = {
    CARD: 64 * 1024,
    "model.xml": 64 * 1024 * 1024,
    "model.bin": 2 * 1024**3,
    "model.tflite": 2 * 1024**3,
    "model.onnx": 2 * 1024**3,
}

_HASH = re.compile(r"[0-9a-f]{64}")
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
_Word = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
_Text = Annotated[str, Meta(max_length=1000)]
_Dtype = Annotated[str, Meta(pattern=f"^({'|'.join(DTYPES)})$")]
_Layout = Annotated[str, Meta(pattern=r"^[NCDHWT]{0,8}$")]
_S = TypeVar("_S", bound=Struct)
_ByChannel = Annotated[list[float], Meta(max_length=10_000)]


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the bundle must be, so that a damaged one is named."""

    bytes: Annotated[int, Meta(ge=0)]
    sha256: _Hash


class Given(Struct, frozen=True, forbid_unknown_fields=True):
    """What callers hand over instead of an input's own form: the box computes (given - mean) / deviation by channel and
    puts the axes into the input's order."""

    dtype: _Dtype = "float32"
    layout: _Layout = ""  # order of the axes; empty: the input's own
    mean: _ByChannel = field(default_factory=list)  # one, or one a channel; empty: 0
    deviation: _ByChannel = field(default_factory=list)  # likewise; empty: 1


class Port(Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output. `shape` counts rows first; -1 is any number."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    shape: Annotated[list[Annotated[int, Meta(ge=-1, le=1_000_000)]], Meta(min_length=1, max_length=8)]
    dtype: _Dtype = "float32"
    scale: Annotated[str, Meta(max_length=100)] = ""  # the unit of the numbers: `zscore` or the like
    layout: _Layout = ""  # what the axes are, such as NCHW
    given: Given | None = None  # of an input only


class Training(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights come from, as far as it is known."""

    data: _Text = "unknown"  # in words
    data_sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$")] = ""
    rows: Annotated[int, Meta(ge=0)] = 0
    seed: int = 0
    by: _Text = ""  # the command that makes the model again


class Card(Struct, frozen=True, forbid_unknown_fields=True):
    """card.toml. Every key is known; a new meaning is a new key with a default."""

    name: _Word
    version: Annotated[str, Meta(pattern=r"^\d{1,6}\.\d{1,6}\.\d{1,6}$")]
    task: _Word  # what the answers mean: a file of `decoders/`; any other word: they are served as they are
    inputs: Annotated[list[Port], Meta(min_length=1, max_length=32)]
    outputs: Annotated[list[Port], Meta(min_length=1, max_length=32)]
    files: dict[str, File]
    backend: Annotated[str, Meta(pattern=r"^[a-z0-9_]{0,64}$")] = ""  # that it is made for; empty: the configured one
    training: Training = field(default_factory=Training)
    decoder: dict[str, Any] = field(default_factory=dict)  # settings of the task's decoder
    description: _Text = ""
    window: Annotated[int, Meta(ge=0, le=1_000_000)] = 0  # samples of a time window; 0: not a time series
    evaluation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte agrees with its name."""

    folder: Path
    card: Card
    model: Path  # what a backend compiles

    @property
    def digest(self) -> str:
        return self.folder.name


def shipped() -> Path:
    """The folder of the default model, which is part of the installed package."""
    room = Path(str(resources.files("appliance.inference").joinpath("shipped")))
    found = sorted(path for path in room.glob("*") if _HASH.fullmatch(path.name))
    if len(found) != 1:
        raise ModelError(f"{room}: there are {len(found)} bundles, not one", "Install Millwright again.")
    return found[0]


def load(folder: Path, named: bool = True) -> Bundle:
    """Verify the files, the card and the content hash, the latter where the folder is `named` by it, as all but drafts
    are. ModelError names the file and what is wrong with it."""
    names = files_of(folder)
    card = _card(folder / CARD)
    _complete(folder, card, names)
    model = _model(folder, names)
    digests = {name: _checked(folder / name, card.files.get(name)) for name in names if name != CARD}
    digests[CARD] = _digest(folder / CARD)
    if named:
        _agree(folder, _content_hash(digests))
    return Bundle(folder, card, model)


def hash_of(folder: Path) -> str:
    """The name that the files of a folder ask for."""
    return _content_hash({path.name: _digest(path) for path in folder.iterdir()})


def read_card(folder: Path) -> Card:
    """The card alone, of a folder whose other files are not looked at. ModelError as in `load`."""
    _bounded(folder / CARD)
    return _card(folder / CARD)


def settings_of(folder: Path, kind: type[_S]) -> _S:
    """The card's [decoder] table as the decoder's own Settings. ModelError names file, line and key."""
    path = folder / CARD
    try:
        document = Document.read(path)
        return document.into(kind, document.tables.get("decoder", {}), ("decoder",))
    except ConfigError as error:
        raise ModelError(error.message, error.remedy) from None


def _content_hash(digests: Mapping[str, str]) -> str:
    lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items(), key=lambda pair: pair[0].encode()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_of(folder: Path) -> list[str]:
    """The files of the folder, all of a known name, none too large, none a link or a folder."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder", "Name the folder of a model bundle.")
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}", "Give the right to read it.") from None
    for name in names:
        if name not in LIMITS:
            raise ModelError(f"{folder / name}: is no part of a bundle", f"A bundle has only: {', '.join(LIMITS)}.")
        _bounded(folder / name)
    if CARD not in names:
        raise ModelError(f"{folder / CARD}: is missing", "Copy the whole bundle again.")
    return names


def _bounded(path: Path) -> None:
    try:
        facts = path.lstat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", "Copy the whole bundle again.") from None
    if not stat.S_ISREG(facts.st_mode):
        raise ModelError(f"{path}: is not a plain file", "Copy the bundle's own files into its folder.")
    if facts.st_size > LIMITS[path.name]:
        raise ModelError(
            f"{path}: is too large, {facts.st_size:,} bytes", f"At most {LIMITS[path.name]:,} bytes are read."
        )


def _card(path: Path) -> Card:
    try:
        document = Document.read(path)
        return document.into(Card, document.tables)
    except ConfigError as error:
        raise ModelError(error.message, error.remedy or "Copy the whole bundle again.") from None
    except RecursionError:
        raise ModelError(f"{path}: is nested too deeply", "A card has tables of plain values.") from None


def _complete(folder: Path, card: Card, names: list[str]) -> None:
    for name in sorted(card.files.keys() - set(names)):
        raise ModelError(f"{folder / name}: is missing", f"{CARD} promises it; copy the whole bundle again.")


def _model(folder: Path, names: list[str]) -> Path:
    found = [name for name in MODEL_FILES if name in names]
    if len(found) != 1:
        what = " and ".join(found) or "no model"
        raise ModelError(f"{folder}: holds {what}", f"A bundle has exactly one of: {', '.join(MODEL_FILES)}.")
    for name in COMPANIONS.get(found[0], ()):
        if name not in names:
            raise ModelError(f"{folder / name}: is missing", f"{found[0]} needs it; copy the whole bundle again.")
    return folder / found[0]


def _checked(path: Path, promised: File | None) -> str:
    """The file's digest, which is what the card promises."""
    if promised is None:
        raise ModelError(f"{path}: the card does not know this file", f"Describe it in {CARD} or remove it.")
    size = path.stat().st_size
    if size != promised.bytes:
        how = "truncated" if size < promised.bytes else "longer than it should be"
        raise ModelError(
            f"{path}: is {how}, {size:,} bytes instead of {promised.bytes:,}", "Copy the whole bundle again."
        )
    digest = _digest(path)
    if digest != promised.sha256:
        raise ModelError(f"{path}: its content is not what the card promises", "Copy the whole bundle again.")
    return digest


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", "Check its rights and the disk.") from None


def _agree(folder: Path, found: str) -> None:
    if folder.resolve().name != found:
        raise ModelError(
            f"{folder}: the folder's name is not the hash of its files, which is {found}",
            "Copy the whole bundle again; where the files are right, the folder's name must be that hash.",
        )
