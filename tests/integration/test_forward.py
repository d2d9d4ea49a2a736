"""What leaves the box, over real brokers and a real web server: in order, once, at once offline and again online."""

import asyncio
import datetime
import json
import sqlite3
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance import forwarding
from appliance.bus.mqtt import MqttBus
from appliance.config.document import Document
from appliance.config.schema import Config
from appliance.config.secrets import VaultName
from appliance.errors import BusError, ConfigError
from appliance.events.schema import AlarmState, CommandState
from appliance.services import commands
from tests.forwarding import PATIENCE_S, Scenario, Server, Site, played, take
from tools.reception.__main__ import receive

Play = Callable[[Scenario], None]


@pytest.fixture
def play() -> Play:
    return played


MQTT = '[forward.mqtt]\nurl = "{far}"\nprefix = "cloud/box"\nkinds = ["alarm", "reading"]\n'


def is_open(found: dict[str, Any]) -> bool:
    return bool(found["line"] == "open")


def test_events_leave_masked_and_alarms_are_retained_while_they_stand(play: Play) -> None:
    async def scenario(site: Site) -> None:
        async with MqttBus(site.far.url) as cloud, cloud.subscribe("cloud/box/#", qos=1) as batches:
            await cloud.wait_connected(PATIENCE_S)
            async with site.forwarding(MQTT):
                site.plant.publish_many([site.reading(1), site.alarm(1, text="call 13800138000")])
                found = {message.topic: json.loads(message.payload) for message in await take(batches, 2)}
                assert found["cloud/box/alarm/line1/pump"]["message"] == "call <phone>"
                assert found["cloud/box/reading/line1/pump"]["values"] == {"n": 1.0}
                assert found["cloud/box/reading/line1/pump"]["seq"] == 1
                async with MqttBus(site.far.url) as later, later.subscribe("cloud/box/alarm/#", qos=1) as kept:
                    assert [message.retain for message in await take(kept, 1)] == [True]
                site.plant.publish_many([site.alarm(2, AlarmState.NORMAL)])
                ended, cleared = await take(batches, 2)
                assert json.loads(ended.payload)["state"] == "normal"
                assert cleared.payload == b""

    play(scenario)


def test_a_broker_that_dies_is_told_within_200_ms_and_nothing_waits_for_it(play: Play) -> None:
    """The time is what the service says of itself. A busy machine may be late, but not each of three times."""

    async def scenario(site: Site) -> None:
        async with site.forwarding(MQTT + "catch_up_per_s = 0\n"):
            taken = []
            for life in range(3):
                if life:
                    await site.far.start()
                await site.until("mqtt", is_open)
                died = time.time_ns()
                await site.far.kill()
                offline = await site.until("mqtt", lambda found: found["line"] != "open")
                taken.append(offline["since"] - died)
            assert min(taken) < 200_000_000, taken
            site.plant.publish_many([site.reading(number) for number in range(100)])
            site.plant.publish_many([site.alarm(number) for number in range(5)])
            await site.plant.drain()
            waiting = await site.until("mqtt", lambda found: sum(found["queued"].values()) == 105)
            assert waiting["queued"]["alarm"] == 5
            assert waiting["error"]
            await commands.ask(site.plant, "forward", "pause", {}, "anna")  # until somebody listens there
            await site.far.start()
            async with MqttBus(site.far.url) as cloud, cloud.subscribe("cloud/box/#", qos=1) as batches:
                await cloud.wait_connected(PATIENCE_S)
                await commands.ask(site.plant, "forward", "resume", {}, "anna")
                found = await take(batches, 105)
            ids = [json.loads(message.payload).get("id") for message in found]
            assert ids[:5] == ["a4", "a3", "a2", "a1", "a0"]
            numbers = [json.loads(message.payload)["values"]["n"] for message in found if "/reading/" in message.topic]
            assert numbers == sorted(numbers)

    play(scenario)


def test_a_broker_that_hangs_is_offline_and_is_given_up(play: Play) -> None:
    async def scenario(site: Site) -> None:
        async with site.forwarding(MQTT + "give_up_s = 1.0\n"):
            await site.until("mqtt", is_open)
            site.far.freeze(True)
            site.plant.publish_many([site.reading(1)])
            silent = await site.until("mqtt", lambda found: found["line"] == "silent")
            assert "200 ms" in silent["error"]
            await site.until("mqtt", lambda found: found["line"] in ("waiting", "opening"))
            site.far.freeze(False)
            done = await site.until("mqtt", lambda found: found["sent"] == 1)
            assert done["queued"] == {}

    play(scenario)


def test_the_service_goes_on_where_it_stopped(play: Play) -> None:
    async def scenario(site: Site) -> None:
        await site.far.kill()
        async with site.forwarding(MQTT):
            site.plant.publish_many([site.reading(number) for number in range(10)])
            await site.until("mqtt", lambda found: found["queued"].get("reading") == 10)
        await site.far.start()
        async with MqttBus(site.far.url) as cloud, cloud.subscribe("cloud/box/#", qos=1) as batches:
            await cloud.wait_connected(PATIENCE_S)
            async with site.forwarding(MQTT):
                found = await take(batches, 10)
        assert [json.loads(message.payload)["seq"] for message in found] == list(range(1, 11))

    play(scenario)


def test_paused_it_sends_nothing_also_after_a_restart_and_then_goes_on(play: Play) -> None:
    async def scenario(site: Site) -> None:
        async with site.forwarding(MQTT):
            await site.until("mqtt", is_open)
            done = await commands.ask(site.plant, "forward", "pause", {"name": "mqtt"}, "anna")
            assert done.result == {"names": ["mqtt"], "paused": True}
            await site.until("mqtt", lambda found: found["line"] == "paused")
        async with site.forwarding(MQTT):
            site.plant.publish_many([site.reading(1)])
            paused = await site.until("mqtt", lambda found: found["queued"].get("reading") == 1)
            assert paused["line"] == "paused"
            await commands.ask(site.plant, "forward", "resume", {}, "anna")
            await site.until("mqtt", lambda found: found["sent"] == 1)
            refused = await commands.ask(site.plant, "forward", "pause", {"name": "cloud"}, "anna")
            assert refused.state is CommandState.FAILED
            assert "There are: mqtt." in refused.reason

    play(scenario)


def test_two_destinations_have_their_own_policy_and_do_not_wait_for_each_other(play: Play) -> None:
    text = (
        '[[forward.mqtt]]\nurl = "{far}"\nname = "cloud"\nprefix = "cloud"\nkinds = ["alarm"]\n'
        'masking = {kinds = {phone = "token"}}\ntoken_key = {vault = "masking/key"}\n'
        '[[forward.mqtt]]\nurl = "unix:/nowhere"\nname = "gone"\nkinds = ["alarm"]\n'
    )

    async def scenario(site: Site) -> None:
        async with MqttBus(site.far.url) as cloud, cloud.subscribe("cloud/#", qos=1) as batches:
            await cloud.wait_connected(PATIENCE_S)
            async with site.forwarding(text):
                await site.until("cloud", is_open)
                site.plant.publish_many([site.alarm(1, text="call 13800138000")])
                (told,) = await take(batches, 1)
                assert json.loads(told.payload)["message"].startswith("call <phone:")
                gone = await site.until("gone", lambda found: bool(found["error"]))
                assert gone["queued"] == {"alarm": 1}
                assert "No such file" in gone["error"]
                tried = await commands.ask(site.plant, "forward", "test", {}, "anna", 40)
                assert tried.result["cloud"]["works"]
                assert not tried.result["gone"]["works"]

    play(scenario)


# Webhooks


_TOKEN = '{vault = "http/token"}'
HTTP = f'[forward.http]\nurl = "URL"\nbearer = {_TOKEN}\nsecret = {_TOKEN}\nkinds = ["reading"]\n'


def test_a_webhook_gets_events_in_order_and_once_whatever_it_answers(play: Play) -> None:
    async def scenario(site: Site) -> None:
        server = Server()
        server.answers = [500, 429, 204]
        async with server.listening(), site.forwarding(HTTP.replace("URL", server.url)):
            site.plant.publish_many([site.reading(number) for number in range(5)])
            found = await server.events(5)
            assert [event["values"]["n"] for event in found] == [0, 1, 2, 3, 4]
            assert found[0]["topic"] == "reading/line1/pump"
            assert "Authorization: Bearer hush" in server.heads[0]
            assert "X-Millwright-Signature: sha256=" in server.heads[0]

    play(scenario)


def test_what_a_webhook_will_never_take_is_left_out_and_counted(play: Play) -> None:
    async def scenario(site: Site) -> None:
        server = Server()
        server.refuse = '"n":2.0'
        async with server.listening(), site.forwarding(HTTP.replace("URL", server.url)):
            site.plant.publish_many([site.reading(number) for number in range(5)])
            found = await server.events(4)
            assert [event["values"]["n"] for event in found] == [0, 1, 3, 4]
            told = await site.until("http", lambda found: found["dropped"].get("rejected") == 1)
            assert told["queued"] == {}

    play(scenario)


def test_an_expired_certificate_is_told_with_its_remedy(play: Play, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        server = Server()
        async with server.listening(expired(tmp_path)):
            text = HTTP.replace("URL", server.url) + f'ca_file = "{tmp_path}/server.pem"\n'
            async with site.forwarding(text):
                told = await site.until("http", lambda found: found["line"] == "waiting")
                assert "certificate has expired" in told["error"]
                assert "clock" in told["error"]

    play(scenario)


def expired(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def test_bad_configurations_are_told_with_their_line() -> None:
    for text, word in (
        ("[forward.mqt]\n", "did you mean 'mqtt'"),
        ('[forward.mqtt]\nurl = "x"\nprefiks = "a"\n', "box.toml:3"),
        ('[[forward.mqtt]]\nurl = "a"\n[[forward.mqtt]]\nurl = "b"\n', "two destinations are called 'mqtt'"),
        ('[forward.http]\nurl = "ftp://x"\n', "no URL of the web"),
        ('[forward.mqtt]\nurl = "unix:/x"\nmasking = {kinds = {phone = "token"}}\n', "no key for them"),
        ('[forward.mqtt]\nurl = "unix:/x"\npassword = "clear"\n', "a secret stands here in clear"),
    ):
        document = Document("box.toml", text)
        config = Config(forward=document.tables["forward"])
        with pytest.raises(ConfigError) as raised:
            forwarding.build(config, document, lambda _: MqttBus("unix:/x"), _no_vault)
        assert word in str(raised.value)


async def _no_vault(_: VaultName) -> bytes:
    raise BusError("there is no vault")


def test_packs_are_taken_apart_by_the_receiver_and_alarms_leave_alone(play: Play, tmp_path: Path) -> None:
    text = MQTT + 'confirm = "receiver"\npack = 10\n'

    async def scenario(site: Site) -> None:
        receiving = asyncio.create_task(receive(site.far.url, "cloud/box", tmp_path / "store.sqlite"))
        async with (
            MqttBus(site.far.url) as cloud,
            cloud.subscribe("cloud/box/pack", "cloud/box/alarm/#", qos=1) as batches,
        ):
            await cloud.wait_connected(PATIENCE_S)
            async with site.forwarding(text):
                site.plant.publish_many([*(site.reading(number) for number in range(25)), site.alarm(1)])
                await site.until("mqtt", lambda found: found["sent"] == 26)
            found = await take(batches, 4)
        receiving.cancel()
        await asyncio.wait([receiving])
        assert {message.topic for message in found} == {"cloud/box/pack", "cloud/box/alarm/line1/pump"}
        with closing(sqlite3.connect(tmp_path / "store.sqlite")) as db:
            rows = db.execute("SELECT topic, payload FROM event WHERE lane = 'reading' ORDER BY rowid").fetchall()
        assert [json.loads(payload)["values"]["n"] for _, payload in rows] == list(range(25))
        assert {topic for topic, _ in rows} == {"cloud/box/reading/line1/pump"}

    play(scenario)
