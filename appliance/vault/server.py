"""The vault's socket: whoever connects is known by the kernel, is bounded in all it does, and waits for nobody else.

A connection is a task of its own; the desk works in one thread, so a slow disk does not stop the loop. Bytes that are
no request end their connection, and nothing else. Peers of another user than root and the vault's own are limited in
connections and in requests a second: they wait, the others do not notice.
"""

import asyncio
import logging
import os
import socket
import stat
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from appliance.errors import MillwrightError, VaultError
from appliance.runtime.patience import result_within
from appliance.vault import peers, protocol
from appliance.vault.desk import Desk
from appliance.vault.policy import Peer
from appliance.vault.protocol import MAX_REQUEST, Frames, ProtocolError

log = logging.getLogger(__name__)

MODE = 0o666  # who may not is refused and audited; the folder's mode is the outer wall
MAX_SOCKET_PATH = 107  # bytes, unix(7)
BACKLOG = 128
CHUNK = 64 << 10
ACCEPT_AGAIN_S = 0.1  # after an error such as too many open files
MALFORMED_TOLD = 20
TIDY_S = 5.0
TIDY_TRIED = 720  # times TIDY_S: an hour

# systemd fails a unit's start where a credential is larger than 1 MiB, and hands an empty one over where the connection
# just ends: a service must not start with an empty password.
TOO_MUCH = (1 << 20) + 1

_T = TypeVar("_T")


class Limits(NamedTuple):
    connections: int = 256
    of_others: int = 128  # connections of users that are neither root nor the vault's own
    of_one: int = 32  # of one of them
    requests_per_s: float = 200.0  # of one of them
    burst: int = 50
    idle_s: float = 60.0  # without a request
    request_s: float = 5.0  # from a request's first byte to its last
    answer_s: float = 5.0  # for an answer to be taken


LIMITS = Limits()


class Allowance:
    """Tokens that refill: how long to wait before the next request."""

    def __init__(self, per_s: float, burst: int, now: float) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._tokens, self._at = self._burst, now

    def wait_s(self, now: float) -> float:
        """Takes one token, which may not be there yet."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s) - 1
        self._at = now
        return max(0.0, -self._tokens / self._per_s)


def listen(path: Path) -> socket.socket:
    """Listening. A socket that a dead process left behind is taken over. VaultError where that is not possible.

    The caller makes sure that no other vault uses the folder.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise VaultError(f"the path of the socket {path} is longer than {MAX_SOCKET_PATH} bytes", "Shorten paths.run.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise VaultError(f"{path} is in the way: it is no socket", "Remove it, or set vault.socket.")
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        _open_to_all(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise VaultError(f"{path} cannot be listened on: {error.strerror}", "Set vault.socket or paths.run.") from error
    except VaultError:
        listener.close()
        raise
    return listener


def _open_to_all(path: Path) -> None:
    """Through a descriptor: whoever may write to the folder could have laid a link to another file in the meantime."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise VaultError(f"{path} was replaced by something else", "Set vault.socket to a folder of its own.")
        Path(f"/proc/self/fd/{descriptor}").chmod(MODE)
    finally:
        os.close(descriptor)


class Server:
    """`serve` until cancelled; then `close`."""

    def __init__(
        self, desk: Desk, owner: int, limits: Limits = LIMITS, names: Callable[[], bool] = lambda: False
    ) -> None:
        """`owner`: the uid of the vault; `names`: whether the policy asks for users' and groups' names."""
        self._desk, self._owner, self._limits, self._names = desk, owner, limits, names
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vault")
        self._open: dict[asyncio.Task[None], int] = {}  # -> uid
        self._allowances: dict[int, Allowance] = {}
        self.turned_away = 0
        self.malformed = 0

    async def serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        tidying = loop.create_task(self._tidy(), name="vault tidying")
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError as error:
                    log.error("no connection can be accepted: %s", error)
                    await asyncio.sleep(ACCEPT_AGAIN_S)
                    continue
                self._welcome(sock)
        finally:
            tidying.cancel()
            listener.close()
            await self._end()

    @property
    def connections(self) -> int:
        return len(self._open)

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """Where the desk works."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            peer = peers.find(sock)
        except OSError:
            sock.close()
            return
        if not self._has_room(peer):
            self.turned_away += 1
            sock.close()
            return
        task = asyncio.get_running_loop().create_task(self._attend(sock, peer), name=f"vault: {peer}")
        self._open[task] = peer.uid
        task.add_done_callback(self._left)

    def _has_room(self, peer: Peer) -> bool:
        limits, uids = self._limits, Counter(self._open.values())
        if len(self._open) >= limits.connections:
            return False
        if self._is_ours(peer):
            return True
        others = sum(count for uid, count in uids.items() if uid not in (0, self._owner))
        return uids[peer.uid] < limits.of_one and others < limits.of_others

    def _is_ours(self, peer: Peer) -> bool:
        return peer.uid in (0, self._owner)

    def _left(self, task: "asyncio.Task[None]") -> None:
        uid = self._open.pop(task)
        if uid not in self._open.values():
            self._allowances.pop(uid, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Where, but not its text: what is wrong here may hold a secret.
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("a defect ended a connection: %s at %s:%s", type(error).__name__, place.filename, place.lineno)

    async def _attend(self, sock: socket.socket, peer: Peer) -> None:
        with sock, suppress(OSError, TimeoutError):
            if peer.unit:
                await self._hand_over(sock, peer)
            else:
                await self._converse(sock, await self._named(peer))

    async def _hand_over(self, sock: socket.socket, peer: Peer) -> None:
        """systemd reads to the end: the secret, and nothing else."""
        await self._wait_its_turn(peer)
        try:
            content = (await self.in_thread(lambda: self._desk.credential(peer))).reveal()
        except MillwrightError as error:
            if not peer.is_forged:  # that one costs its sender nothing: the audit counts it
                log.warning("no credential '%s' for %s: %s", peer.credential, peer, error.message)
            content = b"" if peer.is_forged else bytes(TOO_MUCH)
        await self._send(sock, content)

    async def _converse(self, sock: socket.socket, peer: Peer) -> None:
        """Request after request, until the peer has had enough."""
        frames, loop = Frames(MAX_REQUEST), asyncio.get_running_loop()
        deadline = loop.time() + self._limits.idle_s
        while True:
            was_begun = frames.begun
            data = await result_within(deadline - loop.time(), loop.sock_recv(sock, CHUNK))
            if not data:
                return
            answered = False
            try:
                for content in frames.feed(data):
                    await self._turn(sock, peer, content)
                    answered = True
            except ProtocolError as error:
                self.malformed += 1
                # Once is enough for a log: `malformed` counts, and noise costs its sender nothing.
                log.log(logging.DEBUG if self.malformed > MALFORMED_TOLD else logging.WARNING, "%s: %s", peer, error)
                return
            if not frames.begun:
                deadline = loop.time() + self._limits.idle_s
            elif answered or not was_begun:
                deadline = loop.time() + self._limits.request_s

    async def _turn(self, sock: socket.socket, peer: Peer, content: bytes) -> None:
        """One request. ProtocolError where it is none."""
        request = protocol.decode_request(content)
        await self._wait_its_turn(peer)
        try:
            body = await self.in_thread(lambda: self._desk.answer(peer, request))
        except MillwrightError as error:
            await self._send(sock, protocol.encode_error(error))
            return
        for frame in protocol.encode_answer(body):
            await self._send(sock, frame)

    async def _send(self, sock: socket.socket, data: bytes) -> None:
        await result_within(self._limits.answer_s, asyncio.get_running_loop().sock_sendall(sock, data))

    async def _wait_its_turn(self, peer: Peer) -> None:
        if self._is_ours(peer):
            return
        now = asyncio.get_running_loop().time()
        if peer.uid not in self._allowances:
            self._allowances[peer.uid] = Allowance(self._limits.requests_per_s, self._limits.burst, now)
        if wait_s := self._allowances[peer.uid].wait_s(now):
            await asyncio.sleep(wait_s)

    async def _named(self, peer: Peer) -> Peer:
        """With names, where the policy has any. Not in the desk's thread: a directory service may be slow."""
        if not self._names() or self._is_ours(peer):
            return peer
        user, groups = await asyncio.to_thread(peers.names, peer)
        return replace(peer, user=user, groups=groups)

    async def _tidy(self) -> None:
        for count in range(1, 1 << 62):
            await asyncio.sleep(TIDY_S)
            await self.in_thread(self._desk.tick)
            if count % TIDY_TRIED == 0:
                await self.in_thread(self._desk.tidy)

    async def _end(self) -> None:
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown(wait=True)
