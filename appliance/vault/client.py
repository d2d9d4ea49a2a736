"""A keeper over the vault's socket: the same calls, made by another process. Also one call for services: `fetch`.

A connection a call: a vault that was started again in between is not noticed. Whoever answers must be root, this very
user, or a user to whom root gave the socket's folder: a secret is told to no one else.
"""

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from appliance.errors import VaultError
from appliance.runtime.patience import result_within
from appliance.vault import protocol
from appliance.vault.policy import check_name
from appliance.vault.port import MAX_SECRET_BYTES, Entry, Layer, Status
from appliance.vault.protocol import MAX_ANSWER, MAX_BODY, Code, Frames, ProtocolError, Request, Verb
from appliance.vault.secret import Secret

ANSWER_S = 30.0  # a vault that rotates its key on a slow disk is not dead
CHUNK = 64 << 10
START = "Start it with 'millwright run', or make one with 'millwright vault init'."


Ask = Callable[[Request], bytes]


class Asking:
    """Custody by requests: `ask` carries one to the vault and gives back the body of its answer."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def status(self) -> Status:
        return protocol.from_body(self._ask(Request(Verb.STATUS)), Status)

    def get(self, name: str) -> Secret:
        return Secret(self._ask(Request(Verb.GET, name)))

    def put(self, name: str, content: Secret) -> Entry:
        return protocol.from_body(self._ask(Request(Verb.PUT, name, content=content)), Entry)

    def remove(self, name: str) -> None:
        self._ask(Request(Verb.REMOVE, name))

    def entries(self, prefix: str = "") -> Sequence[Entry]:
        return protocol.from_body(self._ask(Request(Verb.ENTRIES, detail=prefix)), list[Entry])

    def rotate(self, layer: Layer, name: str = "") -> None:
        self._ask(Request(Verb.ROTATE, name, layer))

    def backup(self) -> bytes:
        return self._ask(Request(Verb.BACKUP))

    def renew_recovery(self) -> Secret:
        return Secret(self._ask(Request(Verb.RENEW)))

    def recipients(self) -> Sequence[str]:
        return protocol.from_body(self._ask(Request(Verb.RECIPIENTS)), list[str])

    def add_recipient(self, line: str) -> None:
        self._ask(Request(Verb.ADMIT, content=Secret(line.encode())))

    def remove_recipient(self, name: str) -> None:
        self._ask(Request(Verb.DISMISS, detail=name))

    def expect(self, running: Mapping[str, str], coming: Mapping[str, str]) -> str:
        content = msgspec.json.encode((dict(running), dict(coming)))
        return self._ask(Request(Verb.EXPECT, content=Secret(content))).decode()

    def settled(self) -> None:
        self._ask(Request(Verb.SETTLED))

    def close(self) -> None:
        """There is nothing to forget here."""


def answers(path: Path) -> bool:
    """Whether a vault runs there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # there is one that this user may not ask, or that is busy
    return True


def by_socket(path: Path, answer_s: float = ANSWER_S) -> Asking:
    """Custody over the socket at `path`. VaultError, with the remedy, where no vault answers."""

    def ask(request: Request) -> bytes:
        check_bounds(request)
        reply = Reply()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(answer_s)
                sock.connect(str(path))
                check_server(sock, path)
                sock.sendall(protocol.encode_request(request))
                while (body := reply.feed(sock.recv(CHUNK))) is None:
                    pass
                return body
        except (OSError, ProtocolError) as error:
            raise _explained(path, error) from None

    return Asking(ask)


async def fetch(path: Path, name: str, answer_s: float = ANSWER_S) -> Secret:
    """One secret. VaultError, as above."""
    request = Request(Verb.GET, name)
    check_bounds(request)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            return Secret(await result_within(answer_s, _exchange(sock, path, request)))
    except (OSError, ProtocolError) as error:
        raise _explained(path, error) from None


async def _exchange(sock: socket.socket, path: Path, request: Request) -> bytes:
    loop, reply = asyncio.get_running_loop(), Reply()
    await loop.sock_connect(sock, str(path))
    check_server(sock, path)
    await loop.sock_sendall(sock, protocol.encode_request(request))
    while (body := reply.feed(await loop.sock_recv(sock, CHUNK))) is None:
        pass
    return body


class Reply:
    """Gathers the frames of one answer."""

    def __init__(self) -> None:
        self._frames = Frames(MAX_ANSWER)
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes | None:
        """The whole body, when it is there. What the vault answered with, if that is an error; ProtocolError."""
        if not data:
            raise ProtocolError("it hung up before it had answered")
        for content in self._frames.feed(data):
            answer = protocol.decode_answer(content)
            self._parts.append(protocol.result(answer))
            self._size += len(answer.body)
            if self._size > MAX_BODY:
                raise ProtocolError(f"it answers with more than {MAX_BODY} bytes")
            if answer.code is not Code.PART:
                return b"".join(self._parts)
        return None


def check_bounds(request: Request) -> None:
    """VaultError for what the server would take for noise."""
    if request.verb in (Verb.GET, Verb.PUT, Verb.REMOVE):
        check_name(request.name)
    for text in (request.name, request.detail):
        if len(text.encode()) > protocol.MAX_NAME:
            raise VaultError("a name that is too long", f"At most {protocol.MAX_NAME} bytes.")
        if not text.isprintable():
            raise VaultError("a name that cannot be printed", "Type it anew.")
    size = len(request.content.reveal())
    if size > MAX_SECRET_BYTES:
        raise VaultError(f"'{request.name}' would have {size} bytes", f"A secret has at most {MAX_SECRET_BYTES}.")


def check_server(sock: socket.socket, path: Path) -> None:
    """VaultError where the one who listens may be anybody, as in a shared temporary folder."""
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.geteuid()) and not _given_by_root(path.absolute().parent, uid):
        raise VaultError(
            f"uid {uid} answers at {path}, who may be anybody",
            "Run the vault as root or as this user, or move paths.run.",
        )


def _given_by_root(folder: Path, uid: int) -> bool:
    """Every folder on the way belongs to root or to `uid`, and nobody else may rename what is in it."""
    found = [one.stat() for one in (folder, *folder.parents)]
    closed = stat.S_IWGRP | stat.S_IWOTH
    return all(one.st_uid in (0, uid) and not one.st_mode & closed for one in found) and found[-1].st_uid == 0


def _explained(path: Path, error: Exception) -> VaultError:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return VaultError(f"no vault answers at {path}", START)
    if isinstance(error, PermissionError):
        return VaultError(f"{path} is closed to this user", "Ask as root or as the vault's user, or see vault.socket.")
    if isinstance(error, TimeoutError):
        return VaultError(f"the vault at {path} does not answer", "See its log; 'millwright doctor' looks at it.")
    reason = str(error) if isinstance(error, ProtocolError) else error.strerror if isinstance(error, OSError) else ""
    return VaultError(
        f"the vault at {path} did not answer in full: {reason}",
        "Ask again; a change may have been made or not: 'millwright vault list' tells.",
    )
