"""What a payload of Sparkplug B is made of, and how much of it there may be."""

from enum import IntEnum

from msgspec import Struct, field

MAX_METRICS = 20_000  # a payload, those inside templates among them
MAX_CELLS = 100_000  # of all data sets of a payload
MAX_DEPTH = 4  # templates within templates
MAX_NAME = 512  # characters
MAX_PROPERTIES = 64  # a metric


class Type(IntEnum):
    """Data types by their numbers. Arrays are left as the bytes they are."""

    UNKNOWN = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATETIME = 13
    TEXT = 14
    UUID = 15
    DATASET = 16
    BYTES = 17
    FILE = 18
    TEMPLATE = 19
    PROPERTYSET = 20
    PROPERTYSETLIST = 21
    INT8ARRAY = 22
    INT16ARRAY = 23
    INT32ARRAY = 24
    INT64ARRAY = 25
    UINT8ARRAY = 26
    UINT16ARRAY = 27
    UINT32ARRAY = 28
    UINT64ARRAY = 29
    FLOATARRAY = 30
    DOUBLEARRAY = 31
    BOOLEANARRAY = 32
    STRINGARRAY = 33
    DATETIMEARRAY = 34


SIGNED = {Type.INT8: 8, Type.INT16: 16, Type.INT32: 32, Type.INT64: 64}  # bits

Plain = int | float | bool | str | None


class DataSet(Struct, frozen=True):
    """A table: every row has a value of each column's type."""

    columns: tuple[str, ...]
    types: tuple[Type, ...]
    rows: tuple[tuple[Plain, ...], ...] = ()


class Template(Struct, frozen=True):
    """A structure of metrics; a definition stands in a birth, instances refer to it."""

    metrics: "tuple[Metric, ...]" = ()
    reference: str = ""  # name of the definition that an instance follows
    is_definition: bool = False
    version: str = ""
    parameters: dict[str, Plain] = field(default_factory=dict)


Content = Plain | bytes | DataSet | Template


class Metric(Struct, frozen=True):
    """`value` None is null. Without `datatype` (data by alias) whole numbers are unsigned until `typed` reads them."""

    name: str = ""
    value: Content = None
    datatype: Type = Type.UNKNOWN
    alias: int | None = None
    timestamp: int | None = None
    is_historical: bool = False
    is_transient: bool = False
    properties: dict[str, Plain] = field(default_factory=dict)  # `engUnit` is the unit by custom


class Payload(Struct, frozen=True):
    metrics: tuple[Metric, ...] = ()
    timestamp: int | None = None
    seq: int | None = None
    uuid: str = ""
    body: bytes = b""
