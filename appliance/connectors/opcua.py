"""OPC UA: variables of a server, by subscription.

    [[connectors.opcua]]
    url = "opc.tcp://192.0.2.20:4840"
    asset = "hall1/press"
    browse = "ns=2;s=Press"                  # every number below this node; or name them:
    interval_s = 1.0

    [[connectors.opcua.nodes]]
    node = "ns=2;s=Press.Force"
    name = "force"
    unit = "kN"

    [[connectors.opcua.nodes]]
    node = "ns=2;i=1017"
    name = "setpoint"
    writable = true
    min = 0
    max = 80

    [[connectors.opcua]]
    url = "opc.tcp://192.0.2.21:4840"
    asset = "hall1/oven"
    browse = "i=85"
    security = "sign-and-encrypt"            # Basic256Sha256
    identity = {vault = "identity/opcua"}    # key and certificate, PEM
    server_certificate = "/etc/millwright/oven.pem"
    username = "millwright"
    password = {vault = "opcua/oven"}

The server samples and tells changes; a reading has the newest value of every point, once an interval. What was lost
with a connection is not asked for again: after it comes back all points are subscribed anew, and their present values
come first. Units come from the server's EngineeringUnits where it has them. `tools/setup opcua` brings its library.
"""

import logging
import math
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from cryptography import x509
from msgspec import Meta, Struct, field

from appliance.config.secrets import Reveal, VaultName
from appliance.connectors._names import checked
from appliance.connectors._pace import REAL, Metronome, Time
from appliance.connectors.port import Arrival
from appliance.errors import ConfigError, ConnectorError
from appliance.events.ledger import Ledger
from appliance.events.schema import Device, Reading
from appliance.protocols import units
from appliance.runtime.patience import within

if TYPE_CHECKING:
    from asyncua.client.client import Client
    from asyncua.common.node import Node

MAX_NODES = 2000
MAX_DEPTH = 12
ANSWER_S = 10.0
SERVER = 2253  # the node in which a server tells of itself
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\s*", re.DOTALL)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\s*", re.DOTALL)

logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # what it says of a lost line is in our errors


class Variable(Struct, frozen=True, forbid_unknown_fields=True):
    """One variable that is a point."""

    node: Annotated[str, Meta(min_length=1, max_length=400, description="Its node id: `ns=2;s=Press.Force`.")]
    name: Annotated[str, Meta(min_length=1, max_length=128, description="The point's name.")]
    unit: Annotated[str, Meta(max_length=40, description="Empty: as the server says.")] = ""
    writable: Annotated[bool, Meta(description="It may be set; nothing else ever is.")] = False
    min: Annotated[float | None, Meta(description="The smallest value that may be set.")] = None
    max: Annotated[float | None, Meta(description="The largest value that may be set.")] = None


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Variables of an OPC UA server."""

    url: Annotated[str, Meta(pattern=r"^opc\.tcp://", description="`opc.tcp://host:port/path`")]
    asset: Annotated[str, Meta(min_length=1, description="The asset its readings belong to.")]
    browse: Annotated[str, Meta(description="Every number below this node is a point; empty: only `nodes`.")] = ""
    nodes: Annotated[list[Variable], Meta(max_length=MAX_NODES, description="Points by their node ids.")] = field(
        default_factory=list
    )
    interval_s: Annotated[float, Meta(ge=0.01, le=3600, description="Between two readings.")] = 1.0
    name: Annotated[str, Meta(max_length=100, description="What people call it; empty: its asset.")] = ""
    security: Annotated[Literal["none", "sign", "sign-and-encrypt"], Meta(description="Of the channel.")] = "none"
    identity: Annotated[VaultName | None, Meta(description="Secret with this side's key and certificate, PEM.")] = None
    server_certificate: Annotated[str, Meta(description="File with the one certificate that is trusted.")] = ""
    username: Annotated[str, Meta(description="Who the box is there; empty: anonymous.")] = ""
    password: Annotated[VaultName | None, Meta(description="The secret that goes with `username`.")] = None


def create(settings: Settings, reveal: Reveal, time: Time = REAL) -> "OpcUa":
    return OpcUa(settings, reveal, time)


class OpcUa:
    is_patient = True

    def __init__(self, settings: Settings, reveal: Reveal, time: Time) -> None:
        self.ledger = Ledger()
        self._settings, self._reveal, self._time = settings, reveal, time
        self._asset = checked(settings.asset)
        if not settings.browse and not settings.nodes:
            raise ConfigError(
                f"{self._asset}: no variable is named", "Set `browse`, or write [[connectors.opcua.nodes]]."
            )
        if settings.security != "none" and settings.identity is None:
            raise ConfigError(f"{self._asset}: security = '{settings.security}' needs an identity", "Set `identity`.")
        self._stack = AsyncExitStack()
        self._client: Client | None = None
        self._variables: dict[str, tuple[Node, Variable]] = {}
        self._values: dict[str, float] = {}

    def assets(self) -> list[str]:
        return [self._asset]

    async def __aenter__(self) -> Self:
        self._stack, self._values = AsyncExitStack(), {}
        try:
            if not await within(3 * ANSWER_S, self._opened()):
                raise ConnectorError(f"{self._settings.url} does not answer", _REMEDY)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        self._client = None

    async def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        self._count(1)
        yield [Arrival(self._asset, self._facts())]
        metronome = Metronome(self._settings.interval_s, self._time)
        while True:
            await metronome.tick()
            await self._check()
            if self._values:
                self._count(1)
                yield [Arrival(self._asset, Reading(self._time.now(), dict(self._values)))]

    def command(self, verb: str, args: dict[str, Any]) -> Awaitable[dict[str, Any]] | None:
        """`write` with asset, point and value."""
        if verb != "write" or args.get("asset") != self._asset:
            return None
        return self._write(str(args.get("point")), float(args.get("value", 0.0)))

    async def diagnose(self) -> AsyncIterator[str]:
        """What the server says of itself, and its variables with their values."""
        yield f"{self._asset}: {self._settings.url}, security {self._settings.security}"
        async with self:
            assert self._client is not None
            for space in (await self._client.get_namespace_array())[:20]:
                yield f"  namespace {space}"
            for name, (node, variable) in self._variables.items():
                value = self._values.get(name)
                told = "no number" if value is None else f"{value:g}"
                yield f"  {node.nodeid.to_string()}  {name} = {told} {variable.unit}".rstrip()

    async def _opened(self) -> None:
        """ConnectorError, whatever the library raises."""
        try:
            from asyncua import ua
            from asyncua.client.client import Client
            from asyncua.ua.uaerrors import UaError
        except ImportError as error:
            raise ConnectorError("the library for OPC UA is not installed", "tools/setup opcua") from error
        try:
            self._client = client = Client(self._settings.url, timeout=ANSWER_S)
            self._stack.callback(client.disconnect_socket)  # the library leaves it open where opening is cancelled
            await self._secure(client)
            await self._stack.enter_async_context(client)
            self._variables = await self._found(client)
            if not self._variables:
                raise ConnectorError(
                    f"{self._settings.url}: no number below '{self._settings.browse}'", "Look at `browse`."
                )
            subscription = await client.create_subscription(self._settings.interval_s * 500, self)
            nodes = [node for node, _ in self._variables.values()]
            self._names = {node.nodeid: name for name, (node, _) in self._variables.items()}
            await subscription.subscribe_data_change(
                nodes, sampling_interval=ua.Double(self._settings.interval_s * 500)
            )
        except (OSError, TimeoutError, UaError, ValueError) as error:
            raise ConnectorError(f"{self._settings.url}: {error or type(error).__name__}", _REMEDY) from error

    async def _secure(self, client: "Client") -> None:
        from asyncua import ua
        from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
        from asyncua.crypto.uacrypto import CertProperties

        settings = self._settings
        if settings.identity is not None and settings.security != "none":
            papers = await self._reveal(settings.identity)
            key, certificate = _KEY.search(papers), _CERTIFICATE.search(papers)
            if key is None or certificate is None:
                raise ConnectorError(f"'{settings.identity.vault}' has no key and certificate", "Put both there, PEM.")
            client.application_uri = _uri(certificate[0]) or client.application_uri  # servers compare both
            mode = ua.MessageSecurityMode.Sign if settings.security == "sign" else ua.MessageSecurityMode.SignAndEncrypt
            pinned = Path(settings.server_certificate).read_bytes() if settings.server_certificate else None
            await client.set_security(
                SecurityPolicyBasic256Sha256,
                CertProperties(certificate[0], "pem"),
                CertProperties(key[0], "pem"),
                server_certificate=CertProperties(pinned, "pem") if pinned else None,
                mode=mode,
            )
        if settings.username:
            client.set_user(settings.username)
            client.set_password((await self._reveal(settings.password)).decode() if settings.password else "")

    async def _found(self, client: "Client") -> "dict[str, tuple[Node, Variable]]":
        found: dict[str, tuple[Node, Variable]] = {}
        for variable in self._settings.nodes:
            node = client.get_node(variable.node)
            found[variable.name] = (node, _with_unit(variable, variable.unit or await _unit(node)))
        if self._settings.browse:
            taken = {node.nodeid for node, _ in found.values()}
            async for path, node in _below(client.get_node(self._settings.browse), "", MAX_DEPTH):
                if node.nodeid not in taken and path not in found and len(found) < MAX_NODES:
                    found[path] = (node, Variable(node.nodeid.to_string(), path, await _unit(node)))
        return found

    def datachange_notification(self, node: "Node", value: Any, data: Any) -> None:
        """Called by the library."""
        name = self._names.get(node.nodeid)
        if name is None:
            return
        number = float(value) if isinstance(value, bool | int | float) else math.nan
        if data.monitored_item.Value.StatusCode.is_good() and math.isfinite(number):
            self._values[name] = number
        else:
            self._values.pop(name, None)

    async def _check(self) -> None:
        from asyncua.ua.uaerrors import UaError

        assert self._client is not None, "entered first"
        try:
            await self._client.check_connection()
        except (OSError, UaError, TimeoutError) as error:
            raise ConnectorError(f"{self._settings.url}: the connection is lost: {error}", _REMEDY) from error

    async def _write(self, name: str, value: float) -> dict[str, Any]:
        from asyncua import ua
        from asyncua.ua.uaerrors import UaError

        node, variable = self._variables.get(name, (None, None))
        if node is None or variable is None or not variable.writable:
            raise ConnectorError(f"'{name}' of {self._asset} cannot be set", "Declare its node with writable = true.")
        if not _is_within(value, variable.min, variable.max):
            raise ConnectorError(f"'{name}' may not be set to {value:g}", "Its limits are `min` and `max` of its node.")
        try:
            kind = await node.read_data_type_as_variant_type()
            whole = kind in (ua.VariantType.Float, ua.VariantType.Double)
            told = bool(value) if kind is ua.VariantType.Boolean else value if whole else round(value)
            await node.write_value(ua.DataValue(ua.Variant(told, kind)))
        except (OSError, TimeoutError, UaError) as error:
            raise ConnectorError(f"'{name}' was not set: {error}", "Look at the server's rights.") from error
        return {"asset": self._asset, "point": name, "value": value}

    def _facts(self) -> Device:
        return Device(
            self._time.now(),
            self._settings.name or self._asset,
            "opcua",
            self._settings.url,
            units={name: units.code(variable.unit) for name, (_, variable) in self._variables.items()},
            settable=[name for name, (_, variable) in self._variables.items() if variable.writable],
            available=True,
        )

    def _count(self, arrivals: int) -> None:
        self.ledger.received += arrivals
        self.ledger.processed += arrivals


_REMEDY = "Is the server there, and are its address and the security that it wants right?"


async def _below(node: "Node", path: str, depth: int) -> "AsyncIterator[tuple[str, Node]]":
    """Variables that hold numbers, with their path of browse names."""
    from asyncua import ua

    if not depth:
        return
    for child in await node.get_children():
        name = (await child.read_browse_name()).Name
        here = f"{path}.{name}" if path else name
        kind = await child.read_node_class()
        if kind is ua.NodeClass.Variable:
            if isinstance(await _read(child), bool | int | float):
                yield here[:128], child
        elif kind is ua.NodeClass.Object and child.nodeid.Identifier != SERVER:
            async for found in _below(child, here, depth - 1):
                yield found


async def _read(node: "Node") -> Any:
    """None where there is no value to be read."""
    from asyncua.ua.uaerrors import UaError

    try:
        return await node.read_value()
    except UaError:
        return None


async def _unit(node: "Node") -> str:
    from asyncua.ua.uaerrors import UaError

    try:
        found = await (await node.get_child("0:EngineeringUnits")).read_value()
        return str(found.DisplayName.Text or "")[:40]
    except (UaError, AttributeError):
        return ""


def _uri(certificate: bytes) -> str:
    """The application that a certificate is for; empty where it says none."""
    try:
        found = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except (ValueError, x509.ExtensionNotFound):
        return ""
    return next(iter(found.value.get_values_for_type(x509.UniformResourceIdentifier)), "")


def _with_unit(variable: Variable, unit: str) -> Variable:
    return Variable(variable.node, variable.name, unit, variable.writable, variable.min, variable.max)


def _is_within(value: float, low: float | None, high: float | None) -> bool:
    return math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
