"""A model's file, before a runtime's parser sees it: what it is, how large, and whether it looks its part."""

import stat
from collections.abc import Mapping
from pathlib import Path

from appliance.errors import ModelError

LIMIT = 2 << 30  # bytes; a device model beyond it is more than any accelerator that is known here takes
LIMITS: Mapping[str, int] = {".xml": 64 << 20}
AGAIN = "Copy the whole bundle again."

# Where the mark of a format stands, and how it may read. ONNX has none.
_MARKS: Mapping[str, tuple[int, tuple[bytes, ...]]] = {
    ".xml": (0, (b"<?xml", b"<net")),
    ".tflite": (4, (b"TFL3",)),
}
_FORMATS = {".xml": "OpenVINO model", ".tflite": "TFLite model", ".onnx": "ONNX model"}
_ENTITIES = b"<!DOCTYPE"
_HEAD = 4096  # bytes that are looked at


def check(path: Path, suffixes: tuple[str, ...]) -> int:
    """Bytes of its weights. ModelError names the file and what is wrong with it."""
    if path.suffix not in suffixes:
        raise ModelError(
            f"{path}: is of a kind that this backend does not load", f"It loads {', '.join(suffixes)} files."
        )
    size = _size(path, LIMITS.get(path.suffix, LIMIT))
    _look(path)
    if path.suffix != ".xml":
        return size
    weights = path.with_suffix(".bin")
    if not weights.exists():
        raise ModelError(f"{path}: its weights, {weights.name}, are missing", AGAIN)
    return _size(weights, LIMIT, empty=True)


def _size(path: Path, limit: int, empty: bool = False) -> int:
    try:
        facts = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", AGAIN) from None
    if not stat.S_ISREG(facts.st_mode):
        raise ModelError(f"{path}: is not a plain file", AGAIN)
    if facts.st_size > limit:
        raise ModelError(f"{path}: is too large, {facts.st_size:,} bytes", f"At most {limit:,} bytes are read.")
    if not facts.st_size and not empty:
        raise ModelError(f"{path}: is empty", AGAIN)
    return facts.st_size


def _look(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", AGAIN) from None
    start, marks = _MARKS.get(path.suffix, (0, (b"",)))
    if not head.lstrip()[start:].startswith(marks) and not head[start:].startswith(marks):
        # OpenVINO would try six other formats on it: slow, and more parsers than a hostile file deserves.
        raise ModelError(f"{path}: is no {_FORMATS[path.suffix]}", AGAIN)
    if path.suffix == ".xml" and _ENTITIES in head.upper():
        raise ModelError(f"{path}: declares entities, which no OpenVINO model does", AGAIN)
