"""Sparkplug B v3: payloads to bytes and back, and the topics they travel on. Pure; both directions use it.

    decode(bytes) -> Payload        encode(Payload) -> bytes
    parse(topic) -> Address         topic("group", Verb.DDATA, "node", "device") -> str

The numbers are those of Eclipse Tahu's sparkplug_b.proto. Times are UTC milliseconds, as Sparkplug writes them. A
hostile payload costs what it weighs: everything in it is counted while it is read, and an EventError says which bound
it broke ("malformed", "too-many-points", "shape").
"""

from appliance.protocols.sparkplug.model import (
    MAX_CELLS,
    MAX_DEPTH,
    MAX_METRICS,
    MAX_NAME,
    MAX_PROPERTIES,
    Content,
    DataSet,
    Metric,
    Payload,
    Plain,
    Template,
    Type,
)
from appliance.protocols.sparkplug.reading import decode, retyped, typed
from appliance.protocols.sparkplug.topics import (
    FILTER,
    NAMESPACE,
    Address,
    HostState,
    Verb,
    host,
    host_state,
    parse,
    topic,
)
from appliance.protocols.sparkplug.writing import encode

__all__ = [
    "FILTER", "MAX_CELLS", "MAX_DEPTH", "MAX_METRICS", "MAX_NAME", "MAX_PROPERTIES", "NAMESPACE", "Address", "Content",
    "DataSet", "HostState", "Metric", "Payload", "Plain", "Template", "Type", "Verb", "decode", "encode", "host",
    "host_state", "parse", "retyped", "topic", "typed",
]  # fmt: skip
