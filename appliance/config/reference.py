"""The reference of all settings as Markdown, generated from their declarations."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from appliance.config.schema import Config


def markdown(plugins: Mapping[str, type[msgspec.Struct]]) -> str:
    """`plugins`: the Settings of each connector by name."""
    parts = ["# Configuration", "", (Config.__doc__ or "").strip(), ""]
    for field in msgspec.structs.fields(Config):
        inner = field.type
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            parts += section(field.encode_name, inner)
    for name, settings in plugins.items():
        parts += section(f"connectors.{name}", settings)
    return "\n".join(parts)


def section(title: str, settings: type[msgspec.Struct]) -> list[str]:
    lines = [f"## [{title}]", "", (settings.__doc__ or "").strip(), ""]
    if settings.__struct_fields__:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|", *map(_row, _fields(settings)), ""]
    return lines


def _fields(settings: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    described = inspect.type_info(settings)
    assert isinstance(described, inspect.StructType)
    return described.fields


def _row(field: inspect.Field) -> str:
    description = ""
    kind = field.type
    if isinstance(kind, inspect.Metadata):
        description = (kind.extra_json_schema or {}).get("description", "")
        kind = kind.type
    return f"| `{field.encode_name}` | {_type(kind)} | {_default(field)} | {description} |"


def _type(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType(ge=low, le=high) | inspect.FloatType(ge=low, le=high):
            name = "integer" if isinstance(kind, inspect.IntType) else "number"
            return f"{name}, {low} to {high}" if low is not None and high is not None else name
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return f"list of {_type(item)}"
        case inspect.CustomType():
            return "path"
        case _:
            return {"StrType": "text", "BoolType": "true or false"}.get(type(kind).__name__, "table")


def _default(field: inspect.Field) -> str:
    if field.default is not msgspec.NODEFAULT:
        return _toml(field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return "depends on the machine" if isinstance(field.type, inspect.Metadata) else _toml(field.default_factory())
    return "required"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value}`" if not isinstance(value, list | tuple) else f"`{list(value)}`"
