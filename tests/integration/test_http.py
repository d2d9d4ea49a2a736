"""The HTTP server by raw sockets: what it answers, what it refuses, and that it stays within its bounds."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from appliance.errors import ConfigError, RequestError
from appliance.services.http import Limits, Request, Response, json_response, listening

PATIENCE_S = 20
SMALL = Limits(body_bytes=1000, held_bytes=1500, connections=4, idle_s=5.0, transfer_s=5.0)


async def echo(request: Request) -> Response:
    if request.path == ("fail",):
        raise ZeroDivisionError
    if request.path == ("refuse",):
        raise RequestError(418, "no coffee", "Ask for tea.")
    return json_response({"method": request.method, "path": request.path, "bytes": len(request.body)})


def play(scenario: Callable[[int], Awaitable[None]], answer: Any = echo, limits: Limits = SMALL) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), listening(answer, 0, limits) as port:
            await scenario(port)

    asyncio.run(main())


async def ask(port: int, data: bytes) -> bytes:
    """All that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    found = await reader.read()
    writer.close()
    return found


def request(head: str = "GET /", *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{head} HTTP/1.1", "Host: localhost:80", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def body(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def test_requests_follow_each_other_on_a_connection() -> None:
    async def scenario(port: int) -> None:
        several = request("GET /a/b%2Fc") + request("POST /", body=b"x" * 999) + request("PUT /z?y=1")
        answers = (await ask(port, several)).split(b"HTTP/1.1 200")[1:]
        told = [body(answer) for answer in answers]
        assert told == [
            {"method": "GET", "path": ["a", "b/c"], "bytes": 0},
            {"method": "POST", "path": [], "bytes": 999},
            {"method": "PUT", "path": ["z"], "bytes": 0},
        ]

    play(scenario)


def test_a_body_in_chunks() -> None:
    async def scenario(port: int) -> None:
        chunked = request("POST /", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        assert body(await ask(port, chunked))["bytes"] == 5
        endless = request("POST /", "Transfer-Encoding: chunked") + b"300\r\n" + b"x" * 0x300 + b"\r\n300\r\n"
        assert status(await ask(port, endless + b"x" * 0x300 + b"\r\n0\r\n\r\n")) == 413

    play(scenario)


def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("POST /", "Expect: 100-continue", "Content-Length: 3"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"abc")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()

    play(scenario)


def test_a_client_that_asks_first_is_refused_first() -> None:
    async def scenario(port: int) -> None:
        assert status(await ask(port, request("POST /", "Expect: 100-continue", "Content-Length: 1001"))) == 413

    play(scenario)


def test_a_body_that_is_too_long_is_refused_though_it_comes() -> None:
    async def scenario(port: int) -> None:
        answer = await ask(port, request("POST /", body=b"x" * 3_000_000))
        assert status(answer) == 413
        assert "1,000 bytes" in body(answer)["error"]

    play(scenario)


REFUSED = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "two lengths": (request("POST /", "Content-Length: 3", "Content-Length: 4"), 400),
    "a negative length": (request("POST /", "Content-Length: -3"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "a head without end": (request("GET /", "X: " + "x" * 100_000), 431),
    "another host": (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    "a web page": (request("GET /", "Origin: http://localhost"), 403),
    "teapot": (request("GET /refuse"), 418),
    "a defect": (request("GET /fail"), 500),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_wrong_is_refused_in_json(name: str, caplog: pytest.LogCaptureFixture) -> None:
    data, code = REFUSED[name]

    async def scenario(port: int) -> None:
        answer = await ask(port, data)
        assert status(answer) == code
        assert set(body(answer)) == {"error"}
        assert status(await ask(port, request())) == 200  # the others go on

    with caplog.at_level(logging.CRITICAL if name == "a defect" else logging.ERROR):
        play(scenario)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_names_of_this_machine(host: str) -> None:
    async def scenario(port: int) -> None:
        assert status(await ask(port, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())) == 200

    play(scenario)


def test_a_client_that_says_nothing_is_let_go() -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HT")
        assert await reader.read() == b""
        writer.close()

    play(scenario, limits=SMALL._replace(idle_s=0.05))


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("POST /", "Content-Length: 10") + b"abc")
        assert status(await reader.readuntil(b"\r\n\r\n")) == 408
        writer.close()

    play(scenario, limits=SMALL._replace(transfer_s=0.05))


def test_too_many_connections_are_turned_away() -> None:
    async def scenario(port: int) -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        for reader, writer in held:
            writer.write(request())
            assert status(await reader.readuntil(b"}")) == 200
        answer = await ask(port, request())
        assert status(answer) == 503
        assert b"retry-after: 1" in answer.lower()
        for _, writer in held:
            writer.close()

    play(scenario)


def test_bodies_of_all_together_are_bounded() -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("POST /", "Content-Length: 900") + b"x" * 899)
        while True:  # until the server has taken it in
            answer = await ask(port, request("POST /", body=b"y" * 900))
            if status(answer) == 503:
                break
        writer.write(b"x")
        assert status(await reader.readuntil(b"}")) == 200
        writer.close()

    play(scenario)


def test_what_was_held_is_given_back() -> None:
    async def scenario(port: int) -> None:
        for _ in range(20):
            assert status(await ask(port, request("POST /", body=b"x" * 900))) == 200
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("POST /", "Content-Length: 900") + b"x" * 500)
            await writer.drain()
            writer.transport.abort()

    play(scenario)


def test_a_large_answer_arrives_whole() -> None:
    whole = bytes(range(256)) * 40_000

    async def answer(_: Request) -> Response:
        return Response(200, (whole[:5], memoryview(whole)[5:]))

    async def scenario(port: int) -> None:
        assert (await ask(port, request())).endswith(b"\r\n\r\n" + whole)

    play(scenario, answer)


def test_a_port_that_is_taken_is_told() -> None:
    async def scenario(port: int) -> None:
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 cannot be listened on"):
            async with listening(echo, port, SMALL):
                raise AssertionError("two servers on one port")

    play(scenario)
