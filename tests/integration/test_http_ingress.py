"""Readings by HTTP: with the token, below the assets it speaks of, whole or not at all."""

import asyncio
import http.client
import json
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from appliance.config.secrets import VaultName
from appliance.connectors import http as ingress
from appliance.connectors.port import Arrival
from appliance.errors import ConfigError, ConnectorError
from appliance.events.schema import Reading

TOKEN = "0123456789abcdef0123"
PATIENCE_S = 20.0


async def reveal(_: VaultName) -> bytes:
    return TOKEN.encode()


def made(**settings: Any) -> ingress.Http:
    told: dict[str, Any] = {"port": 0, "token": VaultName("http/hall1"), "assets": ["hall1"]} | settings
    return ingress.create(ingress.Settings(**told), reveal)


def post(port: int, path: str, body: bytes, token: str = TOKEN, method: str = "POST") -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def play(connector: ingress.Http, talk: Callable[[int], Any]) -> tuple[Any, list[Arrival]]:
    """What a sender was told, and what was read."""

    async def main() -> tuple[Any, list[Arrival]]:
        async with connector, asyncio.timeout(PATIENCE_S):
            read: list[Arrival] = []

            async def listen() -> None:
                async for batch in connector:
                    read.extend(batch)

            listening = asyncio.create_task(listen())
            told = await asyncio.to_thread(talk, connector.port)
            while connector.ledger.queued:  # noqa: ASYNC110 - what is waited for is a turn away
                await asyncio.sleep(0)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        return told, read

    return asyncio.run(main())


def test_readings_in_any_form() -> None:
    connector = made()
    lines = b'{"t": 1}\n{"t": 2}\n\n{"values": {"t": 3}, "at": "2026-01-01T00:00:00Z"}\n'

    def talk(port: int) -> list[tuple[int, dict[str, Any]]]:
        return [
            post(port, "/readings/hall1/pump", b'{"temperature": 61.2}'),
            post(port, "/readings/hall1/pump", cbor2.dumps({"temperature": 62.5})),
            post(port, "/readings/hall1", lines),
        ]

    told, read = play(connector, talk)
    assert told == [(202, {"taken": 1}), (202, {"taken": 1}), (202, {"taken": 3})]
    values = [(asset, list(event.values.values())) for asset, event in read if isinstance(event, Reading)]
    assert values == [("hall1/pump", [61.2]), ("hall1/pump", [62.5]), *(("hall1", [value]) for value in (1, 2, 3))]
    assert read[-1].event.at == 1_767_225_600_000_000_000


@pytest.mark.parametrize(
    ("path", "body", "token", "status"),
    [
        ("/readings/hall1/pump", b'{"t": 1}', "", 401),
        ("/readings/hall1/pump", b'{"t": 1}', TOKEN[:-1] + "x", 401),
        ("/readings/hall2/pump", b'{"t": 1}', TOKEN, 403),
        ("/readings/hall11", b'{"t": 1}', TOKEN, 403),
        ("/readings/Hall1%20", b'{"t": 1}', TOKEN, 422),
        ("/", b'{"t": 1}', TOKEN, 404),
        ("/readings/hall1/pump", b'{"t": "x"}', TOKEN, 422),
        ("/readings/hall1/pump", b'{"t": 1}\n{"t": }\n', TOKEN, 422),
        ("/readings/hall1/pump", b"", TOKEN, 422),
        ("/readings/hall1/pump", b" " * (ingress.MAX_BODY + 1), TOKEN, 413),
    ],
)
def test_what_is_refused_leaves_nothing(path: str, body: bytes, token: str, status: int) -> None:
    connector = made()
    (found, told), read = play(connector, lambda port: post(port, path, body, token))
    assert found == status
    assert told["error"]
    assert TOKEN not in told["error"]
    assert read == []
    if status != 413:
        assert sum(connector.ledger.dropped.values()) == 1


def test_a_flood_is_answered_with_429() -> None:
    connector = made(rate_hz=1)
    told, read = play(connector, lambda port: [post(port, "/readings/hall1", b'{"t": 1}')[0] for _ in range(30)])
    assert 202 in told
    assert 429 in told
    assert len(read) == told.count(202)


def test_tokens_travel_in_clear_to_this_machine_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in clear"):
        made(address="0.0.0.0")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run(["openssl", *words, "-keyout", key, "-out", certificate, *subject], check=True, capture_output=True)

    def talk(port: int) -> int:
        context = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=PATIENCE_S)
        connection.request("POST", "/readings/hall1", b'{"t": 1}', {"Authorization": f"Bearer {TOKEN}"})
        status = connection.getresponse().status
        connection.close()
        return status

    told, read = play(made(address="0.0.0.0", cert_file=str(certificate), key_file=str(key)), talk)
    assert (told, len(read)) == (202, 1)


def test_a_short_token_opens_nothing() -> None:
    async def short(_: VaultName) -> bytes:
        return b"secret"

    async def main() -> None:
        connector = ingress.create(ingress.Settings(0, VaultName("http/hall1"), ["hall1"]), short)
        with pytest.raises(ConnectorError, match="16 characters") as error:
            await connector.__aenter__()
        assert "vault put http/hall1" in error.value.remedy

    asyncio.run(main())
