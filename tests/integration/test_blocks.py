"""Waveforms over a real mosquitto: blocks in, an alarm that names the octave out; history keeps them."""

import asyncio
import json
from array import array
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import numpy as np

from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Batch, Message
from appliance.events import codec, topics
from appliance.events.schema import Alarm, Block, Kind, Score, State

if TYPE_CHECKING:
    from conftest import Box

PATIENCE_S = 90.0
SECOND = 1_000_000_000  # ns
START = 1_790_000_000 * SECOND
RATE, SAMPLES = 10_000.0, 1000
FAN = "line1/fan"
LEARNED, RINGING = 440, 40  # blocks, one a second by their own times
AHEAD = 100  # blocks that are published before their scores are awaited; they are judged some at a time


def block(number: int, random: np.random.Generator) -> bytes:
    """Every other one in JSON. From LEARNED on a tone of 3 kHz rings along."""
    time = np.arange(SAMPLES) / RATE
    wave = random.normal(size=SAMPLES) + np.sin(2 * np.pi * 120 * time)
    if number >= LEARNED:
        wave += np.sin(2 * np.pi * 3000 * time)
    event = Block(START + number * SECOND, RATE, {"acceleration": array("f", wave.astype(np.float32).tolist())})
    return codec.encode(event) if number % 2 else codec.encode_json(event)


def test_a_bearing_that_begins_to_ring_is_an_alarm_on_the_bus(quiet_box: "Box") -> None:
    async def scenario() -> tuple[Alarm, dict[str, State]]:
        process = await quiet_box.start("run", "broker", "record", "detect")
        try:
            async with asyncio.timeout(PATIENCE_S), MqttBus(quiet_box.url) as bus:
                return await rung(bus)
        finally:
            if process.returncode is None:
                process.terminate()
            _, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()

    alarm, states = asyncio.run(scenario())
    assert alarm.cause == "acceleration.octave1"
    assert alarm.raised >= START + LEARNED * SECOND
    assert (alarm.model, alarm.device) == ("window-autoencoder", "CPU")
    for state in states.values():
        assert state.dropped == {}
        assert state.received == state.processed + state.queued
    assert states["detect"].processed >= LEARNED


async def rung(bus: MqttBus) -> tuple[Alarm, dict[str, State]]:
    """The first alarm, and what the services say then."""
    states: dict[str, State] = {}
    async with (
        bus.subscribe(topics.everything(Kind.STATE), qos=1) as told,
        bus.subscribe(topics.everything(Kind.SCORE)) as scores,
        bus.subscribe(topics.everything(Kind.ALARM), qos=1) as alarms,
    ):
        await until(told, states, lambda: {"detect", "record"} <= {name for name, one in states.items() if one.online})
        await bus.wait_connected(PATIENCE_S)  # what the broker has kept arrives a moment before that
        raised = asyncio.create_task(first(alarms))
        await published(bus, scores, raised)
        message = await raised
        await until(told, states, lambda: states["detect"].processed >= LEARNED)
    alarm = codec.decode(Kind.ALARM, message.payload, 0)
    assert isinstance(alarm, Alarm)
    assert message.topic == topics.alarm(FAN)
    return alarm, states


async def first(alarms: AsyncIterator[Batch]) -> Message:
    return (await anext(alarms))[0]


async def published(bus: MqttBus, scores: AsyncIterator[Batch], raised: "asyncio.Task[Any]") -> None:
    """Blocks, no faster than they are judged, until somebody is called."""
    random, judged = np.random.default_rng(1), START
    for number in range(LEARNED + RINGING):
        if raised.done():
            return
        bus.publish(topics.topic(Kind.BLOCK, FAN), block(number, random))
        while judged < START + (number - AHEAD) * SECOND:
            async for batch in scores:
                score = codec.decode(Kind.SCORE, batch[-1].payload, 0)
                assert isinstance(score, Score)
                judged = score.at
                break
    await raised


async def until(told: AsyncIterator[Batch], states: dict[str, State], fits: Any) -> None:
    """Keep the services' states until they fit."""
    while not fits():
        for message in await anext(told):
            state = codec.decode(Kind.STATE, message.payload, 0)
            assert isinstance(state, State)
            states[topics.parse(message.topic).path] = state


def test_a_block_that_cannot_be_is_counted_and_told(quiet_box: "Box") -> None:
    async def scenario() -> dict[str, Any]:
        process = await quiet_box.start("run", "broker", "record", "detect")
        try:
            states: dict[str, State] = {}
            async with (
                asyncio.timeout(PATIENCE_S),
                MqttBus(quiet_box.url) as bus,
                bus.subscribe(topics.everything(Kind.STATE), qos=1) as told,
            ):
                await until(told, states, lambda: {"detect", "record"} <= set(states))
                await bus.wait_connected(PATIENCE_S)
                topic = topics.topic(Kind.BLOCK, FAN)
                bus.publish(topic, b'{"rate": 100, "values": {"x": [1, 2, 3]}}')
                bus.publish(topic, b'{"rate": 0, "values": {"x": [1, 2, 3]}}')
                bus.publish(topic, json.dumps({"rate": 100, "values": {"x": [0.5] * 64, "y": [0.5] * 63}}).encode())
                bus.publish(topic, b"\xff")
                await until(told, states, lambda: sum(states["detect"].dropped.values()) >= 4)
            return dict(states["detect"].dropped)
        finally:
            process.terminate()
            await process.communicate()

    dropped = asyncio.run(scenario())
    assert dropped["short-block"] == 1
    assert dropped["malformed"] == 1
    assert sum(dropped.values()) == 4
