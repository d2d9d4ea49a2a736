"""OPC UA against asyncua's own server: what it has is found, read, written, and found again after a loss."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from asyncua import Server, ua

from appliance.config.secrets import VaultName
from appliance.connectors import opcua
from appliance.connectors.port import Arrival
from appliance.errors import ConfigError, ConnectorError
from appliance.events.schema import Device, Reading

PATIENCE_S = 60.0


async def nothing(_: VaultName) -> bytes:
    raise ConnectorError("no vault", "Make one.")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@asynccontextmanager
async def press(port: int, papers: Path | None = None) -> AsyncIterator[dict[str, Any]]:
    """A server with a machine; its nodes by name. With papers it speaks to nobody in clear."""
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    if papers is not None:
        await server.set_application_uri("urn:test:press")
        server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
        await server.load_certificate(str(papers / "press.pem"), format="pem")
        await server.load_private_key(str(papers / "press.key"), format="pem")
    space = await server.register_namespace("urn:test:machine")
    machine = await server.nodes.objects.add_object(ua.NodeId("Press", space), ua.QualifiedName("Press", space))
    hydraulics = await machine.add_object(space, "Hydraulics")
    nodes = {
        "force": await machine.add_variable(space, "Force", 12.5),
        "setpoint": await machine.add_variable(ua.NodeId("Setpoint", space), "Setpoint", 7, ua.VariantType.Int16),
        "pressure": await hydraulics.add_variable(space, "Pressure", 180.0),
        "running": await machine.add_variable(space, "Running", True),
        "label": await machine.add_variable(space, "Label", "a press"),
    }
    bar = ua.EUInformation("http://www.opcfoundation.org/UA/units/un/cefact", 0, ua.LocalizedText("bar"))
    await nodes["pressure"].add_property(0, "EngineeringUnits", bar)
    await nodes["setpoint"].set_writable()
    async with server:
        yield nodes


def made(port: int, **settings: Any) -> opcua.OpcUa:
    told = {"url": f"opc.tcp://127.0.0.1:{port}", "asset": "hall1/press", "browse": "ns=2;s=Press", "interval_s": 0.02}
    return opcua.create(msgspec.convert(told | settings, opcua.Settings), nothing)


async def until(connector: opcua.OpcUa, **wanted: float) -> list[Arrival]:
    """Read until a reading says so."""
    found: list[Arrival] = []
    async with asyncio.timeout(PATIENCE_S):
        async for batch in connector:
            found += batch
            event = batch[-1].event
            if isinstance(event, Reading) and wanted.items() <= event.values.items():
                return found
    return found


def test_what_a_server_has_is_found_read_and_written() -> None:
    async def main() -> None:
        port = free_port()
        nodes = [{"node": "ns=2;s=Setpoint", "name": "setpoint", "writable": True, "min": 0, "max": 80}]
        async with press(port) as server, made(port, nodes=nodes) as connector:
            everything = {"Force": 12.5, "Hydraulics.Pressure": 180.0, "Running": 1.0, "setpoint": 7.0}
            found = await until(connector, **everything)
            assert isinstance(found[-1].event, Reading)
            assert found[-1].event.values == everything
            device = found[0].event
            assert isinstance(device, Device)
            assert device.units["Hydraulics.Pressure"] == "bar"
            assert device.settable == ["setpoint"]
            await server["force"].write_value(13.5)
            await until(connector, Force=13.5)
            done = connector.command("write", {"asset": "hall1/press", "point": "setpoint", "value": 42.4})
            assert done is not None
            await done
            assert await server["setpoint"].read_value() == 42
            await until(connector, setpoint=42)
            for point, value, wrong in (("setpoint", 90, "may not be set"), ("Force", 1, "cannot be set")):
                refused = connector.command("write", {"asset": "hall1/press", "point": point, "value": value})
                assert refused is not None
                with pytest.raises(ConnectorError, match=wrong):
                    await refused
            assert connector.command("write", {"asset": "other"}) is None
            assert connector.ledger.queued == 0

    asyncio.run(main())


def test_a_connection_that_is_lost_is_told_and_found_again() -> None:
    async def main() -> None:
        port = free_port()
        serving, gone = asyncio.Event(), asyncio.Event()

        async def serve() -> None:
            async with press(port):
                serving.set()
                await gone.wait()

        server = asyncio.create_task(serve())
        await serving.wait()
        connector = made(port)
        async with connector:
            await until(connector, Force=12.5)
            gone.set()
            await server
            with pytest.raises(ConnectorError, match="lost"):
                await until(connector, Force=-1)
        with pytest.raises(ConnectorError) as error:
            async with connector:
                pass
        assert error.value.remedy
        async with press(port) as nodes:
            await nodes["force"].write_value(99.5)
            async with connector:
                await until(connector, Force=99.5)
            told = "\n".join([line async for line in made(port).diagnose()])
        assert "namespace urn:test:machine" in told
        assert "Hydraulics.Pressure = " in told

    asyncio.run(main())


def test_opening_that_is_given_up_leaves_no_connection_behind() -> None:
    """To a server that takes connections and says nothing."""

    async def main() -> None:
        heard, hung_up = asyncio.Event(), asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(3)
            heard.set()
            await reader.read()
            hung_up.set()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with server, asyncio.timeout(PATIENCE_S):
            opening = asyncio.create_task(made(server.sockets[0].getsockname()[1]).__aenter__())
            await heard.wait()
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await hung_up.wait()

    asyncio.run(main())


def test_a_server_that_wants_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("press", "box"):
        subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=URI:urn:test:{name},IP:127.0.0.1"]
        uses = ["-addext", "keyUsage=digitalSignature,nonRepudiation,keyEncipherment,dataEncipherment"]
        files = ["-keyout", f"{tmp_path}/{name}.key", "-out", f"{tmp_path}/{name}.pem"]
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *uses, *files]
        subprocess.run(words, check=True, capture_output=True)

    async def reveal(name: VaultName) -> bytes:
        assert name.vault == "identity/opcua"
        return (tmp_path / "box.key").read_bytes() + (tmp_path / "box.pem").read_bytes()

    async def main() -> None:
        port = free_port()
        told = {
            "url": f"opc.tcp://127.0.0.1:{port}",
            "asset": "hall1/press",
            "browse": "ns=2;s=Press",
            "interval_s": 0.02,
            "security": "sign-and-encrypt",
            "identity": {"vault": "identity/opcua"},
            "server_certificate": str(tmp_path / "press.pem"),
        }
        async with press(port, tmp_path):
            async with opcua.create(msgspec.convert(told, opcua.Settings), reveal) as connector:
                await until(connector, Force=12.5)
            monkeypatch.setattr(opcua, "ANSWER_S", 2.0)
            other = told | {"server_certificate": str(tmp_path / "box.pem")}
            with pytest.raises(ConnectorError) as error:
                async with opcua.create(msgspec.convert(other, opcua.Settings), reveal):
                    pass
            assert error.value.remedy

    asyncio.run(main())


@pytest.mark.parametrize(("settings", "wrong"), [({"browse": ""}, "no variable"), ({"security": "sign"}, "identity")])
def test_mistakes_are_told_before_anything_runs(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        made(1, **settings)
