"""A TOML file that knows on which line each key stands, and turns its tables into frozen structs, strictly.

Errors name the file, the line, the key and, for a key that does not exist, the nearest one that does.
"""

import difflib
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from appliance.config.secrets import is_secret, remedy
from appliance.errors import ConfigError

_T = TypeVar("_T")
_HEADER = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\-\"']+)\s*=")
_NOT_A_CHOICE = re.compile(r"Invalid enum value '(.*)'")
_WHERE = re.compile(r" - at `\$(.*)`$")


class Document:
    """`source` names the file in errors; `text` is its content."""

    def __init__(self, source: str, text: str) -> None:
        self.source, self._text = source, text
        self._base: Document | None = None
        try:
            self.tables: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                f"{source}: {error}", "Mend the TOML there; 'millwright config check' looks again."
            ) from None

    @classmethod
    def read(cls, path: Path) -> "Document":
        try:
            return cls(str(path), path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", "Name a TOML file that can be read with --config.") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not text in UTF-8", "Save it as UTF-8; TOML is nothing else.") from None

    def over(self, base: "Document", tables: dict[str, Any]) -> "Document":
        """This document with `tables`, its own and the base's; an error names the file that its key stands in."""
        layered = Document(self.source, self._text)
        layered.tables, layered._base = tables, base
        return layered

    @property
    def origin(self) -> str:
        """The files that it came from, for people."""
        return f"{self.source} over {self._base.source}" if self._base else self.source

    def into(self, kind: type[_T], table: object, path: tuple[str, ...] = ()) -> _T:
        """The struct of a table that stands at `path` in this document."""
        self._refuse_unknown(kind, table, path)
        try:
            return msgspec.convert(table, kind, dec_hook=_decode, strict=True)
        except msgspec.ValidationError as error:
            raise self._explain(kind, error, path) from None

    def line(self, path: tuple[str, ...]) -> int:
        """The line a key or table stands on, counted from 1; of its nearest parent where it is not found."""
        return self._found(path)[1]

    def _found(self, path: tuple[str, ...]) -> tuple[int, int]:
        """How many parts of the path stand in this text, and on which line."""
        here: tuple[str, ...] = ()
        best = (0, 1)
        seen: Counter[tuple[str, ...]] = Counter()
        for number, text in enumerate(self._text.splitlines(), 1):
            if header := _HEADER.match(text):
                here = found = _split(header[1])
                if text.lstrip().startswith("[["):  # the path of one of several tables carries its index
                    here = found = (*here, str(seen[here]))
                    seen[here[:-1]] += 1
            elif key := _KEY.match(text):
                found = (*here, *_split(key[1]))
            else:
                continue
            shared = _shared(found, path)
            if shared in (len(found), len(path)) and shared > best[0]:
                best = (shared, number)
        return best

    def error(self, path: tuple[str, ...], problem: str, remedy: str) -> ConfigError:
        if self._base and self._base._found(path)[0] > self._found(path)[0]:
            return self._base.error(path, problem, remedy)
        where = f"{self.source}:{self.line(path)}: {'.'.join(path)}" if path else self.source
        return ConfigError(f"{where}: {problem}", remedy)

    def has_placed(self, error: ConfigError) -> bool:
        """Whether the error names its place already, here or in the base."""
        sources = (self.source, self._base.source) if self._base else (self.source,)
        return error.message.startswith(sources)

    def _refuse_unknown(self, kind: type, table: object, path: tuple[str, ...]) -> None:
        if not isinstance(table, dict):
            raise self.error(path, f"a table is needed, not {type(table).__name__}", f"Write [{'.'.join(path)}].")
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        for key, value in table.items():
            if key not in fields:
                raise self.error((*path, key), "there is no such key", _nearest(key, list(fields)))
            inner = fields[key]
            if is_secret(inner) and not isinstance(value, dict):
                raise self.error((*path, key), "a secret stands here in clear, or no name of one", remedy(key))
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                self._refuse_unknown(inner, value, (*path, key))

    def _explain(self, kind: type, error: msgspec.ValidationError, path: tuple[str, ...]) -> ConfigError:
        text = str(error)
        where = _WHERE.search(text)
        inner = tuple(part for part in re.split(r"[.\[\]]+", where[1]) if part) if where else ()
        problem = _WHERE.sub("", text)
        remedy = "'millwright config reference' lists every key with its type and bounds."
        if (given := _NOT_A_CHOICE.fullmatch(problem)) and (choices := _choices(kind, inner)):
            near = difflib.get_close_matches(given[1], choices, n=1, cutoff=0.5)
            problem = f"'{given[1]}' is none of its values"
            hint = f"Did you mean '{near[0]}'? " if near else ""
            remedy = f"{hint}There are: {', '.join(choices)}."
        return self.error((*path, *inner), problem, remedy)


def _decode(kind: type, value: object) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    raise TypeError(f"Expected `{kind.__name__.lower()}`, got `{type(value).__name__}`")  # msgspec adds where


def _choices(kind: type, path: tuple[str, ...]) -> list[str]:
    """The words that may stand at a key; empty where it takes anything else."""
    found = _alternatives(inspect.type_info(kind))
    for part in path:
        found = [inner for one in found for inner in _inside(one, part)]
    return [str(value) for one in found if isinstance(one, inspect.LiteralType) for value in one.values]


def _alternatives(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [inner for one in kind.types for inner in _alternatives(one)]
    return [kind]


def _inside(kind: inspect.Type, part: str) -> list[inspect.Type]:
    """What may stand at a key of a table, or in a list."""
    if isinstance(kind, inspect.ListType):
        return _alternatives(kind.item_type)
    fields = kind.fields if isinstance(kind, inspect.StructType) else ()
    return [inner for field in fields if field.encode_name == part for inner in _alternatives(field.type)]


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _shared(found: tuple[str, ...], path: tuple[str, ...]) -> int:
    count = 0
    for one, other in zip(found, path, strict=False):
        if one != other:
            break
        count += 1
    return count


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(sorted(known))}."
