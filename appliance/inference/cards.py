"""Makes a bundle of a model's file and a card that says what it is; writes cards as TOML."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from appliance.config.document import Document
from appliance.errors import ConfigError, ModelError
from appliance.inference import models
from appliance.inference.models import CARD, Card
from appliance.inference.port import Spec

SUFFIXES = {".xml": "model.xml", ".onnx": "model.onnx", ".tflite": "model.tflite"}
SHORTEST = 'name = "digits"\nversion = "1.0.0"\ntask = "classifier"\n'


def copy_model(source: Path, folder: Path) -> Path:
    """The model's file under a bundle's name for it, with its weights. ModelError where it cannot be one."""
    name = SUFFIXES.get(source.suffix)
    if name is None or not source.is_file():
        what = "is no file" if name else "is no model's file"
        raise ModelError(f"{source}: {what}", f"Name a bundle's folder or a file that ends in {', '.join(SUFFIXES)}.")
    try:
        shutil.copyfile(source, folder / name)
        for companion in models.COMPANIONS.get(name, ()):
            shutil.copyfile(source.with_suffix(Path(companion).suffix), folder / companion)
    except OSError as error:
        raise ModelError(
            f"{error.filename}: cannot be copied: {error.strerror}", "Check its rights, and the disk."
        ) from error
    return folder / name


def backend_of(text: Path) -> str:
    """The backend that a card names; empty where it names none. ModelError where it cannot be read."""
    try:
        return str(Document.read(text).tables.get("backend", ""))
    except ConfigError as error:
        raise ModelError(error.message, error.remedy) from None


def complete(folder: Path, text: Path, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> Card:
    """Write the card of the model in `folder`: what `text` says, and what can be seen of it: tensors it does not tell,
    sizes and hashes. ModelError names the line of `text` that is wrong."""
    try:
        document = Document.read(text)
        tables = dict(document.tables)
        for title, specs in (("inputs", inputs), ("outputs", outputs)):
            tables.setdefault(
                title, [{"name": one.name, "shape": list(one.shape), "dtype": one.dtype} for one in specs]
            )
        tables["files"] = _files(folder)
        card = document.into(Card, tables)
    except ConfigError as error:
        raise ModelError(error.message, error.remedy) from None
    write(folder, card)
    return card


def write(folder: Path, card: Card) -> None:
    """The card's file; `files` are told as they are now."""
    whole = msgspec.structs.replace(card, files=msgspec.convert(_files(folder), dict[str, models.File]))
    (folder / CARD).write_text(text_of(whole), "utf-8")


def text_of(card: Card) -> str:
    """TOML that reads as the same card; defaults are left out."""
    return "\n".join(_lines(_told(card), ())) + "\n"


def _told(value: Any) -> Any:
    """Plain values of a struct, without the fields that have their default."""
    if isinstance(value, msgspec.Struct):
        fields = [(field, getattr(value, field.name)) for field in msgspec.structs.fields(value)]
        return {field.encode_name: _told(own) for field, own in fields if own != _default(field)}
    if isinstance(value, Mapping):
        return {str(key): _told(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_told(inner) for inner in value]
    return value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.iterdir() if path.name != CARD)
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return found


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if _is_table(value)}
    for key, value in table.items():
        if key not in inner:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        here = (*path, _key(key))
        for one in value if isinstance(value, list) else [value]:
            if isinstance(value, list):
                yield from ("", f"[[{'.'.join(here)}]]")
            elif not one or not all(map(_is_table, one.values())):
                yield from ("", f"[{'.'.join(here)}]")
            yield from _lines(one, here)


def _is_table(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, dict) for one in value)
    return isinstance(value, dict)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_value(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(_value(one) for one in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # inf, -inf, nan: TOML's own words
    return json.dumps(value)  # JSON's numbers and truth values are TOML's


def _text(text: str) -> str:
    """JSON's strings are TOML's, but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
