"""`millwright devices` with a vault that runs and without one, and a reading on its way from a certified device."""

import asyncio
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.vault import client
from appliance.vault.certificates import authority, enrolment
from appliance.vault.certificates.enrolment import Level
from tests.integration.conftest import PATIENCE_S, Box
from tests.integration.test_door import MOSQUITTO_PUB, free_port


def ask(box: Box, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        box.command(*words), env=box.environment, capture_output=True, timeout=PATIENCE_S, check=False
    )
    told = (done.stdout + done.stderr).decode()
    return done.returncode, told


def millwright(box: Box, *words: str, code: int = 0) -> str:
    found, told = ask(box, *words)
    assert found == code, told
    return told


@pytest.fixture
def vault(quiet_box: Box) -> Box:
    """A box with a vault, and a door to devices."""
    quiet_box.config.write_text(
        f'[paths]\nstate = "{quiet_box.folder}/state"\nrun = "{quiet_box.folder}/run"\n[vault]\nbackend = "plain"\n'
        f'[broker]\ntls_port = {free_port()}\ntls_address = "127.0.0.1"\ntls_names = ["localhost"]\n'
        "[connectors]\n"
    )
    millwright(quiet_box, "vault", "init", "--recovery-file", f"{quiet_box.folder}/key")
    return quiet_box


@contextmanager
def running(box: Box, *services: str) -> Iterator[None]:
    with (box.folder / "log").open("ab") as log:
        process = subprocess.Popen(box.command("run", *services), env=box.environment, stdout=log, stderr=log)

    def said() -> str:
        assert process.poll() is None, (box.folder / "log").read_text()
        return "open" if client.answers(box.folder / "run/vault.sock") else ""

    try:
        until(said)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def until(look: Callable[[], str]) -> str:
    """What it gives once it gives something."""

    async def wait() -> str:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := await asyncio.to_thread(look)):  # noqa: ASYNC110  # a process has no event
                await asyncio.sleep(0)
            return found

    return asyncio.run(wait())


def certified(box: Box, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((box.folder / name / "certificate.pem").read_bytes())


def listed(box: Box) -> dict[str, dict[str, object]]:
    devices = json.loads(millwright(box, "devices", "certified", "--json"))["devices"]
    return {device["name"]: device for device in devices}


class TestCommand:
    def test_a_device_with_a_key_of_its_own_is_admitted_listed_and_revoked(self, vault: Box) -> None:
        key = authority.new_key()
        request = vault.folder / "pump.csr"
        asked = x509.load_der_x509_csr(enrolment.certificate_request("whatever", Level.SOFTWARE, key))
        request.write_bytes(asked.public_bytes(Encoding.PEM))
        out = ["--out", str(vault.folder / "pump-3")]
        with running(vault, "vault"):
            millwright(vault, "devices", "certify", "pump-3", "--asset", "line1/pump", "--request", str(request), *out)
            assert not (vault.folder / "pump-3" / "key.pem").exists()
            certificate = certified(vault, "pump-3")
            assert certificate.subject.rfc4514_string() == "CN=pump-3"
            assert certificate.public_key() == key.public_key()
            device = listed(vault)["pump-3"]
            assert device["publish"] == [
                f"mw/v1/{kind}/line1/pump{end}" for kind in ("reading", "block") for end in ("", "/#")
            ]
            assert device["revoked"] is False
            assert "may do nothing any more" in millwright(vault, "devices", "revoke", "pump-3")
            assert listed(vault)["pump-3"]["revoked"] is True

    def test_listing_and_revoking_need_no_vault(self, vault: Box) -> None:
        with running(vault, "vault"):
            millwright(
                vault, "devices", "certify", "scada", "--subscribe", "mw/v1/#", "--out", str(vault.folder / "scada")
            )
        assert "mw/v1/#" in millwright(vault, "devices", "certified")
        millwright(vault, "devices", "revoke", "scada")
        assert "revoked" in millwright(vault, "devices", "certified")
        told = millwright(vault, "devices", "certify", "x", "--subscribe", "#", "--out", f"{vault.folder}/x", code=5)
        assert "no vault answers" in told
        assert "\n  -> " in told

    @pytest.mark.parametrize(
        ("words", "problem", "remedy", "code"),
        [
            (["Pump 3", "--asset", "line1/pump"], "'Pump 3' cannot be a device's name", "such as 'pump-3'", 5),
            (["pump", "--asset", "Line 1"], "--asset: ", "Write it as in line1/pump", 2),
            (["pump", "--asset", "a/b/c/d/e/f/g/h/i"], "--asset: ", "Write it as in line1/pump", 2),
            (["pump", "--publish", "mw/v1/#/x"], "'mw/v1/#/x' is no topic filter", "mw/v1/alarm/#", 2),
            (["pump", "--subscribe", "a+/b"], "'a+/b' is no topic filter", "mw/v1/+/line1/pump", 2),
            (["pump", "--subscribe", "a\nuser root"], "is no topic filter", "mw/v1/alarm/#", 2),
            (["pump", "--publish", ""], "'' is no topic filter", "mw/v1/alarm/#", 2),
            (["pump", "--publish", " a"], "' a' is no topic filter", "mw/v1/alarm/#", 2),
            (["pump", "--asset", "a", "--days", "x"], "x is not a number of days", "1 to 36500", 2),
            (["pump"], "'pump' would be allowed nothing", "--asset or --subscribe", 2),
            (["pump", "--asset", "a", "--request", "none"], "none cannot be read", "Name a certificate request", 1),
            (["pump", "--asset", "a", "--request", "/dev/null"], "cannot be used", "Make it anew", 5),
        ],
    )
    def test_what_is_refused_says_the_remedy(
        self, vault: Box, words: list[str], problem: str, remedy: str, code: int
    ) -> None:
        with running(vault, "vault"):
            told = millwright(vault, "devices", "certify", *words, "--out", f"{vault.folder}/out", code=code)
        assert problem in told
        assert remedy in told
        assert not (vault.folder / "out").exists()
        assert listed(vault) == {}

    def test_who_is_not_there_is_not_revoked(self, vault: Box) -> None:
        assert "'millwright devices certified'" in millwright(vault, "devices", "revoke", "pump-9", code=5)

    def test_a_key_is_not_written_over(self, vault: Box) -> None:
        words = ["devices", "certify", "pump", "--asset", "a", "--out", str(vault.folder / "pump")]
        with running(vault, "vault"):
            millwright(vault, *words)
            before = (vault.folder / "pump" / "key.pem").read_bytes()
            assert "Name a new folder" in millwright(vault, *words, code=1)
        assert (vault.folder / "pump" / "key.pem").read_bytes() == before

    def test_nobody_is_certified_whose_folder_cannot_be_written(self, vault: Box) -> None:
        words = ["devices", "certify", "pump", "--asset", "a", "--out", f"{vault.config}/pump"]
        with running(vault, "vault"):
            assert "Name a new folder" in millwright(vault, *words, code=1)
        assert listed(vault) == {}


def publish(box: Box, name: str, message: str) -> "subprocess.CompletedProcess[bytes]":
    given = box.folder / name
    port = next(line.split()[-1] for line in box.config.read_text().splitlines() if line.startswith("tls_port"))
    words = ["-h", "localhost", "-p", port, "--cafile", str(given / "ca.pem"), "-q", "1"]
    own = ["--cert", str(given / "certificate.pem"), "--key", str(given / "key.pem")]
    topic = ["-t", "mw/v1/reading/line1/pump", "-m", message]
    return subprocess.run([MOSQUITTO_PUB, *words, *own, *topic], capture_output=True, timeout=PATIENCE_S, check=False)


def test_a_reading_of_a_certified_device_is_history(vault: Box) -> None:
    """All of it as on a box: vault, broker and its door, the device's own client, the recorder."""
    if shutil.which(MOSQUITTO_PUB) is None:
        pytest.skip("mosquitto-clients is not installed")
    with running(vault, "vault", "broker", "record"):
        out = str(vault.folder / "pump")
        millwright(vault, "devices", "certify", "pump", "--asset", "line1/pump", "--out", out)

        def recorded() -> str:
            done = publish(vault, "pump", '{"temperature": 61.25}')
            code, told = ask(vault, "history", "line1/pump") if done.returncode == 0 else (1, "")
            return told if code == 0 and "61.25" in told else ""

        assert "temperature" in until(recorded)
        millwright(vault, "devices", "revoke", "pump")
        until(lambda: "refused" if publish(vault, "pump", '{"temperature": 99.5}').returncode else "")
    assert (vault.folder / "pump" / "key.pem").stat().st_mode & 0o077 == 0
