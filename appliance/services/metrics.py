"""Prometheus's `/metrics` on loopback: the picture of the bus, told whenever somebody asks."""

import asyncio
from contextlib import AsyncExitStack

from appliance import __version__
from appliance.bus.port import Bus
from appliance.config import schema
from appliance.errors import RequestError
from appliance.events.ledger import Ledger
from appliance.masking.masker import Masker, Policy
from appliance.runtime.service import Clock, Pulse
from appliance.services import http
from appliance.services.exposition import CONTENT_TYPE, Exposition
from appliance.services.observe import Observer
from appliance.services.picture import Picture
from appliance.services.status import Status

CONNECTIONS = 8


class Metrics:
    """`listening` hears the bus, `bus` tells how this service is."""

    name = "metrics"

    def __init__(self, bus: Bus, listening: Bus, settings: schema.Metrics, clock: Clock) -> None:
        self._bus, self._settings, self._clock = bus, settings, clock
        self.picture = Picture(clock())
        self._observer = Observer(listening, self.picture, clock, lambda _: None)
        self._exposition = Exposition(Masker(Policy()))
        self._ledger = Ledger()
        self._status = Status(bus, self.name, __version__, self._ledger, clock)
        self.port = 0

    async def run(self, pulse: Pulse) -> None:
        limits = http.Limits(body_bytes=0, connections=CONNECTIONS)
        async with self._bus, AsyncExitStack() as stack:
            self.port = await stack.enter_async_context(
                http.listening(self.answer, self._settings.port, limits, "metrics.port")
            )
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._observer.run(pulse), name="metrics picture")
                    group.create_task(self._status.run(), name="metrics status")
            finally:
                self._status.publish(online=False)

    async def answer(self, request: http.Request) -> http.Response:
        self._ledger.received += 1
        self._ledger.processed += 1
        if request.path != ("metrics",):
            raise RequestError(404, "there is nothing but /metrics here")
        if request.method != "GET":
            raise RequestError(405, "/metrics is only read")
        text = self._exposition.text(self.picture, self._clock())
        return http.Response(200, (text.encode(),), (("Content-Type", CONTENT_TYPE),))
