"""The reference of all settings as Markdown, generated from their declarations."""

from collections.abc import Mapping
from inspect import cleandoc
from typing import Any

import msgspec
from msgspec import inspect

from appliance.config.schema import Config, Limit, Settable
from appliance.config.secrets import VaultName


def markdown(plugins: Mapping[str, Mapping[str, type[msgspec.Struct]]]) -> str:
    """`plugins`: for a section that has them, such as `connectors`, the Settings of each by name."""
    parts = ["# Configuration", "", (Config.__doc__ or "").strip(), "", *_base()]
    for field in msgspec.structs.fields(Config):
        inner = field.type
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            parts += section(field.encode_name, inner) + _of_plugins(plugins, field.encode_name)
    parts += section("[limits]", Limit) + section("[points]", Settable)
    for title in ("dialects", "connectors", "forward"):
        parts += [f"## [{title}]", "", *_described(Config, title), "", *_of_plugins(plugins, title)]
    return "\n".join(parts)


def _base() -> list[str]:
    (meaning,) = _described(Config, "base")
    return [f"`base`, the first key: {meaning[:1].lower()}{meaning[1:]}", ""]


def _of_plugins(plugins: Mapping[str, Mapping[str, type[msgspec.Struct]]], title: str) -> list[str]:
    return [line for name, kind in plugins.get(title, {}).items() for line in section(f"{title}.{name}", kind)]


def section(title: str, settings: type[msgspec.Struct]) -> list[str]:
    lines = [f"## [{title}]", "", cleandoc(settings.__doc__ or ""), ""]
    if settings.__struct_fields__:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|", *map(_row, _fields(settings)), ""]
    return lines


def _described(settings: type[msgspec.Struct], name: str) -> list[str]:
    return [_meaning(field.type) for field in _fields(settings) if field.encode_name == name]


def _meaning(kind: inspect.Type) -> str:
    return str((kind.extra_json_schema or {}).get("description", "")) if isinstance(kind, inspect.Metadata) else ""


def _fields(settings: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    described = inspect.type_info(settings)
    assert isinstance(described, inspect.StructType)
    return described.fields


def _row(field: inspect.Field) -> str:
    kind = field.type.type if isinstance(field.type, inspect.Metadata) else field.type
    return f"| `{field.encode_name}` | {_type(kind)} | {_default(field)} | {_meaning(field.type)} |"


def _type(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType() | inspect.FloatType():
            return _number(kind)
        case inspect.Metadata(type=inner):
            return _type(inner)
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" if value else '`""`' for value in values)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return f"list of {_type(item)}"
        case inspect.UnionType(types=types):
            return " or ".join(_type(one) for one in types if not isinstance(one, inspect.NoneType))
        case inspect.CustomType():
            return "path"
        case inspect.StructType(cls=cls) if cls is VaultName:
            return "name of a secret"
        case _:
            return {"StrType": "text", "BoolType": "true or false"}.get(type(kind).__name__, "table")


def _number(kind: inspect.IntType | inspect.FloatType) -> str:
    name = "integer" if isinstance(kind, inspect.IntType) else "number"
    bounds = [f"{kind.ge} to {kind.le}"] if kind.ge is not None and kind.le is not None else []
    if not bounds:
        known = ((kind.ge, "at least"), (kind.gt, "above"), (kind.le, "at most"), (kind.lt, "below"))
        bounds = [f"{word} {bound}" for bound, word in known if bound is not None]
    return ", ".join([name, " and ".join(bounds)]) if bounds else name


def _default(field: inspect.Field) -> str:
    if field.default is not msgspec.NODEFAULT:
        return _toml(field.default)
    if field.default_factory in (dict, list):
        return "empty"
    if field.default_factory is not msgspec.NODEFAULT:
        return "depends on the machine" if isinstance(field.type, inspect.Metadata) else _toml(field.default_factory())
    return "required"


def _toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value}`" if not isinstance(value, list | tuple) else f"`{list(value)}`"
