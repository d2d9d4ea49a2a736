"""Where a repository is read from: a web server or a folder (a stick). Neither is trusted with anything.

A source may be slow, endless, cut off, reset, lie about lengths and ranges, or be full of links. What it gives is
bounded by whoever reads, and verified against signed data; what this file sees to is that it always ends.
"""

import os
import re
import socket
import ssl
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

from ota.errors import FetchError, MissingError, OtaError

_CHUNK = 1 << 16
_LOOK_S = 0.2  # between two looks whether it shall go on
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
_AS_IT_IS = "/%:@!$&'()*+,;=~"  # a name may be quoted already
_REMEDY = "It is tried again later; what arrived is kept."


GoesOn = Callable[[], None]  # may raise an OtaError, to stop: it comes out of what is being read


def _always() -> None:
    pass


@dataclass(frozen=True)
class Answer:
    """`begin` is the offset of the first byte in the file; the chunks may end early, without an error."""

    begin: int
    chunks: Iterator[bytes]


class Source(Protocol):
    """`courier`: it is carried about by hand, so that signatures on it live longer."""

    @property
    def courier(self) -> bool: ...

    def open(self, name: str, offset: int = 0) -> AbstractContextManager[Answer]:
        """A file from `offset` on, or from before it. MissingError, FetchError, also out of the chunks."""
        ...


@dataclass(frozen=True)
class Patience:
    """With a server. Every `window_s` it must have given `window_bytes`, from the first look-up of its name on."""

    connect_s: float = 15.0
    window_s: float = 60.0
    window_bytes: int = 4096


class Web:
    """Static files below a URL: any web server or CDN. Redirections are not followed."""

    courier = False

    def __init__(
        self,
        url: str,
        patience: Patience = Patience(),
        context: ssl.SSLContext | None = None,
        goes_on: GoesOn = _always,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OtaError(f"'{url}' is not an address of the web", "It begins with https:// or http://.")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._base, self._patience, self._goes_on = parts.path.rstrip("/"), patience, goes_on
        self._context = context or (ssl.create_default_context() if self._secure else None)

    def __str__(self) -> str:
        port = f":{self._port}" if self._port else ""
        return f"{self._host}{port}{self._base}"

    @contextmanager
    def open(self, name: str, offset: int = 0) -> Iterator[Answer]:
        with self._connected() as (connection, watch):
            try:
                connection.request("GET", f"{self._base}/{quote(name, safe=_AS_IT_IS)}", headers=_headers(offset))
                response = connection.getresponse()
            except (OSError, HTTPException, ValueError) as error:
                raise self._broken(name, error, watch) from error
            with closing(response):  # one that ends with its connection holds the socket by itself
                yield Answer(self._begin(name, response, offset), self._chunks(name, response, watch))

    @contextmanager
    def _connected(self) -> Iterator[tuple[HTTPConnection, "_Watch"]]:
        port = self._port or (443 if self._secure else 80)
        connection = HTTPConnection(self._host, port)
        try:
            raw = socket.create_connection((self._host, port), timeout=self._patience.connect_s)
        except OSError as error:
            raise self._broken("", error) from error
        with _Watch(raw, self._patience, self._goes_on) as watch:
            connection.sock = raw
            try:
                if self._context is not None:
                    connection.sock = watch.socket = self._context.wrap_socket(
                        raw, server_hostname=self._host, do_handshake_on_connect=False
                    )
                    watch.socket.do_handshake()
            except OSError as error:
                connection.close()
                raise self._broken("", error, watch) from error
            try:
                yield connection, watch
            finally:
                connection.close()

    def _begin(self, name: str, response: HTTPResponse, offset: int) -> int:
        if response.status in (403, 404, 410):
            raise MissingError(f"{self}/{name}: the server does not have it ({response.status})", _REMEDY)
        if response.status == 416 and offset:
            raise FetchError(f"{self}/{name}: the server has less of it than has arrived", _REMEDY)
        if response.status == 200:
            return 0  # it does not know ranges: all over again
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status != 206 or not found or int(found[1]) != offset:
            raise FetchError(f"{self}/{name}: the server answers {response.status}", _REMEDY)
        return offset

    def _chunks(self, name: str, response: HTTPResponse, watch: "_Watch") -> Iterator[bytes]:
        try:
            while chunk := response.read1(_CHUNK):
                watch.received += len(chunk)
                yield chunk
        except (OSError, HTTPException, ValueError) as error:
            raise self._broken(name, error, watch) from error
        if watch.given_up or watch.stopped:
            raise self._broken(name, TimeoutError(), watch)

    def _broken(self, name: str, error: Exception, watch: "_Watch | None" = None) -> OtaError:
        if watch is not None and watch.stopped is not None:
            return watch.stopped
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return FetchError(f"{self}/{name}: {what}", _REMEDY)


class _Watch:
    """Ends a connection that gives too little, whatever it is stuck in: a handshake, a header, the size of a chunk.

    A time limit on a socket does not do that: each single byte begins it anew.
    """

    def __init__(self, opened: socket.socket, patience: Patience, goes_on: GoesOn) -> None:
        self.socket, self._patience, self._goes_on = opened, patience, goes_on
        self.received = 0
        self.given_up = False
        self.stopped: OtaError | None = None  # by whoever fetches
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="ota watch")

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        before, window_s = 0, self._patience.window_s
        ends = time.monotonic() + window_s
        while not self._done.wait(min(_LOOK_S, window_s)):
            try:
                self._goes_on()
            except OtaError as error:
                self.stopped = error
                self._cut()
                return
            if time.monotonic() < ends:
                continue
            if self.received - before < self._patience.window_bytes:
                self.given_up = True
                self._cut()
                return
            before, ends = self.received, ends + window_s

    def _cut(self) -> None:
        with suppress(OSError):
            # Not SSLSocket.shutdown, which takes the session away under whoever reads.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


def _headers(offset: int) -> dict[str, str]:
    headers = {"User-Agent": "millwright", "Accept-Encoding": "identity"}
    return headers | ({"Range": f"bytes={offset}-"} if offset else {})


class Folder:
    """A repository in a folder, as on a stick. No link is followed, and nothing but plain files is opened."""

    def __init__(self, root: Path, courier: bool = True, below: tuple[str, ...] = ()) -> None:
        self._root, self.courier, self._below = root, courier, below

    def __str__(self) -> str:
        return str(self._root)

    @contextmanager
    def open(self, name: str, offset: int = 0) -> Iterator[Answer]:
        descriptor = self._descend(name)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FetchError(f"{self._root}/{name} is not a file", "Prepare the stick anew.")
            yield Answer(offset, self._chunks(name, descriptor, offset))
        finally:
            os.close(descriptor)

    def _descend(self, name: str) -> int:
        """One folder after the other: with O_NOFOLLOW a path as a whole may still lead out by a link in its middle."""
        *folders, last = name.split("/")
        if not last or any(part in ("", ".", "..") for part in (*folders, last)):
            raise MissingError(f"{self._root}: there is no '{name}'", "Prepare the stick anew.")
        try:
            here = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
            for part in (*self._below, *folders):
                here = _step(here, part, os.O_DIRECTORY)
            return _step(here, last, os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingError(f"{self._root}: there is no '{name}'", "Prepare the stick anew.") from error
        except (OSError, ValueError) as error:
            raise self._broken(name, error) from error

    def _chunks(self, name: str, descriptor: int, offset: int) -> Iterator[bytes]:
        try:
            while chunk := os.pread(descriptor, _CHUNK, offset):
                offset += len(chunk)
                yield chunk
        except OSError as error:
            raise self._broken(name, error) from error

    def _broken(self, name: str, error: Exception) -> FetchError:
        return FetchError(
            f"{self._root}/{name}: {getattr(error, 'strerror', None) or error}",
            "Plug the stick in again, or prepare it anew.",
        )


def _step(here: int, part: str, flags: int) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=here)
    finally:
        os.close(here)


class Several:
    """Files that several sources may have: from the first that gives them. For what is verified by its hash."""

    courier = False

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = deque(sources)

    def __str__(self) -> str:
        return str(self._sources[0]) if self._sources else "no source"

    @contextmanager
    def open(self, name: str, offset: int = 0) -> Iterator[Answer]:
        problems: list[FetchError] = []
        for source in list(self._sources):
            with ExitStack() as stack:
                try:
                    answer = stack.enter_context(source.open(name, offset))
                except FetchError as error:
                    problems.append(error)
                    continue
                yield self._watched(source, answer)
                return
        # One that fails may have it later; where all say that they do not have it, it is so.
        lasting = MissingError(
            f"there is no source of {name}", "Plug the stick in again, or name a source in [update]."
        )
        raise next((one for one in problems if not isinstance(one, MissingError)), problems[0] if problems else lasting)

    def _watched(self, source: Source, answer: Answer) -> Answer:
        return Answer(answer.begin, self._chunks(source, answer.chunks))

    def _chunks(self, source: Source, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """One that breaks off is asked last from now on."""
        try:
            yield from chunks
        except FetchError:
            self._sources.remove(source)
            self._sources.append(source)
            raise


@dataclass(frozen=True)
class Repository:
    """The two halves of a repository: signed metadata, and the files it speaks of."""

    metadata: Source
    files: Source

    def __str__(self) -> str:
        return str(self.metadata).removesuffix("/metadata")

    @classmethod
    def at(
        cls, url: str, patience: Patience = Patience(), context: ssl.SSLContext | None = None, goes_on: GoesOn = _always
    ) -> "Repository":
        """On the web, as `millwright-publish` lays it out."""
        url = url.rstrip("/")
        return cls(
            Web(f"{url}/metadata", patience, context, goes_on), Web(f"{url}/targets", patience, context, goes_on)
        )

    @classmethod
    def within(cls, root: Path, *below: str, courier: bool = True) -> "Repository":
        """In the folder `below` a root, on the way to which no link is followed."""
        return cls(Folder(root, courier, (*below, "metadata")), Folder(root, courier, (*below, "targets")))
