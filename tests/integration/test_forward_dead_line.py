"""A line that dies without a word: the broker elsewhere is in a network of its own, and the link to it is cut."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.bus.mqtt import MqttBus
from tests.forwarding import PATIENCE_S, Site, played, take

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
LINE = '[forward.mqtt]\nurl = "{url}"\nprefix = "cloud/box"\nkinds = ["alarm", "reading"]\n'


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, env={**os.environ, "PATH": PATH})


class Elsewhere:
    """A mosquitto in a network namespace, at the other end of a pair of interfaces."""

    def __init__(self, folder: Path) -> None:
        token, net = secrets.token_hex(3), secrets.randbelow(1 << 14)
        self._space, self._near, self._far = f"mw-{token}", f"mwn{token}", f"mwf{token}"
        base = f"198.18.{net >> 6}.{net % 64 * 4}".rpartition(".")
        ours, theirs = (f"{base[0]}.{int(base[2]) + one}" for one in (1, 2))
        self.url = f"mqtt://{theirs}:1883"
        ip("netns", "add", self._space)
        ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._space)
        ip("addr", "add", f"{ours}/30", "dev", self._near)
        ip("link", "set", self._near, "up")
        ip("-n", self._space, "addr", "add", f"{theirs}/30", "dev", self._far)
        self.link("up")
        settings = folder / "mosquitto.conf"
        settings.write_text(f"listener 1883 {theirs}\nallow_anonymous true\nuser root\nlog_dest stderr\n")
        program = shutil.which("mosquitto", path=PATH)
        assert program is not None, "mosquitto is not installed: apt install mosquitto"
        words = ["ip", "netns", "exec", self._space, program, "-c", str(settings)]
        self._broker = subprocess.Popen(words, stderr=subprocess.PIPE, env={**os.environ, "PATH": PATH})
        assert self._broker.stderr is not None
        for line in self._broker.stderr:
            if b"running" in line:
                break
        self._broker.stderr.close()

    def link(self, state: str) -> None:
        """Nobody is told: neither side sees more than that nothing comes any more."""
        ip("-n", self._space, "link", "set", self._far, state)

    def close(self) -> None:
        self._broker.kill()
        self._broker.wait()
        ip("netns", "del", self._space)  # and the pair with it


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    if os.geteuid() != 0 or shutil.which("ip", path=PATH) is None:
        pytest.skip("a network of its own needs root and iproute2")
    try:
        found = Elsewhere(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode(errors='replace').strip()}")
    yield found
    found.close()


def offline(found: dict[str, Any]) -> bool:
    return bool(found["line"] not in ("open", "opening"))


def test_an_idle_line_that_dies_is_told_by_its_probe_and_nothing_waits_for_it(elsewhere: Elsewhere) -> None:
    async def scenario(site: Site) -> None:
        probing = LINE.replace("{url}", elsewhere.url) + "probe_s = 0.1\nanswer_ms = 100\ngive_up_s = 1\n"
        async with site.forwarding(probing):
            await site.until("mqtt", lambda found: found["line"] == "open")
            cut = time.time_ns()
            elsewhere.link("down")
            told = await site.until("mqtt", offline)
            took_ms = (told["since"] - cut) / 1e6
            print(f"an idle line that died was shown as offline after {took_ms:.0f} ms")
            assert took_ms < 5000  # MQTT's keepalive takes 30 s and more
            site.plant.publish_many([*(site.reading(number) for number in range(50)), site.alarm(1)])
            await site.plant.drain()
            await site.until("mqtt", lambda found: sum(found["queued"].values()) == 51)
            elsewhere.link("up")
            async with MqttBus(elsewhere.url) as cloud, cloud.subscribe("cloud/box/#", qos=1) as batches:
                await cloud.wait_connected(PATIENCE_S)
                await site.until("mqtt", lambda found: found["sent"] == 51)
                heard = await take(batches, 1)
        assert heard

    played(scenario)


def test_a_line_that_answers_late_is_silent_and_open_again(elsewhere: Elsewhere) -> None:
    async def scenario(site: Site) -> None:
        probing = LINE.replace("{url}", elsewhere.url) + "probe_s = 0.1\nanswer_ms = 100\ngive_up_s = 30\n"
        async with site.forwarding(probing):
            await site.until("mqtt", lambda found: found["line"] == "open")
            elsewhere.link("down")
            silent = await site.until("mqtt", lambda found: found["line"] == "silent")
            assert "no answer for 100 ms" in silent["error"]
            elsewhere.link("up")
            await site.until("mqtt", lambda found: found["line"] == "open" and not found["error"])
            site.plant.publish_many([site.reading(1)])
            await site.until("mqtt", lambda found: found["sent"] == 1)

    played(scenario)


def test_a_line_that_dies_under_a_batch_is_told_by_what_is_not_answered(elsewhere: Elsewhere) -> None:
    async def scenario(site: Site) -> None:
        async with site.forwarding(LINE.replace("{url}", elsewhere.url) + "probe_s = 0\ngive_up_s = 1\n"):
            await site.until("mqtt", lambda found: found["line"] == "open")
            elsewhere.link("down")
            site.plant.publish_many([site.reading(1)])
            told = await site.until("mqtt", offline)
            assert told["queued"] == {"reading": 1}
            elsewhere.link("up")
            await site.until("mqtt", lambda found: found["sent"] == 1)

    played(scenario)
