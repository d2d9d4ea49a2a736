"""A repository of updates for tests: real keys, made on the spot, a real web server, and ways for it to misbehave."""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from ota.manifest import Bundle, Host, Needs
from ota.publish import founding, goods
from ota.publish.founding import People
from ota.publish.workshop import Settings, Workshop
from ota.sealed import Unwrapper
from ota.sources import Patience, Repository
from ota.store import Store
from ota.supply import Apply, Means, Supply, in_a_process_of_its_own
from ota.times import StoredTimes
from ota.trust import Rules, Trust, models_role

DAY = 86_400.0
NOON = 1_795_000_000.0  # 2026-11-18, when these tests take place
FLEET, OTHER = "plant-a", "plant-b"
BUILT = NOON - 30 * DAY
PATIENT, STRICT, NO_NEEDS = Patience(), Rules(), Needs()


def keys(count: int) -> list[CryptoSigner]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


@dataclass
class Keys:
    """Everybody's."""

    root: list[CryptoSigner] = field(default_factory=lambda: keys(5))
    targets: list[CryptoSigner] = field(default_factory=lambda: keys(3))
    release: list[CryptoSigner] = field(default_factory=lambda: keys(3))
    online: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    courier: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    trainers: dict[str, list[CryptoSigner]] = field(default_factory=lambda: {FLEET: keys(2), OTHER: keys(2)})

    def of(self, role: str) -> list[CryptoSigner]:
        named = {"root": self.root, "targets": self.targets, "os-release": self.release}
        return named.get(role) or self.trainers[role.partition(".")[2]]

    def people(self) -> People:
        def public(signers: list[CryptoSigner]) -> tuple:
            return tuple(signer.public_key for signer in signers)

        return People(
            public(self.root),
            public(self.targets),
            public(self.release),
            self.online.public_key,
            self.courier.public_key,
            {fleet: public(signers) for fleet, signers in self.trainers.items()},
        )


class Publisher:
    """A workshop with all its people in one room, at a time that moves only when told to."""

    def __init__(self, folder: Path, now: float = NOON) -> None:
        self.now, self.keys = now, Keys()
        self.workshop = Workshop(folder, lambda: self.now)
        self.workshop.configure(Settings())
        founding.found(self.workshop, self.keys.people())
        self.publish()
        self.root = (self.metadata / "1.root.json").read_bytes()

    @property
    def metadata(self) -> Path:
        return self.workshop.repository / "metadata"

    def publish(self) -> None:
        for role in self.workshop.waiting():
            for signer in self.keys.of(role):
                self.workshop.sign(role, signer)
        self.workshop.release([self.keys.online])

    def renew(self) -> None:
        self.workshop.renew([self.keys.online])

    def add(self, folder: Path, fleet: str = FLEET, needs: Needs = NO_NEEDS) -> Bundle:
        added = goods.add_bundle(self.workshop, fleet, folder, needs)
        self.publish()
        return added

    def targets(self, fleet: str = FLEET) -> Targets:
        return self.workshop.targets(models_role(fleet))

    def forge(self, role: str, signed: Targets, signers: list[CryptoSigner]) -> None:
        """Publish a next version of a role with these signatures, enough or not."""
        published = self.workshop.published(role)
        signed.version = published.signed.version + 1 if published else 1
        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        metadata.to_file(str(self.metadata / f"{signed.version}.{role}.json"))
        self.renew()


def model(folder: Path, version: str, content: bytes = b"", name: str = "pump") -> Path:
    """A folder like a bundle."""
    made = folder / f"{name}-{version}"
    made.mkdir(parents=True)
    (made / "card.toml").write_text(f'name = "{name}"\nversion = "{version}"\n')
    (made / "model.bin").write_bytes(content or version.encode() * 1000)
    return made


class Box:
    """What a device keeps, and a clock that stands still."""

    def __init__(self, folder: Path, root: bytes, clock: float = NOON) -> None:
        self.folder, self.clock, self._root = folder, clock, root
        folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(folder / "models")

    def trust(self, rules: Rules = STRICT) -> Trust:
        return Trust(self.folder / "trust", self._root, self.times(), rules)

    def times(self) -> StoredTimes:
        return StoredTimes(self.folder / "floor", BUILT, lambda: self.clock, lambda: 0.0)

    def supply(
        self,
        repository: Repository,
        fleet: str = FLEET,
        apply: Apply = in_a_process_of_its_own,
        budget: int = 1 << 30,
        unwrapper: Unwrapper | None = None,
    ) -> Supply:
        means = Means(budget, Host("1.0", 1 << 30), apply, unwrapper)
        return Supply(self.trust(), repository, fleet, self.store, self.folder / "updates", means)


# ---- a web server ---------------------------------------------------------------------------------------------------

Fault = Callable[
    ["Handler", str, bytes, int], bool
]  # path, the file's bytes, where the range begins; whether it answered


class Handler(BaseHTTPRequestHandler):
    """Static files with ranges; `server.fault` is asked first."""

    server: "Server"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.server.asked.append((path, self.headers.get("Range", "")))
        try:
            data = (self.server.root / path).read_bytes()
        except OSError:
            self.send_error(404)
            return
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if not self.server.fault(self, path, data, begin):
            self.give(data, begin)

    def give(self, data: bytes, begin: int = 0, length: int | None = None) -> None:
        """The file from `begin` on, or a lie about its `length`."""
        rest = data[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(rest) if length is None else length))
        self.end_headers()
        self.wfile.write(rest)
        self.close_connection = True

    def endless(self, piece: bytes) -> None:
        """Chunks without an end, until the client goes away."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.ended.is_set():
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def reset(self) -> None:
        """The connection ends as if a cable were cut."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client went away

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.fault: Fault = lambda handler, path, data, begin: False
        self.asked: list[tuple[str, str]] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def repository(self, patience: Patience = PATIENT) -> Repository:
        return Repository.at(self.url, patience)

    def shutdown_request(self, request: object) -> None:
        with suppress(OSError, ValueError):
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    server = Server(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
