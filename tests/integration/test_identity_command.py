"""`millwright identity` and tools/ca as people use them, and a broker elsewhere that lets in who has a certificate."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.bus.mqtt import MqttBus
from appliance.errors import BusError
from appliance.events import codec
from appliance.events.schema import Kind, State
from appliance.vault import client
from appliance.vault.certificates import authority
from appliance.vault.certificates.identity import Account, Identities
from tests import software_tpm
from tests.conftest import ROOT
from tests.integration.conftest import PATH, PATIENCE_S, Box
from tests.integration.test_door import free_port
from tools.certification.office import Office


@dataclass
class Authority:
    """tools/ca in a folder."""

    folder: Path
    told: list[str] = field(default_factory=list)

    def run(self, verb: str, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            self.command(verb, *words), cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False
        )
        told = (done.stdout + done.stderr).decode()
        assert done.returncode == code, told
        return told.strip()

    def command(self, verb: str, *words: str) -> list[str]:
        return [sys.executable, "-m", "tools.certification", verb, str(self.folder), *words]

    @contextmanager
    def serving(self) -> Iterator[str]:
        process = subprocess.Popen(
            self.command("serve", "--listen", "127.0.0.1:0"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)
            process.stdout.close()


@pytest.fixture
def ca(quiet_box: Box) -> Authority:
    made = Authority(quiet_box.folder / "ca")
    assert "fingerprint" in made.run("init")
    (made.folder / "rules.toml").write_text('least = "software"\n')
    return made


def configure(box: Box, more: str = "") -> None:
    box.config.write_text(
        f'[paths]\nstate = "{box.folder}/state"\nrun = "{box.folder}/run"\n[vault]\nbackend = "plain"\n{more}'
    )


def millwright(box: Box, *words: str, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        box.command(*words),
        env={**box.environment, **environment},
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    told = (done.stdout + done.stderr).decode()
    assert done.returncode == code, told
    return told


@pytest.fixture
def vault(quiet_box: Box) -> Box:
    """A box with a vault; it has no TPM."""
    configure(quiet_box)
    millwright(quiet_box, "vault", "init", "--recovery-file", f"{quiet_box.folder}/key")
    return quiet_box


def enrol(box: Box, ca: Authority, url: str) -> str:
    pin = ca.run("show").split()[-1]
    token = ca.run("token", "press-2")
    return millwright(
        box,
        "identity",
        "enrol",
        url,
        "--fingerprint",
        pin,
        "--name",
        "press-2",
        "--key",
        "vault",
        MILLWRIGHT_TOKEN=token,
    )


class TestCommand:
    def test_a_box_is_enrolled_renewed_and_revoked(self, vault: Box, ca: Authority) -> None:
        with ca.serving() as url:
            assert "known as  key in software" in enrol(vault, ca, url)
            first = json.loads(millwright(vault, "identity", "status", "--json"))
            assert (first["name"], first["due"], first["pending"], first["authority"]) == ("press-2", False, False, url)
            millwright(vault, "identity", "renew")
            assert len(json.loads(ca.run("list", "--json"))) == 2
            assert "2 certificates of press-2 are revoked" in ca.run("revoke", "press-2")
            assert "was revoked" in millwright(vault, "identity", "renew", code=5)
        assert "BEGIN X509 CRL" in (ca.folder / "revoked.pem").read_text()
        assert "name      press-2" in millwright(vault, "identity", "status")

    def test_the_key_of_the_authority_is_its_owners_alone(self, ca: Authority) -> None:
        ca.run("token", "press-2")
        for name in ("key.pem", "register.json"):
            assert (ca.folder / name).stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize(
        ("key", "level", "in_tpm"), [("vault", "key in software, box with TPM", False), ("tpm", "key in TPM", True)]
    )
    def test_a_box_with_a_tpm_shows_it(self, vault: Box, ca: Authority, key: str, level: str, in_tpm: bool) -> None:
        (ca.folder / "rules.toml").write_text('least = "box"\n')
        tpm = software_tpm.make()
        try:
            tpm.boot(b"r" * 32)
            with ca.serving() as url:
                words = ["--fingerprint", ca.run("show").split()[-1], "--name", "press-2", "--key", key]
                given = {"MILLWRIGHT_TPM": tpm.tcti, "MILLWRIGHT_TOKEN": ca.run("token", "press-2")}
                assert level in millwright(vault, "identity", "enrol", url, *words, **given)
                millwright(vault, "identity", "renew", MILLWRIGHT_TPM=tpm.tcti)
        finally:
            tpm.close()
        status = json.loads(millwright(vault, "identity", "status", "--json"))
        assert (status["level"], status["key_in_tpm"]) == (level, in_tpm)

    def test_by_hand(self, vault: Box, ca: Authority) -> None:
        request, answer = str(vault.folder / "request"), str(vault.folder / "answer")
        words = [
            "--nonce",
            ca.run("nonce"),
            "--name",
            "press-2",
            "--key",
            "vault",
            "--token",
            ca.run("token", "press-2"),
        ]
        assert "--ca ca.pem" in millwright(vault, "identity", "request", request, *words, code=2)
        millwright(vault, "identity", "request", request, "--ca", str(ca.folder / "ca.pem"), *words)
        assert "pending" in millwright(vault, "identity", "status")
        ca.run("issue", request, "--out", answer)
        assert "name      press-2" in millwright(vault, "identity", "install", answer)
        assert "was used" in ca.run("issue", request, "--out", answer, code=5)
        assert "here already" in millwright(vault, "identity", "install", answer, code=5)
        assert "by hand" in millwright(vault, "identity", "status")
        assert "no authority answers this box over the network" in millwright(vault, "identity", "renew", code=5)

    def test_a_failed_enrolment_elsewhere_leaves_the_account(self, vault: Box, ca: Authority) -> None:
        with ca.serving() as url:
            enrol(vault, ca, url)
            other = Authority(vault.folder / "other")
            other.run("init")
            with other.serving() as elsewhere:
                pin = other.run("show").split()[-1]
                told = millwright(vault, "identity", "enrol", elsewhere, "--fingerprint", pin, "--key", "vault", code=5)
            assert "this authority wants at least" in told
            assert json.loads(millwright(vault, "identity", "status", "--json"))["authority"] == url
            millwright(vault, "identity", "renew")

    @pytest.mark.parametrize(
        ("words", "problem", "code"),
        [
            (["enrol", "http://ca", "--fingerprint", "00" * 32], "no address of an authority", 5),
            (["enrol", "https://ca", "--fingerprint", "00"], "not 32 bytes in hex", 2),
            (["install", "none"], "none cannot be read", 2),
            (["renew"], "no authority answers this box", 5),
            (["enrol", "https://127.0.0.1:1", "--fingerprint", "00" * 32], "cannot be reached", 5),
            (["request", "x", "--nonce", "00" * 32, "--ca", "box.toml"], "box.toml cannot be read", 2),
        ],
    )
    def test_a_mistake_is_told(self, vault: Box, words: list[str], problem: str, code: int) -> None:
        assert problem in millwright(vault, "identity", *words, code=code)
        assert "no certificate" in millwright(vault, "identity", "status")


@dataclass
class Elsewhere:
    """A broker of others, which wants certificates of the authority."""

    folder: Path
    office: Office
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        program = shutil.which("mosquitto", path=PATH)
        if program is None:
            pytest.skip("mosquitto is not installed")
        self.folder.mkdir(exist_ok=True)
        key, certificate = self.office.server_certificate(["localhost"], time.time_ns())
        files = {"key.pem": key, "certificate.pem": certificate, "crl.pem": self.office.revoked(time.time_ns())}
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        settings = (
            f"listener {self.port} 127.0.0.1\nrequire_certificate true\nuse_identity_as_username true\n"
            f"cafile {self.office.folder}/ca.pem\n"
            f"keyfile {self.folder}/key.pem\ncertfile {self.folder}/certificate.pem\n"
            f"crlfile {self.folder}/crl.pem\nlog_dest stderr\nlog_type all\n"
        ) + ("user root\n" if os.geteuid() == 0 else "")
        (self.folder / "mosquitto.conf").write_text(settings)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([program, "-c", str(self.folder / "mosquitto.conf")], stderr=log)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.port}"

    def session(self) -> MqttBus:
        """Of one who looks on, with a certificate."""
        key = authority.new_key()
        one = authority.issue_client(self.office.authority, key.public_key(), "onlooker", time.time_ns())

        async def papers() -> bytes:
            return authority.key_pem(key) + authority.pem(one)

        return MqttBus(self.url, ca_file=f"{self.office.folder}/ca.pem", papers=papers)


@pytest.fixture
def elsewhere(vault: Box, ca: Authority) -> Iterator[Elsewhere]:
    made = Elsewhere(vault.folder / "broker", Office(ca.folder))
    made.start()
    yield made
    made.stop()


@asynccontextmanager
async def running(box: Box, *services: str) -> AsyncIterator[None]:
    with (box.folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *box.command("run", *services), stdout=log, stderr=log, env=box.environment
        )
    try:
        yield
        assert process.returncode is None, (box.folder / "log").read_text()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def heard(broker: Elsewhere, prefix: str) -> str:
    async with asyncio.timeout(PATIENCE_S), broker.session() as bus, bus.subscribe("#", qos=1) as batches:
        async for batch in batches:
            for message in batch:
                if message.topic.startswith(prefix):
                    return message.topic
    raise AssertionError("the bus ended")


def test_a_broker_elsewhere_lets_the_box_in_by_its_identity(vault: Box, ca: Authority, elsewhere: Elsewhere) -> None:
    with ca.serving() as url:
        enrol(vault, ca, url)
        configure(
            vault,
            f'[bus]\nurl = "{elsewhere.url}"\nca_file = "{ca.folder}/ca.pem"\n'
            'identity = {vault = "identity/device"}\n'
            "[connectors.host]\ninterval_s = 0.1\n",
        )

        async def scenario() -> None:
            async with running(vault, "vault", "ingest"):
                await heard(elsewhere, "mw/v1/reading/")
                # A new key, and the old certificate revoked: whoever connects anew shows the new one.
                before = {one.serial for one in elsewhere.office.issued()}
                await asyncio.to_thread(millwright, vault, "identity", "renew")
                after = {one.serial for one in elsewhere.office.issued()}
                assert len(after - before) == 1
                elsewhere.stop()
                elsewhere.start()
                await heard(elsewhere, "mw/v1/reading/")
                await heard(elsewhere, "mw/v1/state/vault")

        asyncio.run(scenario())
    assert "as mw-ingest" in (log := (vault.folder / "broker" / "log").read_text())
    assert "u'press-2'" in log
    plain = [
        path for path in (vault.folder / "state").rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    ]
    assert plain == []


def test_without_an_identity_the_session_says_why(vault: Box, elsewhere: Elsewhere) -> None:
    async def none() -> bytes:
        raise BusError("no certificate to show: no vault answers", "Start it.")

    async def scenario() -> None:
        trust = f"{elsewhere.office.folder}/ca.pem"
        async with MqttBus(elsewhere.url, ca_file=trust, papers=none) as bus:
            with pytest.raises(BusError, match="no certificate to show"):
                await bus.wait_connected(2)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("papers", "remedy"),
    [
        (b"-----BEGIN TSS2 PRIVATE KEY-----\nAA==\n-----END TSS2 PRIVATE KEY-----\n", "--key vault"),
        (b"nonsense", "both PEM"),
    ],
)
def test_an_identity_that_cannot_be_used_names_the_remedy(papers: bytes, remedy: str) -> None:
    from appliance.bus.address import tls_context, with_papers

    with pytest.raises(BusError, match=r"bus\.identity cannot be used") as caught:
        with_papers(tls_context(), papers)
    assert remedy in caught.value.remedy


@pytest.fixture
def due(box: Box, ca: Authority) -> Callable[[str], None]:
    """Gives a box, whose broker runs, a certificate that ends in half a day."""
    configure(box, f'[bus]\nurl = "{box.url}"\n')
    millwright(box, "vault", "init", "--recovery-file", f"{box.folder}/key")

    def enrolled(url: str) -> None:
        office, then = Office(ca.folder), time.time_ns() - 59 * 43_200_000_000_000
        identities = Identities(client.by_socket(box.folder / "run/vault.sock"), lambda: then, lambda: None)
        identities.open_account(Account("press-2", url, authority.pem(office.authority.certificate)))
        request = identities.ask(office.nonce(then), bytes.fromhex(office.token("press-2", then)))
        identities.install(office.answer_by_hand(request, then))

    return enrolled


async def state_of_vault(box: Box, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with (
        asyncio.timeout(PATIENCE_S),
        MqttBus(box.url) as bus,
        bus.subscribe("mw/v1/state/vault", qos=1) as batches,
    ):
        async for batch in batches:
            for message in batch:
                state = codec.decode(Kind.STATE, message.payload, 0)
                if isinstance(state, State) and holds(state.detail):
                    return state.detail
    raise AssertionError("the bus ended")


def test_the_vaults_state_says_that_nobody_renews(box: Box, due: Callable[[str], None]) -> None:
    async def scenario() -> str:
        async with running(box, "vault"):
            await state_of_vault(box, lambda detail: detail["open"])
            await asyncio.to_thread(due, "https://127.0.0.1:1")
        async with running(box, "vault"):
            detail = await state_of_vault(box, lambda detail: "trouble" in detail)
            assert detail["open"] is True
            assert detail["identity"]["name"] == "press-2"
            return str(detail["trouble"])

    assert "this box's certificate is not renewed: the authority at https://127.0.0.1:1" in asyncio.run(scenario())


def test_the_vault_that_runs_renews_by_itself(box: Box, ca: Authority, due: Callable[[str], None]) -> None:
    async def scenario(url: str) -> None:
        async with running(box, "vault"):
            await state_of_vault(box, lambda detail: detail["open"])
            await asyncio.to_thread(due, url)
        async with running(box, "vault"):
            later = time.time_ns() + 20 * 86_400_000_000_000
            detail = await state_of_vault(box, lambda detail: detail.get("identity", {}).get("until", 0) > later)
            assert "trouble" not in detail

    with ca.serving() as url:
        asyncio.run(scenario(url))
    assert len(Office(ca.folder).issued()) == 2
