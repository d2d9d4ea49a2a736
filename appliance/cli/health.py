"""`millwright health`: whether this boot does its work; asked before the boot of a new system is blessed.

It waits until every line is ok, --timeout seconds at most: the bus is up and carries a message there and back, each
service is online, the detector answers a question and has a device, the vault opens, and what is configured to listen
does so.

In the trial of a system each network port that the box had when the update was applied must be there, and one that had
a carrier and an address must have an address again, unless it has no carrier now: a cable may be out. The price: where
DHCP gives no addresses for as long as the trials wait, the old system comes back, and the version is remembered as
given up: millwright update os apply --again.

Exit codes: 0 all is well, 1 something is not; 2 the configuration is wrong.
"""

import argparse
import asyncio
import http.client
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from appliance.cli import instance, reaching
from appliance.cli.findings import Finding
from appliance.errors import BusError, VaultError

if TYPE_CHECKING:
    from appliance.bus.port import Bus
    from appliance.config.schema import Config
    from appliance.events.schema import State

TIMEOUT_S = 120.0
LOOK_AGAIN_S = 1.0
ANSWER_S = 5.0
LOG = "journalctl -b -u millwright-{name}, or the log of 'millwright run'."


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "health",
        help="whether this boot does its work",
        description=(__doc__ or "").partition("\n")[2].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="wait for it so long (default: %(default)g)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from appliance.services.words import json_text

    config, _ = instance.configuration(args)
    found = instance.play(_wait(config, args.timeout))
    well = all(one.status == "ok" for one in found)
    if args.json:
        print(json_text({"ok": well, "findings": found}))
    else:
        print("\n".join(_lines(found)))
    return 0 if well else 1


def _lines(found: list[Finding]) -> Iterator[str]:
    for one in found:
        yield f"{one.status:<5}{one.name}: {one.detail}"
        if one.status != "ok":
            yield f"     -> {one.remedy}"


async def _wait(config: "Config", timeout_s: float) -> list[Finding]:
    """The findings as soon as all are ok, else the last ones."""
    end = time.monotonic() + timeout_s
    while True:
        found = [one async for one in _examined(config)]
        if all(one.status == "ok" for one in found) or time.monotonic() + LOOK_AGAIN_S > end:
            return found
        await asyncio.sleep(LOOK_AGAIN_S)


async def _examined(config: "Config") -> AsyncIterator[Finding]:
    try:
        async with instance.session(config) as bus:
            picture = await instance.look(bus)
            yield Finding("bus", "ok", f"{instance.bus_url(config)} carries messages")
            for one in await _services(bus, config, picture.services):
                yield one
            yield await _detector(bus, picture.services.get("detect"))
    except BusError as error:
        yield Finding("bus", "fail", error.message, error.remedy or LOG.format(name="broker"))
    yield await asyncio.to_thread(_vault, config)
    for one in await asyncio.to_thread(lambda: [*_doors(config), *_links(config)]):
        yield one


# ---- services -------------------------------------------------------------------------------------------------------


async def _services(bus: "Bus", config: "Config", states: "dict[str, State]") -> list[Finding]:
    from appliance import assembly

    expected = [name for name in assembly.choose((), config) if name not in ("vault", "broker")]
    suspicious = [name for name in expected if name in states and is_old(states[name], _booted_ns())]
    if suspicious:
        states = {**states, **await _challenged(bus, suspicious)}
    return [_service(name, states.get(name)) for name in expected]


def _service(name: str, state: "State | None") -> Finding:
    if state is not None and state.online:
        return Finding(name, "ok", "online")
    detail = "it has not come up" if state is None else "offline"
    return Finding(name, "fail", detail, LOG.format(name=name))


def is_old(state: "State", booted_ns: int) -> bool:
    """Whether a broker may have kept this word from before the boot. A clock that was set since makes a fresh one look
    old as well: who is suspected is asked."""
    return state.online and state.at < booted_ns


async def _challenged(bus: "Bus", names: list[str]) -> "dict[str, State]":
    """What services say when their word is taken from the broker: those that live say it again within seconds. Those
    that do not are offline."""
    from appliance.events import codec, topics
    from appliance.events.schema import Kind, State
    from appliance.runtime.patience import within
    from appliance.services.status import PERIOD_S

    found = {name: State(at=0, online=False) for name in names}
    waiting = {topics.state(name): name for name in names}

    async def hear() -> None:
        async with bus.subscribe(*waiting, qos=1) as batches:
            for topic in waiting:
                bus.publish(topic, b"", qos=1, retain=True)
            async for batch in batches:
                for message in batch:
                    if message.payload and not message.retain and message.topic in waiting:
                        state = codec.decode(Kind.STATE, message.payload, time.time_ns())
                        assert isinstance(state, State)
                        found[waiting.pop(message.topic)] = state
                if not waiting:
                    return

    await within(PERIOD_S + ANSWER_S, hear())
    return found


def _booted_ns() -> int:
    """UTC ns by the clock as it is now; the boot is taken to have been a moment earlier."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def _detector(bus: "Bus", state: "State | None") -> Finding:
    from appliance.services import commands

    try:
        await commands.ask(bus, "detect", "ping", {}, "health", ANSWER_S)
    except BusError as error:
        return Finding("detector", "fail", error.message, LOG.format(name="detect"))
    device = str(state.detail.get("device", "")) if state is not None else ""
    if not device:
        trouble = str(state.detail.get("trouble", "")) if state is not None else ""
        return Finding(
            "detector", "fail", trouble or "it has no device to compute on", "millwright doctor accelerators"
        )
    return Finding("detector", "ok", f"answers, and computes on {device}")


# ---- the vault, doors, and links ------------------------------------------------------------------------------------


def _vault(config: "Config") -> Finding:
    from appliance import assembly
    from appliance.vault import client

    if not assembly.has_vault(config):
        return Finding("vault", "ok", "none was made")
    try:
        status = client.by_socket(assembly.vault_socket(config), ANSWER_S).status()
    except VaultError as error:
        return Finding("vault", "fail", error.message, error.remedy)
    if status.damaged:
        return Finding("vault", "fail", f"open, but damaged: {', '.join(status.damaged)}", "millwright vault status")
    return Finding("vault", "ok", f"open by {status.backend}, {status.secrets} secrets")


def _doors(config: "Config") -> Iterator[Finding]:
    """What is configured to listen."""
    if config.infer.port:
        yield _answers_http("infer.port", config.infer.port, "/v2/health/ready", "infer")
    if config.broker.tls_port:
        host = config.broker.tls_address or "127.0.0.1"
        yield _listens("broker.tls_port", host, config.broker.tls_port)


def _links(config: "Config") -> Iterator[Finding]:
    return reaching.findings(config.paths.state, time.clock_gettime(time.CLOCK_BOOTTIME))


def _answers_http(name: str, port: int, path: str, service: str) -> Finding:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return Finding(name, "fail", f"port {port} does not answer: {error}", LOG.format(name=service))
    finally:
        connection.close()
    if status != http.client.OK:
        return Finding(name, "fail", f"port {port} answers {status}", LOG.format(name=service))
    return Finding(name, "ok", f"port {port} answers")


def _listens(name: str, host: str, port: int) -> Finding:
    try:
        with socket.create_connection((host, port), ANSWER_S):
            return Finding(name, "ok", f"port {port} is open")
    except OSError as error:
        return Finding(name, "fail", f"port {port} is not open: {error}", LOG.format(name="broker"))
