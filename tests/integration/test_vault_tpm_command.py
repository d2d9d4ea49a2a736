"""`millwright vault` where the machine has a TPM. It is swtpm, a TPM in software: nothing here ran on a real one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.vault import client
from hardware.tpm import find
from tests import software_tpm
from tests.software_tpm import SoftwareTpm, until

WAIT_S = 30.0
CANARY = "canary-0ff1ce"


class Machine:
    """A TPM, a folder with a configuration, and the command line."""

    def __init__(self, tpm: SoftwareTpm, folder: Path) -> None:
        self.tpm, self.folder = tpm, folder
        self.with_tpm = True
        self.configure("")

    def configure(self, vault: str) -> None:
        paths = f'[paths]\nstate = "{self.folder}/state"\nrun = "{self.folder}/run"\n'
        (self.folder / "box.toml").write_text(f"{paths}[vault]\n{vault}\n")

    @property
    def environment(self) -> dict[str, str]:
        own = {"XDG_RUNTIME_DIR": str(self.folder), "XDG_STATE_HOME": str(self.folder)}
        return {**os.environ, **own, "MILLWRIGHT_TPM": self.tpm.tcti if self.with_tpm else ""}

    def line(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "appliance", "--config", f"{self.folder}/box.toml", *words]

    def run(self, *words: str, given: str = "", code: int = 0) -> str:
        done = subprocess.run(
            self.line("vault", *words),
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def make(self) -> None:
        self.run("init", "--recovery-file", f"{self.folder}/key")
        self.run("put", "mqtt/plant", given=CANARY)

    def start(self) -> "subprocess.Popen[bytes]":
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(self.line("run", "vault"), env=self.environment, stdout=log, stderr=log)
        until(lambda: client.answers(self.folder / "run/vault.sock"), process)
        return process

    def stop(self, process: "subprocess.Popen[bytes]") -> None:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)


@pytest.fixture
def machine() -> Iterator[Machine]:
    tpm = software_tpm.make()
    folder = Path(tempfile.mkdtemp(prefix="mw-"))
    try:
        tpm.boot()
        yield Machine(tpm, folder)
    finally:
        tpm.close()
        shutil.rmtree(folder)


def test_the_tpm_is_chosen_by_itself_and_the_file_is_anchored_in_it(machine: Machine) -> None:
    machine.make()
    status = json.loads(machine.run("status", "--json"))
    assert (status["backend"], status["anchored"]) == ("tpm", True)
    assert "its end compared with a counter" in machine.run("audit", "verify")
    for layer in ("key", "binding"):
        machine.run("rotate", layer)
    machine.tpm.boot()
    assert machine.run("get", "mqtt/plant") == CANARY


def test_a_firmware_that_changed_is_named_and_the_recovery_key_opens(machine: Machine) -> None:
    machine.make()
    machine.tpm.boot(firmware=bytes(32))
    told = machine.run("get", "mqtt/plant", code=5)
    assert "PCR 7" in told
    assert told.count("millwright vault recover") == 1
    machine.run("recover", "--recovery-file", f"{machine.folder}/key")
    assert machine.run("get", "mqtt/plant") == CANARY


@pytest.mark.skipif(find().present, reason="this machine has a TPM of its own")
def test_a_board_without_a_tpm_does_not_turn_to_the_fingerprint_even_with_the_recovery_key(machine: Machine) -> None:
    machine.make()
    machine.with_tpm = False
    told = machine.run("recover", "--recovery-file", f"{machine.folder}/key", code=5)
    assert "bound by 'tpm', which does not work" in told
    assert 'backend = "fingerprint"' in told


def test_an_older_file_is_known_by_the_counter(machine: Machine) -> None:
    machine.make()
    older = {path: path.read_bytes() for path in (machine.folder / "state/vault").glob("vault.?")}
    machine.run("put", "mqtt/plant", given="newer")
    for path, content in older.items():
        path.write_bytes(content)
    assert "older than the latest" in machine.run("get", "mqtt/plant", code=5)
    machine.run("recover", "--recovery-file", f"{machine.folder}/key", code=5)
    machine.run("recover", "--recovery-file", f"{machine.folder}/key", "--accept-older")
    assert machine.run("get", "mqtt/plant") == CANARY


def test_a_journal_that_was_cut_off_is_known_by_its_counter(machine: Machine) -> None:
    machine.make()
    (file,) = (machine.folder / "state/vault/audit").iterdir()
    older = file.read_bytes()
    machine.run("get", "mqtt/plant")
    file.write_bytes(older)
    assert "not as it was written" in machine.run("audit", "verify", code=1)


def test_a_latched_vault_opens_once_in_a_boot_and_again_in_the_next(machine: Machine) -> None:
    machine.make()
    machine.configure("latch = true")
    process = machine.start()
    assert machine.run("get", "mqtt/plant") == CANARY
    machine.stop(process)
    told = machine.run("get", "mqtt/plant", code=5)
    assert "does not open" in told
    machine.tpm.boot()
    assert machine.run("get", "mqtt/plant") == CANARY


def test_without_a_latch_the_service_may_be_started_again(machine: Machine) -> None:
    machine.make()
    for _ in range(2):
        process = machine.start()
        assert machine.run("get", "mqtt/plant") == CANARY
        machine.stop(process)
