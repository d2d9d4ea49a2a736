"""A client of updates is killed at random moments: the update ends by itself, whole, and never shows half a model."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from ota import bundle
from ota.publish import goods, sealing
from tests.updates import FLEET, NOON, Handler, Publisher, Server, model, serving

CLIENT = Path(__file__).with_name("ota_client.py")
KILLS = 40


class Client:
    def __init__(self, folder: Path, publisher: Publisher, server: Server, wanted: str, *keys: Path) -> None:
        self.folder, self.wanted, self._root = folder, wanted, folder.parent / "root.json"
        folder.mkdir(exist_ok=True)
        self._root.write_bytes(publisher.root)
        self._server, self._keys = server, keys

    def start(self) -> subprocess.Popen[bytes]:
        words = [self.folder, self._root, self._server.url, FLEET, self.wanted, NOON, *self._keys]
        environment = os.environ | {"PYTHONPATH": str(CLIENT.parents[2])}
        return subprocess.Popen(
            [sys.executable, CLIENT, *map(str, words)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self) -> None:
        running = self.start()
        _, said = running.communicate(timeout=60)
        assert running.returncode == 0, said.decode()

    def is_whole(self) -> None:
        """Whatever is in the models' folder under a hash has that content, and names point to what is there."""
        models = self.folder / "models"
        for found in models.glob("?" * 64) if models.is_dir() else ():
            assert bundle.digest(found) == found.name
        for link in models.glob("names/*/*"):
            if not link.name.startswith("."):
                assert link.resolve().is_dir()


def killed_after(client: Client, server: Server, pieces: int) -> bool:
    """Kill it as soon as the server has given so many pieces; whether that came to pass."""
    left = [pieces]
    running = client.start()

    def count(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        handler.send_response(206 if begin else 200)
        if begin:
            handler.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - begin))
        handler.end_headers()
        for at in range(begin, len(data), 16_384):
            left[0] -= 1
            if left[0] <= 0:
                running.kill()
            handler.wfile.write(data[at : at + 16_384])
        return True

    server.fault = count
    _, said = running.communicate(timeout=60)
    assert running.returncode in (0, -9), said.decode()
    return running.returncode == -9


def test_killed_at_random_moments_of_a_download(tmp_path: Path) -> None:
    rng = random.Random(5)
    publisher = Publisher(tmp_path / "workshop")
    wanted = publisher.add(model(tmp_path, "1.0.0", rng.randbytes(12 << 20)))
    kills = 0
    with serving(publisher.workshop.repository) as server:
        client = Client(tmp_path / "box", publisher, server, wanted.bundle)
        while kills < KILLS:
            if killed_after(client, server, rng.randrange(1, 400)):
                kills += 1
            else:  # it went through before: once more from the beginning
                shutil.rmtree(client.folder / "models")
            client.is_whole()
        server.fault = lambda *_: False
        client.run()
    assert bundle.digest(client.folder / "models" / wanted.bundle) == wanted.bundle
    assert list((client.folder / "updates" / "files").iterdir()) == []
    assert not (client.folder / "updates" / "made").exists()


@pytest.mark.parametrize("encrypted", [False, True])
def test_killed_at_random_moments_after_the_download(tmp_path: Path, encrypted: bool) -> None:
    """Verifying, decrypting, applying a delta, taking in, moving names: killed after random times, with the old model
    there."""
    from ota.delta.making import make

    rng = random.Random(6)
    content = bytearray(rng.randbytes(4 << 20))
    publisher = Publisher(tmp_path / "workshop")
    keys = [tmp_path / "fleet"] if encrypted else []
    for key in keys:
        sealing.create(key)
        line = sealing.read_public(key.with_name("fleet.pub"))
        publisher.workshop.configure(replace(publisher.workshop.settings, sealed={FLEET: (line,)}))
    first = publisher.add(model(tmp_path, "1.0.0", bytes(content)))
    content[1000:2000] = bytes(1000)
    second = publisher.add(model(tmp_path, "2.0.0", bytes(content)))
    goods.add_deltas(publisher.workshop, FLEET, "pump", 1, make)
    publisher.publish()
    with serving(publisher.workshop.repository) as server:
        Client(tmp_path / "box", publisher, server, first.bundle, *keys).run()
        client = Client(tmp_path / "box", publisher, server, second.bundle, *keys)
        for _ in range(15):
            running = client.start()
            assert running.stdout is not None
            assert running.stdout.readline() == b"begun\n"
            try:
                running.wait(timeout=rng.uniform(0.0, 0.6))
            except subprocess.TimeoutExpired:
                running.kill()
            running.communicate()
            client.is_whole()
            assert (client.folder / "models" / first.bundle).is_dir()
        client.run()
    assert (client.folder / "models" / "names" / "pump" / "current").resolve().name == second.bundle
    assert (client.folder / "models" / "names" / "pump" / "previous").resolve().name == first.bundle
    assert not (client.folder / "updates" / "made").exists()
