"""Receives what boxes forward over MQTT with `confirm = "receiver"`, each event once, and confirms it when it is on
the disk.

    tools/receive mqtt://broker:1883 millwright/box7 --store events.sqlite

The whole protocol is in `tools/reception/ledger.py` and `appliance/channels/leaving/envelope.py`.
"""

import argparse
import asyncio
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import uvloop

from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.channels.leaving import envelope
from appliance.channels.leaving.envelope import Marks, Word
from tools.reception.ledger import Ledger, Letter


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/receive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="mqtt://host:port, mqtts://host:port or unix:/path")
    parser.add_argument("prefix", help="what the box's topics begin with")
    parser.add_argument("--store", type=Path, default=Path("received.sqlite"), metavar="FILE")
    args = parser.parse_args(argv)
    uvloop.run(receive(args.url, args.prefix, args.store))
    return 0


async def receive(url: str, prefix: str, store: Path) -> None:
    """Until cancelled."""
    here, away = f"{prefix}/receiver", msgspec.json.encode(Word(False))
    with closing(Ledger(store)) as ledger:
        async with MqttBus(url, will=Message(here, away, 1, True)) as bus:
            receiver = Receiver(bus, ledger, prefix)
            filters = [f"{prefix}/{PACK}", *(f"{prefix}/{kind}/#" for kind in KINDS)]
            async with bus.subscribe(*filters, qos=1) as batches:
                bus.on_connected(receiver.begin)
                async for batch in batches:
                    await receiver.take(batch)


KINDS, PACK = ("alarm", "state", "score", "reading", "block", "label", "audit", "device"), "pack"


class Receiver:
    def __init__(self, bus: MqttBus, ledger: Ledger, prefix: str) -> None:
        self._bus, self._ledger, self._prefix = bus, ledger, prefix
        self._run, self._has_asked = "", False

    def begin(self) -> None:
        """Everything that was not confirmed is to come again: after a connection it may have been lost on the way."""
        self._ledger.begin()
        self._ask()

    def _ask(self) -> None:
        self._has_asked = True
        self._run = secrets.token_hex(6)
        word = msgspec.json.encode(Word(True, self._run))
        self._bus.publish(f"{self._prefix}/receiver", word, qos=1, retain=True)

    def _letters(self, message: Message) -> Iterator[Letter]:
        """Nothing of what the broker had kept: that was sent before, or is not meant to be kept."""
        if message.retain or not message.payload:
            return
        if message.topic != f"{self._prefix}/{PACK}":
            yield Letter(message.topic, message.payload)
            return
        try:
            for part in envelope.parts(message.payload):
                yield Letter(f"{self._prefix}/{envelope.part(part).topic}", bytes(part))
        except msgspec.MsgspecError:
            self._ledger.refused += 1

    async def take(self, batch: Sequence[Message]) -> None:
        letters = [letter for message in batch for letter in self._letters(message)]
        taken = await asyncio.to_thread(self._ledger.take, letters)
        for sender, marks in taken.marks.items():
            told = msgspec.json.encode(Marks(self._run, marks))
            self._bus.publish(f"{self._prefix}/confirmed/{sender}", told, qos=1)
        if taken.fresh or taken.repeated:
            self._has_asked = False
        if taken.missing and not self._has_asked:  # what is still under way need not be asked for once more
            self._ask()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
