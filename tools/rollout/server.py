"""A static web server that counts what it gives; a process of its own: python -m tools.rollout.server FOLDER

It says its port in a line. Whatever line it gets it answers with its counts, in JSON; it ends with its input.
"""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KINDS = {".bundle": "bundles", ".delta": "deltas", ".campaign": "campaigns", ".json": "metadata"}


@dataclass(frozen=True)
class Counts:
    """Since the server began. Bytes by what was asked for; `headers` are bytes besides."""

    requests: int
    missed: int  # asked for and not there: a client looks for the next root so
    headers: int
    bytes: dict[str, int]

    @property
    def served(self) -> int:
        return self.headers + sum(self.bytes.values())


class WebServer:
    """The process, from outside."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{int(self._line())}"

    def counts(self) -> Counts:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Counts(**json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def serving(folder: Path) -> Iterator[WebServer]:
    command = [sys.executable, "-m", "tools.rollout.server", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield WebServer(process)
        finally:
            process.terminate()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.lock = root.resolve(), threading.Lock()
        self.requests = self.missed = self.headers = 0
        self.bytes: Counter[str] = Counter()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away when they have what they want."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = (self.server.root / self.path.lstrip("/")).resolve()
        if not path.is_relative_to(self.server.root) or not path.is_file():
            self._count("", 0, missed=True)
            self.send_error(404)
            return
        data = path.read_bytes()
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self._count(KINDS.get(path.suffix, "other"), len(data) - begin)
        self.wfile.write(data[begin:])

    def flush_headers(self) -> None:
        with self.server.lock:
            self.server.headers += sum(map(len, getattr(self, "_headers_buffer", [])))
        super().flush_headers()

    def _count(self, kind: str, size: int, missed: bool = False) -> None:
        with self.server.lock:
            self.server.requests += 1
            self.server.missed += missed
            if kind:
                self.server.bytes[kind] += size

    def log_message(self, *args: object) -> None:
        pass


def main(folder: Path) -> None:
    server = _Server(folder)
    threading.Thread(target=partial(server.serve_forever, 0.05), daemon=True).start()
    print(server.server_address[1], flush=True)
    with suppress(KeyboardInterrupt):
        for _ in sys.stdin:
            with server.lock:
                counts = Counts(server.requests, server.missed, server.headers, dict(server.bytes))
            print(json.dumps(counts.__dict__), flush=True)
    server.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
