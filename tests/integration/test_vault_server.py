"""The vault's socket, from outside: a process of its own, and clients that are slow, hostile, forged or many.

Who may be another user, root, runs those clients as `nobody`; on a developer's machine the user is one other than root
already. What only root can be, systemd, is skipped there.
"""

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.errors import MillwrightError, RefusedError, VaultError
from appliance.vault import client, protocol
from appliance.vault.desk import Desk
from appliance.vault.memory import MemoryKeeper
from appliance.vault.policy import Policy
from appliance.vault.port import Custody
from appliance.vault.protocol import Request, Verb
from appliance.vault.secret import Secret
from appliance.vault.server import Limits, Server, listen

WAIT_S = 30.0
NOBODY = 65534
CASES = int(os.environ.get("MILLWRIGHT_FUZZ_CASES", "1500"))
FUZZ_S = 120 + CASES / 200
CANARY = b"canary-3f9a1c77-of-the-vault"
AS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not AS_ROOT and os.environ.get("CI") != "true", reason="only root can be systemd")
RULES = f"""
[[rule]]
unit = "mosquitto.service"
read = ["mqtt/*"]
credentials = {{password = "tls/broker/key"}}

[[rule]]
uid = {NOBODY}
read = ["open/**"]
write = ["open/token"]
"""


class Vault:
    """`millwright run vault` in a process of its own, with secrets in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "v.sock"
        self.config = folder / "box.toml"
        (folder / "rules.toml").write_text(RULES)
        (folder / "rules.toml").chmod(0o644)
        self.config.write_text(
            f'[paths]\nstate = "{folder}/state"\nrun = "{folder}/run"\n[log]\nlevel = "info"\n'
            f'[vault]\nbackend = "plain"\nsocket = "{self.socket}"\npolicy = "{folder}/rules.toml"\n'
        )
        own = {"XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder), "PYTHONWARNINGS": "error"}
        self._environment = {**os.environ, **own}
        self.log = folder / "log"
        self.command("vault", "init", "--recovery-file", str(folder / "key"))
        self.process = self._start()
        self.keeper = client.by_socket(self.socket)

    def command(self, *words: str) -> str:
        line = [sys.executable, "-m", "appliance", "--config", str(self.config), *words]
        done = subprocess.run(line, env=self._environment, capture_output=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def _start(self) -> "subprocess.Popen[bytes]":
        line = [sys.executable, "-m", "appliance", "--config", str(self.config), "run", "vault"]
        with self.log.open("ab") as log:
            process = subprocess.Popen(line, env=self._environment, stdout=log, stderr=log)
        wait_for(lambda: client.answers(self.socket))
        return process

    def again(self) -> None:
        self.process = self._start()

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(WAIT_S)

    def journal(self) -> list[dict[str, str]]:
        files = sorted((self.folder / "state/vault/audit").glob("*"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        pause.wait(0.02)


@pytest.fixture(scope="module")
def vault() -> Iterator[Vault]:
    with tempfile.TemporaryDirectory(prefix="mw-") as name:
        Path(name).chmod(0o755)
        made = Vault(Path(name))
        for secret in ("mqtt/plant", "tls/broker/key", "open/one", "open/token", "closed/one"):
            made.keeper.put(secret, Secret(CANARY + secret.encode()))
        yield made
        made.stop()


def as_systemd(path: Path, unit: str, credential: str) -> bytes:
    """What systemd does for LoadCredential=, as its own source says."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT_S)
        sock.bind(f"\0{random.getrandbits(64):x}/unit/{unit}/{credential}".encode())
        sock.connect(str(path))
        sock.shutdown(socket.SHUT_WR)
        return to_the_end(sock)


def to_the_end(sock: socket.socket) -> bytes:
    found = bytearray()
    while chunk := sock.recv(1 << 16):
        found += chunk
    return bytes(found)


class Stranger:
    """A process of another user than root and the vault's, that does as it is told by Python."""

    HEAD = (
        "import os, sys, socket, json, random, struct, contextlib\n"
        "from pathlib import Path\n"
        "from appliance.errors import MillwrightError\n"
        "from appliance.vault import client, protocol\n"
        "from appliance.vault.protocol import Request, Verb\n"
        "from appliance.vault.secret import Secret\n"
        "if os.geteuid() == 0:\n"
        f"    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "path = Path(sys.argv[1])\n"
    )

    def run(self, path: Path, script: str, *words: str, within_s: float = WAIT_S * 4) -> str:
        line = [sys.executable, "-c", self.HEAD + script, str(path), *words]
        done = subprocess.run(line, capture_output=True, timeout=within_s, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


stranger = Stranger()


@only_root
class TestUnits:
    def test_a_unit_gets_what_it_asks_for_by_name(self, vault: Vault) -> None:
        assert as_systemd(vault.socket, "mosquitto.service", "mqtt+plant") == CANARY + b"mqtt/plant"

    def test_and_by_the_id_of_its_rule(self, vault: Vault) -> None:
        assert as_systemd(vault.socket, "mosquitto.service", "password") == CANARY + b"tls/broker/key"

    @pytest.mark.parametrize(
        ("unit", "credential"),
        [
            ("mosquitto.service", "closed+one"),
            ("mosquitto.service", "none"),
            ("mosquitto.service", "mqtt+none"),
            ("other.service", "mqtt+plant"),
            ("other.service", "password"),
            ("mosquitto.service.d", "mqtt+plant"),
        ],
    )
    def test_a_refusal_is_larger_than_systemd_takes(self, vault: Vault, unit: str, credential: str) -> None:
        """systemd would start the unit with an empty secret; over 1 MiB it fails the start and says so."""
        told = as_systemd(vault.socket, unit, credential)
        assert len(told) > 1 << 20
        assert not told.strip(b"\0")

    @pytest.mark.parametrize("name", [b"\0f/unit/mosquitto.service/mqtt+plant/x", b"\0zz/unit/a/b", b"\0plain"])
    def test_another_abstract_name_is_no_unit(self, vault: Vault, name: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(WAIT_S)
            sock.bind(name)
            sock.connect(str(vault.socket))
            sock.sendall(protocol.encode_request(Request(Verb.GET, "open/one")))
            reply = client.Reply()
            while (body := reply.feed(sock.recv(1 << 16))) is None:
                pass
            assert body == CANARY + b"open/one"


class TestDescriptors:
    """None is left to the vault: nobody is answered with half of anything, and all is well once some are free again."""

    def test_it_comes_back_from_having_none(self, vault: Vault) -> None:
        usual = resource.prlimit(vault.process.pid, resource.RLIMIT_NOFILE)
        crowd: list[socket.socket] = []
        try:
            resource.prlimit(vault.process.pid, resource.RLIMIT_NOFILE, (self.open_now(vault) + 4, usual[1]))
            with contextlib.suppress(BlockingIOError):  # the queue of those that wait is full, too
                while len(crowd) < 40:
                    crowd.append(self.connected(vault))
            wait_for(lambda: "no connection can be accepted" in vault.log.read_text())
            with crowd.pop(0) as first, contextlib.suppress(OSError):
                request = protocol.encode_request(Request(Verb.PUT, "open/token", "", Secret(b"half?")))
                first.settimeout(WAIT_S)
                first.sendall(request)
                first.recv(1 << 16)
        finally:
            resource.prlimit(vault.process.pid, resource.RLIMIT_NOFILE, usual)
            for sock in crowd:
                sock.close()
        assert vault.keeper.get("open/one").reveal() == CANARY + b"open/one"
        assert vault.keeper.get("open/token").reveal() in (CANARY + b"open/token", b"half?")
        vault.keeper.put("open/token", Secret(CANARY + b"open/token"))
        assert vault.process.poll() is None

    @staticmethod
    def open_now(vault: Vault) -> int:
        return len(list(Path(f"/proc/{vault.process.pid}/fd").iterdir()))

    @staticmethod
    def connected(vault: Vault) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(vault.socket))
        except OSError:
            sock.close()
            raise
        return sock


class TestOthers:
    def test_a_forged_unit_gets_nothing_and_is_audited(self, vault: Vault) -> None:
        script = (
            "with socket.socket(socket.AF_UNIX) as sock:\n"
            "    sock.settimeout(20)\n"
            "    sock.bind(b'\\0deadbeef/unit/mosquitto.service/mqtt+plant')\n"
            "    sock.connect(str(path))\n"
            "    sock.shutdown(socket.SHUT_WR)\n"
            "    print(repr(sock.recv(1 << 16)))\n"
        )
        if not AS_ROOT:
            pytest.skip("a server of root is wanted, and another user")
        assert stranger.run(vault.socket, script) == "b''\n"
        refused = [note for note in vault.journal() if note["outcome"] == "refused" and "unit" in note["detail"]]
        assert (refused[-1]["actor"], refused[-1]["subject"]) == (f"uid {NOBODY}", "mqtt/plant")

    def test_forged_units_by_the_hundred_fill_neither_journal_nor_log(self, vault: Vault) -> None:
        if not AS_ROOT:
            pytest.skip("a server of root is wanted, and another user")
        script = (
            "for number in range(300):\n"
            "    with socket.socket(socket.AF_UNIX) as sock:\n"
            "        sock.settimeout(20)\n"
            "        sock.bind(f'\\0{number:x}/unit/forged{number}.service/a+{number}'.encode())\n"
            "        sock.connect(str(path))\n"
            "        assert sock.recv(1) == b''\n"
        )
        before = len(vault.journal())
        stranger.run(vault.socket, script)
        assert len(vault.journal()) - before < 60
        assert vault.log.read_text().count("forged") == 0

    def test_reads_without_permission_are_none(self, vault: Vault) -> None:
        """All verbs, names of all kinds, a few hundred times."""
        if not AS_ROOT:
            pytest.skip("a server of root is wanted, and another user")
        script = (
            "keeper, chance, told = client.by_socket(path), random.Random(11), {}\n"
            "names = ['mqtt/plant', 'tls/broker/key', 'open/one', 'open/token', 'closed/one', 'none/one',\n"
            "    'millwright/audit', 'open/../closed/one', 'open', '**', 'open/one ', '']\n"
            "acts = [keeper.get, keeper.remove, lambda name: keeper.put(name, Secret(b'mine')),\n"
            "    lambda name: keeper.rotate('secret', name), lambda name: keeper.rotate('namespace', name),\n"
            "    lambda name: keeper.backup(), lambda name: keeper.renew_recovery(),\n"
            "    lambda name: keeper.recipients(), lambda name: keeper.add_recipient(name),\n"
            "    lambda name: keeper.status()]\n"
            "for _ in range(400):\n"
            "    name, act = chance.choice(names), chance.randrange(len(acts))\n"
            "    with contextlib.suppress(MillwrightError):\n"
            "        if name == 'open/token' and act == 1: continue\n"
            "        acts[act](name)\n"
            "        told.setdefault(name, []).append(act)\n"
            "print(json.dumps([told, [entry.name for entry in keeper.entries()]]))\n"
        )
        told, listed = json.loads(stranger.run(vault.socket, script))
        assert {name: sorted(set(acts)) for name, acts in told.items()} == {"open/one": [0], "open/token": [0, 2, 3]}
        assert listed == ["open/one", "open/token"]
        assert vault.keeper.get("closed/one").reveal() == CANARY + b"closed/one"
        assert any(note["outcome"] == "refused" and note["subject"] == "closed/one" for note in vault.journal())

    def test_one_who_asks_for_ever_other_names_fills_no_journal(self, vault: Vault) -> None:
        if not AS_ROOT:
            pytest.skip("a server of root is wanted, and another user")
        script = (
            "keeper = client.by_socket(path)\n"
            "for number in range(200):\n"
            "    with contextlib.suppress(MillwrightError): keeper.get(f'guess/{number}')\n"
        )
        before = len(vault.journal())
        stranger.run(vault.socket, script)
        assert len(vault.journal()) - before < 60

    @pytest.mark.timeout(FUZZ_S + WAIT_S)
    def test_noise_of_strangers_ends_their_connections_only(self, vault: Vault) -> None:
        """A slice of the fuzzing: MILLWRIGHT_FUZZ_CASES for more, MILLWRIGHT_FUZZ_SEED for others."""
        seed = os.environ.get("MILLWRIGHT_FUZZ_SEED", "1")
        told = stranger.run(vault.socket, FUZZ, str(CASES), seed, within_s=FUZZ_S)
        assert CANARY.decode() not in told
        done = json.loads(told)
        assert done["cases"] == CASES
        assert done["leaked"] == 0 or not AS_ROOT
        assert vault.process.poll() is None
        assert vault.keeper.get("closed/one").reveal() == CANARY + b"closed/one"


FUZZ = """
chance = random.Random(int(sys.argv[3]))
names = ["mqtt/plant", "closed/one", "tls/broker/key", "millwright/audit", "x" * 259, ""]

def request():
    verb = chance.choice([verb for verb in Verb if verb not in (Verb.RENEW, Verb.REMOVE)])
    content = Secret(b"s" * chance.randrange(99))
    made = Request(verb, chance.choice(names), chance.choice(["", "key", "secret"]), content)
    return bytearray(protocol.encode_request(made))

def harmed(frame):
    how = chance.randrange(7)
    if how == 0:
        for _ in range(chance.randint(1, 8)):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
    elif how == 1:
        del frame[chance.randrange(len(frame)):]
    elif how == 2:
        frame[:4] = struct.pack(">I", chance.choice([0, 1, 3, 2**16, 2**24, 2**32 - 1, len(frame)]))
    elif how == 3:
        frame = bytearray(chance.randbytes(chance.randrange(1, 400)))
    elif how == 4:
        at = chance.randrange(4, len(frame))
        frame[at:at] = chance.randbytes(chance.randrange(1, 9))
        frame[:4] = struct.pack(">I", len(frame) - 4)
    elif how == 5:
        frame = frame * chance.randint(2, 20)
    return frame

cases = leaked = 0
while cases < int(sys.argv[2]):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        with contextlib.suppress(OSError):
            for _ in range(chance.randint(1, 5)):
                sock.sendall(harmed(request()))
                cases += 1
                if cases >= int(sys.argv[2]):
                    break
            if chance.random() < 0.8:
                sock.shutdown(socket.SHUT_WR)
                while told := sock.recv(1 << 16):
                    leaked += b"canary-3f9a1c77" in told
print(json.dumps({"cases": cases, "leaked": leaked}))
"""


class TestMany:
    def test_a_hundred_clients_at_once(self, vault: Vault) -> None:
        """Each with a connection of its own, beside two that say nothing."""
        idle = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for sock in idle:
            sock.connect(str(vault.socket))
        idle[0].sendall(b"\0\0")
        gate = threading.Barrier(100)

        def ask(number: int) -> int:
            keeper = client.by_socket(vault.socket)
            gate.wait(WAIT_S)
            return sum(keeper.get("mqtt/plant").reveal() == CANARY + b"mqtt/plant" for _ in range(10))

        with ThreadPoolExecutor(100) as threads:
            assert list(threads.map(ask, range(100))) == [10] * 100
        for sock in idle:
            sock.close()

    def test_a_reader_never_notices_a_rotation(self, vault: Vault) -> None:
        stop, wrong, reads = threading.Event(), [], []

        def read() -> None:
            keeper = client.by_socket(vault.socket)
            while not stop.is_set():
                if keeper.get("mqtt/plant").reveal() != CANARY + b"mqtt/plant":
                    wrong.append(1)
                reads.append(1)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            vault.keeper.rotate("secret", "mqtt/plant")
            vault.keeper.rotate("namespace", "mqtt")
            vault.keeper.rotate("key")
            vault.keeper.rotate("binding")
        wait_for(lambda: len(reads) > 50)
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert not wrong

    def test_a_vault_that_is_killed_loses_nothing_and_tells_its_clients(self, vault: Vault) -> None:
        clients = Clients(vault.socket)
        for _ in range(3):
            clients.wait_for_writes(3)
            vault.stop(signal.SIGKILL)
            kept = clients.acknowledged
            vault.again()
            (entry,) = vault.keeper.entries("kill/one")
            assert entry.version >= kept
        clients.stop()
        assert not clients.wrong
        assert clients.told
        assert all(error.remedy for error in clients.told)


class Clients:
    """Two that read and one that writes, for as long as they are not stopped."""

    def __init__(self, path: Path) -> None:
        self._keeper = client.by_socket(path)
        self._stopped = threading.Event()
        self.acknowledged = 0  # the last version that was written
        self.told: list[VaultError] = []
        self.wrong: list[bytes] = []
        self._threads = [
            threading.Thread(target=self._go_on, args=(act,)) for act in (self._read, self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for_writes(self, count: int) -> None:
        before = self.acknowledged
        wait_for(lambda: self.acknowledged > before + count)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(WAIT_S)

    def _go_on(self, act: Callable[[], None]) -> None:
        while not self._stopped.is_set():
            try:
                act()
            except VaultError as error:
                self.told.append(error)

    def _read(self) -> None:
        found = self._keeper.get("mqtt/plant").reveal()
        if found != CANARY + b"mqtt/plant":
            self.wrong.append(found)

    def _write(self) -> None:
        self.acknowledged = self._keeper.put("kill/one", Secret(b"x")).version


class TestSecrecy:
    def test_the_process_has_no_core_dump_and_the_log_no_secret(self, vault: Vault) -> None:
        limits = Path(f"/proc/{vault.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]
        as_systemd(vault.socket, "other.service", "mqtt+plant") if AS_ROOT else None
        assert CANARY not in vault.log.read_bytes()
        assert b"Traceback" not in vault.log.read_bytes()
        assert all(CANARY.decode() not in json.dumps(note) for note in vault.journal())

    def test_a_debugger_of_another_user_is_kept_out(self, vault: Vault) -> None:
        assert Path(f"/proc/{vault.process.pid}/status").exists()
        assert Path(f"/proc/{vault.process.pid}/mem").stat().st_uid == 0


class Notes:
    """An audit in memory."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str, str]] = []

    def note(
        self, actor: str, action: str, subject: str, outcome: str, detail: dict[str, object] | None = None
    ) -> None:
        self.told.append((actor, action, subject, outcome))

    def tick(self) -> None:
        return None


class Slow(MemoryKeeper):
    """A keeper whose disk is slow while it is told to be."""

    def __init__(self) -> None:
        super().__init__(lambda: 1)
        self.free = threading.Event()
        self.begun = threading.Event()

    def remove(self, name: str) -> None:
        self.begun.set()
        assert self.free.wait(WAIT_S)
        super().remove(name)


async def serving(custody: Custody, folder: Path, act: Callable[[Path, Server], None], limits: Limits) -> Notes:
    """Run `act` in a thread beside a server of this process."""
    notes, uid = Notes(), os.geteuid()
    server = Server(Desk(custody, lambda: Policy(uid), notes), uid, limits)
    task = asyncio.create_task(server.serve(listen(folder / "v.sock")))
    try:
        async with asyncio.timeout(WAIT_S):
            await asyncio.to_thread(act, folder / "v.sock", server)
    finally:
        task.cancel()
        await asyncio.wait([task])
    return notes


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(WAIT_S)
    sock.connect(str(path))
    return sock


class TestLimits:
    def test_who_is_silent_or_never_ends_a_request_is_hung_up(self, tmp_path: Path) -> None:
        def act(path: Path, server: Server) -> None:
            silent, unending = connected(path), connected(path)
            unending.sendall(protocol.encode_request(Request(Verb.GET, "a/b"))[:-1])
            assert silent.recv(1) == b""
            assert unending.recv(1) == b""
            silent.close()
            unending.close()

        asyncio.run(serving(MemoryKeeper(lambda: 1), tmp_path, act, Limits(idle_s=0.1, request_s=0.1)))

    def test_who_never_takes_the_answer_delays_nobody_and_is_hung_up(self, tmp_path: Path) -> None:
        keeper = MemoryKeeper(lambda: 1)
        keeper.put("a/b", Secret(bytes(60_000)))

        def act(path: Path, server: Server) -> None:
            greedy = connected(path)
            greedy.sendall(protocol.encode_request(Request(Verb.GET, "a/b")) * 50)
            for _ in range(20):
                assert len(client.by_socket(path).get("a/b").reveal()) == 60_000
            wait_for(lambda: server.connections == 0)
            received = to_the_end(greedy)
            assert len(received) < 50 * 60_000
            greedy.close()

        asyncio.run(serving(keeper, tmp_path, act, Limits(answer_s=0.2)))

    def test_a_slow_disk_stops_no_connection_from_being_accepted(self, tmp_path: Path) -> None:
        keeper = Slow()
        keeper.put("a/b", Secret(b"x"))

        def act(path: Path, server: Server) -> None:
            with ThreadPoolExecutor(2) as threads:
                removing = threads.submit(client.by_socket(path).remove, "a/b")
                assert keeper.begun.wait(WAIT_S)
                noise = connected(path)
                noise.sendall(b"\xff\xff\xff\xff")
                assert noise.recv(1) == b""  # judged while the disk still works
                noise.close()
                keeper.free.set()
                removing.result(WAIT_S)

        asyncio.run(serving(keeper, tmp_path, act, Limits()))

    def test_more_connections_than_allowed_are_closed_and_counted(self, tmp_path: Path) -> None:
        def act(path: Path, server: Server) -> None:
            first = [connected(path) for _ in range(3)]
            for sock in first:
                sock.sendall(protocol.encode_request(Request(Verb.ENTRIES)))
                assert sock.recv(1)
            extra = connected(path)
            assert extra.recv(1) == b""
            assert server.turned_away == 1
            for sock in (*first, extra):
                sock.close()
            wait_for(lambda: _answers(path))

        asyncio.run(serving(MemoryKeeper(lambda: 1), tmp_path, act, Limits(connections=3)))

    def test_another_user_has_a_share_that_leaves_room_for_us(self) -> None:
        if not AS_ROOT:
            pytest.skip("only root can start a process of another user")
        script = (
            "socks = [socket.socket(socket.AF_UNIX) for _ in range(3)]\n"
            "for sock in socks:\n"
            "    sock.settimeout(20)\n"
            "    sock.connect(str(path))\n"
            "    with contextlib.suppress(OSError): sock.sendall(protocol.encode_request(Request(Verb.ENTRIES)))\n"
            "def heard(sock):\n"
            "    with contextlib.suppress(ConnectionError): return len(sock.recv(1))\n"
            "    return 0\n"
            "print([heard(sock) for sock in socks])\n"
        )

        def act(path: Path, server: Server) -> None:
            assert stranger.run(path, script) == "[1, 1, 0]\n"
            assert _answers(path)

        with tempfile.TemporaryDirectory(prefix="mw-") as name:
            Path(name).chmod(0o755)
            asyncio.run(serving(MemoryKeeper(lambda: 1), Path(name), act, Limits(of_one=2)))


def _answers(path: Path) -> bool:
    try:
        client.by_socket(path).entries()
    except VaultError:
        return False
    return True


class TestClients:
    def test_where_no_vault_runs_the_remedy_says_how_to_start_one(self, tmp_path: Path) -> None:
        with pytest.raises(VaultError, match="no vault answers") as caught:
            client.by_socket(tmp_path / "none.sock").get("a/b")
        assert "millwright vault init" in caught.value.remedy
        with pytest.raises(VaultError, match="no vault answers"):
            asyncio.run(client.fetch(tmp_path / "none.sock", "a/b"))

    def test_a_service_fetches_one(self, vault: Vault) -> None:
        assert asyncio.run(client.fetch(vault.socket, "mqtt/plant")).reveal() == CANARY + b"mqtt/plant"
        with pytest.raises(VaultError, match="none/one"):
            asyncio.run(client.fetch(vault.socket, "none/one"))

    @pytest.mark.parametrize("answer", [b"", b"\0\0\0\1\xff", b"\xff\xff\xff\xff", b"HTTP/1.1 200 OK\r\n\r\n"])
    def test_a_server_that_speaks_otherwise_is_an_error(self, answer: bytes, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "v.sock"))
            listener.listen()

            def serve() -> None:
                sock, _ = listener.accept()
                with sock:
                    sock.recv(1 << 16)
                    sock.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            with pytest.raises(VaultError, match="did not answer in full") as caught:
                client.by_socket(tmp_path / "v.sock").get("a/b")
            thread.join(WAIT_S)
            assert caught.value.remedy

    def test_a_stranger_who_listens_is_told_nothing(self, tmp_path: Path) -> None:
        if not AS_ROOT:
            pytest.skip("only root can start a process of another user")
        folder = Path(tempfile.mkdtemp(prefix="mw-"))
        folder.chmod(0o777)
        script = (
            "with socket.socket(socket.AF_UNIX) as listener:\n"
            "    listener.bind(str(path)); listener.listen(); print('up', flush=True)\n"
            "    sock, _ = listener.accept(); print(repr(sock.recv(100)))\n"
        )
        line = [sys.executable, "-c", Stranger.HEAD + script, str(folder / "v.sock")]
        with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            with pytest.raises(VaultError, match="who may be anybody"):
                client.by_socket(folder / "v.sock").put("a/b", Secret(CANARY))
            assert process.stdout.readline() == b"b''\n"
        (folder / "v.sock").unlink()
        folder.rmdir()

    def test_refusals_are_of_their_kind(self, vault: Vault) -> None:
        if not AS_ROOT:
            pytest.skip("a server of root is wanted, and another user")
        script = (
            "from appliance.errors import RefusedError\n"
            "try:\n    client.by_socket(path).get('closed/one')\n"
            "except RefusedError as error:\n    print(error)\n"
        )
        told = stranger.run(vault.socket, script)
        assert told.startswith(f"uid {NOBODY} may not read 'closed/one'")
        assert "vault.policy" in told

    def test_every_error_of_the_vault_is_one_of_ours(self) -> None:
        assert issubclass(RefusedError, VaultError)
        assert issubclass(VaultError, MillwrightError)
